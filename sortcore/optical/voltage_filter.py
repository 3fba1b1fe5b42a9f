"""Spikes of a known waveform in coloured noise: log odds of every frame, and the spikes that explain a trace together.

With z = S^-1 x, template k_p of phase p and E_p = k_p' S^-1 k_p, the score s_p(n) = sum_j k_p[j] z[n + j - before] is all that a
trace says of a spike at (n, p). For amplitudes a ~ N(1, rho^2) the log likelihood ratio against no spike is

    l_p(n) = (s_p + rho^-2)^2 / (2 (E_p + rho^-2)) - rho^-2 / 2 - log(1 + rho^2 E_p) / 2

and with r_n, the prior odds of a spike in frame n, and phases equally likely, the log odds of one are

    L(n) = log r_n + log mean_p exp l_p(n).

Spikes that overlap are told apart as everywhere in this model: the best spike is subtracted from the scores of its neighbours,
G_pq(lag) = k_p' S^-1 k_q shifted by lag, until no spike is more probable than none; then each is judged again with all others
subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sortcore.optical.voltage_noise import Noise
from sortcore.optical.voltage_waveform import Grid, exposure

INTERACTION_S = 0.04  # spikes further apart do not see each other
WITHIN_S, REFRACTORY_S = 0.0025, 0.0035
SWEEPS, ROUNDS = 60, 2
LEAST_LOG_ODDS = -8.0  # of spikes less likely nothing is said
BELOW = (0.02275, 0.15866, 0.5)  # shares of a Gaussian two and one standard deviations below its middle
CAP = 300.0  # of log odds, against overflow


@dataclass(frozen=True)
class MatchedFilter:
    """Templates of one waveform in one noise.

    templates: (P, L); energies E: (P,); interactions G: (P, P, 2 D + 1); decorrelated: (P, L + M - 2) S^-1 k_p
    """

    grid: Grid
    templates: np.ndarray
    energies: np.ndarray
    interactions: np.ndarray
    decorrelated: np.ndarray

    @property
    def d(self) -> float:
        """Detectability: a spike's mean score over the score's standard deviation in noise."""
        return float(np.sqrt(self.energies.mean()))

    def scores(self, z: np.ndarray) -> np.ndarray:
        """(P, T) of a trace z (T,) that the noise's inverse has filtered."""
        L, b = self.templates.shape[1], self.grid.before
        return self.templates @ sliding_window_view(np.pad(z, (b, L - 1 - b)), L).T


@dataclass(frozen=True)
class Found:
    """Candidate spikes of one trace, in order of time.

    frames, phases: (S,) most probable place; amplitudes: (S,); log_odds: (S,) of a spike within `WITHIN_S` of there
    subtracted: (S,) whether it was subtracted for the others' sake
    expected: (T,) probability of a spike in each frame
    residual: (P, T) scores without the subtracted spikes
    """

    frames: np.ndarray
    phases: np.ndarray
    amplitudes: np.ndarray
    log_odds: np.ndarray
    subtracted: np.ndarray
    expected: np.ndarray
    residual: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        return 1 / (1 + np.exp(-self.log_odds))


def matched_filter(fine: np.ndarray, grid: Grid, noise: Noise) -> MatchedFilter:
    """The filter for a waveform (F,)."""
    k = exposure(grid) @ fine
    P, L = k.shape
    reach = int(np.ceil(INTERACTION_S * grid.fs))
    half = len(noise.inverse) // 2
    through = np.stack([np.convolve(row, noise.inverse) for row in k])  # (P, L + M - 2), frame 0 of the template at `half`
    padded = np.pad(through, ((0, 0), (reach + L, reach + L)))
    first = half + L  # lag -reach
    windows = sliding_window_view(padded, L, axis=1)[:, first : first + 2 * reach + 1]
    G = np.einsum("pdl,ql->pqd", windows, k)
    return MatchedFilter(grid, k, np.array([G[p, p, reach] for p in range(P)]), np.ascontiguousarray(G), through)


def score_spread(matched: MatchedFilter, z: np.ndarray) -> float:
    """Standard deviation of scores over what it would be if the noise were known, at least 1; z (T,) as `scores` takes it.

    From the side away from spikes, at one and at two standard deviations below the median.
    """
    P = len(matched.energies)
    u = matched.scores(z)[P // 2] / np.sqrt(matched.energies[P // 2])
    two, one, middle = np.quantile(u, BELOW)
    return max(1.0, float(((middle - one) + (middle - two) / 2) / 2))


def frames_within(seconds: float, fs: float) -> int:
    return max(1, int(np.floor(seconds * fs + 1e-9)))


def find_spikes(scores: np.ndarray, matched: MatchedFilter, rho: float, log_prior: np.ndarray) -> Found:
    """Candidates in scores (P, T), prior log odds of each frame (T,) given."""
    fs = matched.grid.fs
    within, refractory = frames_within(WITHIN_S, fs), frames_within(REFRACTORY_S, fs)
    s = scores.copy()
    found = pursue(s, matched.energies, matched.interactions, rho**-2, log_prior, within, refractory)
    frames, phases, amplitudes, log_odds, subtracted, expected = found
    order = np.argsort(frames, kind="stable")
    return Found(frames[order], phases[order], amplitudes[order], log_odds[order], subtracted[order], expected, s)


def placed(found: Found, matched: MatchedFilter, rho: float, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Most probable phases and amplitudes (S,) of spikes in some frames (S,), other spikes than those subtracted there."""
    reach, precision = matched.interactions.shape[2] // 2, rho**-2
    sure = np.flatnonzero(found.subtracted)
    phases, amplitudes = np.zeros(len(frames), np.int64), np.zeros(len(frames))
    for i, n in enumerate(frames):
        s = found.residual[:, n].copy()
        for j in sure[np.abs(found.frames[sure] - n) <= frames_within(REFRACTORY_S, matched.grid.fs)]:
            s += found.amplitudes[j] * matched.interactions[found.phases[j], :, n - found.frames[j] + reach]
        estimate = (s + precision) / (matched.energies + precision)
        phases[i] = np.argmax(estimate**2 * (matched.energies + precision))
        amplitudes[i] = estimate[phases[i]]
    return phases, amplitudes


@numba.njit(cache=True, nogil=True)
def log_ratio(s: float, energy: float, precision: float) -> float:
    """l_p of a score; precision is rho^-2."""
    if s + precision <= 0:
        return -CAP
    return 0.5 * (s + precision) ** 2 / (energy + precision) - 0.5 * precision - 0.5 * np.log1p(energy / precision)


@numba.njit(cache=True, nogil=True)
def frame_log_odds(s: np.ndarray, energies: np.ndarray, precision: float, log_prior: np.ndarray, n: int) -> float:
    """L(n)."""
    most = -np.inf
    for p in range(len(energies)):
        most = max(most, log_ratio(s[p, n], energies[p], precision))
    total = 0.0
    for p in range(len(energies)):
        total += np.exp(log_ratio(s[p, n], energies[p], precision) - most)
    return min(log_prior[n] + most + np.log(total / len(energies)), CAP)


@numba.njit(cache=True, nogil=True)
def best_phase(s: np.ndarray, energies: np.ndarray, precision: float, n: int) -> int:
    best, at = -np.inf, 0
    for p in range(len(energies)):
        here = log_ratio(s[p, n], energies[p], precision)
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
def pursue(s: np.ndarray, energies: np.ndarray, G: np.ndarray, precision: float, log_prior: np.ndarray, within: int,
           refractory: int) -> tuple:
    """The pursuit. s (P, T) is left without the spikes that are more probable than none."""
    T, reach = s.shape[1], (G.shape[2] - 1) // 2
    L, held = np.empty(T), np.zeros(T, np.int64)
    for n in range(T):
        L[n] = frame_log_odds(s, energies, precision, log_prior, n)
    frames, phases, amplitudes = np.empty(T, np.int64), np.empty(T, np.int64), np.empty(T)
    count, least = 0, -np.log(2 * within + 1.0)
    for _ in range(SWEEPS):
        before = count
        for n in range(T):
            if held[n] or L[n] <= least or not is_peak(L, held, n, reach) or odds_nearby(L, held, n, within) <= 1:
                continue
            p = best_phase(s, energies, precision, n)
            frames[count], phases[count], amplitudes[count] = n, p, (s[p, n] + precision) / (energies[p] + precision)
            add_spike(s, G, n, p, -amplitudes[count])
            hold(held, n, refractory, 1)
            for m in range(max(0, n - reach), min(T, n + reach + 1)):
                L[m] = frame_log_odds(s, energies, precision, log_prior, m)
            count += 1
        if count == before:
            break
    log_odds = np.zeros(T)
    own = np.empty(T)
    expected = np.zeros(T)
    for _ in range(ROUNDS):
        kept = 0
        for i in range(count):
            n, p = frames[i], phases[i]
            add_spike(s, G, n, p, amplitudes[i])
            hold(held, n, refractory, -1)
            lo, hi = max(0, n - within), min(T, n + within + 1)
            at = -1
            for m in range(lo, hi):
                L[m] = frame_log_odds(s, energies, precision, log_prior, m)
                if held[m] == 0 and (at < 0 or L[m] > L[at]):
                    at = m
            if at < 0 or odds_nearby(L, held, at, within) <= 1:
                continue
            p = best_phase(s, energies, precision, at)
            frames[kept], phases[kept], amplitudes[kept] = at, p, (s[p, at] + precision) / (energies[p] + precision)
            add_spike(s, G, at, p, -amplitudes[kept])
            hold(held, at, refractory, 1)
            kept += 1
        count = kept
    for i in range(count):
        n, p = frames[i], phases[i]
        add_spike(s, G, n, p, amplitudes[i])
        hold(held, n, refractory, -1)
        lo, hi = max(0, n - within), min(T, n + within + 1)
        total = 0.0
        for m in range(lo, hi):
            own[m] = np.exp(frame_log_odds(s, energies, precision, log_prior, m)) if held[m] == 0 else 0.0
            total += own[m]
        for m in range(lo, hi):
            expected[m] += own[m] / (1 + total)
        log_odds[i] = np.log(max(total, 1e-300))
        add_spike(s, G, n, p, -amplitudes[i])
        hold(held, n, refractory, 1)
    for n in range(T):
        L[n] = frame_log_odds(s, energies, precision, log_prior, n)
    subtracted = count
    for n in range(T):
        if held[n]:
            continue
        nearby = odds_nearby(L, held, n, within)
        expected[n] += np.exp(L[n]) / (1 + nearby)
        if nearby > np.exp(LEAST_LOG_ODDS) and is_peak(L, held, n, refractory):
            p = best_phase(s, energies, precision, n)
            frames[count], phases[count], amplitudes[count] = n, p, (s[p, n] + precision) / (energies[p] + precision)
            log_odds[count] = np.log(nearby)
            count += 1
    taken = np.arange(count) < subtracted
    return frames[:count], phases[:count], amplitudes[:count], log_odds[:count], taken, expected
