"""Sudden steps, as motion makes them, told from spikes and taken off.

To a matched filter in coloured noise the edge of a step looks like a spike. A step is therefore one of the things that may have
happened: of either sign and any size, a ~ N(0, A^2), held and then forgotten. Where its log odds exceed those of a spike and of
nothing, it is subtracted, and what it hid can be seen.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import maximum_filter1d
from scipy.signal import oaconvolve

from sortcore.optical.voltage.evidence import Neuron, frame_ratios
from sortcore.optical.voltage.filter import MatchedFilter, frames_within
from sortcore.optical.voltage.noise import Noise

RATE_HZ = 0.05
SIZE = 2.0  # A, in heights of a spike
HELD_S, FORGOTTEN_S = 0.03, 0.1
PHASES = 4
NEAR_S, APART_S = 0.005, 0.01
LEAST_LOG_ODDS = 3.0
SWEEPS = 4


def step_templates(fs: float) -> np.ndarray:
    """(PHASES, L) steps up that begin within the first frame, stay for a while and go back slowly."""
    held, back = frames_within(HELD_S, fs), frames_within(FORGOTTEN_S, fs)
    one = np.concatenate([np.ones(held), np.linspace(1, 0, back)])
    return np.stack([np.concatenate([[(p + 1) / PHASES], one]) for p in range(PHASES)])


def without_steps(x: np.ndarray, neuron: Neuron, matched: MatchedFilter, noise: Noise) -> np.ndarray:
    """(T,) a trace (T,) without its steps."""
    fs, x = matched.grid.fs, x.copy()
    steps = step_templates(fs)
    L = steps.shape[1]
    energies = np.array([noise_energy(row, noise) for row in steps])
    precision = 1 / (SIZE * np.abs(matched.templates).max()) ** 2
    usual = np.log(RATE_HZ / fs)
    for _ in range(SWEEPS if len(x) > 2 * L else 0):
        z = noise.decorrelated(x)
        scores = np.stack([oaconvolve(np.pad(z, (0, L - 1)), row[::-1], mode="valid") for row in steps])
        gain = 0.5 * scores**2 / (energies + precision)[:, None] - 0.5 * np.log1p(energies / precision)[:, None]
        best = gain.argmax(axis=0)
        log_odds = gain.max(axis=0) + usual
        around = maximum_filter1d(log_odds, 2 * frames_within(APART_S, fs) + 1)
        candidates = np.flatnonzero((log_odds > LEAST_LOG_ODDS) & (log_odds == around))
        if not len(candidates):
            break
        spikes = np.log(frame_ratios(matched.scores(z), matched.energies, neuron.rho**-2) + 1e-300) + np.log(neuron.rate_hz / fs)
        rival = maximum_filter1d(spikes, 2 * frames_within(NEAR_S, fs) + 1)
        found = [n for n in candidates if log_odds[n] > rival[n] and n + L <= len(x)]
        for n in found:
            x[n : n + L] -= scores[best[n], n] / (energies[best[n]] + precision) * steps[best[n]]
        if not found:
            break
    return x


def noise_energy(template: np.ndarray, noise: Noise) -> float:
    """template' S^-1 template."""
    return float(template @ np.convolve(template, noise.inverse, mode="same")) if len(template) >= len(noise.inverse) else \
        float(np.convolve(template, noise.inverse)[len(noise.inverse) // 2 :][: len(template)] @ template)
