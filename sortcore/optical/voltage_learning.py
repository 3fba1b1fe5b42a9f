"""What a voltage trace says of its own spikes: waveform, height, spread of heights, and rate.

Coordinate ascent on the model's log joint, the spikes being uncertain: given the waveform each candidate has a probability, and
given those the waveform is the least-squares one, every candidate counted by its probability and at each place and phase by how
probable it is there (expectation maximisation; Dempster, Laird & Rubin, 1977). A Gaussian prior holds it near the generic spike of
the best-fitting decay, so that few or faint spikes bend it little; the height is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from scipy.linalg import toeplitz

from sortcore.optical.voltage_filter import CAP, REFRACTORY_S, WITHIN_S, Found, MatchedFilter, frames_within, log_ratio, matched_filter
from sortcore.optical.voltage_noise import Noise, measure_noise, without_spikes
from sortcore.optical.voltage_waveform import DECAYS_S, Grid, exposure, generic

DETECTABILITIES = np.array([1.7, 2.2, 2.8, 3.5, 4.3, 5.3, 6.6, 8.5, 12.0, 18.0, 30.0])
RATES_HZ, STEP = tuple(0.2 * 2.5**i for i in range(7)), 0.4
START_RHO, LEAST_RHO, MOST_RHO, RHO_SPIKES = 0.15, 0.05, 0.5, 20.0
RATE_HZ, RATE_PRIOR_S = 5.0, 15.0  # mean of the gamma prior of the rate, and its weight
LEAST_HZ, MOST_HZ = 0.02, 100.0
GUESSES, FACTORS = 3, np.array([0.8, 0.9, 1.0, 1.12, 1.25])
GUESS_S = 60.0  # of the trace that is looked at first
BEND, BEND_S, BEND_OVER_S = 0.3, 0.004, 0.0008  # how far a waveform may differ from the generic one, where, and how smoothly


@dataclass(frozen=True)
class Neuron:
    """What is known of one trace's spikes.

    fine: (F,) waveform of a spike of amplitude one; rho: standard deviation of amplitudes, their mean being one; rate_hz
    evidence: nats by which spikes explain the trace better than noise alone
    """

    fine: np.ndarray
    rho: float
    rate_hz: float
    evidence: float = 0.0


def first_guess(x: np.ndarray, grid: Grid, measured: Noise) -> tuple[Neuron, Noise]:
    """The generic spike whose decay, height and rate explain a trace (T,) best, and the noise that it leaves.

    measured: noise of the trace, spikes included; what the guess explains is taken off and the guess made again
    """
    x = middle_of(x, int(GUESS_S * grid.fs))
    noise, best = measured, Neuron(generic(grid, DECAYS_S[1]), START_RHO, LEAST_HZ, -np.inf)
    for i in range(GUESSES):
        z = noise.decorrelated(x)
        near = None if i == 0 else best.rate_hz
        d = matched_filter(best.fine, grid, noise).d
        best = Neuron(best.fine, START_RHO, LEAST_HZ, -np.inf)
        for decay in DECAYS_S:
            fine = generic(grid, decay)
            matched = matched_filter(fine, grid, noise)
            heights = (DETECTABILITIES if i == 0 else d * FACTORS) / matched.d
            found = best_height(fine, matched, matched.scores(z), heights, START_RHO, near)
            best = max(best, found, key=lambda neuron: neuron.evidence)
        noise = without_spikes(measured, exposure(grid) @ best.fine, best.rate_hz / grid.fs)
    return best, noise


def middle_of(x: np.ndarray, n_frames: int) -> np.ndarray:
    """At most n_frames from the middle of a trace (T,)."""
    first = max(0, (len(x) - n_frames) // 2)
    return x[first : first + n_frames]


def best_height(fine: np.ndarray, matched: MatchedFilter, scores: np.ndarray, heights: np.ndarray, rho: float,
                near_hz: float | None) -> Neuron:
    """Of heights of one waveform that which explains scores (P, T) best, with the rate that goes with it."""
    best = Neuron(fine, rho, LEAST_HZ, -np.inf)
    for height in heights:
        rate, evidence = rate_and_evidence(scores * height, matched.energies * height**2, matched.grid, rho, near_hz)
        if evidence > best.evidence:
            best = Neuron(fine * height, rho, rate, evidence)
    return best


def points_down(x: np.ndarray, grid: Grid) -> float:
    """By how many nats more spikes that go down explain a trace (T,) than spikes that go up."""
    x = x[: int(GUESS_S * grid.fs)]
    noise, fine = measure_noise(x, grid.fs), generic(grid, DECAYS_S[1])
    if noise.white <= 0:
        return 0.0
    matched = matched_filter(fine, grid, noise)
    scores, heights = matched.scores(noise.decorrelated(x)), DETECTABILITIES[1::2] / matched.d
    up, down = (best_height(fine, matched, sign * scores, heights, START_RHO, RATE_HZ).evidence for sign in (1, -1))
    return down - up


def rate_and_evidence(scores: np.ndarray, energies: np.ndarray, grid: Grid, rho: float,
                      near_hz: float | None = None) -> tuple[float, float]:
    """Most probable rate, and how much better spikes at that rate explain the scores than noise does.

    near_hz: the rate lies near this one
    """
    ratios = np.maximum(frame_ratios(scores, energies, rho**-2), 1e-30)
    gap = frames_within(REFRACTORY_S, grid.fs)

    def evidence(rates: np.ndarray) -> np.ndarray:
        return np.array([log_partition(ratios, min(rate / grid.fs, 0.5), gap) for rate in rates]) + gamma_prior(rates)

    rate = near_hz or float(RATES_HZ[int(np.argmax(evidence(np.array(RATES_HZ))))])
    left, middle, right = evidence(rate * np.exp([-STEP, 0.0, STEP]))
    b = max(2 * middle - left - right, 1e-9) / (2 * np.cosh(STEP) - 2)  # a Poisson likelihood n log(rate) - b rate, as of n spikes,
    n = (right - left + 2 * b * np.sinh(STEP)) / (2 * STEP)  # goes through the three
    change = float(np.clip(n / b, np.exp(-1.5 * STEP), np.exp(1.5 * STEP)))
    return float(np.clip(rate * change, LEAST_HZ, MOST_HZ)), float(middle + n * np.log(change) - b * (change - 1))


def gamma_prior(rate: np.ndarray) -> np.ndarray:
    return RATE_PRIOR_S * (RATE_HZ * np.log(rate / RATE_HZ) - (rate - RATE_HZ))


@numba.njit(cache=True, nogil=True)
def frame_ratios(scores: np.ndarray, energies: np.ndarray, precision: float) -> np.ndarray:
    """(T,) mean over phases of the likelihood ratio."""
    P, T = scores.shape
    out = np.zeros(T)
    for p in range(P):
        for n in range(T):
            out[n] += np.exp(min(log_ratio(scores[p, n], energies[p], precision), CAP))
    return out / P


@numba.njit(cache=True, nogil=True)
def log_partition(ratios: np.ndarray, chance: float, gap: int) -> float:
    """log of the sum over all ways to place spikes more than `gap` frames apart, of their prior times their likelihood ratio.

    Z_n = (1 - chance) Z_{n-1} + chance ratio_n Z_{n-gap-1}: frames up to n hold no spike at n, or one and none in the gap before.
    """
    T, log_z, product = len(ratios), 0.0, 1.0
    last = np.ones(gap)  # z of the last frames
    since = 1.0  # and their product
    at = 0
    for n in range(T):
        z = (1 - chance) + chance * ratios[n] / since
        since *= z / last[at]
        last[at] = z
        at = at + 1 if at + 1 < gap else 0
        product *= z
        if product > 1e100 or product < 1e-100:
            log_z += np.log(product)
            product = 1.0
    return log_z + np.log(product)


def relearned(neuron: Neuron, z: np.ndarray, found: Found, matched: MatchedFilter, noise: Noise, shape: np.ndarray) -> Neuron:
    """The neuron after one round: waveform, spread and rate from candidates whose places are known.

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
    weights, b, spread = gather(rest, found.frames[likely], found.phases[likely], own[likely], found.probabilities[likely],
                                matched.templates, matched.energies, matched.interactions, matched.decorrelated, found.residual, half,
                                grid.before, rho**-2, frames_within(WITHIN_S, grid.fs))
    B = exposure(grid)
    C = toeplitz(noise.inverse[half : half + grid.n_frames])
    A = np.einsum("p,plf,lm,pmg->fg", weights, B, C, B, optimize=True)
    right = np.einsum("plf,pl->f", B, b)
    fine = np.linalg.solve(A + bend_precision(grid, shape), right)
    total = found.probabilities[likely].sum()
    rho = np.sqrt((spread + RHO_SPIKES * START_RHO**2) / (total + RHO_SPIKES))
    rate = (found.expected.sum() + RATE_HZ * RATE_PRIOR_S) / (len(z) / grid.fs + RATE_PRIOR_S)
    return Neuron(fine, float(np.clip(rho, LEAST_RHO, MOST_RHO)), float(np.clip(rate, LEAST_HZ, MOST_HZ)), neuron.evidence)


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
    """Sufficient statistics of the waveform: (P,) expected square amplitudes, (P, L) amplitudes times S^-1 x, and the spread.

    The posterior of a candidate's place and phase is over frames within some of its own, its own part put back.
    """
    P, L = templates.shape
    T, reach = len(rest), (G.shape[2] - 1) // 2
    weights, b, spread = np.zeros(P), np.zeros((P, L)), 0.0
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
                spread += share[p, k] * ((a - 1) ** 2 + variance)
                for j in range(L):
                    at = m - before + j
                    z = rest[at] + own[i] * decorrelated[phases[i], at - (n - before) + half]
                    b[p, j] += share[p, k] * a * z
    return weights, b, spread
