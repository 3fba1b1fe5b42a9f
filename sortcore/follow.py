"""What data and waveforms become when the tissue moves: carried along the probe by interpolation, then corrected by what is seen.

Whitened data are unwhitened, interpolated between contacts (kriging) and whitened again, all in one matrix a displacement.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from sortcore.groups import Displaced, Group, trimmed_mean
from sortcore.moving import nearest_knot
from sortcore.types import Motion, Preprocessing, Probe
from sortcore.workers import in_order

STEP_UM = 2.0  # between the displacements at which units have a waveform
KRIGING_UM = 15.0  # over which neighbouring contacts see the same
NUGGET = 0.03
STILL_SECONDS = 0.5  # data are carried in stretches of so long
CARRIED_ERROR = 0.2  # share of a waveform's energy that interpolation gets wrong
OFF_UM = 1.5  # that estimated motion is wrong by
SMOOTHNESS = 4.0  # how much more alike its errors at neighbouring knots are
WHILE_JUMPING = 0.5  # share of the spikes of what is no cell, where the tissue jumps for
SELDOM = 0.1  # no more of the time
VISITS = 4  # times apart at which tissue was at a knot, for its spikes to tell the motion better


@dataclass(frozen=True)
class Follower:
    """Motion of a sample of a recording, made ready to carry data and waveforms.

    times_s: (T,) time of each sample; knots_um: (Q,) displacements; forth, back: (Q, N, N) matrices that take whitened
    waveforms from the median place to that displacement, and back
    """

    motion: Motion
    preprocessing: Preprocessing
    times_s: np.ndarray
    knots_um: np.ndarray
    forth: np.ndarray
    back: np.ndarray

    @property
    def median_knot(self) -> int:
        """The knot of no displacement."""
        return int(np.abs(self.knots_um).argmin())

    def registered(self, x: torch.Tensor, times_s: np.ndarray | None = None) -> torch.Tensor:
        """x (N, T) whitened, of the sample or at other times (T,), as it would look had the tissue stayed in its median place."""
        times_s = self.times_s if times_s is None else times_s
        out, depth = torch.empty_like(x), self.preprocessing.probe.positions_um[:, 1]
        size = max(1, int(STILL_SECONDS * self.preprocessing.whitened_fs))

        def carry(start: int) -> None:
            part = slice(start, min(start + size, x.shape[1]))
            knots = nearest_knot(self.motion.at(float(times_s[(part.start + part.stop - 1) // 2]), depth), self.knots_um)
            matrix = self.back[knots, np.arange(len(depth))]  # each channel reads from as far away as its depth has moved
            out[:, part] = (torch.from_numpy(matrix) @ x[:, part].float()).to(x.dtype)

        list(in_order(carry, range(0, x.shape[1], size)))
        return out

    def carried(self, waveforms: np.ndarray) -> np.ndarray:
        """(Q, ..., N, D) waveforms (..., N, D) of the median place, at each knot."""
        return np.stack([f @ waveforms for f in self.forth])

    def back_home(self, features: np.ndarray, knots: np.ndarray, channels: np.ndarray) -> np.ndarray:
        """(S, M, B) features seen on channels (M,) at knots (S,), interpolated back to the median place."""
        out = np.empty_like(features)
        for q in np.unique(knots):
            out[knots == q] = self.back[q][np.ix_(channels, channels)] @ features[knots == q]
        return out

    def brought_back(self, there: Displaced, channels: np.ndarray) -> np.ndarray:
        """(S, M, B) features of one cell's spikes as they would look in the median place.

        Interpolation bends a large waveform, differently at each displacement; so only what sets a spike apart from the others
        of its displacement is interpolated, and put on one mean waveform.
        """
        mean = trimmed_mean(self.back_home(there.features, there.knots, channels))
        own = self.at_knots(there, channels, mean)
        off, slope = self.off_knots(there, own)
        return mean + self.back_home(there.features - own[there.knots] - off[:, None, None] * slope[there.knots], there.knots, channels)

    def off_knots(self, there: Displaced, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(S,) um by which each spike's tissue seems to lie off its knot, at most what motion may be wrong by; and how features
        change, (Q, M, B) per um."""
        slope = self.slope(own)
        along, size = self.evidence(there, own, slope)
        return np.clip(along / (size + 1 / OFF_UM**2), -2 * OFF_UM, 2 * OFF_UM).astype(np.float32), slope

    def slope(self, own: np.ndarray) -> np.ndarray:
        """(Q, M, B) change of features at each knot per um."""
        return np.gradient(own, STEP_UM, axis=0) if len(own) > 1 else np.zeros_like(own)

    def evidence(self, there: Displaced, own: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Linear and quadratic coefficient (S,) of each spike's log likelihood in um off its knot."""
        steep = slope[there.knots].reshape(len(there.knots), -1)
        return ((there.features - own[there.knots]).reshape(steep.shape) * steep).sum(axis=1), (steep**2).sum(axis=1)

    def lasting(self, groups: list[Group]) -> list[Group]:
        """Groups without those mostly of spikes seen while the tissue jumps: they are others', which are not where they are sought."""
        depth, out = self.preprocessing.probe.positions_um[:, 1], []
        some = self.times_s[:: max(1, len(self.times_s) // 10_000)]
        for g in groups:
            at = float(depth[g.channels[0]])
            seldom = jumping(self.motion, some, at).mean() < SELDOM
            if not (seldom and jumping(self.motion, self.times_s[g.samples], at).mean() > WHILE_JUMPING):
                out.append(g)
        return out

    def refined(self, groups: list[Group]) -> Follower:
        """The motion that fits the spikes of all groups best: large spikes tell it much better than histograms do."""
        motion = self.motion
        bins, windows = len(motion.times_s), len(motion.depths_um)
        total, weight = np.zeros((bins, windows)), np.full((bins, windows), 1 / OFF_UM**2)
        edges = 0.5 * (motion.times_s[1:] + motion.times_s[:-1])
        depth = self.preprocessing.probe.positions_um[:, 1]
        for g in groups:
            if g.there is None:
                continue
            own = self.at_knots(g.there, g.channels, trimmed_mean(g.features))
            along, size = self.evidence(g.there, own, self.slope(own))
            times, at = self.times_s[g.samples], float(depth[g.channels[0]])
            rows = np.searchsorted(edges, times)
            sure = np.abs(along) < 4 * OFF_UM * size  # and no collision
            sure &= often_visited(g.there.knots, rows) & ~jumping(motion, times, at)
            along -= size * off_mean(g.there.knots, motion.over(times, at))  # what the motion says already
            above, below, share = motion.beside(at)
            for v, u in ((above, 1 - share), (below, share)):
                np.add.at(total, (rows[sure], v), u * along[sure])
                np.add.at(weight, (rows[sure], v), u * size[sure])
        return replace(self, motion=replace(motion, displacement_um=motion.displacement_um + total / weight))

    def at_knots(self, there: Displaced, channels: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """(Q, M, B) mean features of one cell's spikes at each knot, from their mean (M, B) in the median place.

        What is seen to differ from that mean carried there is a ridge estimate, drawn to those at the knots beside:
        interpolation is trusted where spikes are few.
        """
        out = self.forth[:, channels[:, None], channels] @ mean
        n = np.bincount(there.knots, minlength=len(self.knots_um)).astype(float)
        change = np.zeros(out.shape)
        for q in np.flatnonzero(n):
            change[q] = trimmed_mean(there.features[there.knots == q]) - out[q]
        doubt = mean.size / max(CARRIED_ERROR * float((mean**2).sum()), 1e-6)
        system = np.diag(n + doubt) + SMOOTHNESS * doubt * laplacian(len(n))
        return out + np.linalg.solve(system, n[:, None] * change.reshape(len(n), -1)).reshape(out.shape).astype(np.float32)

    def learned(self, group: Group, basis: np.ndarray) -> np.ndarray:
        """(Q, N, D) waveforms of a group at each knot."""
        assert group.there is not None
        out = np.zeros((len(self.knots_um), self.forth.shape[1], basis.shape[1]), np.float32)
        out[:, group.channels] = self.at_knots(group.there, group.channels, trimmed_mean(group.features)) @ basis
        return out


def off_mean(knots: np.ndarray, displacement_um: np.ndarray) -> np.ndarray:
    """(S,) displacements of spikes (S,) less the mean of those at the same knot, where what is seen there was learned."""
    mean = np.bincount(knots, displacement_um) / np.maximum(np.bincount(knots), 1)
    return displacement_um - mean[knots]


def often_visited(knots: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(S,) whether spikes are at knots that were reached in several bins of time (S,): of a knot that only one bin's spikes were
    at, they can't say where it is."""
    pairs = np.unique(np.column_stack([knots, rows]), axis=0)
    return np.bincount(pairs[:, 0])[knots] >= VISITS


def jumping(motion: Motion, times_s: np.ndarray, depth_um: float) -> np.ndarray:
    """(S,) whether tissue moves so far from one time of the motion to the next that between them it is not known."""
    steps = np.abs(np.diff(motion.over(motion.times_s, depth_um)))
    return np.concatenate([[False], steps > 2 * OFF_UM, [False]])[np.searchsorted(motion.times_s, times_s)]


def laplacian(n: int) -> np.ndarray:
    """(n, n) matrix whose quadratic form is the sum of squared differences of neighbours."""
    steps = np.diff(np.eye(n), axis=0)
    return steps.T @ steps


def make_follower(motion: Motion, preprocessing: Preprocessing, times_s: np.ndarray) -> Follower:
    """Prepare the matrices for every displacement that a motion reaches."""
    low, high = (int(np.rint(f / STEP_UM)) for f in (motion.displacement_um.min(), motion.displacement_um.max()))
    knots = STEP_UM * np.arange(min(low, 0), max(high, 0) + 1)
    whitening = preprocessing.whitening.astype(np.float64)
    unwhitening = np.linalg.pinv(whitening)

    def carrier(moved_um: float) -> np.ndarray:
        if moved_um == 0:
            return np.eye(len(whitening), dtype=np.float32)
        return (whitening @ interpolation(preprocessing.probe, moved_um) @ unwhitening).astype(np.float32)

    return Follower(motion, preprocessing, times_s, knots, np.stack([carrier(-k) for k in knots]), np.stack([carrier(k) for k in knots]))


def interpolation(probe: Probe, by_um: float) -> np.ndarray:
    """(N, N) kriging matrix: what the contacts would record had they been deeper by so much, from what they do record."""
    places = probe.positions_um.astype(np.float64)

    def covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # Matern 3/2
        r = np.linalg.norm(a[:, None] - b[None], axis=2) / KRIGING_UM
        return (1 + r) * np.exp(-r)

    out = np.zeros((len(places), len(places)))
    for shank in np.unique(probe.shank):
        own = np.flatnonzero(probe.shank == shank)
        near = covariance(places[own], places[own]) + NUGGET * np.eye(len(own))
        out[np.ix_(own, own)] = np.linalg.solve(near, covariance(places[own], places[own] + [0, by_um])).T
    return out
