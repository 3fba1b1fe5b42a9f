"""First templates: the waveforms around detected events, clustered channel by channel.

Each event belongs to the channel where it is largest; its features are its waveform on the channels around, projected on a
few principal components. Whitened noise keeps sigma = 1 in every such component, which `cluster` makes use of.
"""

from __future__ import annotations

from functools import cache

import numba
import numpy as np

from sortcore.cluster import cluster, members
from sortcore.ephys.config import InitializeConfig
from sortcore.medians import channel_median
from sortcore.numerics import leading, nearest_channels, shift
from sortcore.types import Detections, Probe
from sortcore.workers import in_order

BASIS_SIZE = 8
DELAYS = np.arange(-8, 9) / 8  # samples
MOST_EVENTS = 3000  # a channel's events beyond this many are thinned evenly
MOST_AVERAGED = 150  # a mean of so many is as good as the fit needs to start


def initialize(x: np.ndarray, detections: Detections, probe: Probe, before: int, after: int,
               config: InitializeConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cluster the events of x (N, T) whitened.

    Returns mean waveforms (K, N, D), D = before + after + 1, in noise standard deviations, and the events in each (K,).
    """
    inside = (detections.samples >= before) & (detections.samples < x.shape[1] - after)
    samples, channels = detections.samples[inside], detections.channels[inside]
    basis = temporal_basis(x, samples, channels, before, after)

    def on_channel(c: int) -> list[tuple[np.ndarray, int]]:
        mine = samples[channels == c]
        mine = mine[np.linspace(0, len(mine) - 1, min(len(mine), MOST_EVENTS)).astype(int)]
        local, wide = (nearest_channels(probe, c, f * config.radius_um) for f in (1, 2))
        snippets = take(x, mine, local, before, after)
        delays = off_centre(snippets, basis[0])
        features = centred(snippets, delays) @ basis.T  # (S, M, B)
        found = []
        for part in split(features.reshape(len(mine), -1), config):
            full = np.zeros((x.shape[0], before + after + 1), np.float32)
            some = part[:: 1 + len(part) // MOST_AVERAGED]
            full[wide] = robust_mean(centred(take(x, mine[some], wide, before, after), delays[some]))
            found.append((full, len(part)))
        return found

    found = [pair for pairs in in_order(on_channel, np.unique(channels).tolist()) for pair in pairs]
    if not found:
        return np.zeros((0, x.shape[0], before + after + 1), np.float32), np.zeros(0, np.int64)
    return np.array([w for w, _ in found]), np.array([n for _, n in found])


def off_centre(snippets: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """(S,) by how many DELAYS snippets (S, M, D) come late: where the profile (D,), delayed by so much, holds most of their energy."""
    return ((snippets @ shift(profile, DELAYS).T) ** 2).sum(axis=1).argmax(axis=1)


def centred(snippets: np.ndarray, delays: np.ndarray) -> np.ndarray:
    """Snippets (S, M, D) each moved forward by one of DELAYS (S,)."""
    out, forward = np.empty_like(snippets), movers(snippets.shape[2])
    for i in np.unique(delays):
        out[delays == i] = snippets[delays == i] @ forward[i]
    return out


@cache
def movers(d: int) -> np.ndarray:
    """(DELAYS, D, D) matrices that move a waveform (D,) forward by each delay when it is multiplied with them."""
    return shift(np.eye(d, dtype=np.float32), -DELAYS)


def take(x: np.ndarray, samples: np.ndarray, channels: np.ndarray, before: int, after: int) -> np.ndarray:
    """(S, M, D) float32 snippets of x (N, T) around samples (S,) on channels (M,)."""
    bits = f"u{x.itemsize}"  # numba knows no half precision
    out = np.empty((len(samples), len(channels), before + after + 1), bits)
    gather(x.view(bits), samples - before, channels, out)
    return out.view(x.dtype).astype(np.float32, copy=False)


@numba.njit(cache=True, nogil=True)
def gather(x, starts, channels, out):
    for i in range(len(starts)):
        for m in range(len(channels)):
            for s in range(out.shape[2]):
                out[i, m, s] = x[channels[m], starts[i] + s]


def temporal_basis(x: np.ndarray, samples: np.ndarray, channels: np.ndarray, before: int, after: int, most: int = 4000) -> np.ndarray:
    """(B, D) leading temporal components of the events on their own channels."""
    thin = np.linspace(0, len(samples) - 1, min(len(samples), most)).astype(int)
    waves = x[channels[thin, None], samples[thin, None] + np.arange(-before, after + 1)].astype(np.float32)
    _, vectors = np.linalg.eigh(waves.T @ waves)
    return np.ascontiguousarray(vectors[:, ::-1][:, :BASIS_SIZE].T)


def components(flat: np.ndarray, n: int) -> np.ndarray:
    """(S, n) scores of features (S, F) on their leading principal directions; noise keeps unit variance."""
    centred = flat - flat.mean(axis=0)
    thin = centred[np.linspace(0, len(centred) - 1, min(len(centred), 1000)).astype(int)]
    return centred @ leading(thin, n)


def split(features: np.ndarray, config: InitializeConfig, depth: int = 0) -> list[np.ndarray]:
    """Indices of the members of each cluster of features (S, F); a cluster found is looked at again in components of its own."""
    if len(features) < config.min_spikes:
        return []
    n = min(config.n_components, len(features) - 1)
    labels = cluster(components(features, n), config.min_spikes)
    found = members(labels)
    if len(found) <= 1 or depth >= 3:
        return found
    return [index[part] for index in found for part in split(features[index], config, depth + 1)]


def robust_mean(snippets: np.ndarray) -> np.ndarray:
    """(M, D) mean of snippets (S, M, D) without the tenth that lie furthest from the median: collisions are left out."""
    some = snippets[:: 1 + len(snippets) // 30]
    centre = channel_median(some.reshape(len(some), -1)).reshape(snippets.shape[1:])
    distance = ((snippets - centre) ** 2).sum(axis=(1, 2))
    return snippets[distance <= np.quantile(distance, 0.9)].mean(axis=0)
