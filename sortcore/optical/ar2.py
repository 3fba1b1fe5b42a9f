"""Deconvolution by any difference of exponentials (AR(2), and AR(1) as its special case), exactly, with a baseline that drifts.

    minimise over s >= 0, b    1/2 sum_t w_t (y_t - b_t - (K s)_t)^2 + sum_t penalty_t s_t - barrier sum_t log s_t
                               + 1/2 sum_t (b_t - b_{t-1})^2 / drift + b_0^2 / (2 spread)

K s is the kernel k_n = u d^n + v r^n applied to s; what decays from before the first frame enters as s_0, whose kernel is the
slow part alone. With barrier -> 0 this is the L1 problem; a small barrier is a gamma prior of that shape on s, whose maximum
lies nearer to the posterior mean. A primal-dual interior point (Mehrotra's predictor and corrector) takes about ten steps,
whatever the length, and every Newton step is the posterior mean of a linear Gaussian state-space model in which s_t has
variance s_t / z_t: a Kalman filter and a smoother over the states (slow, fast, baseline), O(T) and without forming K.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from sortcore.errors import ModelError
from sortcore.optical.kernels import Exponentials, kkt_residual

MOST_STEPS = 60


@dataclass(frozen=True)
class Deconvolution:
    """activity, calcium, baseline: (T,) float64, in the units of y
    misfit: what the fit and the baseline cost; objective: the same and the penalty, which was minimised but for the barrier
    kkt_residual: distance from the optimum of the L1 problem, see `kernels.kkt_residual`
    steps: interior-point steps taken
    """

    activity: np.ndarray
    calcium: np.ndarray
    baseline: np.ndarray
    misfit: float
    objective: float
    kkt_residual: float
    steps: int


def solve_ar2(y: np.ndarray, kernel: Exponentials, penalty: float | np.ndarray = 0.0, *, weights: np.ndarray | None = None,
              barrier: float = 0.0, drift: float = 0.0, spread: float = 0.0) -> Deconvolution:
    """Solve the problem above.

    y: (T,), NaN where missing; penalty: in the units of y, of all frames or (T,); weights: (T,) relative inverse noise variance
    barrier: in squared units of y; below 1e-9 of y's mean square it is raised to that, which is where the gap closes
    drift: variance of the baseline's step per frame; spread: variance of its start around 0; both 0 for a baseline of zero
    Raises ModelError for a number below zero or nothing finite to fit.
    """
    y = np.ascontiguousarray(y, dtype=np.float64)
    each = np.full(len(y), penalty, dtype=np.float64)
    if not ((each >= 0).all() and barrier >= 0 and drift >= 0 and spread >= 0):
        raise ModelError(f"Penalty, barrier, drift and spread must not be negative, but they are {penalty}, {barrier}, {drift}, {spread}.")
    w = np.ones(len(y)) if weights is None else np.array(weights, dtype=np.float64)
    missing = ~np.isfinite(y)
    if missing.any():
        y, w = np.where(missing, 0.0, y), np.where(missing, 0.0, w)
    power = float(np.mean(w * y * y)) if len(y) else 0.0
    if power == 0:
        zero = np.zeros(len(y))
        return Deconvolution(zero, zero.copy(), zero.copy(), 0.0, 0.0, 0.0, 0)
    s, b, c, error, steps = _interior(y, w, each, kernel.d, kernel.r, kernel.u, kernel.v, max(barrier, 1e-9 * power), drift, spread)
    gradient = _gradient(error, kernel.d, kernel.r, kernel.u, kernel.v) + each
    misfit = 0.5 * float(error @ (c + b - y))
    if drift > 0:
        misfit += 0.5 * float(np.sum(np.diff(b) ** 2)) / drift
    if spread > 0:
        misfit += 0.5 * float(b[0] ** 2) / spread
    residual = kkt_residual(s, gradient, kernel.norm**2 * max(float(w.max()), 1e-300))
    return Deconvolution(s, c, b, misfit, misfit + float(each @ s), residual, int(steps))


def solve_to_noise(y: np.ndarray, kernel: Exponentials, noise: float, *, weights: np.ndarray | None = None,
                   rtol: float = 1e-3) -> tuple[Deconvolution, float]:
    """The noise-constrained form: the smallest sum of s with sum w (y - K s)^2 = noise^2 sum w.

    The residual grows with the penalty, so the penalty is found by bisection. Returns the solution and its penalty; where the
    residual is larger than the noise even without a penalty that solution is returned.
    """
    y = np.asarray(y, dtype=np.float64)
    w = np.where(np.isfinite(y), 1.0 if weights is None else weights, 0.0)
    target = noise**2 * w.sum()

    def rss(found: Deconvolution) -> float:
        return float(np.sum(w * (np.nan_to_num(y) - found.calcium) ** 2))

    low, high = 0.0, max(float(np.abs(np.nan_to_num(y)).max()) * kernel.norm**2, 1e-12)
    best = solve_ar2(y, kernel, low, weights=weights)
    if rss(best) >= target:
        return best, low
    for _ in range(40):
        middle = np.sqrt(max(low, 1e-6 * high) * high)
        best = solve_ar2(y, kernel, middle, weights=weights)
        if abs(rss(best) - target) <= rtol * target:
            return best, float(middle)
        low, high = (middle, high) if rss(best) < target else (low, middle)
    return best, float(middle)


@njit(nogil=True, fastmath=True, cache=True)
def _interior(y, w, penalty, d, r, u, v, barrier, drift, spread):
    T = len(y)
    s, z, c, b = np.empty(T), np.empty(T), np.empty(T), np.zeros(T)
    power, counted = 0.0, 1e-12
    for t in range(T):
        power += w[t] * y[t] * y[t]
        counted += w[t]
    scale = np.sqrt(power / counted)
    for t in range(T):
        s[t] = scale * (1 - d) + 1e-3 * scale
        z[t] = penalty[t] + 0.1 * scale
    K, inv = np.empty((T, 3)), np.empty(T)
    e, ds, dz, m, l_b = np.empty(T), np.empty(T), np.empty(T), np.empty(T), np.empty(T)
    steps = 0
    for steps in range(MOST_STEPS):
        x1, x2, mu = 0.0, 0.0, 0.0
        for t in range(T):
            x1 = d * x1 + u * s[t]
            x2 = r * x2 + (v * s[t] if t > 0 else 0.0)
            c[t] = x1 + x2
            mu += s[t] * z[t]
        mu /= T
        if steps > 3 and mu < 1.5 * barrier:
            break
        _filter(s, z, w, d, r, u, v, drift, spread, K, inv)
        centre = 0.0
        for phase in range(2):  # the affine step, then the centred one with the second-order term
            for t in range(T):
                m[t] = ((centre - ds[t] * dz[t] if phase else 0.0) - penalty[t] * s[t]) / z[t]
            x1, x2, x3 = 0.0, 0.0, 0.0
            for t in range(T):
                x1 = d * x1 + u * m[t]
                x2 = r * x2 + (v * m[t] if t > 0 else 0.0)
                innovation = y[t] - c[t] - x1 - x2 - x3
                x1 += K[t, 0] * innovation
                x2 += K[t, 1] * innovation
                x3 += K[t, 2] * innovation
                e[t] = innovation * inv[t]
            l1, l2, l3, step_s, step_z = 0.0, 0.0, 0.0, 1.0, 1.0
            for t in range(T - 1, -1, -1):
                back = e[t] - (K[t, 0] * l1 + K[t, 1] * l2 + K[t, 2] * l3)
                l1 += back
                l2 += back
                l3 += back
                l_b[t] = l3
                new_s = m[t] + s[t] / z[t] * (u * l1 + (v * l2 if t > 0 else 0.0))
                new_z = (centre - ds[t] * dz[t] if phase else 0.0) / s[t] - z[t] - z[t] / s[t] * new_s
                ds[t], dz[t] = new_s, new_z
                if new_s < 0:
                    step_s = min(step_s, -s[t] / new_s)
                if new_z < 0:
                    step_z = min(step_z, -z[t] / new_z)
                l1 *= d
                l2 *= r
            if phase == 0:
                reached = 0.0
                for t in range(T):
                    reached += (s[t] + step_s * ds[t]) * (z[t] + step_z * dz[t])
                centre = max(mu * (reached / T / mu) ** 3, min(barrier, mu))
        step_s, step_z = min(1.0, 0.99 * step_s), min(1.0, 0.99 * step_z)
        base = 0.0
        for t in range(T):
            s[t] += step_s * ds[t]
            z[t] += step_z * dz[t]
            base += (drift if t > 0 else spread) * l_b[t]
            b[t] += step_s * (base - b[t])
    for t in range(T):
        e[t] = w[t] * (c[t] + b[t] - y[t])
    return s, b, c, e, steps


@njit(nogil=True, fastmath=True, cache=True)
def _filter(s, z, w, d, r, u, v, drift, spread, K, inv):
    """Covariances of the Kalman filter: gains K (T, 3) and inverse innovation variances inv (T,)."""
    p11, p12, p22, p13, p23, p33 = 0.0, 0.0, 0.0, 0.0, 0.0, spread
    for t in range(len(s)):
        q, vt = s[t] / z[t], v if t > 0 else 0.0
        p11 = d * d * p11 + q * u * u
        p12 = d * r * p12 + q * u * vt
        p22 = r * r * p22 + q * vt * vt
        p13 *= d
        p23 *= r
        p33 += drift if t > 0 else 0.0
        h1, h2, h3 = p11 + p12 + p13, p12 + p22 + p23, p13 + p23 + p33
        i = w[t] / (1.0 + w[t] * (h1 + h2 + h3))
        k1, k2, k3 = h1 * i, h2 * i, h3 * i
        K[t, 0], K[t, 1], K[t, 2], inv[t] = k1, k2, k3, i
        p11 -= k1 * h1
        p12 -= k1 * h2
        p22 -= k2 * h2
        p13 -= k1 * h3
        p23 -= k2 * h3
        p33 -= k3 * h3


@njit(nogil=True, cache=True)
def _gradient(error, d, r, u, v):
    """(T,) correlation of the error with the kernel, the first frame with the slow part alone."""
    out, x1, x2 = np.empty(len(error)), 0.0, 0.0
    for t in range(len(error) - 1, -1, -1):
        x1, x2 = error[t] + d * x1, error[t] + r * x2
        out[t] = u * x1 + (v * x2 if t > 0 else 0.0)
    return out
