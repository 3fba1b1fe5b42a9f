"""The matched-filter detector.

The data are correlated with a bank of unit-norm waveforms, each a temporal prototype times a spatial profile around a
channel. Under white noise every score is N(0, 1), so the largest over the bank is the square root of twice the generalised
log likelihood ratio of "a spike of some amplitude is here" against "noise alone" (Neyman and Pearson; Kay 1998, ch. 7).
The threshold is the score that pure noise exceeds at the stated rate, measured on simulated white noise.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numba
import numpy as np
import torch

from sortcore.ephys.config import DetectConfig
from sortcore.numerics import BLOCK, correlate, unit_norm
from sortcore.progress import Track, silent
from sortcore.recording import Chunk, chunks
from sortcore.types import Detections, Probe
from sortcore.workers import in_order, over_recording

GATE = 3.0  # a sample is looked at only where one channel alone scores this much
SIZES_UM = (0.0, 20.0, 45.0)  # spatial profiles: one channel, and Gaussians of these widths
LOWEST_THRESHOLD = 3.0  # of the detector on simulated noise
N_PROTOTYPES = 4
CHUNK_SECONDS = 0.25  # worked on at once: short, so that memory is used again rather than asked for anew
OWN = threading.local()
SEED_SD = 5.0  # single-channel troughs beyond this teach the prototypes


@dataclass(frozen=True)
class Bank:
    """Unit-norm waveforms: prototypes (P, L) in time; around each channel, profiles (N, G, M) over near channels (N, M).

    near is padded with -1, profiles with 0. trough is the prototypes' trough sample.
    """

    prototypes: np.ndarray
    near: np.ndarray
    profiles: np.ndarray
    trough: int


def make_bank(prototypes: np.ndarray, trough: int, probe: Probe, radius_um: float) -> Bank:
    """The bank of all prototypes at all channels and sizes."""
    distance = np.linalg.norm(probe.positions_um[:, None] - probe.positions_um[None], axis=2)
    close = (distance <= radius_um) & (probe.shank[:, None] == probe.shank[None])
    width = close.sum(axis=1).max()
    near = np.full((probe.n_channels, width), -1, np.int64)
    profiles = np.zeros((probe.n_channels, len(SIZES_UM), width), np.float32)
    for c in range(probe.n_channels):
        local = np.flatnonzero(close[c])
        local = local[np.argsort(distance[c, local], kind="stable")]
        near[c, : len(local)] = local
        for g, size in enumerate(SIZES_UM):
            fall = np.exp(-0.5 * (distance[c, local] / size) ** 2) if size else (local == c).astype(float)
            profiles[c, g, : len(local)] = fall / np.linalg.norm(fall)
    return Bank(prototypes.astype(np.float32), near, profiles, trough)


def learn_prototypes(x: np.ndarray, before: int, after: int, seed: int) -> tuple[np.ndarray, int]:
    """(P, L) unit-norm single-channel waveforms and their trough, by k-means of the largest events of x (N, T).

    Falls back to a band-limited pulse where there are too few events to learn from.
    """
    waves = seed_waveforms(x, before, after)
    if len(waves) < 5 * N_PROTOTYPES:
        t = np.arange(-before, after + 1) / max(before, 1)
        pulses = [-(1 - (t / w) ** 2) * np.exp(-0.5 * (t / w) ** 2) for w in (0.15, 0.3)]
        return unit_norm(np.array(pulses)[:, None])[:, 0].astype(np.float32), before
    rng = np.random.default_rng(seed)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    centres = waves[rng.choice(len(waves), N_PROTOTYPES, replace=False)]
    for _ in range(20):
        similarity = waves @ centres.T
        label = np.abs(similarity).argmax(axis=1)
        sign = np.sign(similarity[np.arange(len(waves)), label])
        for p in range(N_PROTOTYPES):
            if (label == p).any():
                centres[p] = (waves[label == p] * sign[label == p, None]).sum(axis=0)
        centres = unit_norm(centres[:, None])[:, 0]
    return centres.astype(np.float32), before


def seed_waveforms(x: np.ndarray, before: int, after: int, most: int = 20000) -> np.ndarray:
    """(S, before + after + 1) waveforms at large local extrema of single channels."""
    size = np.abs(x)
    inner = size[:, 1:-1]
    peak = (inner > SEED_SD) & (inner >= size[:, :-2]) & (inner > size[:, 2:])
    channel, sample = np.nonzero(peak)
    sample = sample + 1
    inside = (sample >= before) & (sample < x.shape[1] - after)
    channel, sample = channel[inside], sample[inside]
    # the largest extremum within a template's length stands for the event
    keep = size[channel, sample] >= np.array([size[c, s - before : s + after + 1].max() for c, s in zip(channel, sample, strict=True)])
    channel, sample = channel[keep][:most], sample[keep][:most]
    return x[channel[:, None], sample[:, None] + np.arange(-before, after + 1)].astype(np.float32)


def detect(x: torch.Tensor, bank: Bank, threshold: float, config: DetectConfig, fs: float, positions_um: np.ndarray,
           space: torch.Tensor | None = None) -> Detections:
    """Local maxima in space and time of the bank's score over x (N, T) whitened.

    Events whose template would reach past the ends are left to the neighbouring chunk. space: memory to work in.
    """
    blocks = correlate(x, torch.from_numpy(bank.prototypes), space).numpy()  # (n_blocks, N, P, BLOCK)
    n_valid = max(0, x.shape[1] - bank.prototypes.shape[1] + 1)
    channel, sample, score = candidates(blocks, n_valid, bank.near, bank.profiles, np.float32(min(GATE, threshold)), np.float32(threshold))
    order = np.lexsort((channel, sample))
    channel, sample, score = channel[order], sample[order], score[order]
    keep = largest_nearby(channel, sample, score, positions_um, config.radius_um, max(1, int(config.dead_time_ms * fs / 1000)))
    return Detections(sample[keep] + bank.trough, channel[keep], score[keep])


def detect_all(x: torch.Tensor, bank: Bank, threshold: float, config: DetectConfig, fs: float, positions_um: np.ndarray,
               track: Track = silent) -> Detections:
    """`detect` over a long x (N, T), chunk by chunk."""
    length, size = bank.prototypes.shape[1], int(CHUNK_SECONDS * fs)
    margin = 4 * length  # farther than chains of events within each other's dead time reach
    pieces = list(chunks((max(x.shape[1] - length + 1, 0),), size))
    most = len(x) * len(bank.prototypes) * (size + 2 * margin + BLOCK)

    def look(piece: tuple[Chunk, int, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        c, low, part = piece
        d = detect(torch.from_numpy(part).to(torch.float32), bank, threshold, config, fs, positions_um, own_memory(most))
        scored = d.samples + low - bank.trough
        own = (scored >= c.start) & (scored < c.stop)
        return d.samples[own] + low, d.channels[own], d.scores[own]

    def piece(c: Chunk) -> tuple[Chunk, int, np.ndarray]:
        low, high = max(c.first, c.start - margin), min(c.last, c.stop + margin)
        return c, low, x[:, low : high + length - 1].numpy(force=True)  # a view, not a copy, but all that travels

    found = list(track(over_recording(look, [piece(c) for c in pieces]), "detect", len(pieces)))
    if not found:
        return Detections(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    return Detections(*(np.concatenate(part) for part in zip(*found, strict=True)))


def own_memory(most: int) -> torch.Tensor:
    """Memory of at least `most` values that this thread has for itself: the system takes long to give new."""
    if getattr(OWN, "space", None) is None or len(OWN.space) < most:
        OWN.space = torch.empty(most)
    return OWN.space


@numba.njit(cache=True, nogil=True)
def candidates(scores, n_samples, near, profiles, gate, threshold):
    """Channel, sample and score where the bank exceeds the threshold at a local maximum in time of one channel's own score."""
    n_blocks, n_channels, n_prototypes, size = scores.shape
    n_sizes, width = profiles.shape[1:]
    found_t = [np.empty(0, np.int64) for _ in range(n_channels)]
    found_s = [np.empty(0, np.float32) for _ in range(n_channels)]
    for c in range(n_channels):
        own = np.zeros(n_blocks * size, np.float32)
        for j in range(n_blocks):
            for p in range(n_prototypes):
                for i in range(size):
                    own[j * size + i] = max(own[j * size + i], abs(scores[j, c, p, i]))
        times, values = np.empty(n_samples, np.int64), np.empty(n_samples, np.float32)
        count = 0
        for t in range(n_samples):
            if own[t] < gate:
                continue
            if (t > 0 and own[t - 1] > own[t]) or (t + 1 < n_samples and own[t + 1] >= own[t]):
                continue
            best, j, i = np.float32(0), t // size, t % size
            for p in range(n_prototypes):
                for g in range(n_sizes):
                    total = np.float32(0)
                    for m in range(width):
                        if near[c, m] < 0:
                            break
                        total += profiles[c, g, m] * scores[j, near[c, m], p, i]
                    best = max(best, abs(total))
            if best > threshold:
                times[count], values[count] = t, best
                count += 1
        found_t[c], found_s[c] = times[:count].copy(), values[:count].copy()
    n_found = 0
    for c in range(n_channels):
        n_found += len(found_t[c])
    channel, sample, score = np.empty(n_found, np.int64), np.empty(n_found, np.int64), np.empty(n_found, np.float32)
    at = 0
    for c in range(n_channels):
        for i in range(len(found_t[c])):
            channel[at], sample[at], score[at] = c, found_t[c][i], found_s[c][i]
            at += 1
    return channel, sample, score


@numba.njit(cache=True, nogil=True)
def largest_nearby(channel, sample, score, positions_um, radius_um, dead):
    """Keep the events (sorted by time) that no larger event within the radius and dead time outdoes."""
    keep = np.ones(len(sample), np.bool_)
    for i in range(len(sample)):
        j = i + 1
        while j < len(sample) and sample[j] - sample[i] <= dead:
            dx = positions_um[channel[i], 0] - positions_um[channel[j], 0]
            dy = positions_um[channel[i], 1] - positions_um[channel[j], 1]
            if dx * dx + dy * dy <= radius_um * radius_um:
                if score[j] > score[i]:
                    keep[i] = False
                else:
                    keep[j] = False
            j += 1
    return keep


def false_alarm_threshold(bank: Bank, config: DetectConfig, fs: float, positions_um: np.ndarray, seed: int,
                          channel_seconds: float = 1200.0) -> float:
    """Score that white noise exceeds at the stated rate per channel and second.

    The tail of the largest of many correlated Gaussians falls as exp(-u^2 / 2) times a slow factor (Rice 1944), so log rate
    is fitted as a straight line in u^2 through the exceedances of simulated noise and read off at the stated rate.
    """
    n = len(positions_um)
    length = bank.prototypes.shape[1]
    parts = max(1, round(channel_seconds / n / CHUNK_SECONDS))
    duration = parts * CHUNK_SECONDS

    def look(seeds: np.random.SeedSequence) -> np.ndarray:
        noise = np.random.default_rng(seeds).standard_normal((n, int(CHUNK_SECONDS * fs) + length - 1), dtype=np.float32)
        return detect(torch.from_numpy(noise), bank, LOWEST_THRESHOLD, config, fs, positions_um).scores

    tail = np.sort(np.concatenate(list(in_order(look, np.random.SeedSequence(seed).spawn(parts)))))[::-1].astype(np.float64)
    count = np.arange(1, len(tail) + 1)
    stated = config.false_alarm_hz * duration * n
    # from around the stated rate up to five times it: further down, near events already suppress each other
    used = (count >= 10) & (count <= max(5 * stated, 500)) & (count <= 0.5 * len(tail))
    if used.sum() < 20:
        return float(np.sqrt(2 * np.log(fs / config.false_alarm_hz)))  # Rice's rate of one score, where noise gave too few events
    slope, intercept = np.polyfit(tail[used] ** 2, np.log(count[used]), 1, w=count[used] ** 0.25)
    return float(np.sqrt(max(0.0, (np.log(stated) - intercept) / slope)))
