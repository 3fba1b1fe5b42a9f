"""Clusters of points whose noise is white with sigma = 1.

Many small parcels are joined until every two that are near have a valley between them, as in ISO-SPLIT (Magland & Barnett
2015), and what comes of it is looked at again in fewer and larger ones. But whitening makes the scale of noise known, which no
clustering of raw features can use: density along the discriminant of two parcels is estimated with a kernel of that scale, and
they stay apart only when it has a valley that Poisson counting cannot explain. A small cluster stands if its valley does.
"""

from __future__ import annotations

import numba
import numpy as np

BANDWIDTH = 0.5  # of the one-dimensional density, in noise standard deviations
MAX_RATIO = 0.7  # a valley is at most this share of the lower peak
PARCEL_SIZE = 20
MOST_PARCELS = (40, 10, 4, 2)  # tried in turn: many find small clusters, few do not build a bridge of parcels over a shallow valley
KMEANS_ROUNDS = 12
NEAREST = 6  # clusters that a cluster is compared with
MIN_Z = 2.5  # and this many standard deviations (variance-stabilised Poisson) under it


def cluster(x: np.ndarray, min_size: int) -> np.ndarray:
    """(S,) labels 0, 1, ... of points x (S, P) with unit noise; -1 for those smaller than min_size that stand alone."""
    if len(x) < 2 * min_size:
        return np.zeros(len(x), np.int64)
    labels = np.zeros(len(x), np.int64)
    for k, index in enumerate(parts(x, np.arange(len(x)))):
        labels[index] = k
    return drop_small(labels, min_size)


def parts(x: np.ndarray, index: np.ndarray, look: int = 0) -> list[np.ndarray]:
    """Indices of the points of each cluster among those at index, by this look and all after it."""
    if look == len(MOST_PARCELS):
        return [index]
    found = members(merge(x[index], parcels(x[index], MOST_PARCELS[look])))
    look += 1
    while len(found) == 1 and look < len(MOST_PARCELS) and len(index) // PARCEL_SIZE <= MOST_PARCELS[look]:
        look += 1  # it would see the same parcels
    return [p for part in found for p in parts(x, index[part], look)]


def members(labels: np.ndarray) -> list[np.ndarray]:
    """Indices of the points of each label 0, 1, ...; a label that no point has has none."""
    return [np.flatnonzero(labels == k) for k in range(labels.max(initial=-1) + 1)]


def parcels(x: np.ndarray, most: int) -> np.ndarray:
    """(S,) over-clustering by k-means into at most so many, started from points far from each other."""
    k = int(np.clip(len(x) // PARCEL_SIZE, 1, most))
    return k_means(np.ascontiguousarray(x, np.float32), far_points(np.ascontiguousarray(x, np.float32), k))


@numba.njit(cache=True, nogil=True)
def far_points(x, k):
    """(k, P) points of x (S, P), each far from those before it, the first at the median."""
    n, p = x.shape
    centres = np.empty((k, p), np.float32)
    for j in range(p):
        centres[0, j] = np.median(x[:, j])
    nearest = np.full(n, np.inf, np.float32)
    for c in range(1, k):
        for i in range(n):
            distance = np.float32(0)
            for j in range(p):
                distance += (x[i, j] - centres[c - 1, j]) ** 2
            nearest[i] = min(nearest[i], distance)
        # the 95th percentile, not the furthest: outliers are no clusters
        centres[c] = x[np.argsort(nearest, kind="mergesort")[int(0.95 * (n - 1))]]
    return centres


@numba.njit(cache=True, nogil=True, fastmath=True)
def k_means(x, centres):
    """(S,) label of each point of x (S, P) after KMEANS_ROUNDS from centres (k, P)."""
    n, p = x.shape
    k = len(centres)
    centres = centres.T.copy()  # centres side by side, so that one point's distances to all are one vector
    labels = np.zeros(n, np.int64)
    for _ in range(KMEANS_ROUNDS):
        square = (centres * centres).sum(axis=0)
        sums, sizes = np.zeros((p, k)), np.zeros(k)
        distance = np.empty(k, np.float32)
        for i in range(n):
            distance[:] = square
            for j in range(p):
                weight = -2 * x[i, j]
                for c in range(k):
                    distance[c] += weight * centres[j, c]
            nearest = distance.argmin()
            labels[i] = nearest
            sizes[nearest] += 1
            for j in range(p):
                sums[j, nearest] += x[i, j]
        for c in range(k):
            if sizes[c]:
                for j in range(p):
                    centres[j, c] = sums[j, c] / sizes[c]
    return labels


def merge(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Join parcels, the least separated pair first, until a significant valley lies between every two that are near; the largest
    come first. `reference.merge_reference` is the slow, obvious form."""
    parcel = np.unique(labels, return_inverse=True)[1].ravel()
    owner = join(np.ascontiguousarray(x, np.float64), parcel, int(parcel.max(initial=-1)) + 1)
    sizes = np.bincount(owner[parcel], minlength=len(owner))
    rank = np.empty(len(owner), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(owner))
    return rank[owner[parcel]]


@numba.njit(cache=True, nogil=True)
def join(x, parcel, n):
    """(n,) the parcel that each parcel ends up with, for the parcel (S,) of every point of x (S, P)."""
    first, last, after = np.full(n, -1), np.full(n, -1), np.full(len(x), -1)  # members as lists: the first, and what follows each
    sizes, centres = np.zeros(n, np.int64), np.zeros((n, x.shape[1]))
    for i in range(len(x)):
        k = parcel[i]
        if first[k] < 0:
            first[k] = i
        else:
            after[last[k]] = i
        last[k] = i
        sizes[k] += 1
        centres[k] += x[i]
    for k in range(n):
        centres[k] /= sizes[k]
    owner, gaps = np.arange(n), np.full((n, n), np.inf)
    for k in range(n):
        test(x, k, owner, first, after, sizes, centres, gaps)
    while True:
        at = gaps.argmin() if n else 0
        a, b = at // max(n, 1), at % max(n, 1)
        if not n or gaps[a, b] >= 1:
            return owner
        after[last[a]] = first[b]
        last[a] = last[b]
        centres[a] = (sizes[a] * centres[a] + sizes[b] * centres[b]) / (sizes[a] + sizes[b])
        sizes[a] += sizes[b]
        owner[owner == b] = a
        for k in (a, b):
            gaps[k], gaps[:, k] = np.inf, np.inf
        test(x, a, owner, first, after, sizes, centres, gaps)


@numba.njit(cache=True, nogil=True)
def test(x, a, owner, first, after, sizes, centres, gaps):
    """Fill in the gaps (n, n), lower number first, between cluster a and those nearest to it."""
    distance = np.full(len(owner), np.inf)
    for k in range(len(owner)):
        if owner[k] == k and k != a:
            distance[k] = ((centres[k] - centres[a]) ** 2).sum()
    for k in np.argsort(distance, kind="mergesort")[:NEAREST]:
        i, j = min(a, k), max(a, k)
        if distance[k] < np.inf and gaps[i, j] == np.inf:
            gaps[i, j] = gap(rows(x, first[i], after, sizes[i]), rows(x, first[j], after, sizes[j]))


@numba.njit(cache=True, nogil=True)
def rows(x, i, after, size):
    """(size, P) the rows of a list."""
    out = np.empty((size, x.shape[1]))
    for k in range(size):
        out[k] = x[i]
        i = after[i]
    return out


def separation(a: np.ndarray, b: np.ndarray) -> float:
    """How clearly two clusters are two: below one there is no significant valley between them on their discriminant."""
    return float(gap(np.ascontiguousarray(a, np.float64), np.ascontiguousarray(b, np.float64)))


@numba.njit(cache=True, nogil=True)
def gap(a, b):
    """`separation` of two samples (S, P) in double precision."""
    ratio, z = valley_between(a, b)
    return min((1 - ratio) / (1 - MAX_RATIO), z / MIN_Z)


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
