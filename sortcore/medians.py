"""The median over channels of every sample, fast.

A selection over channels asks for another order at every sample, which no vector unit can follow. A sorting network
(Batcher 1968) makes the same comparisons whatever the values are, so each of them is a minimum and a maximum of whole rows of
samples, sixteen at a time.
"""

from __future__ import annotations

from functools import cache

import numba
import numpy as np

TILE = 256  # samples sorted together: the rows of a probe's worth of channels stay in a core's cache


@cache
def comparators(n: int) -> np.ndarray:
    """(C, 2) pairs of rows to compare, in order, that bring the middle of n rows to its place: Batcher's odd-even merge sort.

    Comparisons that the middle rows do not depend on are left out.
    """
    pairs = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(min(k, n - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        pairs.append((i + j, i + j + k))
            k //= 2
        p *= 2
    needed, kept = {(n - 1) // 2, n // 2}, []
    for low, high in reversed(pairs):
        if low in needed or high in needed:
            needed |= {low, high}
            kept.append((low, high))
    return np.array(kept[::-1], np.int64).reshape(-1, 2)


def channel_median(x: np.ndarray) -> np.ndarray:
    """(T,) median over the rows of x (N, T) float32; the mean of the middle two where N is even."""
    return middle(np.ascontiguousarray(x), comparators(len(x)))


@numba.njit(cache=True, nogil=True)
def middle(x, pairs):
    n, t = x.shape
    out = np.empty(t, np.float32)
    rows = np.empty((n, TILE), np.float32)
    for start in range(0, t, TILE):
        size = min(TILE, t - start)
        for c in range(n):
            rows[c, :size] = x[c, start : start + size]
        for p in range(len(pairs)):
            low, high = rows[pairs[p, 0]], rows[pairs[p, 1]]
            for s in range(TILE):
                a, b = low[s], high[s]
                low[s], high[s] = min(a, b), max(a, b)
        lower, upper = rows[(n - 1) // 2], rows[n // 2]
        for s in range(size):
            out[start + s] = np.float32(0.5) * (lower[s] + upper[s])
    return out
