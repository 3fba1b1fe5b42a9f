"""One spike train, or one trace of activity, against the truth.

Spikes are the same when they lie within a tolerance and are matched one to one, as in `compare`. Where every event or frame
has a score, the threshold is left open: the curves show all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.ndimage import gaussian_filter1d

from sortcore.errors import ModelError
from sortcore.metrics.sorting import match_spikes


@dataclass(frozen=True)
class SpikeScore:
    """Counts of a found train against the true one, and the shares made of them; a share of nothing is zero."""

    n_true: int
    n_found: int
    n_matched: int

    @property
    def precision(self) -> float:
        """Share of the found spikes that are true."""
        return self.n_matched / max(self.n_found, 1)

    @property
    def recall(self) -> float:
        """Share of the true spikes that were found."""
        return self.n_matched / max(self.n_true, 1)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN)."""
        return 2 * self.n_matched / max(self.n_true + self.n_found, 1)

    @property
    def accuracy(self) -> float:
        """TP / (TP + FP + FN)."""
        return self.n_matched / max(self.n_true + self.n_found - self.n_matched, 1)


@dataclass(frozen=True)
class Roc:
    """Receiver operating characteristic, from no event called to all: (P,) arrays, thresholds falling, and the area under it.

    The area is the probability that a positive scores above a negative, ties counting half; NaN where either is missing.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray
    area: float


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall, from no event called to all: (P,) arrays, thresholds falling, and the average precision.

    area = sum_p (recall_p - recall_{p-1}) precision_p, with nothing interpolated; NaN without positives.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray
    area: float


def score_spikes(true: np.ndarray, found: np.ndarray, tolerance: float) -> SpikeScore:
    """Score found spike times (S,) against true ones (R,); times and tolerance in one unit.

    Raises ModelError for times that are not finite, or a tolerance below zero.
    """
    return SpikeScore(len(true), len(found), match_spikes(true, found, tolerance))


def roc(scores: np.ndarray, truth: np.ndarray) -> Roc:
    """ROC curve of scores (...) against truth (...), of the same shape, nonzero where positive.

    Raises ModelError where shapes differ or scores are NaN.
    """
    hits, misses, thresholds = _steps(scores, truth)
    n_positive, n_negative = hits[-1], misses[-1]
    tpr, fpr = hits / max(n_positive, 1), misses / max(n_negative, 1)
    area = float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2)) if n_positive and n_negative else float("nan")
    return Roc(fpr, tpr, thresholds, area)


def precision_recall(scores: np.ndarray, truth: np.ndarray, n_positive: int | None = None) -> PrecisionRecall:
    """Precision-recall curve of scores (...) against truth (...), of the same shape, nonzero where positive.

    n_positive: how many positives there are, those counted in that have no score since they were never found
    Raises ModelError where shapes differ, scores are NaN or n_positive is less than the positives given.
    """
    hits, misses, thresholds = _steps(scores, truth)
    if n_positive is not None and n_positive < hits[-1]:
        raise ModelError(f"n_positive counts all positives, but it is {n_positive} and {hits[-1]} of the scores are positive.")
    n_positive = int(hits[-1]) if n_positive is None else n_positive
    precision = np.divide(hits, hits + misses, out=np.ones(len(hits)), where=hits + misses > 0)
    recall = hits / max(n_positive, 1)
    area = float(np.sum(np.diff(recall) * precision[1:])) if n_positive else float("nan")
    return PrecisionRecall(precision, recall, thresholds, area)


def score_events(true: np.ndarray, found: np.ndarray, scores: np.ndarray, tolerance: float) -> PrecisionRecall:
    """Precision-recall curve of found events (S,) with scores (S,) against true spikes (R,), for every threshold at once.

    From the highest score down, each event takes the nearest true spike within the tolerance that none before it took: what
    an event is worth does not change when weaker ones are called too.
    Raises ModelError for times or scores that are not finite, different lengths, or a tolerance below zero.
    """
    found, scores = np.asarray(found, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    true = np.sort(np.asarray(true, dtype=np.float64))
    if found.shape != scores.shape or found.ndim != 1:
        raise ModelError(f"Each found event needs one score, but there are {found.shape} events and {scores.shape} scores.")
    if not (np.isfinite(found).all() and np.isfinite(true).all() and tolerance >= 0):
        raise ModelError("Spike times must be finite and the tolerance not negative, but they are not.")
    order = np.argsort(-scores, kind="stable")
    labels = np.zeros(len(found), np.bool_)
    labels[order] = _take_nearest(true, found[order], float(tolerance))
    return precision_recall(scores, labels, len(true))


def correlation(activity: np.ndarray, truth: np.ndarray, fs: float, sigma_s: float = 0.2, edge_s: float = 1.0) -> np.ndarray:
    """Pearson correlation of activity and true spike counts (..., T), both smoothed with a Gaussian of so many seconds.

    fs: frames per second; sigma_s: the time scale, 0 for none; edge_s: left out at either end, after smoothing
    Returns (...): one figure a row, 0 where either is constant.
    Raises ModelError where shapes differ, values are not finite, or no two frames are left.
    """
    activity, truth = np.asarray(activity, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    edge = int(np.ceil(edge_s * fs))
    if activity.shape != truth.shape or activity.ndim < 1:
        raise ModelError(f"Activity and truth must have one shape (..., frames), but they have {activity.shape} and {truth.shape}.")
    if not (np.isfinite(activity).all() and np.isfinite(truth).all()):
        raise ModelError("Activity or truth has NaN or infinite frames; fill them, or leave them out of both.")
    if activity.shape[-1] - 2 * edge < 2:
        raise ModelError(f"Of {activity.shape[-1]} frames fewer than two are left when {edge} are taken off either end; "
                         "give a longer recording, or a smaller edge_s.")
    a, b = (_centred(_smooth(x, sigma_s * fs)[..., edge : x.shape[-1] - edge]) for x in (activity, truth))
    norm = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), norm, out=np.zeros(norm.shape), where=norm > 0)[()]


def _smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter1d(x, sigma, mode="nearest") if sigma > 0 else x


def _centred(x: np.ndarray) -> np.ndarray:
    """Less the mean of each row; exactly zero where a row is constant."""
    constant = np.ptp(x, axis=-1, keepdims=True) <= 1e-12 * np.abs(x).max(axis=-1, keepdims=True)
    return np.where(constant, 0.0, x - x.mean(axis=-1, keepdims=True))


def _steps(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positives and negatives at or above each threshold: (P,) counts beginning with none, and the thresholds, falling."""
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(truth) != 0
    if scores.shape != truth.shape:
        raise ModelError(f"Each score needs its truth, but there are {scores.shape} scores and {truth.shape} truths.")
    if np.isnan(scores).any():
        raise ModelError("Some scores are NaN; leave those frames out of scores and truth alike.")
    order = np.argsort(-scores.ravel(), kind="stable")
    value, positive = scores.ravel()[order], truth.ravel()[order]
    last = np.append(np.flatnonzero(value[1:] != value[:-1]), len(value) - 1)[: len(value)]  # of each run of ties
    hits = np.cumsum(positive)[last]
    return np.append(0, hits), np.append(0, last + 1 - hits), np.append(np.inf, value[last])


@njit
def _take_nearest(true: np.ndarray, found: np.ndarray, tolerance: float) -> np.ndarray:
    """(S,) whether each event, in the order given, gets one of the true spikes, in order of time."""
    taken = np.zeros(len(true), np.bool_)
    out = np.zeros(len(found), np.bool_)
    for i in range(len(found)):
        best, nearest = -1, np.inf
        j = np.searchsorted(true, found[i] - tolerance)
        while j < len(true) and true[j] <= found[i] + tolerance:
            if not taken[j] and abs(true[j] - found[i]) < nearest:
                best, nearest = j, abs(true[j] - found[i])
            j += 1
        if best >= 0:
            taken[best] = True
            out[i] = True
    return out
