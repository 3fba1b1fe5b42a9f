"""The compiled loops of the voltage front end's matching pursuit; `filter` says what they compute."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

SWEEPS, ROUNDS = 60, 2
LEAST_LOG_ODDS = -8.0  # of spikes less likely nothing is said
CAP = 300.0  # of log odds, against overflow


class Known(NamedTuple):
    """What a pursuit is given: energies (P,), of log ratios slopes and offsets (P,), interactions G (P, P, 2 D + 1), rho^-2, log prior
    odds (T,), and spans in frames."""

    energies: np.ndarray
    slopes: np.ndarray
    offsets: np.ndarray
    G: np.ndarray
    precision: float
    log_prior: np.ndarray
    within: int
    refractory: int


class Places(NamedTuple):
    """Room for spikes (T,): frames, phases, amplitudes and log odds."""

    frames: np.ndarray
    phases: np.ndarray
    amplitudes: np.ndarray
    log_odds: np.ndarray


@numba.njit(cache=True, nogil=True)
def log_ratio(s: float, energy: float, precision: float) -> float:
    """l_p of a score; precision is rho^-2."""
    return ratio_of(s, precision, 0.5 / (energy + precision), 0.5 * precision + 0.5 * np.log1p(energy / precision))


@numba.njit(cache=True, nogil=True)
def ratio_of(s: float, precision: float, slope: float, offset: float) -> float:
    """l_p of a score, with what does not depend on it computed before."""
    return slope * (s + precision) ** 2 - offset if s + precision > 0 else -CAP


@numba.njit(cache=True, nogil=True)
def frame_log_odds(s: np.ndarray, known: Known, n: int) -> float:
    """L(n)."""
    P, most = len(known.slopes), -np.inf
    for p in range(P):
        most = max(most, ratio_of(s[p, n], known.precision, known.slopes[p], known.offsets[p]))
    total = 0.0
    for p in range(P):
        total += np.exp(ratio_of(s[p, n], known.precision, known.slopes[p], known.offsets[p]) - most)
    return min(known.log_prior[n] + most + np.log(total / P), CAP)


@numba.njit(cache=True, nogil=True)
def best_phase(s: np.ndarray, known: Known, n: int) -> int:
    best, at = -np.inf, 0
    for p in range(len(known.slopes)):
        here = ratio_of(s[p, n], known.precision, known.slopes[p], known.offsets[p])
        if here > best:
            best, at = here, p
    return at


@numba.njit(cache=True, nogil=True)
def add_spike(s: np.ndarray, G: np.ndarray, n: int, p: int, amplitude: float) -> None:
    """Add a spike to the scores; a negative amplitude takes it away."""
    reach = (G.shape[2] - 1) // 2
    lo, hi = max(0, n - reach), min(s.shape[1], n + reach + 1)
    for q in range(s.shape[0]):
        for m in range(lo, hi):
            s[q, m] += amplitude * G[p, q, m - n + reach]


@numba.njit(cache=True, nogil=True)
def odds_nearby(L: np.ndarray, held: np.ndarray, n: int, within: int) -> float:
    """Odds of a spike within some frames of n, but in none that another spike holds."""
    total = 0.0
    for m in range(max(0, n - within), min(len(L), n + within + 1)):
        if held[m] == 0:
            total += np.exp(L[m])
    return total


@numba.njit(cache=True, nogil=True)
def is_peak(L: np.ndarray, held: np.ndarray, n: int, reach: int) -> bool:
    peak = True
    for m in range(max(0, n - reach), min(len(L), n + reach + 1)):
        if held[m] == 0 and (L[m] > L[n] or (L[m] == L[n] and m < n)):
            peak = False
            break
    return peak


@numba.njit(cache=True, nogil=True)
def hold(held: np.ndarray, n: int, refractory: int, by: int) -> None:
    for m in range(max(0, n - refractory), min(len(held), n + refractory + 1)):
        held[m] += by


@numba.njit(cache=True, nogil=True)
def update(L: np.ndarray, s: np.ndarray, known: Known, first: int, end: int) -> None:
    """Compute L again for some frames."""
    for n in range(max(0, first), min(len(L), end)):
        L[n] = frame_log_odds(s, known, n)


@numba.njit(cache=True, nogil=True)
def note(places: Places, i: int, s: np.ndarray, known: Known, n: int) -> None:
    """Spike i comes in frame n, at its most probable phase and amplitude."""
    p = best_phase(s, known, n)
    places.frames[i], places.phases[i] = n, p
    places.amplitudes[i] = (s[p, n] + known.precision) / (known.energies[p] + known.precision)


@numba.njit(cache=True, nogil=True)
def take(places: Places, i: int, s: np.ndarray, held: np.ndarray, known: Known, sign: int) -> None:
    """Subtract spike i and hold its frames (sign 1), or put it back (sign -1)."""
    add_spike(s, known.G, places.frames[i], places.phases[i], -sign * places.amplitudes[i])
    hold(held, places.frames[i], known.refractory, sign)


@numba.njit(cache=True, nogil=True)
def search(s: np.ndarray, L: np.ndarray, held: np.ndarray, places: Places, known: Known) -> int:
    """Subtract the best spike of each neighbourhood until none is more probable than no spike; how many there are."""
    count, reach, least = 0, (known.G.shape[2] - 1) // 2, -np.log(2 * known.within + 1.0)
    for _ in range(SWEEPS):
        before = count
        for n in range(len(L)):
            if held[n] or L[n] <= least or not is_peak(L, held, n, reach) or odds_nearby(L, held, n, known.within) <= 1:
                continue
            note(places, count, s, known, n)
            take(places, count, s, held, known, 1)
            update(L, s, known, n - reach, n + reach + 1)
            count += 1
        if count == before:
            break
    return count


@numba.njit(cache=True, nogil=True)
def settle(s: np.ndarray, L: np.ndarray, held: np.ndarray, places: Places, known: Known, count: int) -> int:
    """Place every spike again, all others subtracted; those less probable than none are dropped. How many stay."""
    kept = 0
    for i in range(count):
        n = places.frames[i]
        take(places, i, s, held, known, -1)
        first, end = max(0, n - known.within), min(len(L), n + known.within + 1)
        update(L, s, known, first, end)
        at = -1
        for m in range(first, end):
            if held[m] == 0 and (at < 0 or L[m] > L[at]):
                at = m
        if at < 0 or odds_nearby(L, held, at, known.within) <= 1:
            continue
        note(places, kept, s, known, at)
        take(places, kept, s, held, known, 1)
        kept += 1
    return kept


@numba.njit(cache=True, nogil=True)
def judge(s: np.ndarray, L: np.ndarray, held: np.ndarray, places: Places, known: Known, count: int, expected: np.ndarray) -> None:
    """Log odds of every subtracted spike, all others subtracted, and where in its frames it is expected."""
    for i in range(count):
        n = places.frames[i]
        take(places, i, s, held, known, -1)
        first, end = max(0, n - known.within), min(len(L), n + known.within + 1)
        update(L, s, known, first, end)
        total = odds_nearby(L, held, n, known.within)
        for m in range(first, end):
            if held[m] == 0:
                expected[m] += np.exp(L[m]) / (1 + total)
        places.log_odds[i] = np.log(max(total, 1e-300))
        take(places, i, s, held, known, 1)


@numba.njit(cache=True, nogil=True)
def look_around(s: np.ndarray, L: np.ndarray, held: np.ndarray, places: Places, known: Known, count: int, expected: np.ndarray) -> int:
    """The less probable spikes, in frames that no subtracted one holds; how many there are with them."""
    update(L, s, known, 0, len(L))
    for n in range(len(L)):
        if held[n]:
            continue
        nearby = odds_nearby(L, held, n, known.within)
        expected[n] += np.exp(L[n]) / (1 + nearby)
        if nearby > np.exp(LEAST_LOG_ODDS) and is_peak(L, held, n, known.refractory):
            note(places, count, s, known, n)
            places.log_odds[count] = np.log(nearby)
            count += 1
    return count


@numba.njit(cache=True, nogil=True)
def pursue(s: np.ndarray, known: Known, places: Places, expected: np.ndarray) -> tuple[int, int]:
    """The pursuit: how many spikes were subtracted from s (P, T), and how many there are with the less probable ones behind them."""
    T = s.shape[1]
    L, held = np.empty(T), np.zeros(T, np.int64)
    update(L, s, known, 0, T)
    count = search(s, L, held, places, known)
    for _ in range(ROUNDS):
        count = settle(s, L, held, places, known, count)
    judge(s, L, held, places, known, count, expected)
    return count, look_around(s, L, held, places, known, count, expected)
