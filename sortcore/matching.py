"""Matching with templates that are sparse in channels: the fast form of the model's amplitude update.

Scores come from `spectra`, spikes from `pursuit`, through a table of the templates' cross-correlations: each unit's with those that share a
channel with it, for others never meet. `reference.pursuit_reference` is the slow, obvious form.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
import torch

from sortcore.numerics import shift, subsample_shifts, unit_norm
from sortcore.pursuit import DEAD, pursue
from sortcore.spectra import Spectra, correlation, make_spectra
from sortcore.types import Priors, Spikes
from sortcore.workers import in_order

BASIS_LOSS = 0.003  # share of the templates' energy that the shared temporal basis may lose
MOST_LOST = 1.5  # norm, in noise standard deviations, of what it may lose of any unit's spike
MOST_BASIS = 12
SINC_HALF = 5  # taps on either side when a score is interpolated between samples


@dataclass(frozen=True)
class Matcher:
    """Templates made ready for matching.

    basis: (B, D) orthonormal temporal basis
    coefficients: (K, N, B) unit-norm templates in that basis, zero on channels a unit does not touch
    shifts: (M,) sub-sample shifts; interpolator: (M, 2 SINC_HALF + 1) scores at those shifts from scores at samples
    first: (K + 1,) where each unit's neighbours start in `other`; other: units that share a channel with it
    overlaps: (pairs, M, 2 D - 1) <W_k shifted, W_other> at every lag
    amp_mean, amp_precision, log_odds: (K,) the priors; threshold: (K,) smallest score with a gain above zero
    """

    basis: np.ndarray
    coefficients: np.ndarray
    shifts: np.ndarray
    interpolator: np.ndarray
    first: np.ndarray
    other: np.ndarray
    overlaps: np.ndarray
    amp_mean: np.ndarray
    amp_precision: np.ndarray
    log_odds: np.ndarray
    threshold: np.ndarray

    @property
    def n_samples(self) -> int:
        return self.basis.shape[1]

    @property
    def n_channels(self) -> int:
        return self.coefficients.shape[1]

    @property
    def reference(self) -> Matcher:
        """Itself: these templates stay where they are (`moving` has others)."""
        return self

    @property
    def jumps_s(self) -> np.ndarray:
        """None."""
        return np.zeros(0)

    def at(self, time_s: float) -> Matcher:
        """Itself, at any time."""
        return self

    @cached_property
    def spectra(self) -> Spectra:
        return make_spectra(self.waveforms())

    @cached_property
    def alike(self) -> np.ndarray:
        """(pairs,) the largest overlap of a unit with each of its neighbours, at any lag."""
        return self.overlaps.max(axis=(1, 2), initial=0)

    def waveforms(self) -> np.ndarray:
        """(K, N, D) the unit-norm templates that are matched."""
        return self.coefficients @ self.basis

    def parameters(self) -> np.ndarray:
        """(K,) free parameters of each template: those of a matrix of its rank, channels times temporal components."""
        channels = (self.coefficients != 0).any(axis=2).sum(axis=1)
        rank = np.array([np.linalg.matrix_rank(c, tol=1e-3) for c in self.coefficients], int).reshape(-1)
        return rank * (channels + len(self.basis) - rank)


def prepare(waveforms: np.ndarray, priors: Priors, fs: float, subsamples: int = 8, amplitude_prior: bool = True,
            basis: np.ndarray | None = None) -> Matcher:
    """Make unit-norm waveforms (K, N, D) ready for matching, in a temporal basis (B, D) of their own unless one is given."""
    k = len(waveforms)
    if basis is None:
        basis = shared_basis(waveforms, priors.amp_mean)
    coefficients = unit_norm(waveforms @ basis.T).astype(np.float32)
    shifts = subsample_shifts(subsamples)
    first, other = sharing(coefficients)
    precision = 1 / priors.amp_std**2 if amplitude_prior else np.zeros(k)
    log_odds = np.log(np.maximum(priors.rate_hz, 1e-3) / fs)
    if amplitude_prior:
        log_odds = log_odds + 0.5 * np.log(precision / (1 + precision))
    mean = priors.amp_mean
    threshold = np.sqrt((1 + precision) * np.maximum(precision * mean**2 - 2 * log_odds, 0)) - precision * mean
    return Matcher(
        basis, coefficients, shifts, sinc_interpolator(shifts), first, other, overlap_table(coefficients, basis, shifts, first, other),
        mean.astype(np.float32), precision.astype(np.float32), log_odds.astype(np.float32), threshold.astype(np.float32),
    )


def shared_basis(waveforms: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """(B, D) leading temporal components of unit-norm waveforms (K, N, D), as many as are needed to keep nearly all energy of units
    of these norms (K,), and of each so much that what is lost drowns in noise: else what very large spikes leave would become units."""
    d = waveforms.shape[2]
    rows = (waveforms * np.sqrt(norms)[:, None, None]).reshape(-1, d).astype(np.float64)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    basis = np.ascontiguousarray(vectors[:, ::-1].T)
    kept = np.cumsum(values[::-1]) / max(values.sum(), 1e-12)
    of_each = np.cumsum(((waveforms @ basis.T) ** 2).sum(axis=1), axis=1) * norms[:, None] ** 2  # (K, D) energy kept by so many
    lost = (of_each[:, -1:] - of_each).max(axis=0, initial=0)
    size = 1 + np.argmax((kept >= 1 - BASIS_LOSS) & (lost <= MOST_LOST**2))
    return basis[: min(size, d, MOST_BASIS)].astype(np.float32)


def sharing(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each unit, the units that share a channel with it (itself among them): offsets (K + 1,) and units."""
    used = (coefficients != 0).any(axis=2).astype(np.float32)
    together = used @ used.T > 0
    first = np.r_[0, np.cumsum(together.sum(axis=1))].astype(np.int64)
    return first, np.nonzero(together)[1].astype(np.int64)


def overlap_table(coefficients: np.ndarray, basis: np.ndarray, shifts: np.ndarray, first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(pairs, M, 2 D - 1) inner products of a unit's shifted template with its neighbours' at lags -(D - 1) to D - 1."""
    b, d = basis.shape
    moved = shift(np.pad(basis.astype(np.float64), ((0, 0), (d, d))), shifts)  # (M, B, 3 D)
    lags = np.arange(-(d - 1), d)
    rows = moved[:, :, d + lags[:, None] + np.arange(d)]  # (M, B, lags, D): shifted basis seen from a template `lag` later
    products = np.einsum("mild,jd->ijml", rows, basis).reshape(b * b, -1).astype(np.float32)
    out = np.empty((len(other), len(shifts), 2 * d - 1), np.float32)

    def with_neighbours(k: int) -> None:
        near, own = other[first[k] : first[k + 1]], np.flatnonzero((coefficients[k] != 0).any(axis=1))
        if not len(near):  # its tissue has moved off the probe
            return
        spatial = np.einsum("nb,jnc->jbc", coefficients[k, own], coefficients[np.ix_(near, own)], optimize=True).reshape(len(near), b * b)
        np.matmul(spatial, products, out=out[first[k] : first[k + 1]].reshape(len(near), -1))

    deque(in_order(with_neighbours, range(len(coefficients))), maxlen=0)
    return out


def sinc_interpolator(shifts: np.ndarray) -> np.ndarray:
    """(M, 2 SINC_HALF + 1) Kaiser-windowed sinc weights that read a series at each shift from its samples around."""
    taps = np.arange(-SINC_HALF, SINC_HALF + 1)
    distance = taps[None] - shifts[:, None]
    window = np.i0(6.0 * np.sqrt(np.maximum(0, 1 - (distance / (SINC_HALF + 1)) ** 2))) / np.i0(6.0)
    return (np.sinc(distance) * window).astype(np.float32)


def scores(matcher: Matcher, x: torch.Tensor) -> torch.Tensor:
    """(K, T - D + 1) <x[:, t : t + D], W_k> for x (N, T)."""
    return correlation(matcher.spectra, x)


def scores_near(matcher: Matcher, x: torch.Tensor, unit: int) -> torch.Tensor:
    """The same, of a unit and those that share a channel with it; all others are dead. x is short: on the temporal basis directly."""
    out = torch.full((len(matcher.coefficients), max(0, x.shape[1] - matcher.n_samples + 1)), float(DEAD))
    units = matcher.other[matcher.first[unit] : matcher.first[unit + 1]]
    coefficients = matcher.coefficients[units]
    touched = np.flatnonzero((coefficients != 0).any(axis=(0, 2)))
    if not len(touched) or not out.shape[1]:
        return out
    on_basis = torch.from_numpy(matcher.basis) @ x[torch.from_numpy(touched)].unfold(1, matcher.n_samples, 1).transpose(1, 2)  # (M, B, T')
    weights = torch.from_numpy(np.ascontiguousarray(coefficients[:, touched])).flatten(1)
    out[torch.from_numpy(units)] = weights @ on_basis.flatten(0, 1)
    return out


def match(matcher: Matcher, score: np.ndarray, dead: int) -> Spikes:
    """Greedy pursuit over scores (K, T), which are changed in place.

    Returns spikes in order of time; `samples` are template starts. A unit fires at most once in `dead` samples.
    """
    out = pursue(score, matcher.first, matcher.other, matcher.overlaps, matcher.interpolator, matcher.alike, matcher.amp_mean,
                 matcher.amp_precision, matcher.log_odds, matcher.threshold, dead)
    samples, shift_index, units, amplitudes, gains = out
    order = np.lexsort((units, samples))
    return Spikes(samples[order], matcher.shifts[shift_index[order]].astype(np.float32), units[order], amplitudes[order], gains[order])


def subtract(matcher: Matcher, x: np.ndarray, spikes: Spikes) -> None:
    """Take the spikes' waveforms off x (N, T), in place; `samples` are template starts."""
    moved = shift(matcher.basis, matcher.shifts)
    used = (matcher.coefficients != 0).any(axis=2)
    add_waveforms(x, spikes.samples, shift_indices(matcher, spikes), spikes.units, -spikes.amplitudes, matcher.coefficients, used, moved)


def shift_indices(matcher: Matcher, spikes: Spikes) -> np.ndarray:
    m = len(matcher.shifts)
    return np.rint(spikes.shifts * m).astype(np.int64) + m // 2


@numba.njit(cache=True, nogil=True)
def add_waveforms(x, samples, shifts, units, amplitudes, coefficients, used, moved):
    n_channels, n = x.shape
    n_basis, d = moved.shape[1:]
    for i in range(len(samples)):
        t, k = samples[i], units[i]
        low, high = max(0, -t), min(d, n - t)
        for c in range(n_channels):
            if not used[k, c]:
                continue
            for b in range(n_basis):
                weight = amplitudes[i] * coefficients[k, c, b]
                for s in range(low, high):
                    x[c, t + s] += weight * moved[shifts[i], b, s]


def cleaned_features(matcher: Matcher, residual: np.ndarray, spikes: Spikes, channels: np.ndarray) -> np.ndarray:
    """(S, M, B) collision-cleaned waveforms in the shared basis: the residual at each spike plus the spike's own template.

    channels: (K, M) channels to look at for each unit, -1 for none. Sub-sample shifts are undone by projecting on the
    shifted basis; noise keeps unit variance in every feature.
    """
    moved = shift(matcher.basis, matcher.shifts)
    return project(residual, spikes.samples, shift_indices(matcher, spikes), spikes.units, spikes.amplitudes, matcher.coefficients,
                   channels, moved)


@numba.njit(cache=True, nogil=True)
def project(residual, samples, shifts, units, amplitudes, coefficients, channels, moved):
    n_basis, d = moved.shape[1:]
    n = residual.shape[1]
    out = np.zeros((len(samples), channels.shape[1], n_basis), np.float32)
    for i in range(len(samples)):
        t, k = samples[i], units[i]
        low, high = max(0, -t), min(d, n - t)
        for m in range(channels.shape[1]):
            c = channels[k, m]
            if c < 0:
                continue
            for b in range(n_basis):
                total = np.float32(0)
                for s in range(low, high):
                    total += residual[c, t + s] * moved[shifts[i], b, s]
                out[i, m, b] = total + amplitudes[i] * coefficients[k, c, b]
    return out
