"""Clusters of points whose noise is white with sigma = 1.

Many small parcels are joined until every two that are near have a valley between them, as in ISO-SPLIT (Magland & Barnett
2015). But whitening makes the scale of noise known, which no clustering of raw features can use: density along the
discriminant of two parcels is estimated with a kernel of that scale, and they stay apart only when it has a valley that
Poisson counting cannot explain. A small cluster stands if its valley does.
"""

from __future__ import annotations

import numba
import numpy as np

BANDWIDTH = 0.5  # of the one-dimensional density, in noise standard deviations
MAX_RATIO = 0.7  # a valley is at most this share of the lower peak
PARCEL_SIZE = 20
MOST_PARCELS = 40
KMEANS_ROUNDS = 12
NEAREST = 6  # clusters that a cluster is compared with
MIN_Z = 2.5  # and this many standard deviations (variance-stabilised Poisson) under it


def cluster(x: np.ndarray, min_size: int) -> np.ndarray:
    """(S,) labels 0, 1, ... of points x (S, P) with unit noise; -1 for those smaller than min_size that stand alone."""
    if len(x) < 2 * min_size:
        return np.zeros(len(x), np.int64)
    labels = merge(x, parcels(x))
    return drop_small(labels, min_size)


def parcels(x: np.ndarray) -> np.ndarray:
    """(S,) over-clustering by k-means, started from points far from each other."""
    n = len(x)
    k = int(np.clip(n // PARCEL_SIZE, 1, MOST_PARCELS))
    square = (x * x).sum(axis=1)
    centres = np.empty((k, x.shape[1]), x.dtype)
    centres[0] = np.median(x, axis=0)
    nearest = np.full(n, np.inf)
    for i in range(1, k):
        nearest = np.minimum(nearest, ((x - centres[i - 1]) ** 2).sum(axis=1))
        # the 95th percentile, not the furthest: outliers are no clusters
        centres[i] = x[np.argsort(nearest, kind="stable")[int(0.95 * (n - 1))]]
    labels = np.zeros(n, np.int64)
    for _ in range(KMEANS_ROUNDS):
        labels = (square[:, None] - 2 * x @ centres.T + (centres * centres).sum(axis=1)).argmin(axis=1)
        sizes = np.bincount(labels, minlength=k)
        sums = np.zeros_like(centres, dtype=np.float64)
        np.add.at(sums, labels, x)
        centres = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres).astype(x.dtype)
    return labels


def merge(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Join parcels, the least separated pair first, until a significant valley lies between every two that are near."""
    labels = labels.copy()
    members = {int(k): np.flatnonzero(labels == k) for k in np.unique(labels)}
    centres = {k: x[index].mean(axis=0) for k, index in members.items()}
    gaps: dict[tuple[int, int], float] = {}

    def test(a: int) -> None:
        others = [k for k in members if k != a]
        if not others:
            return
        distance = ((np.array([centres[k] for k in others]) - centres[a]) ** 2).sum(axis=1)
        for i in np.argsort(distance, kind="stable")[:NEAREST]:
            b = others[i]
            pair = (min(a, b), max(a, b))
            if pair not in gaps:
                gaps[pair] = separation(x[members[pair[0]]], x[members[pair[1]]])

    for k in list(members):
        test(k)
    while gaps:
        (a, b), gap = min(gaps.items(), key=lambda item: (item[1], item[0]))
        if gap >= 1.0:
            break
        members[a] = np.concatenate([members[a], members.pop(b)])
        centres[a] = x[members[a]].mean(axis=0)
        gaps = {pair: g for pair, g in gaps.items() if a not in pair and b not in pair}
        test(a)
    for k, index in enumerate(sorted(members.values(), key=len, reverse=True)):
        labels[index] = k
    return labels


def separation(a: np.ndarray, b: np.ndarray) -> float:
    """How clearly two clusters are two: below one there is no significant valley between them on their discriminant."""
    ratio, z = valley_between(np.ascontiguousarray(a, np.float64), np.ascontiguousarray(b, np.float64))
    return float(min((1 - ratio) / (1 - MAX_RATIO), z / MIN_Z))


@numba.njit(cache=True, nogil=True)
def valley_between(a, b):
    """`valley` of two samples (S, P) on their linear discriminant, scaled so that noise has unit variance there."""
    n, p = len(a) + len(b), a.shape[1]
    mean_a, mean_b = np.zeros(p), np.zeros(p)
    for i in range(len(a)):
        mean_a += a[i] / len(a)
    for i in range(len(b)):
        mean_b += b[i] / len(b)
    scatter = np.eye(p)
    if n > 3 * p:
        ca, cb = a - mean_a, b - mean_b
        scatter += (ca.T @ ca + cb.T @ cb) / n
    axis = np.linalg.solve(scatter, mean_b - mean_a)
    norm = np.sqrt((axis * axis).sum())
    if norm > 0:
        axis /= norm
    pa, pb = a @ axis, b @ axis
    return valley(np.concatenate((pa, pb)), np.median(pa), np.median(pb))


@numba.njit(cache=True, nogil=True)
def valley(x, left, right):
    """Depth of the density's valley between two places: its ratio to the lower peak, and how many standard deviations under it."""
    if left > right:
        left, right = right, left
    step = 0.25
    n_grid = max(3, min(400, int(np.ceil((right - left) / step)) + 1))
    step = max((right - left) / (n_grid - 1), 1e-6)
    density = np.zeros(n_grid)
    for i in range(len(x)):
        low = int(np.floor((x[i] - 4 * BANDWIDTH - left) / step))
        high = int(np.ceil((x[i] + 4 * BANDWIDTH - left) / step))
        for g in range(max(0, low), min(n_grid, high + 1)):
            d = (left + g * step - x[i]) / BANDWIDTH
            density[g] += np.exp(-0.5 * d * d)
    density /= BANDWIDTH * np.sqrt(2 * np.pi)  # points per unit
    best_ratio, best_z = 1.0, 0.0
    running = np.zeros(n_grid)
    peak = 0.0
    for g in range(n_grid - 1, -1, -1):
        peak = max(peak, density[g])
        running[g] = peak
    peak = 0.0
    for g in range(n_grid):
        peak = max(peak, density[g])
        lower = min(peak, running[g])
        if lower <= 0:
            continue
        ratio = density[g] / lower
        # counts in a window as wide as a cluster
        z = np.sqrt(2.0) * (np.sqrt(2 * lower) - np.sqrt(2 * density[g]))
        if ratio < best_ratio:
            best_ratio, best_z = ratio, z
    return best_ratio, best_z


def drop_small(labels: np.ndarray, min_size: int) -> np.ndarray:
    """Labels with clusters under min_size set to -1 and the rest renumbered, largest first."""
    sizes = np.bincount(labels)
    kept = np.flatnonzero(sizes >= min_size)
    new = np.full(len(sizes), -1, np.int64)
    new[kept[np.argsort(-sizes[kept], kind="stable")]] = np.arange(len(kept))
    return new[labels]
