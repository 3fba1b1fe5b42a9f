"""How likely a spike is by what is known of the others: neurons fire faster at times, and in bursts.

    lambda_n = slow_n + sum_m h(|n - m|) e_m

e_m is the probability of a spike in frame m. slow is the rate within a second or so, drawn towards the mean; h is by how much
pairs of spikes of each lag are more frequent than chance, learned from e with some shrinkage. Neither counts the spike itself: lags
within which a spike's own probability is spread are left out.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import oaconvolve

SLOW_S = 0.35  # standard deviation of the window in which the rate is taken
DRAWN_S = 1.2  # seconds at the mean rate that are added to the window
BURST_S = 0.03
BURST_SPIKES, BURST_SHARE, BURST_END_S = 20.0, 0.1, 0.02  # prior: so many spikes, of which so many are followed by another
FASTEST_HZ = 400.0


def prior_log_odds(expected: np.ndarray, fs: float, rate_hz: float, own: int) -> np.ndarray:
    """(T,) log prior odds of a spike in each frame, from expected spikes (T,).

    own: frames within which expected spikes may be the same spike
    """
    slow = slow_rate(expected, fs, rate_hz, own)
    lags = np.arange(own + 1, max(own + 2, int(BURST_S * fs)) + 1)
    h = burst_kernel(expected, slow, lags, fs)
    kernel = np.zeros(2 * lags[-1] + 1)
    kernel[lags[-1] + lags] = kernel[lags[-1] - lags] = h
    rate = slow + oaconvolve(expected, kernel, mode="same") if len(expected) > len(kernel) else slow
    chance = np.clip(rate, 1e-9, min(FASTEST_HZ / fs, 0.5))
    return np.log(chance / (1 - chance))


def slow_rate(expected: np.ndarray, fs: float, rate_hz: float, own: int) -> np.ndarray:
    """(T,) spikes per frame at each time: a window of three boxes, near a Gaussian, without the frames at its middle."""
    size = max(3, 2 * round(SLOW_S * fs) + 1)
    around = expected
    for _ in range(3):
        around = uniform_filter1d(around, size, mode="reflect")
    near = uniform_filter1d(expected, 2 * own + 1, mode="constant") * (2 * own + 1)
    peak = 0.75 / size  # of three boxes convolved
    seconds = 2 * np.sqrt(np.pi) * SLOW_S
    without = np.maximum(around - peak * near, 0.0) / (1 - peak * (2 * own + 1))
    return (seconds * without + DRAWN_S * rate_hz / fs) / (seconds + DRAWN_S)


def burst_kernel(expected: np.ndarray, slow: np.ndarray, lags: np.ndarray, fs: float) -> np.ndarray:
    """h at each lag: pairs beyond chance per spike, less one standard deviation of chance, and never below 0."""
    total = float(expected.sum())
    pairs = np.array([expected[:-lag] @ expected[lag:] for lag in lags])
    chance = np.array([slow[:-lag] @ expected[lag:] for lag in lags])
    beyond = np.maximum(pairs - chance - np.sqrt(chance), 0.0)
    usual = (lags <= BURST_END_S * fs) * BURST_SHARE / max(1, int((lags <= BURST_END_S * fs).sum()))
    return (beyond + BURST_SPIKES * usual) / (total + BURST_SPIKES)
