"""The indicator's rise, by how few events explain a trace.

What a slow rise makes, a fast one makes as well with activity spread over more frames, and never the other way round: whatever
judges by fit and by the sum of activity takes the faster. So here an event pays for being one,

    1/2 sum_t (y_t - b_t - (K s)_t)^2 + price sum_t log(1 + |k| s_t)  +  the baseline's prior,

least by rounds of the L1 problem whose penalty is the slope of the logarithm at the activity of the round before (Candes, Wakin &
Boyd 2008). As for the decay, a prior decides where the trace is silent, and the rise is a mean over the grid.
"""

from __future__ import annotations

import numpy as np

from sortcore.optical.ar2 import solve_ar2
from sortcore.optical.estimate import PRIOR_RISE_S, RISES_S, SHORTEST_RISE_S, START, Assumptions, busiest, descend
from sortcore.optical.kernels import exponential_kernel

ROUNDS = 2
RISE_FRAMES = 8_000
SPARSE_BARRIER = 1e-3  # of the rounds after the first: next to none


def estimate_rise(y: np.ndarray, fs: float, decay: float, given: Assumptions, *, free_baseline: bool = True) -> float:
    """Rise in seconds of a trace (T,) in units of its noise whose decay, in seconds, is known; at most half of that."""
    part, logs = busiest(y, RISE_FRAMES), np.log(np.maximum(RISES_S, SHORTEST_RISE_S))
    off = ((logs - np.log(PRIOR_RISE_S[0])) / PRIOR_RISE_S[1]) ** 2
    most = max(j for j, rise in enumerate(RISES_S) if rise <= 0.5 * decay)
    seen: dict[int, float] = {}

    def cost(place: tuple[int, ...]) -> float:
        (j,) = place
        if not 0 <= j <= most:
            return np.inf
        if j not in seen:
            events = cost_of_events(part, fs, decay, RISES_S[j], given, free_baseline)
            seen[j] = 100 * given.event_selectivity * np.log(max(events, 1e-12)) + 0.5 * off[j]
        return seen[j]

    lowest = cost(descend(cost, (min(START[1], most),), ((-1,), (1,))))
    weights = np.exp(lowest - np.array(list(seen.values())))
    return min(float(np.exp(np.average(logs[list(seen)], weights=weights))), 0.5 * decay)


def cost_of_events(y: np.ndarray, fs: float, decay: float, rise: float, given: Assumptions, free_baseline: bool = True) -> float:
    """What is minimised above, for a trace (T,) in units of its noise."""
    kernel = exponential_kernel(fs, decay, rise)
    drift, spread = given.baseline(fs) if free_baseline else (0.0, 0.0)
    penalty, barrier = np.full(len(y), given.selection_sd * kernel.norm), given.shape(fs)
    for _ in range(1 + ROUNDS):
        found = solve_ar2(y, kernel, penalty, barrier=barrier, drift=drift, spread=spread)
        penalty, barrier = given.event_price / (found.activity + 1 / kernel.norm), SPARSE_BARRIER
    return found.misfit + given.event_price * float(np.log1p(kernel.norm * found.activity).sum())
