"""Waveforms and data for the tests of the textbook algorithms."""

import numpy as np
import torch


def ripples(K, N, D, seed=0):
    """(K, N, D) unit-norm waveforms of rank one that start and end near zero: damped oscillations with their footprints."""
    rng, t = np.random.default_rng(seed), np.arange(D)
    W = np.stack([np.outer(rng.normal(size=N), np.exp(-0.5 * ((t - D / 2) / (D / 9 + k / 2)) ** 2) * np.cos(t * (0.5 + 0.3 * k) + k))
                  for k in range(K)])
    return W / np.linalg.norm(W, axis=(1, 2), keepdims=True)


def plant(W, times, amplitudes, T, noise_std=1.0, seed=1):
    """(N, T) noise with waveform k added at each time of times[k]."""
    X = noise_std * np.random.default_rng(seed).normal(size=(W.shape[1], T))
    for k, D in enumerate([W.shape[2]] * len(W)):
        for t, a in zip(times[k], amplitudes[k], strict=True):
            X[:, t : t + D] += a * W[k]
    return X


def planted_units():
    """Three units of 12 spikes each, those of one unit two templates apart; spikes of different units overlap."""
    rng = np.random.default_rng(5)
    W = ripples(3, 5, 24)
    times = [10 + 17 * k + 60 * np.arange(12) + rng.integers(0, 12, 12) for k in range(3)]
    amplitudes = [rng.uniform(18, 26, 12) for _ in range(3)]
    return W, times, amplitudes, torch.from_numpy(plant(W, times, amplitudes, 800))
