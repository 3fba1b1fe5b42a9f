"""Slow and obvious forms of what the voltage front end computes fast."""

from itertools import combinations, pairwise, product

import numpy as np
from scipy.linalg import toeplitz

from sortcore.optical.voltage.noise import Noise, noise_of
from sortcore.optical.voltage.waveform import Grid, exposure


def ornstein_noise(fs: float, white: float = 0.04, slow: float = 0.09, seconds: float = 0.005, n: int = 200) -> Noise:
    """White noise and an Ornstein-Uhlenbeck potential."""
    g, w = np.exp(-1 / (seconds * fs)), 2 * np.pi * np.fft.rfftfreq(n)
    return noise_of(white + slow * (1 - g * g) / np.abs(1 - g * np.exp(-1j * w)) ** 2)


def covariance(noise: Noise, T: int) -> np.ndarray:
    """(T, T) of T frames of the noise."""
    M = 2 * (len(noise.spectrum) - 1)
    return toeplitz(np.fft.irfft(noise.spectrum, M)[:T])


def placed(fine: np.ndarray, grid: Grid, T: int, n: int, p: int) -> np.ndarray:
    """(T,) a spike of amplitude one in frame n, at phase p."""
    out, template = np.zeros(T), exposure(grid)[p] @ fine
    for j, value in enumerate(template):
        if 0 <= n - grid.before + j < T:
            out[n - grid.before + j] = value
    return out


def log_density(x: np.ndarray, mean: np.ndarray, C: np.ndarray) -> float:
    """Of a Gaussian, up to a constant."""
    return float(-0.5 * (x - mean) @ np.linalg.solve(C, x - mean) - 0.5 * np.linalg.slogdet(C)[1])


def exact_posterior(x: np.ndarray, fine: np.ndarray, grid: Grid, noise: Noise, rho: float, chance: float, gap: int, frames: range,
                    most: int = 2) -> np.ndarray:
    """(T,) probability of a spike in each frame, all ways to place at most `most` spikes in some frames enumerated."""
    T = len(x)
    C = covariance(noise, T)
    weight, total = np.zeros(T), 0.0
    base = log_density(x, np.zeros(T), C)
    for k in range(most + 1):
        for places in combinations(frames, k):
            if any(b - a <= gap for a, b in pairwise(places)):
                continue
            for phases in product(range(grid.P), repeat=k):
                waves = [placed(fine, grid, T, n, p) for n, p in zip(places, phases, strict=True)]
                spread = C + rho**2 * sum((np.outer(w, w) for w in waves), np.zeros((T, T)))
                w = np.exp(log_density(x, sum(waves, np.zeros(T)), spread) - base) * (chance / (1 - chance) / grid.P) ** k
                total += w
                for n in places:
                    weight[n] += w
    return weight / total


def all_placements(ratios: np.ndarray, chance: float, gap: int) -> float:
    """Sum over all ways to place spikes more than `gap` frames apart."""
    T, total = len(ratios), 0.0
    for k in range(T + 1):
        for places in combinations(range(T), k):
            if all(b - a > gap for a, b in pairwise(places)):
                free = T - sum(min(n, gap) + 1 for n in places)  # frames that hold no spike and belong to no gap
                total += chance**k * (1 - chance) ** free * np.prod(ratios[list(places)])
    return float(total)
