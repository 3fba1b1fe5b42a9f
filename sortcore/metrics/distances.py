"""Distances between two spike trains, at a time scale."""

from __future__ import annotations

import numpy as np
from numba import njit

from sortcore.errors import ModelError


def van_rossum(train_a: np.ndarray, train_b: np.ndarray, tau: float) -> float:
    """Distance of two trains after each spike became an exponential (van Rossum, Neural Comput 2001).

        D^2 = (2 / tau) int (a(t) - b(t))^2 dt,   a(t) = sum_i exp(-(t - a_i) / tau) for a_i <= t
            = sum_ij s_i s_j exp(-|t_i - t_j| / tau)   over the spikes of both, s = 1 in a and -1 in b

    train_a, train_b: (S,) times in any order; tau in their unit
    For small tau D^2 counts the spikes that do not coincide, for large tau D is the difference of the counts. One spike is
    at distance 1 from none (van Rossum's own D^2 is half of this). In time O(n log n): the double sum is a decaying sum over
    the spikes in order (Houghton & Kreuz, Network 2012).
    Raises ModelError for times that are not finite, or tau not above 0.
    """
    if not 0 < tau < np.inf:
        raise ModelError(f"tau, the time constant of the exponential, must be finite and above 0, but it is {tau}.")
    a, b = in_order(train_a), in_order(train_b)
    times = np.concatenate([a, b])
    signs = np.concatenate([np.ones(len(a)), -np.ones(len(b))])
    order = np.argsort(times, kind="stable")
    return float(np.sqrt(max(_decaying_sum(times[order], signs[order], tau), 0.0)))


def victor_purpura(train_a: np.ndarray, train_b: np.ndarray, cost: float) -> float:
    """Cheapest way from one train to the other (Victor & Purpura, J Neurophysiol 1996).

    Adding or taking away a spike costs 1, moving one by dt costs `cost` |dt|.
    train_a, train_b: (S,) times in any order; cost per their unit of time
    For cost 0 it is the difference of the counts, for large cost the number of spikes that do not coincide. By dynamic
    programming in time O(n m), memory O(n).
    Raises ModelError for times that are not finite, or a cost below 0.
    """
    if not 0 <= cost < np.inf:
        raise ModelError(f"The cost of moving a spike must be finite and not negative, but it is {cost}.")
    return float(_edit_distance(in_order(train_a), in_order(train_b), float(cost)))


def in_order(train: np.ndarray) -> np.ndarray:
    """Times as float64, increasing. Raises ModelError unless they are finite and (S,)."""
    times = np.asarray(train, dtype=np.float64)
    if times.ndim != 1 or not np.isfinite(times).all():
        raise ModelError(f"A spike train must be one row of finite times, but it has shape {times.shape}"
                         f"{' and times that are NaN or infinite' if times.ndim == 1 else ''}.")
    return np.sort(times)


@njit
def _decaying_sum(times: np.ndarray, signs: np.ndarray, tau: float) -> float:
    total, earlier = 0.0, 0.0
    for i in range(len(times)):
        if i > 0:
            earlier *= np.exp((times[i - 1] - times[i]) / tau)
        total += signs[i] * (signs[i] + 2 * earlier)
        earlier += signs[i]
    return total


@njit
def _edit_distance(a: np.ndarray, b: np.ndarray, cost: float) -> float:
    row = np.arange(len(b) + 1).astype(np.float64)  # from the first i spikes of a to the first j of b
    for i in range(len(a)):
        diagonal = row[0]
        row[0] = i + 1.0
        for j in range(len(b)):
            moved = diagonal + cost * abs(a[i] - b[j])
            diagonal = row[j + 1]
            row[j + 1] = min(moved, row[j] + 1, row[j + 1] + 1)
    return row[-1]
