"""True and sorted trains side by side: which spikes coincide, beyond chance, and to whom each sorted unit belongs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.score import DELTA_MS, Score, score
from benchmarks.trains import Trains, Truth

MIN_OWN = 0.1  # a sorted unit is somebody's if this share of it is theirs, ...
MIN_COVERED = 0.3  # ... or if it holds this share of them


@dataclass(frozen=True)
class Comparison:
    """True trains and sorted ones side by side, with their spikes counted once for all questions."""

    truth: Truth
    found: Trains
    result: Score
    delta: int
    true_trains: list[np.ndarray]
    sorted_trains: list[np.ndarray]
    counts: np.ndarray  # (U, K) matching spikes
    chance: np.ndarray  # (U, K) of which by chance
    owner: np.ndarray  # (K,) true unit that a sorted unit belongs to, -1 for none


def near(a: np.ndarray, b: np.ndarray, delta: int) -> np.ndarray:
    """(len(a),) True where a spike of `b` lies within `delta` samples; both increasing."""
    return np.abs(lag(a, b)) <= delta


def lag(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(len(a),) time of the nearest spike of `b`, relative to `a`; very large where `b` is empty."""
    if not len(b):
        return np.full(len(a), 2**40)
    after = np.searchsorted(b, a)
    low, high = b[np.maximum(after - 1, 0)] - a, b[np.minimum(after, len(b) - 1)] - a
    return np.where(np.abs(low) <= np.abs(high), low, high)


def by_chance(n: Any, m: Any, delta: int, n_samples: int) -> Any:
    """Spikes of n that fall within `delta` of one of m, were the trains independent; numbers or arrays."""
    return n * m * (2 * delta + 1) / n_samples


def is_real(count: float, chance: float) -> bool:
    """Are there clearly more coincidences than chance brings?"""
    return count - chance > 2 + 4 * np.sqrt(chance)


def compare(truth: Truth, found: Trains, delta_ms: float = DELTA_MS) -> Comparison:
    """Score a sorting and find out to which true unit each sorted unit belongs."""
    result = score(truth, found, delta_ms)
    delta = int(delta_ms / 1000 * found.fs)
    n_true, n_sorted = truth.trains.counts().astype(float), found.counts().astype(float)
    # agreement = matches / (n + m - matches), solved for the matches
    counts = np.round(result.agreement * (n_true[:, None] + n_sorted) / (1 + result.agreement))
    chance = by_chance(n_true[:, None], n_sorted, delta, truth.n_samples)
    excess = counts - chance
    owner = np.full(found.n_units, -1)
    for k in range(found.n_units if len(n_true) else 0):
        if k in result.match:
            owner[k] = np.flatnonzero(result.match == k)[0]
            continue
        u = int(excess[:, k].argmax())
        mine = excess[u, k] >= MIN_OWN * n_sorted[k] or excess[u, k] >= MIN_COVERED * n_true[u]
        owner[k] = u if mine and is_real(counts[u, k], chance[u, k]) else -1
    return Comparison(truth, found, result, delta, truth.trains.split(), found.split(), counts, chance, owner)


def best_unit(c: Comparison, u: int) -> int:
    """The sorted unit that stands for a true one, -1 for none: its match, else the most alike that is its own or holds half of it."""
    if c.result.match[u] >= 0 or not c.found.n_units:
        return int(c.result.match[u])
    own = (c.owner == u) | (c.counts[u] - c.chance[u] >= 0.5 * len(c.true_trains[u]))
    agreement = np.where(own & (c.counts[u] > c.chance[u]), c.result.agreement[u], 0.0)
    return int(agreement.argmax()) if agreement.max() > 0 else -1
