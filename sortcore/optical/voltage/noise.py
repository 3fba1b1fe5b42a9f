"""What lies under the spikes of a voltage trace: bleaching baseline, subthreshold potential, and noise.

    y_t = baseline_t + v_t + spikes_t + e_t

v, the subthreshold potential, is a stationary Gaussian process with power at low frequencies, e is white. To the spikes both are
noise, whose spectrum S is that of the trace without its spikes: the median over segments (Welch, IEEE Trans Audio 1967), which
artefacts and plateaus do not move. With S known, x filtered by 1/S and correlated with a spike's waveform is the sufficient
statistic for a spike (the matched filter in coloured noise), and (S - e) / S is the Wiener filter that gives v.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import oaconvolve

SEGMENT_S = 0.5
BASELINE_S = 1.0
MEDIAN_OF_POWER = np.log(2)  # median of a chi-square law of two degrees of freedom, over its mean
FEWEST_SEGMENTS = 6
FLOOR = 0.6  # the white part of the noise: power at frequencies above this share of the largest
FEWEST_FRAMES = 32
LEAST_SHARE = 0.3  # of the power is noise whatever spikes may explain


@dataclass(frozen=True)
class Noise:
    """Noise of one trace.

    spectrum: (M // 2 + 1,) power of each frequency of a segment of M frames, white noise of variance 1 having power 1
    inverse: (M - 1,) taps of the zero-phase filter 1/S, its middle at M // 2 - 1
    white: power of the white part e
    """

    spectrum: np.ndarray
    inverse: np.ndarray
    white: float

    @property
    def sd(self) -> float:
        """Standard deviation of a frame, without the subthreshold potential."""
        return float(np.sqrt(self.white))

    def decorrelated(self, x: np.ndarray) -> np.ndarray:
        """(T,) x filtered by 1/S; beyond its ends x goes on as its mirror image."""
        return filtered(x, self.inverse)

    def smoothed(self, x: np.ndarray) -> np.ndarray:
        """(T,) the subthreshold potential in x: its mean given x, by the Wiener filter (S - e) / S."""
        return x - self.white * self.decorrelated(x)

    def scaled(self, factor: float) -> Noise:
        """The same noise with its standard deviation multiplied."""
        return Noise(self.spectrum * factor**2, self.inverse / factor**2, self.white * factor**2)


def filtered(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    half = len(taps) // 2
    return oaconvolve(np.pad(x, half, mode="reflect" if len(x) > half else "symmetric"), taps, mode="valid")


def segment_frames(n_frames: int, fs: float) -> int:
    """Length of the segments whose spectra are compared: even, and short enough that there are several."""
    return max(8, 2 * (int(min(SEGMENT_S * fs, n_frames / FEWEST_SEGMENTS)) // 2))


def measure_noise(x: np.ndarray, fs: float, missing: np.ndarray | None = None) -> Noise:
    """Noise of a trace (T,) without baseline and spikes; segments with missing frames count where there are no others."""
    M = segment_frames(len(x), fs)
    window = np.hanning(M + 1)[:M]
    pieces = np.lib.stride_tricks.sliding_window_view(x, M)[:: M // 2]
    if missing is not None and missing.any():
        whole = ~np.lib.stride_tricks.sliding_window_view(missing, M)[:: M // 2].any(axis=1)
        pieces = pieces[whole] if whole.any() else pieces
    power = np.abs(np.fft.rfft((pieces - pieces.mean(1, keepdims=True)) * window, axis=1)) ** 2 / (window**2).sum()
    spectrum = np.median(power, axis=0) / MEDIAN_OF_POWER
    spectrum[:2] = spectrum[2]  # the lowest frequencies were taken off with the means
    spectrum = np.exp(gaussian_filter1d(np.log(np.maximum(spectrum, 1e-300)), 1.0, mode="nearest"))
    return noise_of(spectrum)


def without_spikes(noise: Noise, templates: np.ndarray, per_frame: float) -> Noise:
    """The noise without the power that spikes left in it: so many per frame, of templates (P, L), at independent times.

    Negative counts put back what spikes that were none had taken.
    """
    M = 2 * (len(noise.spectrum) - 1)
    power = per_frame * (np.abs(np.fft.rfft(templates, max(M, templates.shape[1]), axis=1)) ** 2).mean(0)[: len(noise.spectrum)]
    return noise_of(np.maximum(noise.spectrum - power, LEAST_SHARE * noise.spectrum))


def noise_of(spectrum: np.ndarray) -> Noise:
    """Noise with a spectrum (M // 2 + 1,) given."""
    M = 2 * (len(spectrum) - 1)
    taps = np.roll(np.fft.irfft(1 / spectrum, M), M // 2 - 1)[: M - 1]
    return Noise(spectrum, taps, float(np.median(spectrum[int(FLOOR * len(spectrum)) :])))


def baseline(y: np.ndarray, fs: float) -> np.ndarray:
    """(T,) slow course of a trace without missing frames: medians of BASELINE_S, smoothed and joined by lines."""
    size = max(1, min(round(BASELINE_S * fs), len(y)))
    n = max(1, len(y) // size)
    blocks = np.array_split(y, n)
    level = np.array([np.median(block) for block in blocks])
    ends = np.cumsum([len(block) for block in blocks])
    centres = ends - np.array([len(block) for block in blocks]) / 2 - 0.5
    if n > 4:  # the ends of a bleaching curve go on as lines
        left, right = 2 * level[0] - level[1:4][::-1], 2 * level[-1] - level[-4:-1][::-1]
        level = gaussian_filter1d(np.concatenate([left, level, right]), 1.0)[3:-3]
        slope = np.array([level[1] - level[0], level[-1] - level[-2]]) / size
        level = np.concatenate([[level[0] - slope[0] * centres[0]], level, [level[-1] + slope[1] * (len(y) - 1 - centres[-1])]])
        centres = np.concatenate([[0.0], centres, [len(y) - 1.0]])
    return np.interp(np.arange(len(y)), centres, level)
