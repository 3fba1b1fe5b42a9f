"""How good a sorting is, where the true spikes are known.

Two spikes are the same when they lie within a tolerance, units are paired so that they agree most, and a true unit's
figures are those of the unit paired with it:

    agreement(i, j) = matched / (n_i + n_j - matched)                      share of the spikes of either that both have
    accuracy = TP / (TP + FN + FP),   precision = TP / (TP + FP),   recall = TP / (TP + FN)

These are the definitions of SpikeInterface's comparison of a sorter with ground truth, and of SpikeForest (Magland et
al., eLife 2020). One thing is stricter here: a spike is never counted twice. SpikeInterface forgets all but the last
match, so that spikes of one train closer together than the tolerance may match one spike of the other several times;
between trains with a refractory period the counts are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numba import njit
from scipy.optimize import linear_sum_assignment

from sortcore.errors import ModelError


@dataclass(frozen=True)
class Comparison:
    """A sorting held against the truth: K true units, J found ones.

    n_true: (K,) spikes of each true unit
    n_found: (J,) spikes of each found unit
    n_matched: (K, J) spikes that a true and a found unit have in common
    agreement: (K, J) from 0 to 1
    match: (K,) found unit paired with each true unit, -1 for none
    accuracy, precision, recall: (K,) of each true unit, zero where none is paired with it
    extra: (E,) found units that are paired with no true one
    """

    n_true: np.ndarray
    n_found: np.ndarray
    n_matched: np.ndarray
    agreement: np.ndarray
    match: np.ndarray
    accuracy: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    extra: np.ndarray

    @property
    def mean_accuracy(self) -> float:
        """Mean over all true units, missed ones counting as zero; NaN without true units."""
        return float(self.accuracy.mean()) if len(self.accuracy) else float("nan")

    def n_well_detected(self, accuracy: float = 0.8) -> int:
        """True units found at this accuracy or above."""
        return int((self.accuracy >= accuracy).sum())


def compare(true: Sequence[np.ndarray], found: Sequence[np.ndarray], tolerance: float, *, match_score: float = 0.5) -> Comparison:
    """Compare found spike trains with the true ones.

    true, found: spike times, one array a unit; in samples, or all in seconds
    tolerance: two times at most this far apart, in the same unit, may be one spike. SpikeInterface takes
        int(0.4e-3 * fs) samples.
    match_score: agreement that a pair of units must reach. Pairs below it count as zero, the Hungarian method chooses
        the one-to-one pairing of the largest total agreement, and of its pairs those that reach match_score are kept;
        this is SpikeInterface's `hungarian_match_12`.

    A found unit is `extra` when it is in no kept pair: a false unit, but also the second copy of a unit found twice and
    the smaller part of a split one.

    Raises ModelError for times that are not finite, or a tolerance below zero.
    """
    n_matched = match_counts(true, found, tolerance)  # (K, J)
    n_true, n_found = (np.array([len(t) for t in trains], dtype=np.int64) for trains in (true, found))
    either = n_true[:, None] + n_found - n_matched
    agreement = _share(n_matched, either)
    match = pair_units(agreement, match_score)
    paired = match >= 0
    TP, FP = np.zeros_like(n_true), np.zeros_like(n_true)
    TP[paired] = n_matched[paired, match[paired]]
    FP[paired] = n_found[match[paired]] - TP[paired]
    FN = n_true - TP
    return Comparison(n_true, n_found, n_matched, agreement, match, accuracy=_share(TP, TP + FN + FP), precision=_share(TP, TP + FP),
                      recall=_share(TP, TP + FN), extra=np.setdiff1d(np.arange(len(found)), match[paired]))


def match_spikes(train_a: np.ndarray, train_b: np.ndarray, tolerance: float) -> int:
    """How many spikes of two trains can be paired, one to one, at most a tolerance apart.

    train_a, train_b: (S,) times in samples or both in seconds, in any order; tolerance in the same unit
    Goes through both trains once, and pairs the earliest spikes that can be; no pairing has more.
    Raises ModelError for times that are not finite, or a tolerance below zero.
    """
    return int(match_counts([train_a], [train_b], tolerance)[0, 0])


def match_counts(trains_a: Sequence[np.ndarray], trains_b: Sequence[np.ndarray], tolerance: float) -> np.ndarray:
    """`match_spikes` of every unit of one sorting with every unit of the other: (K, J) int64."""
    if not tolerance >= 0:
        raise ModelError(f"The tolerance within which two spikes are one must not be negative, but it is {tolerance}.")
    return _match_counts(*_flatten(trains_a), *_flatten(trains_b), float(tolerance))


def pair_units(agreement: np.ndarray, match_score: float = 0.5) -> np.ndarray:
    """The one-to-one pairing of largest total agreement, of pairs that reach match_score.

    agreement (K, J) -> (K,) column paired with each row, -1 for none
    """
    match = np.full(len(agreement), -1, dtype=np.int64)
    rows, columns = linear_sum_assignment(-np.where(agreement < match_score, 0, agreement))
    kept = agreement[rows, columns] >= match_score
    match[rows[kept]] = columns[kept]
    return match


def spike_trains(samples: np.ndarray, units: np.ndarray, n_units: int | None = None) -> list[np.ndarray]:
    """Spike times (S,) of all units together and their units (S,), taken apart into one increasing array a unit.

    n_units: how many arrays, empty ones included; by default as many as the largest unit number asks for
    """
    samples, units = np.asarray(samples), np.asarray(units)
    n_units = (int(units.max()) + 1 if len(units) else 0) if n_units is None else n_units
    order = np.lexsort((samples, units))
    edges = np.searchsorted(units[order], np.arange(n_units + 1))
    return [samples[order[i:j]] for i, j in pairwise(edges)]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, zero where whole is zero."""
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def _flatten(trains: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All trains end to end, each in order of time, and (K + 1,) where each begins."""
    ordered = [np.sort(np.asarray(train, dtype=np.float64)) for train in trains]
    edges = np.cumsum([0] + [len(train) for train in ordered]).astype(np.int64)
    times = np.concatenate([np.zeros(0)] + ordered)
    if not np.isfinite(times).all():
        raise ModelError("Some spike times are NaN or infinite.")
    return times, edges


@njit
def _match_counts(a: np.ndarray, edges_a: np.ndarray, b: np.ndarray, edges_b: np.ndarray, tolerance: float) -> np.ndarray:
    counts = np.zeros((len(edges_a) - 1, len(edges_b) - 1), dtype=np.int64)
    for k in range(len(edges_a) - 1):
        for j in range(len(edges_b) - 1):
            i, m, n = edges_a[k], edges_b[j], 0
            while i < edges_a[k + 1] and m < edges_b[j + 1]:
                if a[i] < b[m] - tolerance:
                    i += 1
                elif b[m] < a[i] - tolerance:
                    m += 1
                else:
                    i, m, n = i + 1, m + 1, n + 1
            counts[k, j] = n
    return counts
