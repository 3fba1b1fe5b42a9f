"""Which candidates are spikes: so that precision and recall balance, or so that noise passes at a stated rate."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from sortcore.optical.voltage.evidence import frame_ratios
from sortcore.optical.voltage.filter import REFRACTORY_S, WITHIN_S, MatchedFilter, frames_within
from sortcore.optical.voltage.noise import Noise

NOISE_SEED, NOISE_S, NOISE_FRAMES = 0, 300.0, 600_000  # of the noise that is made to see what passes
TAIL_PEAKS = 60


def balanced_threshold(probabilities: np.ndarray, n_expected: float, least: float = 0.0) -> float:
    """Probability from which candidates (S,) are spikes so that the expected F1 is largest; infinite without candidates.

    Of k candidates of largest probability, sum p of them are expected to be right, so F1 = 2 sum p / (k + n_expected); the best
    threshold is half the best F1 (Lipton, Elkan & Naryanaswamy, ECML 2014). It is no lower than `least`.
    """
    p = np.sort(probabilities)[::-1]
    if not len(p) or p[0] <= 0:
        return np.inf
    right = np.cumsum(p)
    F1 = 2 * right / (np.arange(1, len(p) + 1) + max(n_expected, 1e-9))
    return max(float(p[np.argmax(F1)]), least)


def expected_quality(probabilities: np.ndarray, kept: np.ndarray, n_expected: float) -> tuple[float, float]:
    """Expected precision and recall of the candidates kept; NaN where nothing is kept or expected."""
    right, n = float(probabilities[kept].sum()), int(kept.sum())
    return (right / n if n else np.nan), (min(right / n_expected, 1.0) if n_expected > 0 else np.nan)


def noise_threshold(matched: MatchedFilter, noise: Noise, rho: float, false_alarm_hz: float) -> float:
    """Log likelihood ratio of a spike that noise alone exceeds so many times a second.

    Gaussian noise of the trace's own spectrum is made and its peaks counted; the rate of high peaks falls exponentially with
    the log likelihood ratio, and that law is followed where the noise is too short.
    """
    fs = matched.grid.fs
    T = int(min(NOISE_S * fs, NOISE_FRAMES))
    x = coloured_noise(noise, T)
    log_ratio = np.log(nearby_ratios(frame_ratios(matched.scores(noise.decorrelated(x)), matched.energies, rho**-2), fs))
    apart = 2 * frames_within(REFRACTORY_S, fs) + 1
    peaks = np.sort(log_ratio[log_ratio == maximum_filter1d(log_ratio, apart)])[::-1]
    allowed = false_alarm_hz * T / fs
    if allowed >= len(peaks):
        return float(peaks[-1])
    if allowed >= TAIL_PEAKS:
        return float(peaks[int(allowed)])
    tail = min(TAIL_PEAKS, len(peaks) - 1)
    mean_excess = float((peaks[:tail] - peaks[tail]).mean())
    return float(peaks[tail] + mean_excess * np.log(tail / allowed))


def nearby_ratios(ratios: np.ndarray, fs: float) -> np.ndarray:
    """(T,) sum of likelihood ratios (T,) over the frames in which a spike would be the same."""
    width = 2 * frames_within(WITHIN_S, fs) + 1
    return np.maximum(uniform_filter1d(np.minimum(ratios, 1e100), width, mode="constant") * width, 1e-30)


def coloured_noise(noise: Noise, n_frames: int) -> np.ndarray:
    """(n_frames,) Gaussian noise of a spectrum, always the same."""
    f = np.fft.rfftfreq(n_frames)
    power = np.interp(f, np.linspace(0, 0.5, len(noise.spectrum)), noise.spectrum)
    white = np.fft.rfft(np.random.default_rng(NOISE_SEED).standard_normal(n_frames))
    return np.fft.irfft(white * np.sqrt(power), n_frames)
