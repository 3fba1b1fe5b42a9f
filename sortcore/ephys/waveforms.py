"""Mean waveforms in microvolts, read from the recording itself at the spikes that were found."""

from __future__ import annotations

import itertools

import numba
import numpy as np
import torch

from sortcore.numerics import fft_filter
from sortcore.recording import Chunk, Recording, chunks, read_padded
from sortcore.types import Preprocessing, Spikes
from sortcore.workers import in_order

MOST_SPIKES = 150
REACH_UM = 300.0  # further away a mean holds noise alone
TOGETHER_S = 1.0  # spikes this close are read at once


def mean_waveforms(recording: Recording, preprocessing: Preprocessing, spikes: Spikes, largest: np.ndarray, before: int,
                   after: int) -> np.ndarray:
    """(K, N, before + after + 1) band-passed mean waveforms in microvolts on the used channels, zero beyond REACH_UM of `largest`
    (K,), each unit's own.

    Averaging and filtering commute, so stored values are averaged around up to 150 spikes a unit and the mean is filtered.
    """
    p, half = preprocessing, len(preprocessing.bandpass_taps) // 2
    place = p.probe.positions_um
    near = [np.flatnonzero((np.linalg.norm(place - place[c], axis=1) <= REACH_UM) & (p.probe.shank == p.probe.shank[c])) for c in largest]
    samples, units = some_of_each(spikes, len(largest))
    totals = [np.zeros((before + after + 1 + 2 * half, len(n))) for n in near]

    def sums(group: tuple[Chunk, np.ndarray]) -> list[tuple[int, np.ndarray]]:
        chunk, here = group
        out = []
        windows = [Chunk(int(t) - before, int(t) + after + 1, chunk.first, chunk.last) for t in samples[here]]
        whole = Chunk(windows[0].start, windows[-1].stop, chunk.first, chunk.last)
        at_once = whole.stop - whole.start + 2 * half < len(here) * (before + after + 1 + 2 * half)
        stored = read_padded(recording, whole, half) if at_once else None
        for u in np.unique(units[here]).tolist():
            total = np.zeros(totals[u].shape)
            for window in (w for w, unit in zip(windows, units[here], strict=True) if unit == u):
                if stored is None:
                    add(total, read_padded(recording, window, half), p.channels[near[u]])
                else:
                    add(total, stored[window.start - whole.start : window.stop - whole.start + 2 * half], p.channels[near[u]])
            out.append((u, total))
        return out

    for found in in_order(sums, together(recording, samples)):
        for u, total in found:
            totals[u] += total
    counts, taps = np.bincount(units, minlength=len(largest)), torch.from_numpy(p.bandpass_taps)
    out = np.zeros((len(largest), len(p.channels), before + after + 1), np.float32)
    for u in np.flatnonzero(counts).tolist():
        mean = ((totals[u] / counts[u] - p.offset[near[u]]) * p.gain_uv[near[u]]).T
        mean -= mean.mean(axis=1, keepdims=True)
        out[u, near[u]] = fft_filter(torch.from_numpy(mean.astype(np.float32)), taps).numpy()
    return out


def some_of_each(spikes: Spikes, n_units: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples and units (S,) of up to MOST_SPIKES of each unit's spikes, evenly spread, in order of time."""
    chosen = [mine[np.linspace(0, len(mine) - 1, min(len(mine), MOST_SPIKES)).astype(int)] for mine in spikes.by_unit(n_units)]
    index = np.sort(np.concatenate([np.zeros(0, np.int64), *chosen]))
    return spikes.samples[index], spikes.units[index]


def together(recording: Recording, samples: np.ndarray) -> list[tuple[Chunk, np.ndarray]]:
    """Chunks of the recording with the indices of the samples (S,) in each, none of them empty."""
    pieces = list(chunks(recording.segment_lengths, max(1, int(TOGETHER_S * recording.fs))))
    bounds = np.searchsorted(samples, [c.start for c in pieces] + [sum(recording.segment_lengths)])
    return [(c, np.arange(a, b)) for c, (a, b) in zip(pieces, itertools.pairwise(bounds), strict=True) if b > a]


@numba.njit(cache=True, nogil=True)
def add(total, stored, channels):
    """Add the stored values (T, n_recorded) of some channels to a total (T, M); what is not finite counts as zero."""
    for t in range(total.shape[0]):
        for m in range(total.shape[1]):
            value = float(stored[t, channels[m]])
            if np.isfinite(value):
                total[t, m] += value
