"""Spikes in voltage traces by a small U-Net that corrects what the matched filter says.

    logit p_n = logit of the filter's p_n + TRUST network(channels around n)

p_n is the probability of a spike in frame n. The network has seen recordings of all kinds, the filter knows this one: between the
two (a logarithmic opinion pool) more spikes are found than by either, and the probabilities are right (benchmarks). Channels: the
trace in units of its noise, smoothed, high-passed, its derivative, its running median, and the filter's log odds, expected spikes and
prior; frame rate and detectability stay the same over a trace. The network is fully convolutional and sees windows of 100 ms that
overlap by half; their ends are left out and the rest averaged. `benchmarks/train_voltage.py` trains it on simulated traces.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numba
import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d, median_filter
from torch import nn

from sortcore.optical.voltage.filter import REFRACTORY_S, WITHIN_S, frames_within
from sortcore.optical.voltage.pursuit import odds_nearby
from sortcore.optical.weights import load_weights, save_weights

WEIGHTS = Path(__file__).with_name("network.npz")
WINDOW_S, LEAST_WINDOW = 0.1, 32
PRUNED = 8  # one part of so many of a window is left out at each end
SMOOTH_S, HIGHPASS_S, MEDIAN_S = 0.002, 0.01, 0.015
CHANNELS = 10
WIDTHS = (16, 24, 32)
KERNEL = 5
WINDOWS_AT_ONCE = 512
LARGEST = 8.0
TRUST = 0.6


@dataclass(frozen=True)
class FilterView:
    """What the matched filter made of one trace, for the network to look at.

    x: (T,) trace without baseline, spikes upwards; noise_sd: of a frame; d: detectability
    log_odds: (T,) of a spike in each frame, taken for itself; log_prior: (T,); expected: (T,) expected spikes
    """

    x: np.ndarray
    noise_sd: float
    d: float
    log_odds: np.ndarray
    log_prior: np.ndarray
    expected: np.ndarray


class VoltageNetwork(nn.Module):
    """What is added to the filter's logits (B, T), from channels (B, CHANNELS, T); T a multiple of 4."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c = WIDTHS
        self.enter, self.enter2 = conv(CHANNELS, a), conv(a, a)
        self.down1, self.down1b = conv(a, b), conv(b, b)
        self.down2, self.down2b = conv(b, c), conv(c, c)
        self.up1, self.up0 = conv(c + b, b), conv(b + a, a)
        self.out = nn.Conv1d(a, 1, 1)
        nn.init.zeros_(self.out.weight)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)

    def forward(self, channels: torch.Tensor) -> torch.Tensor:
        pool = nn.functional.max_pool1d
        full = self.enter2(self.enter(channels))
        half = self.down1b(self.down1(pool(full, 2)))
        quarter = self.down2b(self.down2(pool(half, 2)))
        half = self.up1(torch.cat([quarter.repeat_interleave(2, dim=2), half], 1))
        full = self.up0(torch.cat([half.repeat_interleave(2, dim=2), full], 1))
        return self.out(full)[:, 0]


def conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv1d(inputs, outputs, KERNEL, padding=KERNEL // 2), nn.ReLU())


def channels_of(view: FilterView, fs: float) -> np.ndarray:
    """(CHANNELS, T) float32 of one trace."""
    x = np.clip(view.x / view.noise_sd, -20, 20)
    smooth = gaussian_filter1d(x, max(SMOOTH_S * fs, 0.5))
    high = x - gaussian_filter1d(x, HIGHPASS_S * fs)
    middle = median_filter(x, 2 * frames_within(MEDIAN_S / 2, fs) + 1)
    usual = np.median(view.log_prior)
    rows = [x / 4, smooth / 4, high / 4, np.gradient(x) / 4, middle / 4, np.clip(view.log_odds / 4, -3, LARGEST), filter_logit(view) / 4,
            np.clip(view.log_prior - usual, -4, 4), np.full(len(x), np.log(view.d / 4)), np.full(len(x), np.log(fs / 500))]
    return np.stack(rows).astype(np.float32)


def filter_logit(view: FilterView) -> np.ndarray:
    """(T,) log odds that the filter gives a spike in each frame, others considered."""
    p = np.clip(view.expected, 1e-5, 1 - 1e-4)
    return np.log(p / (1 - p))


def network_expected(view: FilterView, fs: float, network: VoltageNetwork) -> np.ndarray:
    """(T,) probability of a spike in each frame."""
    T = len(view.x)
    size = max(LEAST_WINDOW, 4 * round(WINDOW_S * fs / 4))
    pruned, step = size // PRUNED, size // 2
    n = max(1, int(np.ceil((T - size + 2 * pruned) / step)) + 1)
    padded = np.pad(channels_of(view, fs), ((0, 0), (pruned, max(0, (n - 1) * step + size - pruned - T))), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=1)[:, ::step][:, :n].transpose(1, 0, 2)
    total, times = np.zeros(padded.shape[1]), np.zeros(padded.shape[1])
    for first in range(0, n, WINDOWS_AT_ONCE):
        with torch.inference_mode():
            change = network(torch.from_numpy(np.array(windows[first : first + WINDOWS_AT_ONCE]))).numpy()
        for i, one in enumerate(change, first):
            kept = slice(i * step + pruned, i * step + size - pruned)
            total[kept] += one[pruned : size - pruned]
            times[kept] += 1
    change = (total / np.maximum(times, 1))[pruned : pruned + T]
    return 1 / (1 + np.exp(-(filter_logit(view) + TRUST * change)))


def picked(expected: np.ndarray, fs: float, possible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames and probabilities of spikes: the most probable first, none within the refractory period of another.

    expected: (T,); a spike's probability is that of the frames that may be the same spike; possible: (T,) bool
    """
    log_p = np.where(possible, np.log(np.maximum(expected, 1e-12)), -30.0)
    frames, p = pick(log_p, frames_within(WITHIN_S, fs), frames_within(REFRACTORY_S, fs), 0.02)
    order = np.argsort(frames)
    return frames[order], np.minimum(p[order], 1 - 1e-6)


@numba.njit(cache=True, nogil=True)
def pick(log_p: np.ndarray, within: int, refractory: int, least: float) -> tuple[np.ndarray, np.ndarray]:
    T = len(log_p)
    taken = np.zeros(T, np.int64)
    frames, p = np.empty(T, np.int64), np.empty(T)
    count = 0
    for n in np.argsort(-log_p):
        if taken[n]:
            continue
        here = odds_nearby(log_p, taken, n, within)
        if here < least:
            continue
        frames[count], p[count] = n, here
        count += 1
        taken[max(0, n - refractory) : n + refractory + 1] = 1
    return frames[:count], p[:count]


@lru_cache(maxsize=4)
def load_voltage_network(path: Path = WEIGHTS) -> VoltageNetwork:
    """The network with the weights of an .npz file of plain arrays. Raises ModelError where they do not fit."""
    return load_weights(VoltageNetwork(), path, "benchmarks/train_voltage.py")


def save_voltage_network(network: VoltageNetwork, path: Path) -> None:
    """The weights as an .npz file of plain float32 arrays."""
    save_weights(network, path)
