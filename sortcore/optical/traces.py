"""What every way of inferring spikes asks of traces and frame rate."""

from __future__ import annotations

import numpy as np

from sortcore.errors import ModelError

RAW_SD = 3.0  # a baseline so many sd of the noise above zero is that of raw fluorescence
LARGEST_NOISE = 0.5  # sd of a frame of dF/F as a fraction
DARKEST = 0.1  # of the typical cell at rest: a darker one is divided by so much, for hardly anything is left of it beside its neuropil


def check_traces(traces: np.ndarray, fs: float) -> None:
    """Raise ModelError unless traces are (T,) or (N, T) real numbers and fs is a positive number of frames per second."""
    if traces.ndim not in (1, 2) or traces.dtype.kind not in "fiub":
        raise ModelError(f"Traces must be real numbers (T,) or (neurons, T), but they are {traces.dtype} of shape {traces.shape}.")
    if not (isinstance(fs, (int, float, np.number)) and np.isfinite(fs) and fs > 0):
        raise ModelError(f"The frame rate fs must be a positive number of frames per second, but it is {fs!r}.")


def filled(trace: np.ndarray) -> np.ndarray:
    """(T,) with missing frames on the line between their neighbours."""
    missing = np.isnan(trace)
    if not missing.any():
        return trace
    at = np.arange(len(trace))
    return np.interp(at, at[~missing], trace[~missing])


def fluorescence_at_rest(baseline: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """(N,) what traces less their baseline are to be divided by to become dF/F: 1 where they are so already.

    baseline: (N,) of each trace, noise: (N,) sd of a frame, both in the traces' units, NaN where there is nothing
    Raises ModelError where they are neither raw fluorescence nor dF/F as a fraction.
    """
    typical, sd = (float(np.median(a[np.isfinite(a)])) if np.isfinite(a).any() else 0.0 for a in (baseline, noise))
    if typical > RAW_SD * sd:
        return np.maximum(np.nan_to_num(baseline, nan=typical), DARKEST * typical)
    if sd > LARGEST_NOISE:
        raise ModelError(f"The traces' baseline is {typical:.3g} and their noise {sd:.3g}: they are neither raw fluorescence nor dF/F as a "
                         "fraction. If they are dF/F in per cent, divide them by 100.")
    return np.ones(len(baseline))
