"""Mean waveforms in microvolts, read from the recording itself at the spikes that were found."""

from __future__ import annotations

import numpy as np
import torch

from sortcore.numerics import fft_filter
from sortcore.recording import Chunk, Recording, read_padded
from sortcore.types import Preprocessing, Spikes

MOST_SPIKES = 150


def mean_waveforms(recording: Recording, preprocessing: Preprocessing, spikes: Spikes, n_units: int, before: int, after: int) -> np.ndarray:
    """(K, N, before + after + 1) band-passed mean waveforms in microvolts on the used channels.

    Averaging and filtering commute, so stored values are averaged around up to 150 spikes a unit and the mean is filtered.
    """
    p = preprocessing
    half = len(p.bandpass_taps) // 2
    width = before + after + 1
    out = np.zeros((n_units, len(p.channels), width), np.float32)
    bounds = np.r_[0, np.cumsum(recording.segment_lengths)]
    taps = torch.from_numpy(p.bandpass_taps)
    for u in range(n_units):
        times = spikes.samples[spikes.units == u]
        if not len(times):
            continue
        times = times[np.linspace(0, len(times) - 1, min(len(times), MOST_SPIKES)).astype(int)]
        total = np.zeros((width + 2 * half, p.n_recorded))
        for t in times:
            s = np.searchsorted(bounds, t, "right") - 1
            window = Chunk(int(t) - before, int(t) + after + 1, int(bounds[s]), int(bounds[s + 1]))
            stored = read_padded(recording, window, half)
            total += np.nan_to_num(stored) if stored.dtype.kind == "f" else stored
        mean = ((total[:, p.channels] / len(times) - p.offset) * p.gain_uv).T
        mean -= mean.mean(axis=1, keepdims=True)
        out[u] = fft_filter(torch.from_numpy(mean.astype(np.float32)), taps).numpy()
    return out
