"""What every way of inferring spikes asks of traces and frame rate."""

from __future__ import annotations

import numpy as np

from sortcore.errors import ModelError


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
