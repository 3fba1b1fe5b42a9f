"""First templates: the waveforms around detected events, clustered channel by channel.

Each event belongs to the channel where it is largest; its features are its waveform on the channels around, projected on a
few principal components. Whitened noise keeps sigma = 1 in every such component, which `cluster` makes use of.
"""

from __future__ import annotations

import numpy as np

from sortcore.cluster import cluster
from sortcore.ephys.config import InitializeConfig
from sortcore.numerics import nearest_channels
from sortcore.types import Detections, Probe

MOST_EVENTS = 3000  # a channel's events beyond this many are thinned evenly


def initialize(x: np.ndarray, detections: Detections, probe: Probe, before: int, after: int, config: InitializeConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cluster the events of x (N, T) whitened.

    Returns mean waveforms (K, N, D), D = before + after + 1, in noise standard deviations, and the events in each (K,).
    """
    inside = (detections.samples >= before) & (detections.samples < x.shape[1] - after)
    samples, channels = detections.samples[inside], detections.channels[inside]
    waveforms, counts = [], []
    for c in np.unique(channels):
        mine = samples[channels == c]
        mine = mine[np.linspace(0, len(mine) - 1, min(len(mine), MOST_EVENTS)).astype(int)]
        local = nearest_channels(probe, c, config.radius_um)
        snippets = take(x, mine, local, before, after)  # (S, M, D)
        for members in split(snippets, config):
            full = np.zeros((x.shape[0], before + after + 1), np.float32)
            wide = nearest_channels(probe, c, 2 * config.radius_um)
            full[wide] = robust_mean(take(x, mine[members], wide, before, after))
            waveforms.append(full)
            counts.append(len(members))
    if not waveforms:
        return np.zeros((0, x.shape[0], before + after + 1), np.float32), np.zeros(0, np.int64)
    return np.array(waveforms), np.array(counts)


def take(x: np.ndarray, samples: np.ndarray, channels: np.ndarray, before: int, after: int) -> np.ndarray:
    """(S, M, D) float32 snippets of x (N, T) around samples (S,) on channels (M,)."""
    window = samples[:, None, None] + np.arange(-before, after + 1)
    return x[channels[None, :, None], window].astype(np.float32)


def components(snippets: np.ndarray, n: int) -> np.ndarray:
    """(S, P) projections of snippets (S, M, D) on their first principal directions; noise keeps unit variance."""
    flat = snippets.reshape(len(snippets), -1)
    centred = flat - flat.mean(axis=0)
    thin = centred[np.linspace(0, len(centred) - 1, min(len(centred), 1000)).astype(int)]
    _, _, directions = np.linalg.svd(thin, full_matrices=False)
    return centred @ directions[:n].T


def split(snippets: np.ndarray, config: InitializeConfig, depth: int = 0) -> list[np.ndarray]:
    """Indices of the members of each cluster; a cluster found is looked at again in components of its own."""
    if len(snippets) < config.min_spikes:
        return []
    n = min(config.n_components, len(snippets) - 1)
    labels = cluster(components(snippets, n), config.min_spikes)
    found = [np.flatnonzero(labels == k) for k in range(labels.max() + 1)]
    if len(found) <= 1 or depth >= 3:
        return found
    return [index[part] for index in found for part in split(snippets[index], config, depth + 1)]


def robust_mean(snippets: np.ndarray) -> np.ndarray:
    """(M, D) mean of snippets (S, M, D) without the tenth that lie furthest from the median: collisions are left out."""
    centre = np.median(snippets[:: max(1, len(snippets) // 200)], axis=0)
    distance = ((snippets - centre) ** 2).sum(axis=(1, 2))
    return snippets[distance <= np.quantile(distance, 0.9)].mean(axis=0)
