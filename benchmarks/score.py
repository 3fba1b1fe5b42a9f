"""Accuracy of a sorting against the truth, by SpikeInterface's comparison.

The accuracy of a true unit is TP / (TP + FN + FP) with the sorted unit that the Hungarian method gives it. A pair that
agrees on less than half its spikes is no match and counts as accuracy 0, as everywhere in SpikeInterface.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.trains import Trains, Truth, to_spikeinterface

DELTA_MS = 0.4


@dataclass(frozen=True)
class Score:
    """U true units, K sorted ones.

    accuracy, precision, recall: (U,) 0 where no sorted unit matches
    match: (U,) index of the sorted unit, -1 for none
    agreement: (U, K) matches / (spikes of either), before any matching
    extra: (K,) True for a sorted unit that matches no true one
    extra_good: extra units among those labelled good, or None where the sorter gives no labels
    good_right: share of the units labelled good that match a true one with an accuracy above .8, or None
    """

    accuracy: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    match: np.ndarray
    agreement: np.ndarray
    extra: np.ndarray
    extra_good: int | None
    good_right: float | None = None

    def summary(self) -> dict[str, float | int | None]:
        """The numbers of one line of the table; means are over all true units."""
        return {"accuracy": _mean(self.accuracy), "precision": _mean(self.precision), "recall": _mean(self.recall),
                "n_true": len(self.accuracy), "n_sorted": len(self.extra), "n80": int((self.accuracy > 0.8).sum()),
                "n95": int((self.accuracy > 0.95).sum()), "extra": int(self.extra.sum()), "extra_good": self.extra_good,
                "good_right": self.good_right}


def _mean(values: np.ndarray) -> float:
    return round(float(np.mean(values)), 4) if len(values) else float("nan")


def score(truth: Truth, found: Trains, delta_ms: float = DELTA_MS) -> Score:
    """Compare a sorting with the truth; a spike is found if a sorted one lies within `delta_ms`."""
    from spikeinterface.comparison import compare_sorter_to_ground_truth

    n_true, n_sorted = truth.trains.n_units, found.n_units
    if not n_sorted or not n_true:
        zero = np.zeros(n_true)
        good = sum(found.labels.get(int(k)) == "good" for k in found.ids) if found.labels else None
        return Score(zero, zero, zero, np.full(n_true, -1), np.zeros((n_true, n_sorted)), np.ones(n_sorted, bool), good)
    known, sorting = to_spikeinterface(truth.trains), to_spikeinterface(found)
    comparison = compare_sorter_to_ground_truth(known, sorting, exhaustive_gt=True, delta_time=delta_ms)
    performance = comparison.get_performance().loc[truth.trains.ids]
    names = comparison.hungarian_match_12.loc[truth.trains.ids].to_numpy()
    place = {int(k): i for i, k in enumerate(found.ids)}
    match = np.array([place.get(int(k), -1) for k in names])
    extra = ~np.isin(np.arange(n_sorted), match)
    extra_good = good_right = None
    accuracy, precision, recall = (np.nan_to_num(performance[c].to_numpy(float)) for c in ("accuracy", "precision", "recall"))
    if found.labels:
        good = np.array([found.labels.get(int(k)) == "good" for k in found.ids])
        extra_good = int((extra & good).sum())
        good_right = float(np.isin(np.flatnonzero(good), match[accuracy > 0.8]).mean()) if good.any() else None
    agreement = comparison.agreement_scores.loc[truth.trains.ids, found.ids].to_numpy(float)
    return Score(accuracy, precision, recall, match, agreement, extra, extra_good, good_right)
