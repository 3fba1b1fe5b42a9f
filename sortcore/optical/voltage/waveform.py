"""The waveform of a spike on a grid finer than frames, and what frames see of it.

A frame is the mean over its exposure, and a spike falls anywhere within one, so at frame rates near a spike's width the same
spike looks different from time to time. The waveform is therefore kept on P points a frame, and frames see it at each of the P
phases that a spike can have:

    template_p[j] = mean of the points i for which frame j holds point i + p
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

FINE_HZ, MOST_PHASES = 2000.0, 8
BEFORE_S, AFTER_S = 0.0015, 0.012
RISE_S = 0.0004
DEPTH, DEEPEST_S = 0.1, 0.006  # after-hyperpolarisation of the generic spike
DECAYS_S = (0.0007, 0.0013, 0.0022, 0.0038)


@dataclass(frozen=True)
class Grid:
    """Where a waveform is known.

    fs: frames per second; P: points a frame; before, after: frames before and after that of the spike's time
    """

    fs: float
    P: int
    before: int
    after: int

    @property
    def n_points(self) -> int:
        return (self.before + self.after) * self.P

    @property
    def n_frames(self) -> int:
        """Frames L of a template."""
        return self.before + self.after + 1

    @property
    def times_s(self) -> np.ndarray:
        """(F,) middle of each point, from the spike's time on."""
        return (np.arange(self.n_points) + 0.5) / (self.P * self.fs) - self.before / self.fs


def grid_at(fs: float) -> Grid:
    """The grid for a frame rate."""
    P = int(np.clip(np.ceil(FINE_HZ / fs), 2, MOST_PHASES))
    return Grid(fs, P, max(1, int(np.ceil(BEFORE_S * fs))), max(2, int(np.ceil(AFTER_S * fs))))


@lru_cache(maxsize=16)
def exposure(grid: Grid) -> np.ndarray:
    """(P, L, F) means over frames: exposure[p] @ waveform is the template of phase p. Phase p: (p + 1/2) / P into a frame."""
    P, F = grid.P, grid.n_points
    B = np.zeros((P, grid.n_frames, F))
    for p in range(P):
        B[p, (np.arange(F) + p) // P, np.arange(F)] = 1 / P
    return B


def generic(grid: Grid, decay_s: float) -> np.ndarray:
    """(F,) a spike as indicators show it: fast rise, exponential decay, slight after-hyperpolarisation; its peak at time 0 is 1."""
    finer = 8
    step = 1 / (grid.fs * grid.P * finer)
    t = (np.arange(grid.n_points * finer) + 0.5) * step - grid.before / grid.fs
    peak = RISE_S * np.log1p(decay_s / RISE_S)
    u = np.maximum(t + peak, 0.0)
    spike = np.exp(-u / decay_s) * -np.expm1(-u / RISE_S)
    spike = spike / spike.max() - DEPTH * (u / DEEPEST_S) * np.exp(1 - u / DEEPEST_S)
    return spike.reshape(-1, finer).mean(1)
