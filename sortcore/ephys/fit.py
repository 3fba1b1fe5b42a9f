"""Coordinate ascent of the semi-NMF on a sample of the recording.

Each round: amplitudes by matching pursuit with the waveforms held; waveforms by regression on the collision-cleaned data
(residual plus the spike's own template) with the amplitudes held; then the number of units is questioned. Units whose
cleaned waveforms have a valley between them are split, those that have none are merged, those that explain too little are
dropped, and what the residual still holds is clustered into new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from sortcore import matching
from sortcore.ephys.config import FitConfig, PursuitConfig
from sortcore.groups import MERGE_COSINE, Group, full_mean, merged, split, trimmed_mean
from sortcore.matching import Matcher
from sortcore.numerics import nearest_channels, unit_norm
from sortcore.progress import Track, silent
from sortcore.recording import Chunk, chunks
from sortcore.types import FitLog, Priors, Probe, Spikes
from sortcore.workers import in_order

FindNew = Callable[[torch.Tensor], tuple[np.ndarray, np.ndarray]]

SPREAD = 0.12  # smallest standard deviation of a unit's amplitudes, as a share of their mean
OFF_CENTRE_MS = 0.1
COLLISION_MS = 1.0
SUM_LEFT = 0.25  # share of its energy that a sum of other units leaves unexplained
SAME_COSINE = 0.93  # first clusters more alike than this are one
START_NORM = 6.5  # of the first clusters; smaller ones are found in the residual, where larger spikes do not blur them
SAME_RATIO = 1.2  # and no more different in size
MIN_NORM = 5.0  # a smaller waveform's spikes are mostly below the threshold that noise allows
DEAD_MS = 0.5


@dataclass(frozen=True)
class Sweep:
    """One pass over the sample: spikes (template starts), their cleaned features (S, M, B) on each unit's channels (K, M), and
    what is left of x (N, T)."""

    spikes: Spikes
    features: np.ndarray
    channels: np.ndarray
    log_joint: float
    residual: torch.Tensor


def fit(x: torch.Tensor, waveforms: np.ndarray, counts: np.ndarray, probe: Probe, fs: float, config: FitConfig, pursuit: PursuitConfig,
        trough: int, min_spikes: int = 10, find_new: FindNew | None = None,
        track: Track = silent) -> tuple[np.ndarray, Priors, FitLog]:
    """Learn waveforms and priors from x (N, T) whitened, starting at mean waveforms (K, N, D) of `counts` events each.

    find_new: function of a residual that returns further mean waveforms and counts
    Returns unit-norm waveforms (K, N, D), their priors, and the log.
    """
    n, seconds = x.shape[1], x.shape[1] / fs
    waveforms, counts = same_removed(*denoised(waveforms, counts, config.rank, trough, START_NORM), fs)
    rows, steps = [], []
    for i in range(config.iterations):
        if not len(waveforms):
            break
        waveforms, counts = in_order_of_channels(waveforms, counts)
        priors = first_priors(waveforms, counts, seconds)
        matcher = matching.prepare(unit_norm(waveforms), priors, fs, pursuit.subsamples, pursuit.amplitude_prior)
        last = i == config.iterations - 1
        sweep = run_sweep(x, matcher, probe, fs, pursuit, not last, track, f"fit {i + 1} of {config.iterations}")
        rows.append((sweep.log_joint, len(waveforms), len(sweep.spikes)))
        groups = regroup(sweep, matcher, fs, last, min_spikes)
        waveforms, counts = rebuilt(groups, matcher, x.shape[0], config.rank, trough)
        waveforms, counts = sums_removed(waveforms, counts, fs, n)
        n_before = len(matcher.coefficients)
        steps.append(f"round {i + 1}: {n_before} units, {len(sweep.spikes)} spikes, {len(waveforms)} units after splits, merges and drops")
        if find_new is not None and not last:
            more, n_more = find_new(sweep.residual)
            if len(more):
                more, n_more = denoised(more, n_more, config.rank, trough, MIN_NORM)
                waveforms, counts = np.concatenate([waveforms, more]), np.concatenate([counts, n_more])
                steps.append(f"round {i + 1}: {len(more)} new units from the residual")
                waveforms, counts = same_removed(waveforms, counts, fs)
    waveforms, counts = in_order_of_channels(waveforms, counts)
    priors = first_priors(waveforms, counts, seconds)
    log = FitLog(np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), np.array([r[2] for r in rows]), tuple(steps))
    return unit_norm(waveforms), priors, log


def in_order_of_channels(waveforms: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Units that touch the same channels next to each other, which is how they are matched fastest."""
    order = np.argsort((waveforms**2).sum(axis=2).argmax(axis=1), kind="stable")
    return waveforms[order], counts[order]


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
    best = (w**2).sum(axis=1).argmax()
    return moved_by(w, trough - int(np.abs(w[best]).argmax()))


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
    """(K, K) largest cosine over lags of two templates, and the lag (the second later than the first by so much)."""
    k, d = len(matcher.coefficients), matcher.n_samples
    cosine, lag = np.zeros((k, k), np.float32), np.zeros((k, k), np.int64)
    whole = len(matcher.shifts) // 2
    for i in range(k):
        part = slice(matcher.first[i], matcher.first[i + 1])
        table = matcher.overlaps[part, whole]
        best = table.argmax(axis=1)
        cosine[i, matcher.other[part]] = table[np.arange(len(best)), best]
        lag[i, matcher.other[part]] = best - (d - 1)
    return cosine, lag


def moved_by(w: np.ndarray, lag: int) -> np.ndarray:
    """Waveform delayed by whole samples, zero-filled."""
    out = np.zeros_like(w)
    d = w.shape[-1]
    if lag == 0:
        return w
    if lag > 0:
        out[..., lag:] = w[..., : d - lag]
    else:
        out[..., :lag] = w[..., -lag:]
    return out


def same_removed(waveforms: np.ndarray, counts: np.ndarray, fs: float) -> tuple[np.ndarray, np.ndarray]:
    """Average clusters that are alike at some lag (one cell seen from two channels), the largest absorbing the others."""
    if len(waveforms) < 2:
        return waveforms, counts
    priors = first_priors(waveforms, counts, 1.0)
    cosine, lag = similarity(matching.prepare(unit_norm(waveforms), priors, fs, 1))
    norm = priors.amp_mean
    waveforms, left = waveforms.copy(), np.ones(len(counts), bool)
    total = counts.astype(float)
    for i in np.argsort(-counts, kind="stable"):
        if not left[i]:
            continue
        ratio = norm / norm[i]
        for j in np.flatnonzero(left & (cosine[i] > SAME_COSINE) & (ratio > 1 / SAME_RATIO) & (ratio < SAME_RATIO)):
            if j == i or abs(lag[i, j]) > waveforms.shape[2] // 3:
                continue
            total[i] += total[j]
            left[j] = False
    return waveforms[left], total[left].astype(counts.dtype)


def sums_removed(waveforms: np.ndarray, counts: np.ndarray, fs: float, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Leave out clusters of colliding spikes: other units explain them together, and collide about so often by chance."""
    k, n, d = waveforms.shape
    if k < 3:
        return waveforms, counts
    priors = first_priors(waveforms, counts, 1.0)
    matcher = matching.prepare(unit_norm(waveforms), priors, fs, 4)
    left = np.ones(k, bool)
    for i in np.argsort(counts, kind="stable"):
        x = np.zeros((n, 3 * d), np.float32)
        x[:, d : 2 * d] = waveforms[i]
        score = matching.scores(matcher, torch.from_numpy(x)).numpy()
        score[i] = matching.DEAD
        score[~left | (counts < 2 * counts[i])] = matching.DEAD
        spikes = matching.match(matcher, score, 5)
        parts = np.unique(spikes.units)
        if len(parts) < 2:
            continue
        by_chance = np.sort(counts[parts])[-2:].astype(float).prod() * COLLISION_MS * fs / 1000 / n_samples
        if counts[i] > 4 * by_chance + 3:
            continue
        matching.subtract(matcher, x, spikes)
        left[i] = (x**2).sum() > SUM_LEFT * (waveforms[i] ** 2).sum() + 2 * d / counts[i]
    return waveforms[left], counts[left]


def run_sweep(x: torch.Tensor, matcher: Matcher, probe: Probe, fs: float, pursuit: PursuitConfig,
              residual: bool = True, track: Track = silent, stage: str = "fit") -> Sweep:
    """Pursue the whole sample in chunks with margins, and clean each spike's waveform of the others; keep the residual if asked."""
    d, n = matcher.n_samples, x.shape[1]
    margin, dead = 4 * d, max(1, int(DEAD_MS * fs / 1000))
    channels = wide_channels(matcher, probe)
    rest = torch.empty(x.shape if residual else (len(x), 0), dtype=torch.float16)  # noise is 1, so half precision is plenty

    def pursue(chunk: Chunk) -> tuple[Spikes, np.ndarray, float]:
        low, high = max(0, chunk.start - margin), min(n, chunk.stop + margin)
        piece = x[:, low:high].to(torch.float32)
        spikes = matching.match(matcher, matching.scores(matcher, piece).numpy(), dead)
        left = piece.numpy().copy()
        matching.subtract(matcher, left, spikes)
        own = torch.from_numpy(left)[:, chunk.start - low : chunk.stop - low]
        if residual:
            rest[:, chunk.start : chunk.stop] = own
        mine = spikes.select((spikes.samples + low >= chunk.start) & (spikes.samples + low < chunk.stop))
        features = matching.cleaned_features(matcher, left, mine, channels)
        return replace(mine, samples=mine.samples + low), features, -0.5 * float(torch.linalg.vector_norm(own)) ** 2

    pieces = list(chunks((n,), max(pursuit.chunk_samples(fs, len(x)), 20 * d)))
    parts, features, fits = zip(*track(in_order(pursue, pieces), stage, len(pieces)), strict=True)
    spikes = Spikes.concatenate(list(parts))
    log_joint = sum(fits) + float(log_prior(matcher, spikes).sum())
    return Sweep(spikes, np.concatenate(features), channels, log_joint, rest)


def log_prior(matcher: Matcher, spikes: Spikes) -> np.ndarray:
    """(S,) log odds of each spike and of its amplitude."""
    k = spikes.units
    return matcher.log_odds[k] - 0.5 * matcher.amp_precision[k] * (spikes.amplitudes - matcher.amp_mean[k]) ** 2


def wide_channels(matcher: Matcher, probe: Probe, radius_um: float = 150.0, most: int = 32) -> np.ndarray:
    """(K, M) channels around each unit's largest, nearest first, -1 where there are fewer."""
    size = (matcher.coefficients**2).sum(axis=2)
    out = np.full((len(size), min(most, size.shape[1])), -1, np.int64)
    for k, c in enumerate(size.argmax(axis=1)):
        local = nearest_channels(probe, c, radius_um)
        distance = np.linalg.norm(probe.positions_um[local] - probe.positions_um[c], axis=1)
        local = local[np.argsort(distance, kind="stable")][: out.shape[1]]
        out[k, : len(local)] = local
    return out


def regroup(sweep: Sweep, matcher: Matcher, fs: float, last: bool, min_spikes: int) -> list[Group]:
    """Units after splits and merges, each tested on cleaned features."""

    def parts(k: int) -> list[Group]:
        mine, real = np.flatnonzero(sweep.spikes.units == k), sweep.channels[k] >= 0
        if len(mine) < min_spikes:
            return []
        group = Group(sweep.spikes.samples[mine], sweep.spikes.amplitudes[mine], sweep.features[mine][:, real], sweep.channels[k][real])
        return [group] if last else [group.part(p) for p in split(group, min_spikes)]

    groups = [g for found in in_order(parts, range(len(matcher.coefficients))) for g in found]
    groups = merged(groups, matcher.coefficients.shape[1], fs)
    return groups if last else realigned(groups, matcher, fs)


def realigned(groups: list[Group], matcher: Matcher, fs: float) -> list[Group]:
    """Groups without those that are a larger one centred on another of its extrema: alike, but only at a lag.

    The larger finds the spikes of both when the data are next pursued; if they are two after all, the residual says so.
    """
    if len(groups) < 2:
        return groups
    n_channels, counts = matcher.coefficients.shape[1], np.array([len(g.samples) for g in groups])
    waveforms = np.array([full_mean(g, n_channels) for g in groups]) @ matcher.basis
    priors = first_priors(waveforms, counts, 1.0)
    cosine, lag = similarity(matching.prepare(unit_norm(waveforms), priors, fs, 1))
    norm, left = priors.amp_mean, np.ones(len(groups), bool)
    off_centre = (abs(lag) > OFF_CENTRE_MS * fs / 1000) & (abs(lag) < matcher.n_samples // 3) & (cosine > MERGE_COSINE)
    for i in np.argsort(-counts, kind="stable"):
        if left[i]:
            left &= ~(off_centre[i] & (counts < counts[i]) & (norm > norm[i] / 2) & (norm < norm[i] * 2))
    return [g for g, stays in zip(groups, left, strict=True) if stays]


def rebuilt(groups: list[Group], matcher: Matcher, n_channels: int, rank: int, trough: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean waveforms (K, N, D), trimmed and denoised, of regrouped units, and their counts; too weak ones are dropped."""
    waveforms = np.zeros((len(groups), n_channels, matcher.basis.shape[1]), np.float32)
    for waveform, g in zip(waveforms, groups, strict=True):
        waveform[g.channels] = trimmed_mean(g.features) @ matcher.basis
    counts = np.array([len(g.features) for g in groups], np.int64)
    return denoised(waveforms, counts, rank, trough, MIN_NORM)


