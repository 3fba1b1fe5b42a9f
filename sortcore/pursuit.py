"""Matching pursuit, compiled: spikes from the scores of templates at every sample.

Spikes are taken in order of what they add to the log joint. With x the score of a unit-norm template and a Gaussian prior
N(mu, s^2) on its amplitude, p = 1 / s^2,

    a = (x + p mu) / (1 + p),    gain = (x + p mu)^2 / (2 (1 + p)) - p mu^2 / 2 + log odds.

Where a spike overlaps with some that were taken before, the amplitudes of all of them are then settled by coordinate ascent: of two
large spikes that collide, the one taken first has explained a part of the other, and what both would leave looks like a third.

When no spike is left to take, each that overlaps with others is looked at again, all others held: another unit, or another time, that
now explains more takes its place, or that of it and one beside it, and those that this leaves without a gain go (cyclic matching
pursuit; Sturm and Christensen 2012). Of two that collide, the greedy choice is sometimes a third that looks like their sum, and a
fourth for what that leaves. Every step raises the log joint, so it ends.

Taking a spike changes only the scores of templates that share a channel with it, so two spikes that share no channel or are a template
apart never wait for each other, there is no cap on their number, and cost grows with the channels that units touch. The arrays are those
of `matching.Matcher`.
"""

from __future__ import annotations

import heapq
from typing import Any

import numba
import numpy as np

DEAD = np.float32(-1e30)  # the score of a unit that is left out
ASLEEP, DEAD_BAR = np.float32(2**18), np.float32(-(2**17))  # taken off scores within a unit's dead time: far more than any is, but not all
SETTLED = 0.3  # noise standard deviations: an amplitude that is off by less is left as it is
MOST_ROUNDS = 8
BETTER = 1.0  # nats that another spike must add in place of one or two
MOST_LOOKS = 5
LIKE = 0.3  # overlap, at any lag, of a spike with what may take its place,
MEETING = 0.02  # and with one that may go with it
SCAN = 256  # samples looked at together for a score above the threshold
INNER: dict[str, Any] = {"cache": True, "nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # not called from Python


@numba.njit(cache=True, nogil=True)
def pursue(score, first, other, overlaps, interpolator, alike, mean, precision, log_odds, threshold, dead):
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
    tables, priors = (first, other, overlaps, interpolator, alike), (mean, precision, log_odds, threshold)
    looked = 0  # spikes
    again = [0][:0]
    for look in range(MOST_LOOKS + 1):
        take_all(found, gains, tables, priors, score, heap, dead)
        again.extend(range(looked, len(samples)))
        looked = len(samples)
        if look < MOST_LOOKS:
            again = look_again(again, found, gains, tables, priors, score, heap, dead)
        if len(samples) == looked:
            break
    left = np.array(units, np.int64) >= 0
    return (np.array(samples, np.int64)[left], np.array(shifts, np.int64)[left], np.array(units, np.int64)[left],
            np.array(amplitudes, np.float32)[left], np.array(gains, np.float32)[left])


@numba.njit(**INNER)
def take_all(found, gains, tables, priors, score, heap, dead):
    """Take the best spike, and again, until none has a gain."""
    interpolator, (mean, precision, log_odds, _) = tables[3], priors
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
        gains.append(g)
        take(k, t, m_now, best, found, gains, tables, priors, score, heap, dead)


@numba.njit(**INNER)
def take(k, t, m, x, found, gains, tables, priors, score, heap, dead):
    """Take a spike of score x, and settle the amplitudes of those that overlap with it in time."""
    samples, shifts, units, amplitudes, rests, latest, before = found
    reach = (tables[2].shape[2] - 1) // 2
    new, stretch = len(samples), 1 + t // (reach + 1)
    samples.append(t)
    shifts.append(m)
    units.append(k)
    amplitudes.append(0.0)
    rests.append(float(x))
    before.append(latest[stretch])
    latest[stretch] = new
    sleep(score, k, t, dead, ASLEEP)
    change(new, lacking(new, found, priors), found, tables, priors, score, heap)
    together = sorted(beside(found, t, reach), reverse=True)  # so that it does not matter where the data begin
    for _ in range(MOST_ROUNDS if len(together) > 1 else 0):
        settled = True
        for i in together:
            more = lacking(i, found, priors)
            if abs(more) > SETTLED:
                gains[i] += 0.5 * (1 + float(priors[1][units[i]])) * more * more
                change(i, more, found, tables, priors, score, heap)
                settled = False
        if settled:
            break


@numba.njit(**INNER)
def leave(i, found, tables, priors, score, heap, dead):
    """Give back spike i."""
    samples, _, units, amplitudes, _, latest, before = found
    reach = (tables[2].shape[2] - 1) // 2
    sleep(score, units[i], samples[i], dead, -ASLEEP)  # first, so that its unit's peaks there are seen
    change(i, -amplitudes[i], found, tables, priors, score, heap)
    stretch = 1 + samples[i] // (reach + 1)
    if latest[stretch] == i:
        latest[stretch] = before[i]
    else:
        j = latest[stretch]
        while before[j] != i:
            j = before[j]
        before[j] = before[i]
    units[i] = -1


@numba.njit(**INNER)
def look_again(again, found, gains, tables, priors, score, heap, dead):
    """Put in place of each spike in `again` that overlaps with others, or of it and one of those, the spike that explains more, if there
    is one. Returns those that stand beside a change, to be looked at once more."""
    samples, _, units, _, _, _, _ = found
    reach = (tables[2].shape[2] - 1) // 2
    touched = [0][:0]
    n_units = len(score)
    place = np.array([samples[j] * n_units + units[j] for j in again])
    for at in np.argsort(place, kind="mergesort"):
        i = again[at]
        if units[i] < 0 or len(beside(found, samples[i], reach)) < 2:
            continue
        also, best = -1, instead(i, -1, found, tables, priors, score, dead)
        for j in beside(found, samples[i], reach):
            if j != i:
                of_two = instead(i, j, found, tables, priors, score, dead)
                if of_two[0] > best[0]:
                    also, best = j, of_two
        more, k, t, m, x = best
        if more <= BETTER:
            continue
        gains.append(more + gains[i] + (gains[also] if also >= 0 else 0.0))
        for j in (i, also):
            if j >= 0:
                leave(j, found, tables, priors, score, heap, dead)
        take(k, t, m, x, found, gains, tables, priors, score, heap, dead)
        new = len(samples) - 1
        for j in beside(found, t, reach):
            worth = worth_now(j, found, priors)
            if worth < 0 and j != new:
                leave(j, found, tables, priors, score, heap, dead)
                gains[new] += gains[j] - worth
        touched.extend(beside(found, t, reach))
    near_change = np.zeros(len(samples), np.bool_)
    for j in touched:
        near_change[j] = units[j] >= 0
    return [j for j in range(len(samples)) if near_change[j]]


@numba.njit(**INNER)
def worth_now(i, found, priors):
    """What spike i, of its amplitude, adds to the log joint, given all others."""
    _, _, units, amplitudes, rests, _, _ = found
    mean, precision, log_odds, _ = priors
    a, k = amplitudes[i], units[i]
    return a * (rests[i] + 0.5 * a) - 0.5 * float(precision[k]) * (a - float(mean[k])) ** 2 + float(log_odds[k])


@numba.njit(**INNER)
def instead(i, also, found, tables, priors, score, dead):
    """The best spike in place of spike i, and of spike `also` if that is not -1, all others held: how much more it adds to the log joint,
    its unit, sample, shift and score."""
    samples, shifts, units, amplitudes, _, _, _ = found
    first, other, overlaps, interpolator, alike = tables
    mean, precision, log_odds, _ = priors
    k, t = units[i], samples[i]
    reach = (overlaps.shape[2] - 1) // 2
    was = worth_now(i, found, priors)
    if also >= 0:
        both = overlap(first, other, overlaps, k, t, shifts[i], units[also], samples[also], shifts[also])
        if abs(both) < MEETING:
            return (-np.inf, k, t, shifts[i], np.float32(0))
        was += worth_now(also, found, priors) + amplitudes[i] * amplitudes[also] * both
    best = (0.0, k, t, shifts[i], np.float32(0))
    wide = reach // 2 + interpolator.shape[1] // 2 + 1
    low, high = max(0, t - wide), min(score.shape[1], t + wide + 1)
    row = np.empty((1, high - low), np.float32)
    for pair in range(first[k], first[k + 1]):
        if alike[pair] < LIKE:
            continue
        j = other[pair]
        row[0] = score[j, low:high]
        put_back(row, low, i, j, found, tables, dead)
        if also >= 0:
            put_back(row, low, also, j, found, tables, dead)
        if gain_of(np.float32(1.2) * highest(row[0]), mean[j], precision[j], log_odds[j]) <= was + best[0]:
            continue
        for s in range(max(1, t - low - reach // 2), min(high - low - 1, t - low + reach // 2 + 1)):
            if row[0, s] >= row[0, s - 1] and row[0, s] > row[0, s + 1] and row[0, s] > DEAD_BAR:
                x, by = refine(row, 0, s, interpolator)
                more = gain_of(x, mean[j], precision[j], log_odds[j]) - was
                if more > best[0]:
                    best = (more, j, low + s, by, x)
    return best


@numba.njit(**INNER)
def put_back(row, low, i, j, found, tables, dead):
    """Add to unit j's scores (1, T), which begin at `low`, what spike i has taken off them."""
    samples, shifts, units, amplitudes, _, _, _ = found
    first, other, overlaps, _, _ = tables
    k, t, reach = units[i], samples[i], (overlaps.shape[2] - 1) // 2
    pair = pair_of(first, other, k, j)
    if pair < 0:
        return
    start, stop = max(low, t - reach), min(low + row.shape[1], t + reach + 1)
    if start < stop:
        taken = overlaps[pair, shifts[i], start - t + reach : stop - t + reach]
        take_off(row[0, start - low : stop - low], taken, np.float32(-amplitudes[i]))
    if j == k:
        sleep(row, 0, t - low, dead, -ASLEEP)


@numba.njit(**INNER)
def sleep(score, k, t, dead, much):
    """Unit k fires no more within `dead` samples of t; much: ASLEEP, or less than nothing to wake it."""
    for s in range(max(0, t - dead), min(score.shape[1], t + dead + 1)):
        score[k, s] -= much


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


@numba.njit(**INNER)
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


@numba.njit(**INNER)
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


@numba.njit(**INNER)
def lacking(i, found, priors):
    """How far the amplitude of spike i is below the best one given all others."""
    _, _, units, amplitudes, rests, _, _ = found
    mean, precision, _, _ = priors
    p = float(precision[units[i]])
    return max((rests[i] - p * (amplitudes[i] - mean[units[i]])) / (1 + p), -amplitudes[i])


@numba.njit(**INNER)
def change(i, more, found, tables, priors, score, heap):
    """Give spike i more amplitude: take it off the scores and off what the spikes beside it have left, and look for peaks there."""
    samples, shifts, units, amplitudes, rests, _, _ = found
    first, other, overlaps, interpolator, _ = tables
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
        if highest(score[j, max(0, low - half) : high + half]) > np.float32(0.8) * threshold[j]:
            push_peaks(heap, score, j, low - half, high + half, interpolator, mean, precision, log_odds, threshold)


@numba.njit(**INNER)
def overlap(first, other, overlaps, k, t, m, j, s, n):
    """Inner product of unit k's template at sample t with shift m and unit j's at sample s with shift n."""
    pair = pair_of(first, other, k, j)
    if pair < 0:
        return np.float32(0)
    n_shifts, reach = overlaps.shape[1], (overlaps.shape[2] - 1) // 2
    shift, lag = m - n + n_shifts // 2, s - t
    if shift < 0:
        shift, lag = shift + n_shifts, lag + 1
    elif shift >= n_shifts:
        shift, lag = shift - n_shifts, lag - 1
    return overlaps[pair, shift, lag + reach] if -reach <= lag <= reach else np.float32(0)


@numba.njit(**INNER)
def pair_of(first, other, k, j):
    """Where unit j is among the neighbours of unit k in tables of pairs; -1 if it is not one."""
    at = first[k] + np.searchsorted(other[first[k] : first[k + 1]], j)
    return at if at < first[k + 1] and other[at] == j else -1
