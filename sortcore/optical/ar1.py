"""AR(1) deconvolution, exactly and in one pass: pool adjacent violators.

    minimise  1/2 sum_t w_t (y_t - c_t)^2 + penalty sum_t s_t     subject to  s_t = c_t - g c_{t-1} >= 0,  s_0 = c_0 >= 0

The penalty telescopes: sum_t s_t = (1 - g) sum_t c_t + g c_{T-1}, so it only lowers y. What remains is isotonic regression on
y_t / g^t: a frame that would need a negative jump joins the pool before it, and a pool that then lies under its forerunner's
decay joins that one. A pool is kept as N = sum g^k w y and D = sum g^2k w over its frames k, so that no division is needed
until the end. Friedrich, Zhou and Paninski (PLoS Comput Biol 2017) found this route; the L0 problem is solved by the
optimal partitioning with pruning of Jewell and Witten (Ann Appl Stat 2018).

Violators may be joined in any order. Which frames are is as good as random, and a processor that guesses wrong loses the time of
several frames; so most are joined pair by pair, in passes without a branch, before the rest are joined one after another.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sortcore.errors import ModelError

SMALLEST_POWER = 1e-9  # g^k below this is nothing: such a pool has long decayed
BLOCK = 8  # frames of a pool that are written at once
PASSES = 7  # over pairs of neighbours: fewer leave more to be joined one by one, more find little
ONE, TWO = np.uint64(1), np.uint64(2)  # unsigned, for an index that may be negative is looked at twice


def solve_ar1(y: np.ndarray, g: float, penalty: float = 0.0, *, s_min: float = 0.0,
              weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Calcium c and activity s of a trace whose baseline is zero.

    y: (T,) fluorescence, NaN where it is missing; g: decay per frame, 0 <= g < 1
    penalty: L1 penalty, in the units of y; s_min: smallest jump there may be (pools with smaller ones are joined, which is
        exact for s_min = 0 and a good local solution otherwise)
    weights: (T,) inverse noise variance of each frame, relative
    Returns c and s, both (T,) float64. Raises ModelError for an unstable g, or numbers below zero.
    """
    y, w = _checked(y, g, penalty, weights)
    if s_min < 0:
        raise ModelError(f"The smallest size of an event must not be negative, but it is {s_min}.")
    c, s = np.empty(len(y)), np.empty(len(y))
    _solve(y, w, g, penalty, s_min, _powers(g, len(y)), c, s)
    return c, s


def solve_ar1_l0(y: np.ndarray, g: float, penalty: float, *, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """minimise 1/2 sum_t w_t (y_t - c_t)^2 + penalty #{t > 0: c_t != g c_{t-1}}, c >= 0 at every jump: exact.

    Arguments and result as `solve_ar1`; s may be negative where the data fall faster than the kernel, and is cut at zero there.
    Quadratic in the longest time between events, linear in the number of frames otherwise.
    """
    y, w = _checked(y, g, penalty, weights)
    c = _partition(y, np.ones(len(y)) if w is None else w, g, penalty)
    s = np.maximum(np.diff(c, prepend=0.0) + (1 - g) * np.concatenate([np.zeros(1), c[:-1]]), 0)[: len(y)]
    return c, s


def ar1_gradient(y: np.ndarray, c: np.ndarray, g: float, penalty: float, weights: np.ndarray | None = None) -> np.ndarray:
    """(T,) derivative of the objective of `solve_ar1` by s: for its KKT residual."""
    error = c - y
    if np.isnan(error.sum()):
        error = np.nan_to_num(error)
    return _backward(error if weights is None else error * weights, g) + penalty


def _checked(y: np.ndarray, g: float, penalty: float, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    y = np.ascontiguousarray(y)
    if y.dtype not in (np.float32, np.float64):
        y = y.astype(np.float64)
    if not 0 <= g < 1:
        raise ModelError(f"The decay per frame is g = {g}, but a stable AR(1) process has 0 <= g < 1.")
    if not penalty >= 0:
        raise ModelError(f"The penalty must not be negative, but it is {penalty}.")
    if weights is None and not np.isnan(y.sum()):  # a sum is quicker to look at than every frame
        return y, None
    w = np.ones(len(y)) if weights is None else np.array(weights, dtype=np.float64)
    w[np.isnan(y)] = 0
    return np.nan_to_num(y), w


def _powers(g: float, length: int) -> np.ndarray:
    """g^k for k = 0, 1, ... down to nothing, which stays at the end, BLOCK times."""
    n = length if g <= 0 else min(length, int(np.log(SMALLEST_POWER) / np.log(g)) + 1) if g > 0 else 1
    out = np.zeros(max(n, 1) + BLOCK)
    out[0], out[1 : max(n, 1)] = 1.0, g
    np.multiply.accumulate(out[: max(n, 1)], out=out[: max(n, 1)])
    return out


@njit(nogil=True, fastmath=True, cache=True)
def _solve(y, w, g, penalty, s_min, power, c, s):
    """w is None where all frames count alike."""
    T = len(y)
    if T == 0:
        return
    N, D, start = np.empty(T), np.empty(T), np.empty(T, np.int64)
    lower, n = penalty * (1 - g), 0
    in_pairs = (T - 1) // 2 * 2 if s_min == 0 else 0  # all but the last frame or two, of which one bears more of the penalty
    for i in range(0, in_pairs, 2):
        D_a, D_b = (1.0, 1.0) if w is None else (w[i], w[i + 1])
        n = _pair(D_a * y[i] - lower, D_a, i, D_b * y[i + 1] - lower, D_b, i + 1, N, D, start, n, power)
    for i in range(in_pairs, T):
        D[n] = 1.0 if w is None else w[i]
        N[n], start[n] = D[n] * y[i] - (lower if i < T - 1 else penalty), i
        n += 1
    for _ in range(PASSES if s_min == 0 else 0):
        n = _join_pairs(N, D, start, n, power)
    _write(N, D, start, _join(N, D, start, n, s_min, power), g, power, c, s)


@njit(nogil=True, fastmath=True, cache=True)
def _join_pairs(N, D, start, n, power):
    """Join those of pools 0 and 1, 2 and 3, ... of n, in place, of which the second violates; returns how many are left."""
    m = 0
    for i in range(np.uint64(0), np.uint64(n // 2 * 2), TWO):
        m = _pair(N[i], D[i], start[i], N[i + ONE], D[i + ONE], start[i + ONE], N, D, start, m, power)
    if n % 2:
        N[m], D[m], start[m] = N[n - 1], D[n - 1], start[n - 1]
        m += 1
    return m


@njit(nogil=True, fastmath=True, cache=True, inline="always")
def _pair(N_a, D_a, start_a, N_b, D_b, start_b, N, D, start, n, power):
    """Write two pools at n, as one if the second violates, without a branch; returns n after them."""
    nothing, at = len(power) - 1, np.uint64(n)
    length = min(start_b - start_a, nothing)
    join = np.int64(N_b * D_a < N_a * power[np.uint64(length)] * D_b) | np.int64(N_b <= 0)
    before = power[np.uint64(nothing - join * (nothing - length))]  # 0 if they stay two
    N[at], D[at], start[at] = N_a + before * N_b, D_a + before * before * D_b, start_a
    at += ONE
    N[at], D[at], start[at] = N_b, D_b, start_b  # written over if it has joined
    return n + 2 - join


@njit(nogil=True, fastmath=True, cache=True)
def _join(N, D, start, n, s_min, power):
    """Join pools until none violates, in place, as a stack; returns how many are left."""
    nothing, top = len(power) - 1, -1
    for i in range(n):
        N_i, D_i, start_i = N[i], D[i], start[i]
        while top >= 0:
            before = power[min(start_i - start[top], nothing)]
            if ((N_i - s_min * D_i) * D[top] >= N[top] * before * D_i) & (N_i > 0):
                break
            N_i, D_i, start_i = N[top] + before * N_i, D[top] + before * before * D_i, start[top]
            top -= 1
        top += 1
        N[top], D[top], start[top] = N_i, D_i, start_i
    return top + 1


@njit(nogil=True, fastmath=True, cache=True)
def _write(N, D, start, n, g, power, c, s):
    """Calcium c (T,) and activity s (T,) of n pools."""
    T, most, before = len(c), len(power) - 1, 0.0
    s[:] = 0.0
    for i in range(n):
        first, last = start[i], start[i + 1] if i + 1 < n else T
        value = max(N[i] / D[i], 0.0) if D[i] > 0 else 0.0
        long, written = min(last - first, most), 0
        if first + BLOCK <= T:  # most pools are short: what is written beyond one is written over by the next
            for k in range(BLOCK):
                c[first + k] = value * power[k]
            written = BLOCK
        for k in range(written, long):
            c[first + k] = value * power[k]
        for k in range(first + long, last):
            c[k] = 0.0
        s[first] = max(value - g * before, 0.0)
        before = value * power[last - first - 1] if last - first <= most else 0.0


@njit(nogil=True, cache=True)
def _backward(error, g):
    out, x = np.empty(len(error)), 0.0
    for t in range(len(error) - 1, -1, -1):
        x = error[t] + g * x
        out[t] = x
    return out


@njit(nogil=True, cache=True)
def _partition(y, w, g, penalty):
    """F(t) = min_i F(i) + cost(i..t-1) + penalty; a start i is dropped for ever once F(i) + cost(i..t-1) >= F(t)."""
    T = len(y)
    F, came = np.empty(T + 1), np.zeros(T + 1, dtype=np.int64)
    F[0] = -penalty
    kept, n = np.empty(T + 1, dtype=np.int64), 0
    N, D, Q, power = np.zeros(T + 1), np.zeros(T + 1), np.zeros(T + 1), np.ones(T + 1)
    for t in range(T):
        kept[n] = t
        n += 1
        best = np.inf
        for j in range(n):
            i = kept[j]
            N[i] += power[i] * w[t] * y[t]
            D[i] += power[i] * power[i] * w[t]
            Q[i] += 0.5 * w[t] * y[t] * y[t]
            power[i] *= g
            cost = Q[i] - (0.5 * N[i] * N[i] / D[i] if N[i] > 0 else 0.0)
            if F[i] + cost + penalty < best:
                best, came[t + 1] = F[i] + cost + penalty, i
        F[t + 1] = best
        m = 0
        for j in range(n):
            i = kept[j]
            if F[i] + Q[i] - (0.5 * N[i] * N[i] / D[i] if N[i] > 0 else 0.0) < best:
                kept[m] = i
                m += 1
        n = m
    c, t = np.empty(T), T
    while t > 0:
        i = came[t]
        n0, d0, p = 0.0, 0.0, 1.0
        for k in range(i, t):
            n0 += p * w[k] * y[k]
            d0 += p * p * w[k]
            p *= g
        value = max(n0, 0.0) / d0 if d0 > 0 else 0.0
        for k in range(i, t):
            c[k] = value
            value *= g
        t = i
    return c
