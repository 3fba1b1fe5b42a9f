"""Mean waveforms that units are made of: cleaned of what noise alone could make, and rid of those that are others again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sortcore import matching
from sortcore.matching import Matcher
from sortcore.numerics import moved_by, unit_norm
from sortcore.pursuit import DEAD
from sortcore.types import Priors

SPREAD = 0.12  # smallest standard deviation of a unit's amplitudes, as a share of their mean
COLLISION_MS = 1.0
SUM_LEFT = 0.25  # share of its energy that a sum of other units leaves unexplained
AS_LARGE = 0.5  # of its unit's usual size, a spike is at least in a sum
LAGS_A_SAMPLE = 4  # at which waveforms are compared
SAME_COSINE = 0.93  # first clusters more alike than this are one
SAME_RATIO = 1.2  # and no more different in size


@dataclass(frozen=True)
class Bank:
    """Mean waveforms (K, N, D), how many spikes they are of (K,), and where tissue moves, what they are at each knot (K, Q, N, D)."""

    waveforms: np.ndarray
    counts: np.ndarray
    moved: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.counts)

    def select(self, index: np.ndarray) -> Bank:
        return Bank(self.waveforms[index], self.counts[index], None if self.moved is None else self.moved[index])

    def with_more(self, other: Bank) -> Bank:
        moved = None if self.moved is None or other.moved is None else np.concatenate([self.moved, other.moved])
        return Bank(np.concatenate([self.waveforms, other.waveforms]), np.concatenate([self.counts, other.counts]), moved)


def in_order_of_channels(bank: Bank) -> Bank:
    """Units that touch the same channels next to each other, which is how they are matched fastest."""
    return bank.select(np.argsort((bank.waveforms**2).sum(axis=2).argmax(axis=1), kind="stable"))


def first_priors(waveforms: np.ndarray, counts: np.ndarray, seconds: float) -> Priors:
    norm = np.linalg.norm(waveforms, axis=(1, 2))
    return Priors(norm, np.maximum(SPREAD * norm, 1.0), np.maximum(counts, 1) / seconds)


def denoised(waveforms: np.ndarray, counts: np.ndarray, rank: int, trough: int, smallest: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean waveforms (K, N, D) without the channels and components that noise alone could make; empty ones are left out."""
    out = np.zeros_like(waveforms)
    for k, (w, n) in enumerate(zip(waveforms, counts, strict=True)):
        out[k] = centred(low_rank(w, rank, 1.0 / max(n, 1)), trough)
    norm = np.linalg.norm(out, axis=(1, 2))
    keep = norm > smallest
    return out[keep], counts[keep]


def centred(w: np.ndarray, trough: int) -> np.ndarray:
    """Waveform moved so that the extremum of its largest channel is at the trough sample, and none of it is cut off later."""
    return moved_by(w, off_trough(w, trough))


def off_trough(w: np.ndarray, trough: int) -> int:
    """Samples by which the extremum of the largest channel comes too early."""
    best = (w**2).sum(axis=1).argmax()
    return trough - int(np.abs(w[best]).argmax())


def low_rank(w: np.ndarray, rank: int, noise_variance: float) -> np.ndarray:
    """(N, D) truncated SVD of a mean waveform on the channels that stand out of its noise."""
    d = w.shape[1]
    energy = (w**2).sum(axis=1)
    keep = energy > noise_variance * (d + 4 * np.sqrt(2 * d)) + 0.25
    if not keep.any():
        return np.zeros_like(w)
    u, s, v = np.linalg.svd(w[keep], full_matrices=False)
    floor = noise_variance * (np.sqrt(keep.sum()) + np.sqrt(d)) ** 2
    r = int(np.clip((s**2 > floor).sum(), 1, rank))
    out = np.zeros_like(w)
    out[keep] = (u[:, :r] * s[:r]) @ v[:r]
    return out


def similarity(matcher: Matcher) -> tuple[np.ndarray, np.ndarray]:
    """(K, K) largest cosine over lags of two templates, of parts of a sample too, and the lag in whole samples (the second later than
    the first by so much)."""
    k, d = len(matcher.coefficients), matcher.n_samples
    cosine, lag = np.zeros((k, k), np.float32), np.zeros((k, k), np.int64)
    for i in range(k):
        part = slice(matcher.first[i], matcher.first[i + 1])
        table = matcher.overlaps[part].max(axis=1)
        best = table.argmax(axis=1)
        cosine[i, matcher.other[part]] = table[np.arange(len(best)), best]
        lag[i, matcher.other[part]] = best - (d - 1)
    return cosine, lag


def same_removed(bank: Bank, fs: float) -> Bank:
    """Of clusters that are alike at some lag (one cell seen from two channels) the largest alone, which counts the spikes of all."""
    if len(bank) < 2:
        return bank
    counts = bank.counts
    priors = first_priors(bank.waveforms, counts, 1.0)
    cosine, lag = similarity(matching.prepare(unit_norm(bank.waveforms), priors, fs, LAGS_A_SAMPLE))
    norm, left = priors.amp_mean, np.ones(len(counts), bool)
    total = counts.astype(float)
    for i in np.argsort(-counts, kind="stable"):
        if not left[i]:
            continue
        ratio = norm / norm[i]
        for j in np.flatnonzero(left & (cosine[i] > SAME_COSINE) & (ratio > 1 / SAME_RATIO) & (ratio < SAME_RATIO)):
            if j == i or abs(lag[i, j]) > bank.waveforms.shape[2] // 3:
                continue
            total[i] += total[j]
            left[j] = False
    return replace(bank, counts=total.astype(counts.dtype)).select(left)


def sums_removed(bank: Bank, fs: float, n_samples: int) -> Bank:
    """Leave out clusters of colliding spikes: other units explain them together, by spikes of their size, and collide about so often by
    chance."""
    waveforms, counts = bank.waveforms, bank.counts
    k, n, d = waveforms.shape
    if k < 3:
        return bank
    priors = first_priors(waveforms, counts, 1.0)
    matcher = matching.prepare(unit_norm(waveforms), priors, fs, 4)
    left = np.ones(k, bool)
    for i in np.argsort(counts, kind="stable"):
        x = np.zeros((n, 3 * d), np.float32)
        x[:, d : 2 * d] = waveforms[i]
        score, near = np.full((k, 2 * d + 1), DEAD), slice(matcher.first[i], matcher.first[i + 1])
        score[matcher.other[near]] = np.pad(priors.amp_mean[i] * matcher.overlaps[near, len(matcher.shifts) // 2], ((0, 0), (1, 1)))
        score[i] = DEAD
        score[~left | (counts < 2 * counts[i])] = DEAD
        spikes = matching.match(matcher, score, 5)
        spikes = spikes.select(spikes.amplitudes > AS_LARGE * priors.amp_mean[spikes.units])
        parts = np.unique(spikes.units)
        if len(parts) < 2:
            continue
        by_chance = np.sort(counts[parts])[-2:].astype(float).prod() * COLLISION_MS * fs / 1000 / n_samples
        if counts[i] > 4 * by_chance + 3:
            continue
        matching.subtract(matcher, x, spikes)
        left[i] = (x**2).sum() > SUM_LEFT * (waveforms[i] ** 2).sum() + 2 * d / counts[i]
    return bank.select(left)
