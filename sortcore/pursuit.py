"""Matching pursuit, compiled: spikes from the scores of templates at every sample.

Spikes are taken in order of what they add to the log joint. With x the score of a unit-norm template and a Gaussian prior
N(mu, s^2) on its amplitude, p = 1 / s^2,

    a = (x + p mu) / (1 + p),    gain = (x + p mu)^2 / (2 (1 + p)) - p mu^2 / 2 + log odds.

Where a spike overlaps with some that were taken before, the amplitudes of all of them are then settled by coordinate ascent: of two
large spikes that collide, the one taken first has explained a part of the other, and what both would leave looks like a third.

Taking a spike changes only the scores of templates that share a channel with it, so two spikes that share no channel or are a template
apart never wait for each other, there is no cap on their number, and cost grows with the channels that units touch. The arrays are those
of `matching.Matcher`.
"""

from __future__ import annotations

import heapq

import numba
import numpy as np

DEAD, DEAD_BAR = np.float32(-1e30), np.float32(-1e20)  # scores within a unit's dead time
SETTLED = 0.3  # noise standard deviations: an amplitude that is off by less is left as it is
MOST_ROUNDS = 8
SCAN = 256  # samples looked at together for a score above the threshold


@numba.njit(cache=True, nogil=True)
def pursue(score, first, other, overlaps, interpolator, mean, precision, log_odds, threshold, dead):
    """The spikes of scores (K, T), which are changed in place: samples, shifts (indices), units, amplitudes and gains (S,), as they were
    taken. A unit fires at most once in `dead` samples."""
    n_units, n = score.shape
    reach = (overlaps.shape[2] - 1) // 2  # D - 1
    heap = [(0.0, 0, 0, 0)]
    heap.pop()
    for k in range(n_units):
        bar = np.float32(0.8) * threshold[k]
        for start in range(0, n, SCAN):
            stop = min(n, start + SCAN)
            if highest(score[k, start:stop]) > bar:
                push_peaks(heap, score, k, start, stop, interpolator, mean, precision, log_odds, threshold)
    samples, shifts, units = [0][:0], [0][:0], [0][:0]
    amplitudes, gains, rests = [0.0][:0], [0.0][:0], [0.0][:0]  # rests: inner products of spikes with what is left of the data
    latest, before = np.full(n // (reach + 1) + 3, -1), [0][:0]  # the spikes of each stretch of time as a list
    found = (samples, shifts, units, amplitudes, rests, latest, before)
    tables, priors = (first, other, overlaps, interpolator), (mean, precision, log_odds, threshold)
    while len(heap):
        negative, k, t, _ = heapq.heappop(heap)
        x = score[k, t]
        if not (x >= score[k, t - 1] and x > score[k, t + 1]):
            continue
        best, m_now = refine(score, k, t, interpolator)
        g = gain_of(best, mean[k], precision[k], log_odds[k])
        if g <= 0:
            continue
        if -g > negative:  # it has shrunk since: others may come first
            heapq.heappush(heap, (-g, k, t, m_now))
            continue
        new, stretch = len(samples), 1 + t // (reach + 1)
        samples.append(t)
        shifts.append(m_now)
        units.append(k)
        amplitudes.append(0.0)
        gains.append(g)
        rests.append(float(best))
        before.append(latest[stretch])
        latest[stretch] = new
        change(new, lacking(new, found, priors), found, tables, priors, score, heap, dead)
        together = sorted(beside(found, t, reach), reverse=True)  # so that it does not matter where the data begin
        for _ in range(MOST_ROUNDS if len(together) > 1 else 0):
            settled = True
            for i in together:
                more = lacking(i, found, priors)
                if abs(more) > SETTLED:
                    gains[i] += 0.5 * (1 + float(precision[units[i]])) * more * more
                    change(i, more, found, tables, priors, score, heap, dead)
                    settled = False
            if settled:
                break
    return (np.array(samples, np.int64), np.array(shifts, np.int64), np.array(units, np.int64), np.array(amplitudes, np.float32),
            np.array(gains, np.float32))


@numba.njit(cache=True, nogil=True, fastmath=False)
def refine(score, k, t, interpolator):
    """Best sub-sample shift of a local maximum, and the score there."""
    half = interpolator.shape[1] // 2
    n = score.shape[1]
    best, at = score[k, t], interpolator.shape[0] // 2
    if t < half or t + half >= n:
        return best, at
    for i in range(-half, half + 1):
        if score[k, t + i] < DEAD_BAR:  # a dead time ends here: nothing to interpolate from
            return best, at
    for m in range(interpolator.shape[0]):
        value = np.float32(0)
        for i in range(interpolator.shape[1]):
            value += interpolator[m, i] * score[k, t - half + i]
        if value > best:
            best, at = value, m
    return best, at


@numba.njit(cache=True, nogil=True, fastmath=True)
def highest(row):
    """The maximum; scores are never NaN, and told so the compiler uses vector instructions."""
    top = row[0]
    for i in range(len(row)):
        top = max(top, row[i])
    return top


@numba.njit(cache=True, nogil=True, fastmath=True)
def take_off(row, overlap, amplitude):
    for i in range(len(row)):
        row[i] -= amplitude * overlap[i]


@numba.njit(cache=True, nogil=True)
def gain_of(x, mean, precision, log_odds):
    x, mean, precision = float(x), float(mean), float(precision)
    whole = max(x + precision * mean, 0.0)
    return 0.5 * whole * whole / (1.0 + precision) - 0.5 * precision * mean * mean + float(log_odds)


@numba.njit(cache=True, nogil=True)
def push_peaks(heap, score, k, low, high, interpolator, mean, precision, log_odds, threshold):
    """Put the local maxima of unit k in [low, high) that are worth a spike on the heap."""
    n = score.shape[1]
    bar = np.float32(0.8) * threshold[k]  # the peak between samples may be higher than the samples show
    for t in range(max(low, 1), min(high, n - 1)):
        x = score[k, t]
        if x > bar and x >= score[k, t - 1] and x > score[k, t + 1]:
            best, m = refine(score, k, t, interpolator)
            g = gain_of(best, mean[k], precision[k], log_odds[k])
            if g > 0:
                heapq.heappush(heap, (-g, k, t, m))


@numba.njit(cache=True, nogil=True)
def beside(found, t, reach):
    """The spikes whose templates overlap in time with one that starts at t."""
    samples, _, _, _, _, latest, before = found
    out = [0][:0]
    stretch = 1 + t // (reach + 1)
    for near in range(stretch - 1, stretch + 2):
        i = latest[near]
        while i >= 0:
            if abs(samples[i] - t) <= reach + 1:
                out.append(i)
            i = before[i]
    return out


@numba.njit(cache=True, nogil=True)
def lacking(i, found, priors):
    """How far the amplitude of spike i is below the best one given all others."""
    _, _, units, amplitudes, rests, _, _ = found
    mean, precision, _, _ = priors
    p = float(precision[units[i]])
    return max((rests[i] - p * (amplitudes[i] - mean[units[i]])) / (1 + p), -amplitudes[i])


@numba.njit(cache=True, nogil=True)
def change(i, more, found, tables, priors, score, heap, dead):
    """Give spike i more amplitude: take it off the scores and off what the spikes beside it have left, and look for peaks there.
    Its unit fires no more within `dead` samples."""
    samples, shifts, units, amplitudes, rests, _, _ = found
    first, other, overlaps, interpolator = tables
    mean, precision, log_odds, threshold = priors
    k, t, m = units[i], samples[i], shifts[i]
    n, reach, half = score.shape[1], (overlaps.shape[2] - 1) // 2, interpolator.shape[1] // 2
    amplitudes[i] += more
    for j in beside(found, t, reach):
        rests[j] -= more * overlap(first, other, overlaps, k, t, m, units[j], samples[j], shifts[j])
    low, high = max(0, t - reach), min(n, t + reach + 1)
    for pair in range(first[k], first[k + 1]):
        j = other[pair]
        take_off(score[j, low:high], overlaps[pair, m, low - t + reach : high - t + reach], np.float32(more))
        if j == k:
            for s in range(max(0, t - dead), min(n, t + dead + 1)):
                score[j, s] = DEAD
        if highest(score[j, max(0, low - half) : high + half]) > np.float32(0.8) * threshold[j]:
            push_peaks(heap, score, j, low - half, high + half, interpolator, mean, precision, log_odds, threshold)


@numba.njit(cache=True, nogil=True)
def overlap(first, other, overlaps, k, t, m, j, s, n):
    """Inner product of unit k's template at sample t with shift m and unit j's at sample s with shift n."""
    near = other[first[k] : first[k + 1]]
    at = np.searchsorted(near, j)
    if at == len(near) or near[at] != j:
        return np.float32(0)
    n_shifts, reach = overlaps.shape[1], (overlaps.shape[2] - 1) // 2
    shift, lag = m - n + n_shifts // 2, s - t
    if shift < 0:
        shift, lag = shift + n_shifts, lag + 1
    elif shift >= n_shifts:
        shift, lag = shift - n_shifts, lag - 1
    return overlaps[first[k] + at, shift, lag + reach] if -reach <= lag <= reach else np.float32(0)
