"""Spikes from calcium traces by a small acausal convolutional network that adapts itself to each trace.

    counts_t ~ Poisson(gain mu_t),   gain ~ Gamma(mean 1, variance v),   mu, v = network(trace)

mu_t is the expected number of spikes of a frame; the gain is one number per neuron, since how bright a spike is can only be
guessed from a trace. Counts and totals are then negative binomial: E = M, Var = M + v M^2.

What makes one set of weights serve all indicators and frame rates: traces faster than MAX_RATE are averaged over whole frames
first; a trace comes in units of its own noise and of its own peaks; and the layers are modulated (FiLM; Perez et al., AAAI
2018) by a summary of the trace: frame rate, noise, size, and how its differences over LAGS_S spread and lean, which tells rise
and decay. `benchmarks/train_calcium.py` trains the weights on simulated traces, as CASCADE (Rupprecht et al., Nat Neurosci
2021) does on resampled ground truth, and on recordings where they are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numba
import numpy as np
import torch
from scipy.ndimage import uniform_filter1d
from scipy.stats import nbinom
from torch import nn

from sortcore.errors import ModelError
from sortcore.optical.traces import check_traces, filled
from sortcore.optical.weights import load_weights, save_weights
from sortcore.progress import Track, silent

WEIGHTS = Path(__file__).with_name("calcium_network.npz")
DFF_SCALE = np.float32(0.1)
MAX_RATE = 31.0  # frames per second that the network sees at most
BLOCK = 4  # frames that a hidden sample stands for
INPUTS = 3
CHANNELS = 48
DILATIONS = (1, 2, 4, 8, 2, 1)
POOLED = 2  # layers before the learned part of the summary is taken
LAGS_S = (0.04, 0.07, 0.12, 0.2, 0.35, 0.6, 1.0, 1.8, 3.2, 5.5)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.97)
N_FEATURES = 4 + 2 * len(LAGS_S) + len(QUANTILES) + 1
BASELINE_BLOCK_S, BASELINE_BLOCKS, BASELINE_RANK = 0.5, 30, 6
FRAMES_AT_ONCE = 1 << 18
MIN_FRAMES = 16
LARGEST_DFF = 20.0


class CalciumNetwork(nn.Module):
    """mu (B, T) per frame and log v (B,) of standardised traces (B, 3, T) with summaries (B, F) at fs (B,); T a multiple of BLOCK."""

    centre: torch.Tensor
    spread: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(N_FEATURES))
        self.register_buffer("spread", torch.ones(N_FEATURES))
        self.stem = nn.Conv1d(INPUTS * BLOCK, CHANNELS, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 3, padding=d, dilation=d) for d in DILATIONS)
        self.summary = nn.Sequential(nn.Linear(N_FEATURES, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.pooled = nn.Linear(2 * CHANNELS, 32)
        self.film = nn.ModuleList(nn.Linear(32, 2 * CHANNELS) for _ in DILATIONS)
        self.rate = nn.Conv1d(CHANNELS, BLOCK, 1)
        self.uncertainty = nn.Linear(32, 1)
        for one in (*self.film, self.pooled, self.uncertainty):
            nn.init.zeros_(one.bias)
            nn.init.normal_(one.weight, std=0.02)

    def forward(self, traces: torch.Tensor, features: torch.Tensor, fs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n, channels, n_frames = traces.shape
        blocks = traces.reshape(n, channels, n_frames // BLOCK, BLOCK).transpose(2, 3).reshape(n, channels * BLOCK, -1)
        summary = self.summary(((features - self.centre) / self.spread).clamp(-4, 4))
        hidden = torch.relu(self.stem(blocks))
        for i, (layer, film) in enumerate(zip(self.layers, self.film, strict=True)):
            if i == POOLED:
                summary = summary + torch.relu(self.pooled(torch.cat([hidden.mean(2), (hidden.square().mean(2) + 1e-6).sqrt()], 1)))
            scale, shift = film(summary)[:, :, None].chunk(2, dim=1)
            hidden = hidden + torch.relu((1 + scale) * layer(hidden) + shift)
        per_second = 10 * nn.functional.softplus(self.rate(hidden)).transpose(1, 2).reshape(n, n_frames)
        return per_second / fs[:, None], self.uncertainty(summary)[:, 0]


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
    """(3, T) float32 of a trace (T,) of finite dF/F: asinh(x / sigma), x / peak and asinh(x / DFF_SCALE); and (F,) its summary.

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


@dataclass(frozen=True)
class NetworkActivity:
    """Spiking that the network infers of K neurons in T frames. For one trace given as (T,) arrays lose their first axis.

    expected: (K, T) float32 expected spikes of each frame, at the time of the spikes; NaN where a trace says nothing
    gain_variance: (K,) variance v of the neuron's gain, which has mean 1
    total: (K,) expected spikes of the neuron
    total_low, total_high: (K,) interval that holds the neuron's number of spikes with probability `level`
    level: 0.9 means 5 % on either side
    fs: frames per second
    """

    expected: np.ndarray
    gain_variance: np.ndarray
    total: np.ndarray
    total_low: np.ndarray
    total_high: np.ndarray
    level: float
    fs: float

    def frame_interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """(K, T) fewest and (K, T) most spikes of each frame with probability `level`."""
        return count_interval(self.expected, self.gain_variance[..., None], level)


def infer_network(traces: np.ndarray, fs: float, *, level: float = 0.9, weights: Path = WEIGHTS, out: np.ndarray | None = None,
                  track: Track = silent) -> NetworkActivity:
    """Expected spikes of each frame of dF/F traces, with intervals.

    traces: (K, T) or (T,) dF/F as a fraction, not in per cent, any real dtype, NaN where missing; may be a memory map
    fs: frames per second, one for all
    level: of the intervals of totals
    weights: an .npz file that `benchmarks/train_calcium.py` has written
    out: (K, T) float32 that takes `expected` in place, so that a batch larger than memory can be written to a memory map
    track: progress, see `sortcore.progress`

    A trace that is constant or has fewer than MIN_FRAMES finite frames says nothing of spikes: its results are NaN.
    Raises ModelError for traces that are not 1-D or 2-D real numbers, infinite or no dF/F, and for fs, level or out out of range.
    """
    traces = np.asanyarray(traces)
    check_traces(traces, fs)
    if not 0 < level < 1:
        raise ModelError(f"level is a probability between 0 and 1, but it is {level}.")
    many = traces if traces.ndim == 2 else traces[None]
    expected = np.empty(many.shape, np.float32) if out is None else out
    if expected.shape != many.shape:
        raise ModelError(f"out must have the shape of the traces, {many.shape}, but it is {expected.shape}.")
    total, variance = (np.full(len(many), np.nan) for _ in range(2))
    network = load_network(weights)
    size = max(1, FRAMES_AT_ONCE // max(1, many.shape[1]))
    starts = range(0, len(many), size)
    for first in track(starts, "calcium network", len(starts)):
        part = slice(first, first + size)
        expected[part], variance[part] = infer_batch(network, many[part], float(fs))
        total[part] = expected[part].sum(axis=1, dtype=np.float64)
    total[np.isnan(variance)] = np.nan
    low, high = count_interval(total, variance, level)
    if traces.ndim == 1:
        return NetworkActivity(expected[0], variance[0], total[0], low[0], high[0], level, float(fs))
    return NetworkActivity(expected, variance, total, low, high, level, float(fs))


def infer_batch(network: CalciumNetwork, traces: np.ndarray, fs: float) -> tuple[np.ndarray, np.ndarray]:
    """Expected spikes (B, T) and gain variance (B,) of a few traces (B, T)."""
    n = frames_averaged(fs)
    expected, variance = np.full(traces.shape, np.nan, np.float32), np.full(len(traces), np.nan)
    rows = {k: row for k, row in enumerate(checked(trace) for trace in traces) if says_something(row)}
    if rows:
        pairs = [standardise(average_frames(filled(row), n), fs / n) for row in rows.values()]
        inputs, features = (np.stack(parts) for parts in zip(*pairs, strict=True))
        mu, log_v = run(network, inputs, features, fs / n)
        expected[list(rows)] = np.repeat(mu / n, n, axis=1)[:, : traces.shape[1]]
        variance[list(rows)] = np.exp(log_v)
    return expected, variance


def checked(trace: np.ndarray) -> np.ndarray:
    """(T,) float64. Raises ModelError for what cannot be dF/F."""
    row = np.asarray(trace, np.float64)
    if np.isinf(row).any():
        raise ModelError("Some frames are infinite; set frames that are missing to NaN.")
    finite = row[np.isfinite(row)]
    if len(finite) and abs(np.median(finite)) > LARGEST_DFF:
        raise ModelError(f"The median of a trace is {np.median(finite):.4g}, which is no dF/F as a fraction. If it is raw fluorescence F, "
                         "give (F - F0) / F0; if it is per cent, divide it by 100.")
    return row


def says_something(trace: np.ndarray) -> bool:
    """Whether a trace varies, over frames enough to see how."""
    finite = trace[np.isfinite(trace)]
    return len(finite) >= MIN_FRAMES and bool(np.ptp(finite) > 0)


def run(network: CalciumNetwork, traces: np.ndarray, features: np.ndarray, fs: float) -> tuple[np.ndarray, np.ndarray]:
    """mu (B, T) and log v (B,) of standardised traces (B, 3, T)."""
    n_frames = traces.shape[2]
    padded = np.pad(traces, ((0, 0), (0, 0), (0, -n_frames % BLOCK)), mode="edge")
    with torch.inference_mode():
        mu, log_v = network(torch.from_numpy(padded), torch.from_numpy(features), torch.full((len(traces),), fs))
    return mu[:, :n_frames].numpy(), log_v.numpy()


def count_interval(mean: np.ndarray, variance: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Fewest and most of a negative binomial count with E = mean, Var = mean + variance mean^2; NaN where those are."""
    shape = 1 / np.asarray(variance, np.float64)
    chance = shape / (shape + mean)
    return nbinom.ppf((1 - level) / 2, shape, chance), nbinom.ppf((1 + level) / 2, shape, chance)


@lru_cache(maxsize=4)
def load_network(path: Path = WEIGHTS) -> CalciumNetwork:
    """The network with the weights of an .npz file of plain arrays. Raises ModelError where they do not fit."""
    return load_weights(CalciumNetwork(), path, "benchmarks/train_calcium.py")


def save_network(network: CalciumNetwork, path: Path) -> None:
    """The weights as an .npz file of plain float32 arrays."""
    save_weights(network, path)
