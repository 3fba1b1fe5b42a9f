"""Coordinate ascent of the semi-NMF on a sample of the recording.

Each round: amplitudes by matching pursuit with the waveforms held; waveforms by regression on the collision-cleaned data
(residual plus the spike's own template) with the amplitudes held; then the number of units is questioned. Units whose
cleaned waveforms have a valley between them are split, those that have none are merged, those that explain too little are
dropped, and what the residual still holds is clustered into new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from sortcore import background, matching
from sortcore.bank import (
    LAGS_A_SAMPLE,
    SAME_RATIO,
    Bank,
    centred,
    denoised,
    first_priors,
    in_order_of_channels,
    low_rank,
    off_trough,
    same_removed,
    similarity,
    sums_removed,
)
from sortcore.ephys.config import FitConfig, PursuitConfig
from sortcore.follow import Follower
from sortcore.groups import MERGE_COSINE, Back, Displaced, Group, full_mean, independent, merged, refractory, split, trimmed_mean
from sortcore.matching import Matcher
from sortcore.moving import MovingMatcher, moving_matcher
from sortcore.numerics import moved_by, nearest_channels, unit_norm
from sortcore.progress import Track, silent
from sortcore.pursuit import DEAD
from sortcore.recording import Chunk, chunks, cut
from sortcore.types import FitLog, Priors, Probe, Spikes
from sortcore.workers import in_order

FindNew = Callable[[torch.Tensor], tuple[np.ndarray, np.ndarray]]

OFF_CENTRE_MS = 0.1
SAME_AT_LAG = 0.9  # two cells' waveforms, each centred on its extremum, are not more alike off centre
START_NORM = 6.5  # of the first clusters; smaller ones are found in the residual, where larger spikes do not blur them
MIN_NORM = 5.0  # a smaller waveform's spikes are mostly below the threshold that noise allows
DEAD_MS = 0.5
FEW_SPIKES = 300  # a unit of more is not asked whether it is needed
MOST_TRIED = 24  # of its spikes,
TOGETHER = 4  # in so many stretches side by side,
MOST_PLACES = 2  # or at so many displacements


@dataclass(frozen=True)
class Sweep:
    """One pass over the sample: spikes (template starts), their cleaned features (S, M, B) on each unit's channels (K, M), and
    what is left of x (N, T). Where tissue moves, features are as seen there, and knots (S,) say where."""

    spikes: Spikes
    knots: np.ndarray
    features: np.ndarray
    channels: np.ndarray
    log_joint: float
    residual: torch.Tensor

    def select(self, keep: np.ndarray) -> Sweep:
        """The same with those spikes only for which keep (S,) is true."""
        return replace(self, spikes=self.spikes.select(keep), knots=self.knots[keep], features=self.features[keep])


def fit(x: torch.Tensor, waveforms: np.ndarray, counts: np.ndarray, probe: Probe, fs: float, config: FitConfig, pursuit: PursuitConfig,
        trough: int, min_spikes: int = 10, find_new: FindNew | None = None, follower: Follower | None = None,
        track: Track = silent, device: torch.device | str = "cpu") -> tuple[Matcher | MovingMatcher, Priors, FitLog]:
    """Learn waveforms and priors from x (N, T) whitened, starting at mean waveforms (K, N, D) of `counts` events each.

    find_new: function of a residual that returns further mean waveforms and counts
    follower: where the tissue moves; waveforms are then of its median place
    device: where templates are scored
    Returns the matcher of the units, their priors, and the log.
    """
    n, seconds = x.shape[1], x.shape[1] / fs

    def matcher_of(bank: Bank) -> tuple[Matcher | MovingMatcher, Priors]:
        priors = first_priors(bank.waveforms, bank.counts, seconds)
        if follower is None or bank.moved is None:
            return matching.prepare(unit_norm(bank.waveforms), priors, fs, pursuit.subsamples, pursuit.amplitude_prior), priors
        depths = probe.positions_um[(bank.waveforms**2).sum(axis=2).argmax(axis=1), 1]
        return moving_matcher(unit_norm(bank.waveforms), bank.moved.swapaxes(0, 1), follower.knots_um, priors, follower.motion, depths, fs,
                              pursuit.subsamples, pursuit.amplitude_prior), priors

    def first(waveforms: np.ndarray, counts: np.ndarray, smallest: float) -> Bank:
        waveforms, counts = denoised(waveforms, counts, config.rank, trough, smallest)
        return Bank(waveforms, counts, None if follower is None else carried(waveforms, follower, config.rank))

    bank = same_removed(first(waveforms, counts, START_NORM), fs)
    rows, steps = [], []
    for i in range(config.iterations):
        if not len(bank):
            break
        bank = in_order_of_channels(bank)
        matcher, _ = matcher_of(bank)
        last = i == config.iterations - 1
        sweep = run_sweep(x, matcher, probe, fs, pursuit, not last, track, f"fit {i + 1} of {config.iterations}", follower, device)
        rows.append((sweep.log_joint, len(bank), len(sweep.spikes)))
        n_before = len(bank)
        if last:
            sweep = without_background(needed(sweep, x, matcher, fs, follower), matcher.reference, fs)
        groups = regroup(sweep, matcher.reference, fs, last, min_spikes, follower.brought_back if follower else None)
        groups = follower.lasting(groups) if follower else groups
        bank = sums_removed(rebuilt(groups, matcher.reference, x.shape[0], config.rank, trough, follower), fs, n)
        follower = follower.refined(groups) if follower else None
        steps.append(f"round {i + 1}: {n_before} units, {len(sweep.spikes)} spikes, {len(bank)} units after splits, merges and drops")
        if find_new is not None and not last:
            more, n_more = find_new(sweep.residual)
            if len(more):
                new = first(more, n_more, MIN_NORM)
                steps.append(f"round {i + 1}: {len(new)} new units from the residual")
                bank = same_removed(bank.with_more(new), fs)
    matcher, priors = matcher_of(in_order_of_channels(bank))
    log = FitLog(np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), np.array([r[2] for r in rows]), tuple(steps))
    return matcher, priors, log


def carried(waveforms: np.ndarray, follower: Follower, rank: int) -> np.ndarray:
    """(K, Q, N, D) waveforms (K, N, D) of the median place, at each knot."""
    out = follower.carried(waveforms).swapaxes(0, 1)
    for k in range(len(out)):
        out[k] = [low_rank(w, rank, 0.0) for w in out[k]]
    return out


def run_sweep(x: torch.Tensor, matcher: Matcher | MovingMatcher, probe: Probe, fs: float, pursuit: PursuitConfig,
              residual: bool = True, track: Track = silent, stage: str = "fit", follower: Follower | None = None,
              device: torch.device | str = "cpu") -> Sweep:
    """Pursue the whole sample in chunks with margins, and clean each spike's waveform of the others; keep the residual if asked."""
    d, n = matcher.n_samples, x.shape[1]
    margin, dead = 4 * d, max(1, int(DEAD_MS * fs / 1000))
    channels = wide_channels(matcher.reference, probe)
    rest = torch.empty(x.shape if residual else (len(x), 0), dtype=torch.float16)  # noise is 1, so half precision is plenty

    def pursue(chunk: Chunk) -> tuple[Spikes, np.ndarray, np.ndarray, float, float]:
        low, high = max(0, chunk.start - margin), min(n, chunk.stop + margin)
        time_s = 0.0 if follower is None else float(follower.times_s[(chunk.start + chunk.stop - 1) // 2])
        now = matcher.at(time_s)
        piece = x[:, low:high].to(torch.float32)
        spikes = matching.match(now, matching.scores(now, piece.to(device)).numpy(force=True), dead)
        left = piece.numpy().copy()
        matching.subtract(now, left, spikes)
        own = torch.from_numpy(left)[:, chunk.start - low : chunk.stop - low]
        if residual:
            rest[:, chunk.start : chunk.stop] = own
        mine = spikes.select((spikes.samples + low >= chunk.start) & (spikes.samples + low < chunk.stop))
        features = matching.cleaned_features(now, left, mine, channels)
        knots = matcher.knots(time_s)[mine.units] if isinstance(matcher, MovingMatcher) else np.zeros(len(mine), np.int64)
        prior = float(log_prior(now, mine).sum())
        return replace(mine, samples=mine.samples + low), knots, features, -0.5 * float(torch.linalg.vector_norm(own)) ** 2, prior

    jumps = np.zeros(0, int) if follower is None else np.searchsorted(follower.times_s, matcher.jumps_s)
    pieces = list(cut(chunks((n,), max(pursuit.chunk_samples(fs, len(x)), 20 * d)), jumps))
    parts, knots, features, fits, priors = zip(*track(in_order(pursue, pieces), stage, len(pieces)), strict=True)
    return Sweep(Spikes.concatenate(list(parts)), np.concatenate(knots), np.concatenate(features), channels, sum(fits) + sum(priors), rest)


def needed(sweep: Sweep, x: torch.Tensor, matcher: Matcher | MovingMatcher, fs: float, follower: Follower | None = None) -> Sweep:
    """A sweep without the units that the others do without: leaving one out costs less log joint than its parameters (BIC).

    Such are clusters of collisions with one large unit, and fragments. Units that are like another are tried one after
    another, those of fewest spikes first, on stretches where they fire.
    """
    spikes, d, dead = sweep.spikes, matcher.n_samples, max(1, int(DEAD_MS * fs / 1000))
    counts = np.bincount(spikes.units, minlength=len(matcher.reference.coefficients))
    price = 0.5 * matcher.reference.parameters() * np.log(x.shape[1])
    cosine, _ = similarity(matcher.reference)
    like_another = (np.abs(cosine) * (1 - np.eye(len(cosine)))).max(axis=1, initial=0) > MERGE_COSINE
    gone = np.zeros(len(counts), bool)

    def worth(k: int, starts: np.ndarray) -> float:
        now = matcher.at(0.0 if follower is None else float(follower.times_s[starts[0]]))
        windows = [x[:, max(0, t - 2 * d) : t + 3 * d].to(torch.float32) for t in starts.tolist()]
        score = matching.scores_near(now, torch.cat(windows, dim=1), k).numpy()
        score[gone] = DEAD
        with_it = matching.match(now, score.copy(), dead).scores.sum()
        score[k] = DEAD
        return float(with_it - matching.match(now, score, dead).scores.sum())

    for k in np.argsort(counts, kind="stable"):
        if not 0 < counts[k] <= FEW_SPIKES or not like_another[k]:
            continue
        starts = spikes.samples[spikes.units == k]
        together = at_one_place(starts, matcher, follower)
        gone[k] = sum(in_order(partial(worth, int(k)), together)) * len(starts) / sum(map(len, together)) < price[k]
    return sweep.select(~gone[spikes.units])


def without_background(sweep: Sweep, matcher: Matcher, fs: float) -> Sweep:
    """A sweep of those spikes only that are more probably their unit's than background or what larger ones leave, which would blur its
    waveform."""
    return sweep.select(background.own(sweep.spikes, matcher, fs, 0.5))


def at_one_place(starts: np.ndarray, matcher: Matcher | MovingMatcher, follower: Follower | None) -> list[np.ndarray]:
    """Some of the template starts (S,) in groups to be matched with one matcher: where the tissue moves, those of one displacement,
    and of the commonest only, as each takes tables of its own."""
    if follower is None or not isinstance(matcher, MovingMatcher):
        some = starts[np.linspace(0, len(starts) - 1, min(len(starts), MOST_TRIED)).astype(int)]
        return np.array_split(some, min(len(some), TOGETHER))
    places = np.array([matcher.knots(float(follower.times_s[t])) for t in starts])
    _, place, count = np.unique(places, axis=0, return_inverse=True, return_counts=True)
    return [starts[place.ravel() == i][:MOST_TRIED] for i in np.argsort(-count, kind="stable")[:MOST_PLACES]]


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


def regroup(sweep: Sweep, matcher: Matcher, fs: float, last: bool, min_spikes: int, back: Back | None = None) -> list[Group]:
    """Units after splits and merges, each tested on cleaned features; in the last round no unit is split."""
    trains = sweep.spikes.by_unit(len(matcher.coefficients))

    def parts(k: int) -> list[Group]:
        mine, real = trains[k], sweep.channels[k] >= 0
        if len(mine) < min_spikes:
            return []
        features, channels = sweep.features[mine][:, real], sweep.channels[k][real]
        there = None if back is None else Displaced(sweep.knots[mine], features)
        features = features if back is None or there is None else back(there, channels)
        group = Group(sweep.spikes.samples[mine], sweep.spikes.amplitudes[mine], features, channels, there)
        return [group] if last else [group.part(p) for p in split(group, min_spikes)]

    groups = [g for found in in_order(parts, range(len(matcher.coefficients))) for g in found]
    groups = merged(groups, matcher.n_channels, fs, matcher.basis, back)
    return groups if last else realigned(groups, matcher, fs)


def realigned(groups: list[Group], matcher: Matcher, fs: float) -> list[Group]:
    """Groups without those that are a larger one centred on another of its extrema: alike, but only at a lag, and never firing
    within its refractory period; or nearly the same, which two cells are not at a lag, unless they fire independently.

    The larger finds the spikes of both when the data are next pursued; if they are two after all, the residual says so.
    """
    if len(groups) < 2:
        return groups
    n_channels, counts = matcher.coefficients.shape[1], np.array([len(g.samples) for g in groups])
    waveforms = np.array([full_mean(g, n_channels) for g in groups]) @ matcher.basis
    priors = first_priors(waveforms, counts, 1.0)
    cosine, lag = similarity(matching.prepare(unit_norm(waveforms), priors, fs, LAGS_A_SAMPLE))
    norm, left = priors.amp_mean, np.ones(len(groups), bool)
    off_centre = (abs(lag) > OFF_CENTRE_MS * fs / 1000) & (abs(lag) < matcher.n_samples // 3) & (cosine > MERGE_COSINE)
    for i in np.argsort(-counts, kind="stable"):
        if not left[i]:
            continue
        for j in np.flatnonzero(left & off_centre[i] & (counts < counts[i]) & (norm > norm[i] / 2) & (norm < norm[i] * 2)):
            a, b = groups[i].samples + lag[i, j], groups[j].samples
            same = cosine[i, j] > SAME_AT_LAG and 1 / SAME_RATIO < norm[j] / norm[i] < SAME_RATIO and not independent(a, b, fs)
            left[j] = not (same or refractory(a, b, fs))
    return [g for g, stays in zip(groups, left, strict=True) if stays]


def rebuilt(groups: list[Group], matcher: Matcher, n_channels: int, rank: int, trough: int, follower: Follower | None = None) -> Bank:
    """Mean waveforms, trimmed and denoised, of regrouped units; too weak ones are dropped."""
    waveforms = np.zeros((len(groups), n_channels, matcher.basis.shape[1]), np.float32)
    for waveform, g in zip(waveforms, groups, strict=True):
        waveform[g.channels] = trimmed_mean(g.features) @ matcher.basis
    counts = np.array([len(g.features) for g in groups], np.int64)
    if follower is None:
        return Bank(*denoised(waveforms, counts, rank, trough, MIN_NORM))
    moved = np.zeros((len(groups), len(follower.knots_um), *waveforms.shape[1:]), np.float32)
    for k, g in enumerate(groups):
        at_knots = [low_rank(w, rank, 1.0 / len(g.samples)) for w in follower.learned(g, matcher.basis)]
        assert g.there is not None
        here = at_knots[follower.median_knot]
        moved[k] = moved_by(np.array(at_knots), off_trough(here, trough))
        norm = np.linalg.norm(moved[k], axis=(1, 2)) @ np.bincount(g.there.knots, minlength=len(moved[k])) / len(g.samples)
        waveforms[k] = centred(here, trough) * norm / max(np.linalg.norm(here), 1e-6)  # as large as where it fires
    return Bank(waveforms, counts, moved).select(np.linalg.norm(waveforms, axis=(1, 2)) > MIN_NORM)
