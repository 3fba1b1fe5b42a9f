"""What the calcium network is given of a trace: itself, its deconvolution, and a summary that tells indicator, noise and size.

    x = trace - running baseline,    s = deconvolution of the trace

Both come in units of the noise, of their own size, and of dF/F, so that spikes of any brightness look alike and how bright they
are is not lost. The summary modulates the network's layers.
"""

from __future__ import annotations

import numba
import numpy as np
from scipy.ndimage import uniform_filter1d

from sortcore.optical.estimate import SHORTEST_RISE_S, Assumptions, busiest, estimate_times, fit_without_dips, noise_level

DFF_SCALE = np.float32(0.1)
MAX_RATE = 31.0  # frames per second that the network sees at most
INPUTS = 6
LAGS_S = (0.04, 0.07, 0.12, 0.2, 0.35, 0.6, 1.0, 1.8, 3.2, 5.5)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.97)
N_FEATURES = 4 + 2 * len(LAGS_S) + len(QUANTILES) + 1 + 6
BASELINE_BLOCK_S, BASELINE_BLOCKS, BASELINE_RANK = 0.5, 30, 6
# The deconvolution that the weights were trained with, whatever the defaults of `infer_calcium` become.
DECONVOLUTION = Assumptions(penalty_sd=1.2, selection_sd=4.0, drift_sd_s=0.0245, start_sd=10.0, selectivity=1.0, shape_per_s=2.0,
                            dip_sd=3.0)
TIMES_FRAMES = 1500  # of the busiest stretch, which rise and decay are estimated from
QUIET_PERCENTILE, MOST_SD = 20.0, 20.0
DEEP = 0.25  # weight of a dip that is worth a second fit


def frames_averaged(fs: float) -> int:
    """Frames that are averaged into one so that at most MAX_RATE a second are left."""
    return max(1, int(np.ceil(fs / MAX_RATE)))


def average_frames(values: np.ndarray, n: int) -> np.ndarray:
    """(..., ceil(T / n)) means of n frames each; the last frame is repeated to fill the last."""
    short = -values.shape[-1] % n
    if short:
        values = np.concatenate([values, np.repeat(values[..., -1:], short, axis=-1)], axis=-1)
    return values.reshape(*values.shape[:-1], -1, n).mean(-1)


def standardise(trace: np.ndarray, fs: float) -> tuple[np.ndarray, np.ndarray]:
    """(6, T) float32 of a trace (T,) of finite dF/F, itself and its deconvolution, and (F,) its summary."""
    inputs, features = measured(trace, fs)
    activity, answers = deconvolved(trace, fs)
    return np.concatenate([inputs, activity]), np.concatenate([features, answers])


def deconvolved(trace: np.ndarray, fs: float) -> tuple[np.ndarray, np.ndarray]:
    """(3, T) float32 of a trace (T,) of finite dF/F: asinh(s / sigma), s / sd(s) and asinh(s / DFF_SCALE), s its deconvolution; and
    (6,) log of decay, rise, and the sd, mean, largest and cubic mean of s / sigma.
    """
    sigma = noise_level(trace) + 1e-9
    x = (trace - np.percentile(trace, QUIET_PERCENTILE)) / sigma
    decay, rise = estimate_times(busiest(x, TIMES_FRAMES), fs, DECONVOLUTION)
    s = fit_without_dips(x, fs, decay, rise, DECONVOLUTION.penalty_sd, DECONVOLUTION, True, DEEP).activity.astype(np.float32)
    sizes = np.array([s.std(), s.mean(), s.max(), np.mean(s**3) ** (1 / 3)]) + 1e-3
    features = np.log([decay, max(rise, SHORTEST_RISE_S), *sizes])
    scaled = np.stack([np.arcsinh(s), np.minimum(s / sizes[0], MOST_SD), np.arcsinh(s * (sigma / DFF_SCALE))])
    return scaled.astype(np.float32), features.astype(np.float32)


def measured(trace: np.ndarray, fs: float) -> tuple[np.ndarray, np.ndarray]:
    """(3, T) float32 of a trace (T,) of finite dF/F: asinh(x / sigma), x / peak and asinh(x / DFF_SCALE); and (F - 6,) its summary.

    x is the trace less a running low quantile of its means over half seconds, sigma the noise by the median of |differences|,
    peak the 99.5 % quantile of x.
    """
    sigma = np.median(np.abs(np.diff(trace))) / 0.9539 + 1e-6
    x = (trace - running_baseline(trace, fs)).astype(np.float32)
    in_order = np.sort(x)
    at = (np.array([*QUANTILES, 0.995]) * (len(x) - 1)).astype(np.int64)
    *quantiles, peak = in_order[at]
    peak = max(float(peak), float(sigma))
    lags = np.minimum(np.maximum(1, np.round(np.array(LAGS_S) * fs)), max(1, len(x) // 2 - 1)).astype(np.int64)
    square, cube = difference_moments(x, lags, 1.2 * peak)
    square = np.maximum(square, 1e-12)
    shape = x / np.float32(peak)
    power = float(np.mean(shape * shape)) + 1e-12
    features = np.concatenate([
        [np.log(sigma), np.log(peak), np.log(peak / sigma), np.log(fs)], 0.5 * np.log(square / sigma**2), cube / square**1.5,
        np.array(quantiles) / peak, [float(np.mean(shape * shape * shape)) / power**1.5]])
    return np.stack([np.arcsinh(x / np.float32(sigma)), np.clip(shape, -2, 3), np.arcsinh(x / DFF_SCALE)]), features.astype(np.float32)


def running_baseline(trace: np.ndarray, fs: float) -> np.ndarray:
    """(T,) low quantile of the means over half seconds within 15 s, smoothed."""
    size = max(1, round(BASELINE_BLOCK_S * fs))
    means = average_frames(trace, size)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(means, BASELINE_BLOCKS, mode="symmetric"), 2 * BASELINE_BLOCKS + 1)
    low = np.partition(windows, BASELINE_RANK, axis=1)[:, BASELINE_RANK]
    centres = (np.arange(len(means)) + 0.5) * size - 0.5
    return np.interp(np.arange(len(trace)), centres, uniform_filter1d(low, 9, mode="nearest"))


@numba.njit(cache=True)
def difference_moments(x: np.ndarray, lags: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean square and mean cube of x_{t+lag} - x_t, cut off at +-limit: the cube tells rises that are faster than decays."""
    square, cube = np.zeros(len(lags)), np.zeros(len(lags))
    for i in range(len(lags)):
        lag = lags[i]
        for t in range(len(x) - lag):
            step = min(max(x[t + lag] - x[t], -limit), limit)
            square[i] += step * step
            cube[i] += step * step * step
        square[i] /= max(1, len(x) - lag)
        cube[i] /= max(1, len(x) - lag)
    return square, cube
