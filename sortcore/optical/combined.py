"""Spiking activity by network and deconvolution together.

The network has the deconvolution among its inputs and is nearer to the truth on most cells. Where a recording is unlike all that
it was trained on, the deconvolution, which knows no cells, is nearer. The sum of both, each in units of its own standard deviation and
scaled to the number of spikes that the network expects, loses little to the better of the two on any kind of cell (benchmarks).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sortcore.errors import ModelError
from sortcore.optical.calcium import CalciumResult, infer_calcium
from sortcore.optical.network import NetworkActivity, infer_network
from sortcore.progress import Track, silent


@dataclass(frozen=True)
class CombinedActivity:
    """Activity of N cells over T frames by both ways. For one trace given as (T,) arrays lose their first axis.

    activity: (N, T) float32 expected spikes of each frame, NaN where a trace says nothing
    deconvolved: what the deconvolution says, with the fit, the baseline and the times that it estimated
    network: what the network says, with intervals of the totals
    """

    activity: np.ndarray
    deconvolved: CalciumResult
    network: NetworkActivity


def infer_combined(traces: np.ndarray, fs: float, *, out: np.ndarray | None = None, device: str = "auto",
                   track: Track = silent) -> CombinedActivity:
    """Expected spikes of each frame of dF/F traces, by deconvolution and network together.

    traces: (N, T) or (T,) dF/F as a fraction, any real dtype, NaN where missing; may be a memory map
    fs: frames per second
    out: (N, T) float32 that takes `activity` in place
    device: where the network runs, see `infer_network`
    Raises ModelError as `infer_calcium` and `infer_network` do.
    """
    network = infer_network(traces, fs, device=device, track=track)
    deconvolved = infer_calcium(traces, fs, track=track)
    shape = network.expected.shape
    activity = np.empty(shape, np.float32) if out is None else out
    if activity.shape != shape:
        raise ModelError(f"out must have the shape of the traces, {shape}, but it is {activity.shape}.")
    rows = (np.atleast_2d(a) for a in (activity, network.expected, deconvolved.activity))
    for into, expected, found in zip(*rows, strict=True):
        into[:] = combine(expected, found)
    return CombinedActivity(activity, deconvolved, network)


def combine(expected: np.ndarray, deconvolved: np.ndarray) -> np.ndarray:
    """(T,) sum of two activities (T,), each over its standard deviation; its total is that of the first."""
    parts = [a / a.std() for a in (expected, deconvolved) if a.std() > 0]
    both = sum(parts, np.zeros(expected.shape))
    total = both.sum()
    return both * (expected.sum() / total) if total > 0 else expected
