"""The sorter, one line a stage."""

from __future__ import annotations

import numpy as np

from sortcore.ephys.config import SortConfig
from sortcore.progress import Track
from sortcore.recording import Recording
from sortcore.types import Model, Probe, SortingResult, Spikes


def sort(recording: Recording | np.ndarray, probe: Probe | None = None, config: SortConfig | None = None, *, fs: float | None = None,
         gain_uv: float = 1.0, device: str = "auto", seed: int = 0, progress: bool | Track = True) -> SortingResult:
    """Sort a recording: a `Recording`, or an array (samples, channels) with its sampling rate `fs`."""
    raise NotImplementedError


def deconvolve(recording: Recording | np.ndarray, model: Model, config: SortConfig | None = None, *, fs: float | None = None,
               device: str = "auto", progress: bool | Track = True) -> Spikes:
    """Find the spikes of units that are known already, in the same or another recording of the same probe."""
    raise NotImplementedError
