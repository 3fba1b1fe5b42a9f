"""Mean waveforms in microvolts, read from the recording itself at the spikes that were found."""

from __future__ import annotations

import numpy as np
import torch

from sortcore.numerics import fft_filter
from sortcore.recording import Chunk, Recording, read_padded
from sortcore.types import Preprocessing, Spikes
from sortcore.workers import in_order

MOST_SPIKES = 150


def mean_waveforms(recording: Recording, preprocessing: Preprocessing, spikes: Spikes, n_units: int, before: int, after: int) -> np.ndarray:
    """(K, N, before + after + 1) band-passed mean waveforms in microvolts on the used channels.

    Averaging and filtering commute, so stored values are averaged around up to 150 spikes a unit and the mean is filtered.
    """
    p = preprocessing
    half = len(p.bandpass_taps) // 2
    bounds = np.r_[0, np.cumsum(recording.segment_lengths)]
    taps = torch.from_numpy(p.bandpass_taps)

    def mean_of(u: int) -> np.ndarray:
        times = spikes.samples[spikes.units == u]
        if not len(times):
            return np.zeros((len(p.channels), before + after + 1), np.float32)
        times = times[np.linspace(0, len(times) - 1, min(len(times), MOST_SPIKES)).astype(int)]
        total = np.zeros((before + after + 1 + 2 * half, p.n_recorded))
        for t in times:
            s = np.searchsorted(bounds, t, "right") - 1
            window = Chunk(int(t) - before, int(t) + after + 1, int(bounds[s]), int(bounds[s + 1]))
            stored = read_padded(recording, window, half)
            total += np.nan_to_num(stored) if stored.dtype.kind == "f" else stored
        mean = ((total[:, p.channels] / len(times) - p.offset) * p.gain_uv).T
        mean -= mean.mean(axis=1, keepdims=True)
        return fft_filter(torch.from_numpy(mean.astype(np.float32)), taps).numpy()

    out = np.zeros((n_units, len(p.channels), before + after + 1), np.float32)
    for u, mean in enumerate(in_order(mean_of, range(n_units))):
        out[u] = mean
    return out
