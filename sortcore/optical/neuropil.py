"""Neuropil: the light around a cell that its trace holds too.

    F_t = a N_t + baseline_t + c_t + noise,     c_t >= 0 sparse and bright

The coefficient a of each cell is found by robust regression of the trace F on its neuropil N and a baseline that moves
slowly (piecewise linear), all averaged over short bins. The cell's own events are outliers of one sign: the scale of the
noise is taken from negative residuals, and residuals far above it lose their weight (Tukey's biweight, by iteratively
reweighted least squares after a start that minimises absolute deviations; Huber & Ronchetti, Robust Statistics, 2009, ch. 7).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sortcore.errors import ConfigError, ModelError
from sortcore.numerics import MAD_TO_SD
from sortcore.settings import Checked, setting

L1_ROUNDS, ROUNDS = 10, 30
FEWEST_BINS = 20
MOST_KNOTS = 60
DILATION = 1  # bins on either side of an event that do not count either


@dataclass(frozen=True)
class NeuropilConfig(Checked):
    bin_s: float = setting(0.2, "frames are averaged over this time", "s", 0.0, 10.0)
    baseline_s: float = setting(60.0, "time over which the baseline may bend", "s", 1.0)
    outlier_sd: float = setting(2.5, "a positive residual beyond this, in noise standard deviations, has no weight", "sd", 1.0, 20.0)
    largest: float = setting(1.2, "bound of the coefficient", "", 0.0, 10.0)
    fallback: float = setting(0.7, "coefficient where there is too little to estimate it from", "", 0.0, 10.0)
    keep_level: bool = setting(True, "subtract only what the neuropil differs from its median, so that the trace keeps its level")


@dataclass(frozen=True)
class Decontaminated:
    """Traces without their neuropil.

    traces: (K, T), in the unit of what was given
    coefficients: (K,) share of the neuropil that was subtracted, 0 to `largest`
    estimated: (K,) bool, False where the coefficient is the fallback
    """

    traces: np.ndarray
    coefficients: np.ndarray
    estimated: np.ndarray


CONFIG = NeuropilConfig()


def subtract_neuropil(traces: np.ndarray, neuropil: np.ndarray, fs: float, config: NeuropilConfig = CONFIG, *,
                      coefficients: np.ndarray | float | None = None) -> Decontaminated:
    """Traces (K, T) less their neuropil (K, T), times a coefficient of each cell.

    traces, neuropil: raw fluorescence, not dF/F, in one unit; NaN frames stay NaN and do not count
    fs: frames per second
    coefficients: one, or (K,) of them, to be used rather than estimated
    Raises ModelError where shapes differ, ConfigError for an fs that is none.
    """
    F, N = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (traces, neuropil))
    if F.shape != N.shape or F.ndim != 2:
        raise ModelError(f"Traces and neuropil must have one shape (cells, frames), but they have {F.shape} and {N.shape}.")
    if not (np.isfinite(fs) and fs > 0):
        raise ConfigError(f"fs is the number of frames per second and must be above 0, but it is {fs}.")
    if coefficients is None:
        found = [estimate(f, n, fs, config) for f, n in zip(F, N, strict=True)]
        estimated = np.array([a is not None for a in found], dtype=bool)
        a = np.array([config.fallback if a is None else a for a in found], dtype=np.float64)
    else:
        a, estimated = np.broadcast_to(np.asarray(coefficients, dtype=np.float64), len(F)).copy(), np.zeros(len(F), dtype=bool)
    level = np.array([np.median(n[np.isfinite(n)]) if np.isfinite(n).any() else 0.0 for n in N]) if config.keep_level else np.zeros(len(F))
    return Decontaminated(F - a[:, None] * (N - level[:, None]), a, estimated)


def estimate(trace: np.ndarray, neuropil: np.ndarray, fs: float, config: NeuropilConfig = CONFIG) -> float | None:
    """Coefficient of one cell's neuropil, from trace (T,) and neuropil (T,); None where there is too little to tell."""
    seen = np.isfinite(trace) & np.isfinite(neuropil)
    size = max(1, round(config.bin_s * fs))
    whole = np.arange(len(trace) // size * size).reshape(-1, size)
    whole = whole[seen[whole].all(axis=1)]
    if len(whole) < FEWEST_BINS:
        return None
    y, n, t = trace[whole].mean(axis=1), neuropil[whole].mean(axis=1), whole.mean(axis=1) / fs
    knots = int(np.clip(len(trace) / fs / config.baseline_s, 1, MOST_KNOTS)) + 1
    hats = np.array([np.interp(t, np.linspace(0, len(trace) / fs, knots), row) for row in np.eye(knots)])  # (knots, bins)
    hats = hats[hats.any(axis=1)]
    spread = np.std(n - hats.T @ np.linalg.lstsq(hats.T, n, rcond=None)[0])
    if not spread > 1e-9 * max(np.abs(n).max(), 1e-300):
        return None
    X = np.column_stack([(n - n.mean()) / spread, hats.T])  # (bins, 1 + knots)
    a = robust_fit(X, y, config.outlier_sd)[0] / spread
    return float(np.clip(a, 0, config.largest))


def robust_fit(X: np.ndarray, y: np.ndarray, outlier_sd: float) -> np.ndarray:
    """(P,) coefficients of y (B,) on X (B, P), where some y lie far above the line."""
    p = np.linalg.lstsq(X, y, rcond=None)[0]
    for _ in range(L1_ROUNDS):
        r = y - X @ p
        p = weighted(X, y, 1 / np.maximum(np.abs(r), 1e-3 * np.abs(r).mean() + 1e-300))
    for _ in range(ROUNDS):
        r = y - X @ p
        below = -r[r < 0]
        sd = MAD_TO_SD * np.median(below) if len(below) else 0.0
        if sd <= 1e-12 * max(np.abs(y).max(), 1e-300):
            break
        u = np.where(r > 0, r / outlier_sd, r / (2 * outlier_sd)) / sd
        w = np.where(np.abs(u) < 1, (1 - u**2) ** 2, 0.0)
        event = np.convolve(u >= 1, np.ones(2 * DILATION + 1), mode="same") > 0
        last, p = p, weighted(X, y, np.where(event, 0.0, w))
        if np.abs(p - last).max() < 1e-6 * sd:
            break
    return p


def weighted(X: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Weighted least squares; coefficients that the weights leave open are kept small."""
    A = (X * w[:, None]).T @ X
    A[np.diag_indices(len(A))] += 1e-9 * max(np.trace(A) / len(A), 1e-300)
    return np.linalg.solve(A, (X * w[:, None]).T @ y)
