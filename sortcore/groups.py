"""Groups of spikes, and whether they are of one cell.

A cell's cleaned waveforms have no valley between them. What clustering alone cannot tell, trains can: one cell never fires
twice within its refractory period, and does not fire together with itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import poisson

from sortcore.cluster import cluster, members, separation
from sortcore.numerics import leading, moved_by

OTHER_SHAPE = 2.0  # sd between the mean waveforms of two cells at least, beside what amplitude explains
MERGE_COSINE = 0.6  # units less alike than this are not tested for being one
TRAIN_COSINE = 0.75  # trains decide only between units more alike than this: spikes of one hide those of the other too
MOST_LAG_MS = 0.5  # between groups that are tested for being one
MOVED_COSINE = 0.7  # units seen at different displacements are tested for being one if they are more alike than this


@dataclass(frozen=True)
class Displaced:
    """Spikes where the tissue had moved: the knot of displacement (S,), and features (S, M, B) as seen there."""

    knots: np.ndarray
    features: np.ndarray

    def part(self, index: np.ndarray | slice) -> Displaced:
        return Displaced(self.knots[index], self.features[index])

    def on(self, channels: np.ndarray) -> Displaced:
        """On some of the channels."""
        return Displaced(self.knots, self.features[:, channels])

    def with_more(self, other: Displaced) -> Displaced:
        return Displaced(np.concatenate([self.knots, other.knots]), np.concatenate([self.features, other.features]))


Back = Callable[[Displaced, np.ndarray], np.ndarray]  # of spikes of one cell on channels (M,): as they would look had nothing moved


@dataclass(frozen=True)
class Group:
    """Spikes of one unit after regrouping: samples (S,), amplitudes (S,), features (S, M, B) on channels (M,).

    there: the same spikes where the tissue was; features are then as they would look in its median place
    """

    samples: np.ndarray
    amplitudes: np.ndarray
    features: np.ndarray
    channels: np.ndarray
    there: Displaced | None = None

    @cached_property
    def mean(self) -> np.ndarray:
        """(M, B)"""
        return self.features.mean(axis=0)

    def part(self, index: np.ndarray) -> Group:
        there = None if self.there is None else self.there.part(index)
        return Group(self.samples[index], self.amplitudes[index], self.features[index], self.channels, there)

    def later(self, lag: int, lags: dict[int, np.ndarray]) -> Group:
        """What is seen `lag` samples later, where `lags` has the matrices of `lagged`."""
        if lag == 0:
            return self
        there = None if self.there is None else Displaced(self.there.knots, self.there.features @ lags[lag])
        return Group(np.maximum(self.samples + lag, 0), self.amplitudes, self.features @ lags[lag], self.channels, there)


def split(group: Group, min_spikes: int) -> list[np.ndarray]:
    """Members of each cluster of one unit's cleaned waveforms: by shape, after the share that amplitude alone explains is taken off,
    then by all that is seen, where clusters that differ in amplitude alone stay one."""
    found = []
    for part in clusters(shape_only(group.features), min_spikes):
        flat = group.features[part].reshape(len(part), -1)
        found += [part[p] for p in of_other_shape(flat, clusters(flat, min_spikes))]
    return found


def clusters(flat: np.ndarray, min_spikes: int) -> list[np.ndarray]:
    """Members of each cluster of features (S, F); all where there is none."""
    return members(cluster(principal(flat), min_spikes)) or [np.arange(len(flat))]


def of_other_shape(flat: np.ndarray, parts: list[np.ndarray]) -> list[np.ndarray]:
    """Parts of features (S, F), those joined, the most alike first, that are the same but for their amplitude."""
    while len(parts) > 1:
        off, i, j = min((shape_difference(flat[a], flat[b]), i, j) for i, a in enumerate(parts) for j, b in enumerate(parts[:i]))
        if off >= OTHER_SHAPE:
            break
        parts = [*(p for k, p in enumerate(parts) if k not in (i, j)), np.concatenate([parts[j], parts[i]])]
    return parts


def shape_difference(a: np.ndarray, b: np.ndarray, doubt: float = 0.0) -> float:
    """Size of what the mean of features b (S, F) has that no multiple of a's mean explains, noise taken off: as much as is expected, and
    so many standard deviations of it more."""
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    times = float(mean_a @ mean_b) / max(float(mean_a @ mean_a), 1e-9)
    by_noise = (len(mean_a) + doubt * np.sqrt(2 * len(mean_a))) * (1 / len(b) + times**2 / len(a))
    return float(np.sqrt(max(((mean_b - times * mean_a) ** 2).sum() - by_noise, 0.0)))


def shape_only(features: np.ndarray) -> np.ndarray:
    """(S, M B) features without their component along the mean: what is left when a unit's amplitude is free."""
    flat = features.reshape(len(features), -1)
    mean = flat.mean(axis=0)
    axis = mean / max(np.linalg.norm(mean), 1e-9)
    return flat - (flat @ axis)[:, None] * axis


def principal(flat: np.ndarray, n: int = 6, most: int = 2000) -> np.ndarray:
    """(S, n) scores on the leading principal components."""
    centred = flat - flat.mean(axis=0)
    thin = centred[np.linspace(0, len(centred) - 1, min(len(centred), most)).astype(int)]
    return centred @ leading(thin, n)


def merged(groups: list[Group], n_channels: int, fs: float, basis: np.ndarray, back: Back | None = None) -> list[Group]:
    """Join groups that are one cell, the most alike first. basis: (B, D) temporal basis of the features.

    A cell whose waveform is as large on two contacts, or that drifts from one to the other, may be centred on the trough of either:
    groups are compared at the lag at which they are most alike.
    """
    groups, lags = list(groups), lagged(basis, int(MOST_LAG_MS * fs / 1000))
    apart: set[tuple[int, int]] = set()  # pairs found to be two, by identity of the groups
    merged_away: list[Group] = []
    while len(groups) > 1:
        cosine, lag = alike(np.array([full_mean(g, n_channels) for g in groups]), lags)
        pairs = [(cosine[i, j], i, j) for i in range(len(groups)) for j in range(i) if cosine[i, j] > MERGE_COSINE]
        touched: set[int] = set()
        gone: set[int] = set()
        for c, i, j in sorted(pairs, reverse=True):
            pair = (id(groups[i]), id(groups[j]))
            if i in touched or j in touched or pair in apart:
                continue
            a, b, by = (i, j, lag[i, j]) if len(groups[i].samples) >= len(groups[j].samples) else (j, i, lag[j, i])
            later = groups[b].later(by, lags)
            through_same = groups[a].later(-by, lags).later(by, lags)  # without what a lag of that size pushes out of the window
            if not one(through_same, later, float(c), fs, back):
                apart.add(pair)
                continue
            merged_away += [groups[i], groups[j]]  # kept alive, so that no new group takes their identity
            groups[i] = joined(groups[a], later, back)
            gone.add(j)
            touched |= {i, j}
        if not gone:
            break
        groups = [g for i, g in enumerate(groups) if i not in gone]
    return groups


def lagged(basis: np.ndarray, most: int) -> dict[int, np.ndarray]:
    """For each lag of at most so many samples, (B, B) matrix from features in a basis (B, D) to those of what is seen so much later."""
    return {lag: moved_by(basis, -lag) @ basis.T for lag in range(-most, most + 1)}


def alike(means: np.ndarray, lags: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(K, K) cosine of mean features (K, N, B) at the lag at which they are most alike, and that lag: of the second after the first."""
    flat = means.reshape(len(means), -1)
    norm = np.linalg.norm(flat, axis=1)
    every = np.array([flat @ (means @ later).reshape(flat.shape).T for later in lags.values()])
    best = every.argmax(axis=0)
    return every.max(axis=0) / np.maximum(norm[:, None] * norm[None], 1e-9), np.array(list(lags))[best]


def full_mean(group: Group, n_channels: int) -> np.ndarray:
    out = np.zeros((n_channels, group.features.shape[2]), np.float32)
    out[group.channels] = group.mean
    return out


def shared_channels(a: Group, b: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Channels both were looked at, and where in each they are."""
    return np.intersect1d(a.channels, b.channels, return_indices=True)


def shared_features(a: Group, b: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of both on the channels both were looked at."""
    channels, ia, ib = shared_channels(a, b)
    return a.features[:, ia], b.features[:, ib], channels


def one(a: Group, b: Group, cosine: float, fs: float, back: Back | None = None) -> bool:
    """Whether two groups are one cell: no valley between them, or neither in the other's refractory period, or the same shape smaller
    within bursts; and not firing together."""
    fa, fb, channels = shared_features(a, b)
    if len(channels) < min(len(a.channels), len(b.channels)) / 2 or independent(a.samples, b.samples, fs):
        return False
    ratio = float(np.linalg.norm(fa.mean(axis=0))) / max(float(np.linalg.norm(fb.mean(axis=0))), 1e-9)
    if 0.5 < ratio < 2.0:
        if cosine > TRAIN_COSINE and refractory(a.samples, b.samples, fs):
            return True
        if back is not None and a.there is not None and b.there is not None and exclusive(a.there.knots, b.there.knots):
            return True
        smaller, larger = sorted((f.reshape(len(f), -1) for f in (fa, fb)), key=lambda f: float(np.linalg.norm(f.mean(axis=0))))
        if bursting(a.samples, b.samples, fs) and shape_difference(smaller, larger, doubt=1.0) < OTHER_SHAPE:
            return True
    thin_a, thin_b = max(1, len(fa) // 1000), max(1, len(fb) // 1000)
    fa, fb = fa[::thin_a], fb[::thin_b]
    both = np.concatenate([fa, fb]).reshape(len(fa) + len(fb), -1)
    difference = mean_difference(both, len(fa))
    if back is not None and a.there is not None and b.there is not None:  # judged side by side where the tissue was
        _, ia, ib = shared_channels(a, b)
        both = back(a.there.part(slice(None, None, thin_a)).on(ia).with_more(b.there.part(slice(None, None, thin_b)).on(ib)), channels)
        both = both.reshape(len(both), -1)
        before, difference = difference, mean_difference(both, len(fa))
        if cosine < MOVED_COSINE and np.linalg.norm(difference) < 0.5 * np.linalg.norm(before):
            return False
    axis = difference / max(np.linalg.norm(difference), 1e-9)
    along = both @ axis
    space = np.column_stack([along, principal(both - along[:, None] * axis, 5)])
    return separation(space[: len(fa)], space[len(fa) :]) < 1.0


def exclusive(a: np.ndarray, b: np.ndarray, share: float = 0.5, fewest: float = 10.0) -> bool:
    """Whether spikes at knots (S,) of two groups fall at different displacements, as no two cells' do: fewer than a share of
    the pairs at one knot that would be there if both fired wherever either did."""
    n = max(a.max(), b.max()) + 1
    na, nb = np.bincount(a, minlength=n).astype(float), np.bincount(b, minlength=n).astype(float)
    expected = len(a) * len(b) * (((na + nb) / (len(a) + len(b))) ** 2).sum()
    return bool(expected > fewest and na @ nb < share * expected)


def mean_difference(both: np.ndarray, n: int) -> np.ndarray:
    """Mean of the rows from n on less the mean of those before."""
    return both[n:].mean(axis=0) - both[:n].mean(axis=0)


def joined(a: Group, b: Group, back: Back | None = None) -> Group:
    channels, ia, ib = shared_channels(a, b)
    samples, amplitudes = np.concatenate([a.samples, b.samples]), np.concatenate([a.amplitudes, b.amplitudes])
    order = np.argsort(samples, kind="stable")
    if back is not None and a.there is not None and b.there is not None:
        there = a.there.on(ia).with_more(b.there.on(ib)).part(order)
        return Group(samples[order], amplitudes[order], back(there, channels), channels, there)
    return Group(samples[order], amplitudes[order], np.concatenate([a.features[:, ia], b.features[:, ib]])[order], channels)


def coincidences(a: np.ndarray, b: np.ndarray, *within: int) -> list[int]:
    """Pairs of spikes of two trains that are at most so many samples apart, for each of several."""
    b = np.sort(b)
    return [int((np.searchsorted(b, a + w, "right") - np.searchsorted(b, a - w, "left")).sum()) for w in within]


def independent(a: np.ndarray, b: np.ndarray, fs: float, within_ms: float = 1.2, around_ms: float = 50.0) -> bool:
    """Whether two trains fire within the refractory time of each other about as often as around it: then they are two cells."""
    near, wide = int(within_ms * fs / 1000), int(around_ms * fs / 1000)
    close, broad = coincidences(a, b, near, wide)
    expected = (broad - close) * near / (wide - near)
    return bool(expected > 4 and close > 0.3 * expected)


def refractory(a: np.ndarray, b: np.ndarray, fs: float, from_ms: float = 0.5, to_ms: float = 1.5, around_ms: float = 50.0) -> bool:
    """Whether two trains keep out of each other's refractory period, which two cells would not: fewer than a fifth of the
    coincidences expected, and clearly fewer than by chance (p < .01).
    The first half millisecond is left out, where collisions hide spikes."""
    zero, close, broad = coincidences(a, b, *(int(ms * fs / 1000) for ms in (from_ms, to_ms, around_ms)))
    expected = (broad - close) * (to_ms - from_ms) / (around_ms - to_ms)
    return close - zero <= 0.2 * expected and bool(poisson.cdf(close - zero, max(expected, 0.0)) < 0.01)


def bursting(a: np.ndarray, b: np.ndarray, fs: float, within_ms: float = 15.0, around_ms: float = 100.0) -> bool:
    """Whether two trains fire in bursts together, as the large and the small spikes of one cell do: within a burst's intervals more
    than twice as often as expected from around them, and clearly more than by chance (p < .01)."""
    close, broad = coincidences(a, b, *(int(ms * fs / 1000) for ms in (within_ms, around_ms)))
    expected = (broad - close) * within_ms / (around_ms - within_ms)
    return close > 2 * expected and bool(poisson.sf(close - 1, expected + 0.1) < 0.01)  # at least two


def trimmed_mean(features: np.ndarray) -> np.ndarray:
    """Mean of features (S, M, B) without the tenth furthest from it."""
    centre = features.mean(axis=0)
    distance = ((features - centre) ** 2).sum(axis=(1, 2))
    return features[distance <= np.quantile(distance, 0.9)].mean(axis=0)
