"""What a voltage trace says of its own spikes: their waveform and rate.

Coordinate ascent on the model's log joint, the spikes being uncertain: given the waveform each candidate has a probability, and
given those the waveform is the least-squares one, every candidate counted by its probability and at each place and phase by how
probable it is there (expectation maximisation; Dempster, Laird & Rubin, 1977). A Gaussian prior holds it near the generic spike of
the best-fitting decay, so that few or faint spikes bend it little; the height is free.
"""

from __future__ import annotations

import numba
import numpy as np
from scipy.linalg import toeplitz

from sortcore.optical.voltage.evidence import LEAST_HZ, MOST_HZ, RATE_HZ, RATE_PRIOR_S, Neuron
from sortcore.optical.voltage.filter import WITHIN_S, Found, MatchedFilter, frames_within
from sortcore.optical.voltage.noise import Noise
from sortcore.optical.voltage.pursuit import log_ratio
from sortcore.optical.voltage.waveform import Grid, exposure

BEND, BEND_S, BEND_OVER_S = 0.3, 0.004, 0.0008  # how far a waveform may differ from the generic one, where, and how smoothly


def relearned(neuron: Neuron, z: np.ndarray, found: Found, matched: MatchedFilter, noise: Noise, shape: np.ndarray) -> Neuron:
    """The neuron after one round: waveform and rate from candidates whose places are known.

    shape: (F,) the generic waveform that the prior is centred on
    """
    grid, rho = matched.grid, neuron.rho
    likely = found.log_odds > -3
    if found.probabilities[likely].sum() < 3:
        return neuron
    rest = np.array(z)
    half = len(noise.inverse) // 2
    for n, p, a in zip(found.frames[found.subtracted], found.phases[found.subtracted], found.amplitudes[found.subtracted], strict=True):
        first = n - grid.before - half
        lo, hi = max(first, 0), min(first + matched.decorrelated.shape[1], len(rest))
        rest[lo:hi] -= a * matched.decorrelated[p, lo - first : hi - first]
    own = found.amplitudes * found.subtracted
    weights, b = gather(rest, found.frames[likely], found.phases[likely], own[likely], found.probabilities[likely],
                                matched.templates, matched.energies, matched.interactions, matched.decorrelated, found.residual, half,
                                grid.before, rho**-2, frames_within(WITHIN_S, grid.fs))
    B = exposure(grid)
    C = toeplitz(noise.inverse[half : half + grid.n_frames])
    A = np.einsum("p,plf,lm,pmg->fg", weights, B, C, B, optimize=True)
    right = np.einsum("plf,pl->f", B, b)
    fine = np.linalg.solve(A + bend_precision(grid, shape), right)
    rate = (found.expected.sum() + RATE_HZ * RATE_PRIOR_S) / (len(z) / grid.fs + RATE_PRIOR_S)
    return Neuron(fine, rho, float(np.clip(rate, LEAST_HZ, MOST_HZ)), neuron.evidence)


def bend_precision(grid: Grid, shape: np.ndarray) -> np.ndarray:
    """(F, F) inverse covariance of waveforms: any height of the generic shape (F,), and smooth departures from it near the peak."""
    t = grid.times_s
    height = np.abs(shape).max()
    sd = height * (BEND * np.exp(-np.abs(t) / BEND_S) + 0.02)
    K = np.outer(sd, sd) * np.exp(-0.5 * ((t[:, None] - t) / BEND_OVER_S) ** 2) + np.diag((0.02 * height) ** 2 * np.ones(len(t)))
    return np.linalg.inv(K + 100 * np.outer(shape, shape))


@numba.njit(cache=True, nogil=True)
def gather(rest: np.ndarray, frames: np.ndarray, phases: np.ndarray, own: np.ndarray, probabilities: np.ndarray, templates: np.ndarray,
           energies: np.ndarray, G: np.ndarray, decorrelated: np.ndarray, residual: np.ndarray, half: int, before: int,
           precision: float, within: int) -> tuple:
    """Sufficient statistics of the waveform: (P,) expected square amplitudes, and (P, L) amplitudes times S^-1 x.

    The posterior of a candidate's place and phase is over frames within some of its own, its own part put back.
    """
    P, L = templates.shape
    T, reach = len(rest), (G.shape[2] - 1) // 2
    weights, b = np.zeros(P), np.zeros((P, L))
    share = np.empty((P, 2 * within + 1))
    for i in range(len(frames)):
        n = frames[i]
        if n - within - before < 0 or n + within - before + L > T:
            continue
        most = -np.inf
        for p in range(P):
            for k in range(2 * within + 1):
                m = n + k - within
                s = residual[p, m] + own[i] * G[phases[i], p, m - n + reach]
                share[p, k] = log_ratio(s, energies[p], precision)
                most = max(most, share[p, k])
        share[:] = np.exp(share - most)
        share *= probabilities[i] / share.sum()
        for p in range(P):
            for k in range(2 * within + 1):
                if share[p, k] < 1e-4:
                    continue
                m = n + k - within
                s = residual[p, m] + own[i] * G[phases[i], p, m - n + reach]
                a, variance = (s + precision) / (energies[p] + precision), 1 / (energies[p] + precision)
                weights[p] += share[p, k] * (a * a + variance)
                for j in range(L):
                    at = m - before + j
                    z = rest[at] + own[i] * decorrelated[phases[i], at - (n - before) + half]
                    b[p, j] += share[p, k] * a * z
    return weights, b
