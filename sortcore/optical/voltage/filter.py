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

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sortcore.optical.voltage.noise import Noise
from sortcore.optical.voltage.pursuit import Known, Places, pursue
from sortcore.optical.voltage.waveform import Grid, exposure

INTERACTION_S = 0.04  # spikes further apart do not see each other
WITHIN_S, REFRACTORY_S = 0.0025, 0.0028
BELOW = (0.02275, 0.15866, 0.5)  # shares of a Gaussian two and one standard deviations below its middle


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
        padded = np.pad(z, (b, L - 1 - b))
        return np.stack([np.correlate(padded, template, mode="valid") for template in self.templates])


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

    @classmethod
    def none(cls, P: int, T: int) -> Found:
        """No candidates."""
        places, numbers = np.zeros(0, np.int64), np.zeros(0)
        return cls(places, places, numbers, numbers, np.zeros(0, bool), np.zeros(T), np.zeros((P, T)))

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
    s, T = np.array(scores, dtype=np.float64), scores.shape[1]
    E, precision = matched.energies, rho**-2
    offsets = 0.5 * precision + 0.5 * np.log1p(E / precision)
    known = Known(E, 0.5 / (E + precision), offsets, matched.interactions, precision, log_prior, within, refractory)
    places, expected = Places(np.zeros(T, np.int64), np.zeros(T, np.int64), np.zeros(T), np.zeros(T)), np.zeros(T)
    subtracted, count = pursue(s, known, places, expected)
    order = np.argsort(places.frames[:count], kind="stable")
    frames, phases, amplitudes, log_odds = (values[order] for values in places)
    return Found(frames, phases, amplitudes, log_odds, order < subtracted, expected, s)


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
