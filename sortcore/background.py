"""Which of a unit's spikes are background: what noise and the many small, far cells make of its waveform, and what larger
spikes leave behind.

Scores x of a unit's spikes, as far as they exceed the threshold t, are a mixture of the unit itself and of a background
that falls off within a noise standard deviation or less,

    p(x) = w N(x; mu, s) / P(N > t) + (1 - w) exp(-(x - t) / tau) / tau,      x > t,

fitted as its posterior's maximum: that noise reaches over a threshold is known beforehand, and about how fast it falls off. A pursuit
cannot tell the two, for it takes all that is not a known unit for Gaussian noise; the distribution of scores can. What it cannot tell
from background, the small late spikes of bursts, times can: they follow a spike of their unit, and background does so by chance.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from sortcore.matching import Matcher
from sortcore.numerics import mad
from sortcore.pursuit import pair_of
from sortcore.types import Spikes
from sortcore.workers import in_order

TAU = (0.15, 0.8)  # noise standard deviations that the background may fall off within, and
USUAL_TAU = (0.4, 0.3)  # does as a rule, with the spread of its logarithm: Gaussian noise alone 1 / t, many small cells more slowly
FEWEST = 20  # spikes that tell a distribution
FAR = 12.0  # sd above the threshold: the median of units that no background reaches
BIN = 0.2
BELOW = 0.02  # share of the scores under the threshold: it is a little lower where tissue has moved, or spikes collide
LEAST_OWN = 1 / 3  # share of a unit's spikes; of a unit of fewer, the largest that noise makes would be left and seem a cell
LOG_STD = (-2.0, 4.0)
LOGIT = (-20.0, 20.0)
LEFTOVER_MS = 0.7  # of a spike at least LARGER times as large, in which
LARGER = 2.0
FEWEST_ALONE = 5  # spikes beside none larger, that tell their unit's size
SMALL = 0.5  # of its unit's median, and
OUTLYING = 4.0  # standard deviations below it, a spike is what the larger one left behind
BURST_MS = (1.5, 15.0)  # a spike of a burst is so much later than the one before
DOUBT = 5.0  # spikes that follow by chance only, added to those that are counted


def own(spikes: Spikes, matcher: Matcher, fs: float, least: float) -> np.ndarray:
    """(S,) whether each spike, in order of time, is its unit's own: at least so probable, and no leftover of a larger spike."""
    kept = np.flatnonzero(probability(spikes, matcher, fs) >= least)
    out = np.zeros(len(spikes), bool)
    out[kept] = ~leftover(spikes.select(kept), matcher, fs)
    return out


def probability(spikes: Spikes, matcher: Matcher, fs: float) -> np.ndarray:
    """(S,) probability of each spike to be of its unit and no background."""
    mean, precision, groups = matcher.amp_mean, matcher.amp_precision, spikes.by_unit(len(matcher.amp_mean))

    def of_unit(k: int) -> np.ndarray:
        shrunk = spikes.amplitudes[groups[k]].astype(np.float64)  # towards the unit's mean, by the prior
        by_score = unit_probability((1 + precision[k]) * shrunk - precision[k] * mean[k], float(matcher.threshold[k]))
        return with_bursts(by_score, spikes.samples[groups[k]], fs)

    out = np.ones(len(spikes))
    for group, p in zip(groups, in_order(of_unit, range(len(groups))), strict=True):
        out[group] = p
    return out


def unit_probability(scores: np.ndarray, threshold: float) -> np.ndarray:
    """(S,) probability of each score of one unit's spikes to be its own."""
    sure = np.ones(len(scores))
    if len(scores) < FEWEST or np.median(scores) > threshold + FAR:
        return sure
    above = np.maximum(scores - min(threshold, np.quantile(scores, BELOW)), 0.0)
    bins, counts = np.unique((above / BIN).astype(int), return_counts=True)
    mostly_its_own = [float(np.median(above)) + 0.5, float(np.log(mad(above) + 0.3)), 1.0, 0.0]
    mostly_not = [float(np.quantile(above, 0.9)), 0.0, 0.0, 0.0]
    found = likeliest(bins * BIN + BIN / 2, counts.astype(float), [mostly_its_own, mostly_not])
    mean, std = found[0], np.exp(found[1])
    if mean < std:  # hardly above the threshold: the two look alike
        return sure
    itself, background = log_parts(above, found)
    probability = np.where(above > mean, 1.0, expit(itself - background))
    return probability if (probability > 0.5).mean() > LEAST_OWN else sure


def likeliest(x: np.ndarray, counts: np.ndarray, starts: list[list[float]]) -> np.ndarray:
    """q (4,) of `log_parts` that explains so many scores (n,) at x (n,) best, of what is reached from each start (4,)."""
    descents = [minimize(cost, start, args=(x, counts), jac=True, method="L-BFGS-B", bounds=[(None, None), LOG_STD, LOGIT, LOGIT],
                         options={"ftol": 1e-6}) for start in starts]
    return min(descents, key=lambda descent: float(descent.fun)).x


def with_bursts(probability: np.ndarray, samples: np.ndarray, fs: float) -> np.ndarray:
    """(S,) probability of one unit's spikes to be its own, from that by their scores and from samples (S,), where they are.

    Of what the scores take for background, a share b follows the unit's spikes by chance, and all spikes of bursts do: a share f of it
    that follows holds e = (f - b) / (1 - b) of these, and a spike that follows is one of them with probability e / f.
    """
    strange = (1 - probability).sum()
    if strange == 0:
        return probability
    train, (soon, late) = np.sort(samples), (int(ms * fs / 1000) for ms in BURST_MS)
    follows = np.searchsorted(train, samples - soon, "right") > np.searchsorted(train, samples - late, "left")
    by_chance = min(1 - np.exp(-len(train) * (late - soon) / max(int(train[-1] - train[0]), 1)), 0.99)
    share = ((1 - probability) @ follows + DOUBT * by_chance) / (strange + DOUBT)
    in_bursts = max(share - by_chance, 0.0) / (1 - by_chance)
    return np.where(follows, 1 - (1 - probability) * (1 - in_bursts / share), probability)


@numba.njit(cache=True, nogil=True)
def cost(q, x, counts):
    """What is minimised: less the log posterior of q, as in `log_parts`, given so many scores (n,) at x (n,). And its gradient (4,)."""
    mean, std, share, tau = q[0], np.exp(q[1]), 1 / (1 + np.exp(-q[2])), falloff(q[3])
    itself, background = log_parts(x, q)
    both = np.logaddexp(itself, background)
    away, cut = np.log(tau / USUAL_TAU[0]) / USUAL_TAU[1], mean / std
    missing = np.exp(-0.5 * cut * cut - 0.5 * np.log(2 * np.pi) - log_normal_below(cut))  # slope of the log of what is left of the unit
    own, z = np.exp(itself - both), (x - mean) / std
    of_unit, of_background = counts * own, counts * (1 - own)
    slope = np.empty(4)
    slope[0] = (of_unit * (z - missing)).sum() / std
    slope[1] = (of_unit * (z * z - 1 + missing * cut)).sum()
    slope[2] = (counts * (own - share)).sum()
    by_tau = (of_background * (x / tau - 1)).sum() / tau - away / USUAL_TAU[1] / tau
    slope[3] = by_tau * (tau - TAU[0]) * (TAU[1] - tau) / (TAU[1] - TAU[0])
    return 0.5 * away * away - (counts * both).sum(), -slope


@numba.njit(cache=True, nogil=True)
def log_parts(x, q):
    """Log of the weighted densities of unit and background, for q = (mean, log std, logit of the unit's share, logit of tau's range)."""
    tau = falloff(q[3])
    return log_unit(x, q) - np.log1p(np.exp(-q[2])), -np.log1p(np.exp(q[2])) - x / tau - np.log(tau)


@numba.njit(cache=True, nogil=True)
def log_unit(x, q):
    """(n,) log density at x (n,) of a Gaussian cut off below zero, for q = (mean, log std, ...)."""
    std = np.exp(q[1])
    return -0.5 * ((x - q[0]) / std) ** 2 - q[1] - 0.5 * np.log(2 * np.pi) - log_normal_below(q[0] / std)


@numba.njit(cache=True, nogil=True)
def log_normal_below(z):
    """Log of the share of a standard normal that lies below z."""
    if z > -25.0:
        return np.log(0.5 * math.erfc(-z / np.sqrt(2.0)))
    return -0.5 * z * z - np.log(-z) - 0.5 * np.log(2 * np.pi)  # the share itself would be too small for a number


@numba.njit(cache=True, nogil=True)
def falloff(logit):
    """tau for the logit of its place in its range."""
    return TAU[0] + (TAU[1] - TAU[0]) / (1 + np.exp(-logit))


def leftover(spikes: Spikes, matcher: Matcher, fs: float) -> np.ndarray:
    """(S,) whether each spike, in order of time, is a rest of a much larger one beside it: far smaller than its unit's are, and beside
    spikes of that larger unit more often than two cells' would be by chance. How large its unit's are is told by those beside none: a
    unit that seldom fires may be taken for a larger one's rests more often than it fires."""
    out, near = np.zeros(len(spikes), bool), int(LEFTOVER_MS * fs / 1000)
    groups = spikes.by_unit(len(matcher.amp_mean))
    per_sample = 1 / max(1, int(spikes.samples[-1] - spikes.samples[0])) if len(spikes) else 0.0
    beside = larger_beside(spikes.samples, spikes.units, spikes.amplitudes, matcher.first, matcher.other, near)
    for group in groups:
        if len(group) < FEWEST // 2:
            continue
        size, larger = spikes.amplitudes[group], beside[group]
        alone = size[larger < 0] if (larger < 0).sum() > FEWEST_ALONE else size
        median, spread = float(np.median(alone)), max(float(mad(alone)), 1.0)
        small = size < min(median - OUTLYING * spread, SMALL * median)
        for unit in np.unique(larger[small & (larger >= 0)]):
            by_chance = len(group) * len(groups[unit]) * (2 * near + 1) * per_sample
            mine = small & (larger == unit)
            out[group[mine]] = mine.sum() > 2 * by_chance + 3
    return out


@numba.njit(cache=True, nogil=True)
def larger_beside(samples, units, amplitudes, first, other, near):
    """(S,) the unit of the largest spike within `near` samples of each that shares a channel with it, -1 where none is LARGER times as
    large."""
    out = np.full(len(samples), -1)
    low = 0
    for i in range(len(samples)):
        while samples[low] < samples[i] - near:
            low += 1
        j, largest = low, LARGER * amplitudes[i]
        while j < len(samples) and samples[j] <= samples[i] + near:
            if amplitudes[j] > largest and pair_of(first, other, units[i], units[j]) >= 0:
                largest, out[i] = amplitudes[j], units[j]
            j += 1
    return out
