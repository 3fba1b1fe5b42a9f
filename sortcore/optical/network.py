"""Spikes from calcium traces by a small acausal convolutional network that adapts itself to each trace.

    counts_t ~ Poisson(gain mu_t),   gain ~ Gamma(mean 1, variance v),   mu, v = network(trace)

mu_t is the expected number of spikes of a frame; the gain is one number per neuron, since how bright a spike is can only be
guessed from a trace. Counts and totals are then negative binomial: E = M, Var = M + v M^2.

What makes one set of weights serve all indicators and frame rates: traces faster than MAX_RATE are averaged over whole frames
first; a trace comes in units of its own noise and of its own peaks; beside it comes its exact deconvolution (`estimate`, `ar2`),
which knows what the indicator does to spikes, while the network knows what cells and recordings do; and the layers are modulated
(FiLM; Perez et al., AAAI 2018) by a summary of the trace: frame rate, noise, size, how its differences over LAGS_S spread and
lean, the estimated rise and decay, and the size of the deconvolved activity. `benchmarks/train_calcium.py` trains the weights on
simulated traces, as CASCADE (Rupprecht et al., Nat Neurosci 2021) does on resampled ground truth, and on recordings where they
are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy.stats import nbinom
from torch import nn

from sortcore.errors import ModelError
from sortcore.numerics import pick_device
from sortcore.optical.inputs import INPUTS, N_FEATURES, average_frames, frames_averaged, standardise
from sortcore.optical.traces import check_traces, filled
from sortcore.optical.weights import load_weights, save_weights
from sortcore.progress import Track, silent
from sortcore.workers import in_order

WEIGHTS = Path(__file__).with_name("calcium_network.npz")
BLOCK = 4  # frames that a hidden sample stands for
CHANNELS = 48
DILATIONS = (1, 2, 4, 8, 2, 1)
POOLED = 2  # layers before the learned part of the summary is taken
FRAMES_AT_ONCE = 1 << 18
MIN_FRAMES = 16
CPU = torch.device("cpu")
LARGEST_DFF = 20.0


class CalciumNetwork(nn.Module):
    """mu (B, T) per frame and log v (B,) of standardised traces (B, 6, T) with summaries (B, F) at fs (B,); T a multiple of BLOCK."""

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
            hidden = hidden + torch.addcmul(shift, 1 + scale, layer(hidden)).relu_()
        per_second = 10 * nn.functional.softplus(self.rate(hidden).float()).transpose(1, 2).reshape(n, n_frames)
        return per_second / fs[:, None], self.uncertainty(summary)[:, 0].float()


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
                  device: str = "auto", track: Track = silent) -> NetworkActivity:
    """Expected spikes of each frame of dF/F traces, with intervals.

    traces: (K, T) or (T,) dF/F as a fraction, not in per cent, any real dtype, NaN where missing; may be a memory map
    fs: frames per second, one for all
    level: of the intervals of totals
    weights: an .npz file that `benchmarks/train_calcium.py` has written
    out: (K, T) float32 that takes `expected` in place, so that a batch larger than memory can be written to a memory map
    device: where the network runs, "auto" (a CUDA card if there is one), "cpu", "cuda" or "mps"; its inputs are made by threads on the CPU
    track: progress, see `sortcore.progress`

    A trace that is constant or has fewer than MIN_FRAMES finite frames says nothing of spikes: its results are NaN.
    Raises ModelError for traces that are not 1-D or 2-D real numbers, infinite or no dF/F, and for fs, level or out out of range,
    ConfigError for a device that is not there.
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
    network = load_network(weights, pick_device(device))
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
        pairs = in_order(lambda row: standardise(average_frames(filled(row), n), fs / n), list(rows.values()))
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
    """mu (B, T) and log v (B,) of standardised traces (B, 6, T)."""
    n_frames = traces.shape[2]
    padded = np.pad(traces, ((0, 0), (0, 0), (0, -n_frames % BLOCK)), mode="edge")
    with torch.inference_mode():
        here = (torch.from_numpy(a).to(network.centre.device) for a in (padded, features, np.full(len(traces), fs, np.float32)))
        mu, log_v = network(*here)
    return mu[:, :n_frames].numpy(force=True), log_v.numpy(force=True)


def count_interval(mean: np.ndarray, variance: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Fewest and most of a negative binomial count with E = mean, Var = mean + variance mean^2; NaN where those are."""
    shape = 1 / np.asarray(variance, np.float64)
    chance = shape / (shape + mean)
    return nbinom.ppf((1 - level) / 2, shape, chance), nbinom.ppf((1 + level) / 2, shape, chance)


@lru_cache(maxsize=4)
def load_network(path: Path = WEIGHTS, device: torch.device = CPU) -> CalciumNetwork:
    """The network with the weights of an .npz file of plain arrays. Raises ModelError where they do not fit."""
    return load_weights(CalciumNetwork(), path, "benchmarks/train_calcium.py").to(device)


def save_network(network: CalciumNetwork, path: Path) -> None:
    """The weights as an .npz file of plain float32 arrays."""
    save_weights(network, path)
