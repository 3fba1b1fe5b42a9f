"""How the tissue moves along the probe, from the spikes that are detected.

Events are placed in depth as sources whose size falls off as one over the distance (Boussard et al. 2021): the mean over a grid of
places, each by how well it explains the sizes seen. A centre of mass would see those at the probe's ends move half as far as they
do. Histograms of depth and size, one each few seconds, are compared pair by pair; the displacement of every time that best explains
all pairs is the motion ("decentralised registration", Varol et al. 2021). Long probes are cut into overlapping windows of depth,
each with a motion of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, median_filter

from sortcore.ephys.config import DriftConfig
from sortcore.follow import Follower, make_follower
from sortcore.progress import Track, silent
from sortcore.recording import Chunk, chunks
from sortcore.sample import Sample, Whitened
from sortcore.types import AT_ONCE_S, Detections, Motion, Preprocessing, Probe
from sortcore.workers import in_order, over_recording

Look = Callable[[torch.Tensor], Detections]  # the events of x (N, T) whitened

NEAR_UM = 100.0  # contacts that an event is placed by
HALF_MS = 0.4  # on either side of its trough
REACH_UM, GRID_UM = 50.0, 2.5  # sources lie no further along the probe from the largest contact, and so far apart,
BESIDE_UM = 10.0  # at the middle of the contacts or so far outside of them,
AWAY_UM = (10.0, 20.0, 35.0, 60.0)  # and so far away from their plane
FLOOR = 0.2  # quantile of an event's sizes over contacts that noise alone makes,
NOISE_SHARE = 0.35  # sizes are uncertain by so much of it
SIZE_ERROR = 0.1  # and by this share of the largest
SIZES = 8  # of events told apart in a histogram
BLUR_UM = 4.0
SOLVING_ROUNDS = 5
RUNNING_BINS = 5
OFF_UM = 4.0  # a pair of times that disagrees with the rest by more counts for little
MOST_BINS = 1500  # of a long recording
FEWEST_EVENTS = 20  # a time bin
SCANNED = (0.1, 0.5)  # least and most that is looked at of a recording that is longer than its sample,
EVENTS_A_BIN = 150  # so that each window of depth has so many
JUMP_UM = 6.0  # more than this from one time bin to the next,
JUMP_BINS = 2  # or to the one after it, is a jump,
AROUND_S = 20.0  # which is timed by what is seen at most so long before and after it
SUDDEN = 3.0  # nats by which a jump explains them better than steady movement
BEYOND_UM = 50.0  # of where events are: they might jump there


def find_motion(whitened: Whitened, segment_lengths: tuple[int, ...], learned: Preprocessing, sample: Sample, events: Detections,
                look: Look, config: DriftConfig, track: Track = silent) -> Follower | None:
    """Motion of the tissue, made ready to be followed; None where there is none to speak of.

    events: those of the sample; look: finds the events of x (N, T) whitened
    What following leaves is estimated again, because an event between contacts is placed too near to the nearer one.
    """
    probe = learned.probe
    if not config.follow or max(np.ptp(probe.positions_um[probe.shank == s, 1]) for s in np.unique(probe.shank)) < config.least_depth_um:
        return None
    motion, follower, x = None, None, sample.x
    first: tuple[np.ndarray, ...] = ()  # events as they are seen with the tissue where it is
    unwhitening = np.linalg.pinv(learned.whitening.astype(np.float64)).astype(np.float32)
    share = float(np.clip(EVENTS_A_BIN * n_windows(probe, config) * len(sample.times_s) / learned.whitened_fs
                          / max(len(events), 1) / config.bin_seconds, *SCANNED))
    for i in range(config.rounds):
        if sample.whole:
            if follower is not None:
                x = follower.registered(sample.x)
                events = look(x)
            seen = (sample.times_s[events.samples], *places(x.numpy(), events.samples, events.channels, learned, unwhitening))
        else:
            name = f"motion {i + 1} of {config.rounds}"
            seen = scan(whitened, segment_lengths, learned, unwhitening, follower, look, config.bin_seconds, share, track, name)
        known = np.isfinite(seen[1]) & (seen[2] > 0)  # at the ends of the sample they are not
        seen = tuple(array[known] for array in seen)
        first = first or seen
        more = estimate(*seen, sample.duration_s, probe, config)
        if more is None:
            break
        motion = more if motion is None else corrected(motion, more)
        follower = make_follower(motion, learned, sample.times_s)
        if not sample.whole:  # what is left varies slowly
            config = replace(config, bin_seconds=2 * config.bin_seconds)
            share /= 2
    return None if follower is None else replace(follower, motion=with_jumps_timed(follower.motion, *first))


def n_windows(probe: Probe, config: DriftConfig) -> int:
    return max(1, round(np.ptp(probe.positions_um[:, 1]) / config.window_um))


def scan(whitened: Whitened, segment_lengths: tuple[int, ...], learned: Preprocessing, unwhitening: np.ndarray, follower: Follower | None,
         look: Look, bin_seconds: float, share: float, track: Track, stage: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(S,) times in s, depths in um and sizes of the events in a share of every time bin of a long recording."""
    fs = learned.whitened_fs
    pieces = list(chunks(segment_lengths, int(bin_seconds * fs)))

    def see(c: Chunk) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        part = Chunk(c.start, min(c.stop, c.start + int(share * bin_seconds * fs)), c.first, c.last)
        x = whitened(part).cpu()
        times = (np.arange(part.start, part.stop) / fs).astype(np.float32)
        x = x if follower is None else follower.registered(x, times)
        events = look(x)
        return times[events.samples], *places(x.numpy(), events.samples, events.channels, learned, unwhitening)

    found = track(over_recording(see, pieces), stage, len(pieces))
    times, depths, sizes = (np.concatenate(part) for part in zip(*found, strict=True))
    return times, depths, sizes


def places(x: np.ndarray, samples: np.ndarray, channels: np.ndarray, preprocessing: Preprocessing,
           unwhitening: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S,) depth in um and (S,) size in microvolts of events (S,) of x (N, T) whitened; unwhitening: (N, N) back to microvolts."""
    probe, half = preprocessing.probe, int(HALF_MS * preprocessing.whitened_fs / 1000)
    distance = np.linalg.norm(probe.positions_um[:, None] - probe.positions_um[None], axis=2)
    near = (distance <= NEAR_UM) & (probe.shank[:, None] == probe.shank[None])
    depth, size = np.full(len(samples), np.nan), np.zeros(len(samples))

    def on_channel(c: int) -> None:
        mine = np.flatnonzero((channels == c) & (samples >= half) & (samples < x.shape[1] - half))
        own = np.flatnonzero(near[c])
        depths, profiles = sources(probe.positions_um[own], probe.positions_um[c, 1])
        for part in np.array_split(mine, 1 + len(mine) // 2000):
            snippets = x[own[None, :, None], samples[part, None, None] + np.arange(-half, half + 1)].astype(np.float32)
            peak = np.ptp(unwhitening[np.ix_(own, own)] @ snippets, axis=2)
            depth[part] = located(peak, depths, profiles)
            size[part] = peak.max(axis=1)

    deque(in_order(on_channel, np.unique(channels).tolist()), maxlen=0)
    return depth, size


def sources(contacts_um: np.ndarray, depth_um: float) -> tuple[np.ndarray, np.ndarray]:
    """(G,) depths of sources around a depth, and their unit-norm sizes (G, M) on contacts (M, 2)."""
    along = depth_um + np.arange(-REACH_UM, REACH_UM + GRID_UM, GRID_UM)
    side = contacts_um[:, 0]
    across = np.unique([side.min() - BESIDE_UM, side.mean(), side.max() + BESIDE_UM])
    z, x, away = (g.ravel()[:, None] for g in np.meshgrid(along, across, AWAY_UM, indexing="ij"))
    size = 1 / np.sqrt((side - x) ** 2 + (contacts_um[:, 1] - z) ** 2 + away**2)
    return z[:, 0], (size / np.linalg.norm(size, axis=1, keepdims=True)).astype(np.float32)


def located(sizes: np.ndarray, depths_um: np.ndarray, profiles: np.ndarray) -> np.ndarray:
    """(S,) depth of events of sizes (S, M): the mean over sources (G,) with profiles (G, M), each by its likelihood."""
    floor = np.quantile(sizes, FLOOR, axis=1)
    sizes = np.maximum(sizes - floor[:, None], 0)
    variance = np.maximum((NOISE_SHARE * floor) ** 2 + (SIZE_ERROR * sizes.max(axis=1)) ** 2, 1e-12)
    explained = (sizes @ profiles.T) ** 2 / (2 * variance[:, None])
    weight = np.exp(explained - explained.max(axis=1, keepdims=True))
    return weight @ depths_um / weight.sum(axis=1)


def estimate(times_s: np.ndarray, depth_um: np.ndarray, size: np.ndarray, duration_s: float, probe: Probe,
             config: DriftConfig) -> Motion | None:
    """The motion that events at times, depths and sizes (S,) tell of; None where it is too little to follow."""
    low, high = probe.positions_um[:, 1].min(), probe.positions_um[:, 1].max()
    n_bins = min(int(duration_s / config.bin_seconds), MOST_BINS)
    if n_bins < 3 or len(times_s) < FEWEST_EVENTS * n_bins:
        return None
    count = n_windows(probe, config)
    centres = low + (np.arange(count) + 0.5) * (high - low) / count
    bins = np.minimum((times_s / duration_s * n_bins).astype(int), n_bins - 1)
    images = histograms(bins, depth_um, size, n_bins, low, high, config)
    rows = low + (np.arange(images.shape[1]) + 0.5) * config.step_um
    horizon = int(config.horizon_seconds * n_bins / duration_s)
    displacement, misfit = np.empty((n_bins, count)), np.empty(count)
    for v, centre in enumerate(centres):
        weight = np.exp(-0.5 * ((rows - centre) / (0.5 * config.window_um)) ** 2) if count > 1 else np.ones(len(rows))
        near = np.flatnonzero(weight > 0.03)
        part = slice(near[0], near[-1] + 1)
        displacement[:, v], misfit[v] = registered(images[:, part] * weight[None, part, None], config, horizon)
    trusted = np.flatnonzero(misfit < OFF_UM)  # where there is little to see, times disagree
    if not len(trusted):
        return None
    displacement = np.array([np.interp(centres, centres[trusted], now[trusted]) for now in displacement])
    displacement -= np.median(displacement, axis=0)
    spread = np.quantile(displacement, 0.95, axis=0) - np.quantile(displacement, 0.05, axis=0)
    if spread.max() < config.smallest_um:
        return None
    return Motion((np.arange(n_bins) + 0.5) * duration_s / n_bins, centres, displacement)


def corrected(motion: Motion, left: Motion) -> Motion:
    """A motion and what is left when it is followed, which varies slowly, or at once with it: its running median is free of noise."""
    calm = median_filter(left.displacement_um, (RUNNING_BINS, 1), mode="nearest")
    more = np.array([np.interp(motion.times_s, left.times_s, window) for window in calm.T]).T
    return replace(motion, displacement_um=motion.displacement_um + more)


def with_jumps_timed(motion: Motion, times_s: np.ndarray, depth_um: np.ndarray, size: np.ndarray) -> Motion:
    """A motion whose jumps are at the time that explains the events (S,) around them best, not spread over a bin of time or two."""
    order = np.argsort(times_s, kind="stable")
    times_s, depth_um, size = times_s[order], depth_um[order], size[order]
    far = np.abs(np.diff(motion.displacement_um, axis=0)).max(axis=1) > JUMP_UM
    starts, stops = (np.flatnonzero(np.diff(np.r_[0, far, 0]) == edge) for edge in (1, -1))
    times, displacement = motion.times_s, motion.displacement_um
    for a, b in reversed([*zip(starts, stops, strict=True)]):  # from the last one, so that places before it stay
        around = slice(*np.searchsorted(times_s, [times[a] - AROUND_S, times[b] + AROUND_S]))
        if b - a > JUMP_BINS or (at := jump_time(motion, int(a), int(b), times_s[around], depth_um[around], size[around])) is None:
            continue
        times = np.concatenate([times[: a + 1], at + AT_ONCE_S * np.array([-0.25, 0.25]), times[b:]])
        displacement = np.concatenate([displacement[: a + 1], displacement[[a, b]], displacement[b:]])
    return replace(motion, times_s=times, displacement_um=displacement)


def jump_time(motion: Motion, a: int, b: int, times_s: np.ndarray, depth_um: np.ndarray, size: np.ndarray) -> float | None:
    """The time between two of a motion's (a and b) at which the tissue jumped, by events (S,) in order of time: where they lie in tissue
    is known from those before and after, and each in between is likelier to be there by the one displacement or the other. None where
    steady movement explains them as well."""
    start, stop = motion.times_s[a], motion.times_s[b]
    between = (times_s > start) & (times_s < stop)
    if between.sum() < FEWEST_EVENTS or (~between).sum() < FEWEST_EVENTS:
        return None
    sizes = np.searchsorted(np.quantile(np.log(size), np.linspace(0, 1, SIZES + 1)[1:-1]), np.log(size))
    home = depth_um - motion.each(times_s, depth_um)
    low, n = home.min() - BEYOND_UM, int((np.ptp(home) + 2 * BEYOND_UM) / BLUR_UM) + 1
    seen = np.zeros((n, SIZES))

    def row(um: np.ndarray) -> np.ndarray:
        return np.clip(((um - low) / BLUR_UM).astype(int), 0, n - 1)

    np.add.at(seen, (row(home[~between]), sizes[~between]), 1)
    seen = gaussian_filter(seen, (1, 0.5), mode="constant")
    log_density = np.log(seen + 0.1 * seen.mean())

    def if_at(home_um: np.ndarray) -> np.ndarray:
        """Log density of the events in between, were they there in the tissue."""
        return log_density[row(home_um), sizes][between]

    by_a, by_b = (if_at(depth_um - motion.at(motion.times_s[i], depth_um)) for i in (a, b))
    ahead = np.r_[0.0, np.cumsum(by_b - by_a)]  # what the events so far gain by a jump before them
    edges, last = np.r_[start, times_s[between], stop], int(ahead.argmin())
    if by_a[:last].sum() + by_b[last:].sum() < if_at(home).sum() + SUDDEN:
        return None
    return float(np.clip(0.5 * (edges[last] + edges[last + 1]), start + 2 * AT_ONCE_S, stop - 2 * AT_ONCE_S))


def histograms(bins: np.ndarray, depth_um: np.ndarray, size: np.ndarray, n_bins: int, low: float, high: float,
               config: DriftConfig) -> np.ndarray:
    """(bins, depths, sizes) square roots of how many events there are, a little blurred."""
    edges = np.quantile(np.log(size), np.linspace(0, 1, SIZES + 1)[1:-1])
    rows = int(np.ceil((high - low) / config.step_um)) + 1
    row = np.clip(((depth_um - low) / config.step_um).astype(int), 0, rows - 1)
    out = np.zeros((n_bins, rows, SIZES))
    np.add.at(out, (bins, row, np.searchsorted(edges, np.log(size))), 1)
    return gaussian_filter(np.sqrt(gaussian_filter(out, (0, BLUR_UM / config.step_um, 0.5), mode="constant")), (0, 1, 0), mode="constant")


def registered(images: np.ndarray, config: DriftConfig, horizon: int) -> tuple[np.ndarray, float]:
    """(B,) displacement in um that best explains how images (B, rows, sizes), up to `horizon` apart, are shifted against each
    other, and by how many um pairs of them disagree with it in the median."""
    n_bins, rows, _ = images.shape
    most = min(int(config.largest_um / config.step_um), rows - 1)
    norm = np.sqrt((images**2).sum(axis=(1, 2)))
    spectra = np.fft.rfft(images / np.maximum(norm, 1e-9)[:, None, None], rows + most, axis=1).astype(np.complex64)
    shifts, weights = np.zeros((n_bins, n_bins)), np.zeros((n_bins, n_bins))

    def against_later(i: int) -> None:
        js = slice(i + 1, min(n_bins, i + 1 + horizon))
        product = np.einsum("jfs,fs->jf", spectra[js], spectra[i].conj())
        correlation = np.fft.irfft(product, rows + most, axis=1)
        around = np.concatenate([correlation[:, -most:], correlation[:, : most + 1]], axis=1)  # how much deeper bin j is than i
        best = np.clip(around.argmax(axis=1), 1, 2 * most - 1)
        left, top, right = (around[np.arange(len(best)), best + d] for d in (-1, 0, 1))
        curve = left - 2 * top + right
        shifts[i, js] = (best - most + np.where(curve < 0, 0.5 * (left - right) / np.minimum(curve, -1e-12), 0)) * config.step_um
        weights[i, js] = np.maximum(top, 0) ** 4

    deque(in_order(against_later, range(n_bins - 1)), maxlen=0)
    found = solved(shifts, weights)
    off = np.abs(found[None] - found[:, None] - shifts)[weights > 0]
    return found, float(np.median(off)) if len(off) else np.inf


def solved(shifts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B,) positions p with p[j] - p[i] = shifts[i, j] as well as weights (B, B) allow; pairs far off count less each round."""
    n, w = len(shifts), weights
    p = np.zeros(n)
    for _ in range(SOLVING_ROUNDS):
        both = w + w.T
        laplacian = np.diag(both.sum(axis=1)) - both + 1e-9 * max(both.sum(), 1e-12) * np.eye(n)
        p = np.linalg.solve(laplacian, (w * shifts).sum(axis=0) - (w * shifts).sum(axis=1))
        w = weights / (1 + ((p[None] - p[:, None] - shifts) / OFF_UM) ** 2)
    return p - np.median(p)
