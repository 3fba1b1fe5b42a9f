"""The demixing's coordinate ascent and matched filter, slow and plain: to be read, and to test the fast ones against.

Everything is dense, every cell is fitted over the whole field, and the deconvolution is a non-negative least squares with the matrix of
the kernel.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls


def deconvolve_reference(y: np.ndarray, noise: float, g: float, penalty_sd: float) -> np.ndarray:
    """(B,) course of `footprints.deconvolved`: three times, with the baseline at the lower fifth and then where the fit leaves it.

    minimise 1/2 ||y - b - K s||^2 + lam sum s  is least squares with K's normal equations shifted by lam, here through a Cholesky factor.
    """
    B = len(y)
    K = np.array([[g ** (t - u) if t >= u else 0.0 for u in range(B)] for t in range(B)])
    lam = penalty_sd * noise / np.sqrt(1 - g**2)
    factor = np.linalg.cholesky(K.T @ K)
    b = np.percentile(y, 20)
    for _ in range(3):
        s, _ = nnls(factor.T, np.linalg.solve(factor, K.T @ (y - b) - lam), maxiter=100 * B)
        b = np.mean(y - K @ s)
    return K @ s


def ascend_reference(z: np.ndarray, footprints: np.ndarray, g: float, penalty_sd: float,
                     rounds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Footprints (K, P), courses c and y (K, B) after rounds of the ascent on z (P, B), each cell kept where it was above 0 at first."""
    a, inside = footprints.astype(float).copy(), footprints > 0
    y, c = np.zeros((len(a), z.shape[1])), np.zeros((len(a), z.shape[1]))
    for _ in range(rounds):
        for k in range(len(a)):
            others = [j for j in range(len(a)) if j != k]
            left = z - a[others].T @ y[others]
            c[k] = deconvolve_reference(a[k] @ left / (a[k] @ a[k]), 1 / float(np.linalg.norm(a[k])), g, penalty_sd)
            centred = c[k] - c[k].mean()
            a[k] = np.where(inside[k], np.maximum(left @ centred / (centred @ centred), 0), 0)
            y[k] = a[k] @ left / (a[k] @ a[k])
    return a, c, y


def energy_reference(z: np.ndarray, g: float, level: float, half: int) -> np.ndarray:
    """(H, W) energy of `seeds.energies` at the smallest size, for z (H, W, B), without taking off what lies around."""
    H, W, B = z.shape
    out = np.zeros((H, W))
    for y in range(H):
        for x in range(W):
            total, square = np.zeros(B), 0.0
            for i in range(max(0, y - half), min(H, y + half + 1)):
                for j in range(max(0, x - half), min(W, x + half + 1)):
                    w = np.exp(-0.5 * ((i - y) ** 2 + (j - x) ** 2))
                    total += w * z[i, j]
                    square += w * w
            score = np.array([sum(g ** (u - t) * total[u] for u in range(t, B)) for t in range(B)])
            score *= np.sqrt((1 - g * g) / square)
            out[y, x] = np.square(np.maximum(score - level, 0)).sum()
    return out
