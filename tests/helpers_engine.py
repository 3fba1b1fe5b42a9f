"""Made-up units for the tests of single stages: waveforms that end near zero, on a probe, planted in white noise."""

from __future__ import annotations

import numpy as np

from sortcore.simulate import delay
from sortcore.types import Priors, Probe

FS = 30000.0
BEFORE, AFTER = 24, 39
D = BEFORE + AFTER + 1


def column(n_channels: int, pitch_um: float = 25.0) -> Probe:
    """Contacts in one line."""
    return Probe(np.stack([np.zeros(n_channels), pitch_um * np.arange(n_channels)], axis=1), np.zeros(n_channels, int), "column")


def unit_waveforms(n_units: int, n_channels: int, reach: int = 2, seed: int = 0) -> np.ndarray:
    """(K, N, D) float32 unit-norm spikes, smooth and ending in zeros, troughs at BEFORE, on `reach` channels either side of their own."""
    rng, t = np.random.default_rng(seed), np.arange(D) - BEFORE
    out = np.zeros((n_units, n_channels, D))
    for k in range(n_units):
        home = round((k + 0.5) * n_channels / n_units - 0.5)
        width, tail, late = rng.uniform(3.0, 5.5), rng.uniform(0.15, 0.6), rng.uniform(10, 15)
        fall = rng.uniform(0.4, 0.65)
        for c in range(max(0, home - reach), min(n_channels, home + reach + 1)):
            lag = 0.5 * abs(c - home)
            trough = -np.exp(-0.5 * ((t - lag) / width) ** 2)
            out[k, c] = fall ** abs(c - home) * (trough + tail * np.exp(-0.5 * ((t - lag - late) / (1.4 * width)) ** 2))
    out *= np.clip(np.minimum(np.arange(D), np.arange(D)[::-1]) / 4, 0, 1)
    return (out / np.linalg.norm(out, axis=(1, 2), keepdims=True)).astype(np.float32)


def flat_priors(n_units: int, amp_mean: float = 20.0, amp_std: float = 2.5, rate_hz: float = 10.0) -> Priors:
    return Priors(np.full(n_units, amp_mean), np.full(n_units, amp_std), np.full(n_units, rate_hz))


def plant(waves: np.ndarray, starts: np.ndarray, units: np.ndarray, amplitudes: np.ndarray, n_samples: int,
          shifts: np.ndarray | None = None, seed: int = 0, noise: float = 1.0) -> np.ndarray:
    """(N, T) float32 white noise with waveforms (K, N, D) added from `starts` on."""
    x = noise * np.random.default_rng(seed).standard_normal((waves.shape[1], n_samples), dtype=np.float32)
    for i, (s, k, a) in enumerate(zip(starts, units, amplitudes, strict=True)):
        wave = waves[k] if shifts is None else delay(waves[k], float(shifts[i]))
        low, high = max(0, s), min(n_samples, s + D)
        x[:, low:high] += a * wave[:, low - s : high - s]
    return x.astype(np.float32)


def random_trains(n_units: int, per_unit: int, n_samples: int, seed: int = 0, apart: int = 2 * D) -> tuple[np.ndarray, np.ndarray]:
    """Template starts, in order, and their units; spikes of one unit lie `apart`, those of different units where they like."""
    rng = np.random.default_rng(seed)
    room = n_samples - 3 * D - per_unit * apart
    starts = np.concatenate([D + np.sort(rng.integers(0, room, per_unit)) + apart * np.arange(per_unit) for _ in range(n_units)])
    units = np.repeat(np.arange(n_units), per_unit)
    order = np.lexsort((units, starts))
    return starts[order], units[order]


def cosines(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(K, J) largest cosine over lags, in quarters of a sample, of found (J, N, D) with true waveforms (K, N, D)."""
    d = truth.shape[2]
    norm = np.linalg.norm(found, axis=(1, 2))[None] * np.linalg.norm(truth, axis=(1, 2))[:, None]
    best = np.full(norm.shape, -np.inf)
    for part in (0.0, 0.25, 0.5, 0.75):
        pad = delay(np.pad(found, ((0, 0), (0, 0), (12, 12))), part)
        best = np.maximum(best, np.max([np.einsum("jnd,knd->kj", pad[:, :, s : s + d], truth) for s in range(25)], axis=0))
    return best / np.maximum(norm, 1e-9)


def pair(samples: np.ndarray, units: np.ndarray, other_samples: np.ndarray, other_units: np.ndarray, tolerance: float) -> int:
    """How many spikes of one list have one of the same unit in the other, each used once."""
    from sortcore.metrics import match_spikes

    both = np.union1d(units, other_units)
    return sum(match_spikes(samples[units == k], other_samples[other_units == k], tolerance) for k in both)
