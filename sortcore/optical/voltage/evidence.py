"""How well spikes of one waveform explain a trace, and at which rate.

Where spikes are is not known, so all ways to place them are summed (spikes no nearer than the refractory period, a hard-core gas in
one dimension). The sum is a recursion over frames, and what maximises it is not drawn to noise as the best placement would be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from sortcore.optical.voltage.filter import REFRACTORY_S, MatchedFilter, frames_within
from sortcore.optical.voltage.pursuit import CAP, ratio_of
from sortcore.optical.voltage.waveform import Grid

RATE_HZ, RATE_PRIOR_S = 5.0, 4.0  # mean of the gamma prior of the rate, and its weight
LEAST_HZ, MOST_HZ = 0.02, 100.0
SPREADS = (0.05, 0.1, 0.15, 0.22, 0.33)
RATES_HZ, STEP = np.array([0.3, 1.2, 5.0, 20.0]), 0.4


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


def best_height(fine: np.ndarray, matched: MatchedFilter, scores: np.ndarray, heights: np.ndarray, rho: float,
                near_hz: float | None) -> Neuron:
    """Of heights of one waveform that which explains scores (P, T) best, with the rate that goes with it."""
    best = Neuron(fine, rho, LEAST_HZ, -np.inf)
    for height in heights:
        rate, evidence = rate_and_evidence(scores * height, matched.energies * height**2, matched.grid, rho, near_hz)
        if evidence > best.evidence:
            best = Neuron(fine * height, rho, rate, evidence)
    return best


def best_spread(neuron: Neuron, matched: MatchedFilter, scores: np.ndarray) -> Neuron:
    """The neuron with the spread of heights that explains scores (P, T) best."""
    tried = []
    for rho in SPREADS:
        rate, evidence = rate_and_evidence(scores, matched.energies, matched.grid, rho, neuron.rate_hz)
        tried.append(Neuron(neuron.fine, rho, rate, evidence))
    return max(tried, key=lambda one: one.evidence)


def rate_and_evidence(scores: np.ndarray, energies: np.ndarray, grid: Grid, rho: float,
                      near_hz: float | None = None) -> tuple[float, float]:
    """Most probable rate, and how much better spikes at that rate explain scores (P, T) than noise does.

    near_hz: the rate lies near this one
    """
    ratios = np.maximum(frame_ratios(scores, energies, rho**-2), 1e-30)
    gap = frames_within(REFRACTORY_S, grid.fs)

    def evidence(rates: np.ndarray) -> np.ndarray:
        return log_partition(ratios, np.minimum(rates / grid.fs, 0.5), gap) + log_rate_prior(rates)

    rate = near_hz or float(RATES_HZ[int(np.argmax(evidence(RATES_HZ)))])
    left, middle, right = evidence(rate * np.exp([-STEP, 0.0, STEP]))
    b = max(2 * middle - left - right, 1e-9) / (2 * np.cosh(STEP) - 2)  # a Poisson likelihood n log(rate) - b rate, as of n spikes,
    n = (right - left + 2 * b * np.sinh(STEP)) / (2 * STEP)  # goes through the three
    change = float(np.clip(n / b, np.exp(-2 * STEP), np.exp(2 * STEP)))
    return float(np.clip(rate * change, LEAST_HZ, MOST_HZ)), float(middle + n * np.log(change) - b * (change - 1))


def log_rate_prior(rate: np.ndarray) -> np.ndarray:
    """Gamma prior of the rate, as if RATE_PRIOR_S at RATE_HZ had been seen; 0 at its mode."""
    return RATE_PRIOR_S * (RATE_HZ * np.log(rate / RATE_HZ) - (rate - RATE_HZ))


@numba.njit(cache=True, nogil=True)
def frame_ratios(scores: np.ndarray, energies: np.ndarray, precision: float) -> np.ndarray:
    """(T,) mean over phases of the likelihood ratio."""
    P, T = scores.shape
    out = np.zeros(T)
    for p in range(P):
        slope, offset = 0.5 / (energies[p] + precision), 0.5 * precision + 0.5 * np.log1p(energies[p] / precision)
        for n in range(T):
            out[n] += np.exp(min(ratio_of(scores[p, n], precision, slope, offset), CAP))
    return out / P


@numba.njit(cache=True, nogil=True)
def log_partition(ratios: np.ndarray, chances: np.ndarray, gap: int) -> np.ndarray:
    """(K,) log of the sum over all ways to place spikes more than `gap` frames apart, of their prior times their likelihood ratios.

    Z_n = (1 - chance) Z_{n-1} + chance ratio_n Z_{n-gap-1}: frame n holds no spike, or it does and the gap before holds none.
    chances: (K,) of a spike in a frame
    """
    K, T = len(chances), len(ratios)
    log_z, product, since = np.zeros(K), np.ones(K), np.ones(K)
    last = np.ones((gap, K))  # z = Z_n / Z_{n-1} of the frames in the gap; `since` is their product
    at = 0
    for n in range(T):
        for k in range(K):
            z = (1 - chances[k]) + chances[k] * ratios[n] / since[k]
            since[k] *= z / last[at, k]
            last[at, k] = z
            product[k] *= z
            if product[k] > 1e100 or product[k] < 1e-100:
                log_z[k] += np.log(product[k])
                product[k] = 1.0
        at = at + 1 if at + 1 < gap else 0
    return log_z + np.log(product)
