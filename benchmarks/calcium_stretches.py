"""Stretches of simulated and recorded cells for training the calcium network: what it is given of them, and their spike counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.calcium_cells import between, draw_trace
from sortcore.optical.inputs import average_frames, frames_averaged, standardise

VARIANTS = 6  # of each recording
STRETCH = 1024  # frames
HALF = 2 * STRETCH  # of a simulated trace


@dataclass(frozen=True)
class Recording:
    dataset: str
    neuron: int
    fs: float
    dff: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Bank:
    """Stretches to train on: inputs (n, 6, STRETCH), counts (n, STRETCH), features (n, F), fs (n,), frames (n,); rows of one
    cell in `groups`, with the chance that a cell is drawn and the data set that it is from."""

    inputs: np.ndarray
    counts: np.ndarray
    features: np.ndarray
    fs: np.ndarray
    frames: np.ndarray
    groups: list[np.ndarray]
    chance: np.ndarray
    datasets: list[str]

    def without(self, datasets: Sequence[str]) -> Bank:
        """The bank less the cells of some data sets."""
        keep = [i for i, dataset in enumerate(self.datasets) if dataset not in datasets]
        chance = self.chance[keep]
        return replace(self, groups=[self.groups[i] for i in keep], chance=chance / chance.sum(), datasets=[self.datasets[i] for i in keep])

    def draw(self, rng: np.random.Generator, n_pairs: int) -> list[np.ndarray]:
        cells = rng.choice(len(self.groups), n_pairs, p=self.chance)
        rows = np.concatenate([rng.choice(self.groups[c], 2, replace=len(self.groups[c]) < 2) for c in cells])
        return [values[rows].astype(np.float32) for values in (self.inputs, self.counts, self.features, self.fs, self.frames)]


def read_truth(path: Path) -> list[Recording]:
    with np.load(path) as z:
        dff, spikes, cuts, spike_cuts = z["dff"], z["spike_times_s"], z["dff_offsets"], z["spike_offsets"]
        out = []
        for i, (fs, dataset, neuron) in enumerate(zip(z["fs"], z["dataset"], z["neuron"], strict=True)):
            trace = dff[cuts[i] : cuts[i + 1]].astype(np.float64)
            edges = (np.arange(len(trace) + 1) - 0.5) / fs
            counts = np.histogram(spikes[spike_cuts[i] : spike_cuts[i + 1]], edges)[0]
            out.append(Recording(str(dataset), int(neuron), float(fs), trace, counts.astype(np.float64)))
    return out


def simulated_bank(n_cells: int, seed: int) -> Bank:
    rng = np.random.default_rng(seed)
    stretches = []
    for _ in range(n_cells):
        trace, counts, fs = draw_trace(rng, 2 * HALF)
        for half in (slice(0, HALF), slice(HALF, None)):  # as two recordings of a cell, which fires more in one
            stretches.extend(cut(trace[half], counts[half], fs, 1))
    return gather(stretches, np.arange(len(stretches)).reshape(n_cells, -1), ["simulated"] * n_cells)


def recorded_bank(recordings: Sequence[Recording], seed: int, variants: int = VARIANTS) -> Bank:
    """Every recording as it is and in variants: faster or slower, of fewer frames a second, brighter or dimmer, noisier."""
    rng = np.random.default_rng(seed)
    stretches: list[tuple] = []
    rows: dict[tuple[str, int, int], list[int]] = {}
    for variant in range(variants):
        for recording in recordings:
            new = list(cut(*varied(recording, rng, variant)))
            rows.setdefault((recording.dataset, recording.neuron, variant), []).extend(range(len(stretches), len(stretches) + len(new)))
            stretches.extend(new)
    return gather(stretches, [np.array(r) for r in rows.values()], [key[0] for key in rows])


def varied(recording: Recording, rng: np.random.Generator, variant: int) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Trace, counts, fs and how many frames to average."""
    dff, fs = recording.dff, recording.fs
    if variant == 0:
        return dff, recording.counts, fs, frames_averaged(fs)
    cell = np.random.default_rng((recording.neuron, variant))  # the recordings of a cell are as bright as each other
    fs *= float(np.exp(rng.uniform(-0.35, 0.35)))
    n = frames_averaged(fs)
    if rng.random() < 0.3 and fs / n > 9:
        n *= int(rng.integers(2, 4))
    dff = dff * np.exp(cell.uniform(-0.3, 0.3))
    if rng.random() < 0.5:
        noise = np.median(np.abs(np.diff(dff))) / 0.954
        dff = dff + rng.standard_normal(len(dff)) * noise * between(rng, 0.3, 4)
    return dff, recording.counts, fs, n


def cut(trace: np.ndarray, counts: np.ndarray, fs: float, n: int) -> Iterable[tuple]:
    """Stretches of a recording, each overlapping the next by a quarter; the summary is that of the recording."""
    inputs, features = standardise(average_frames(trace, n), fs / n)
    summed = average_frames(np.concatenate([counts, np.zeros(-len(counts) % n)]), n) * n
    last = max(0, len(summed) - STRETCH)
    for start in sorted({*range(0, last, 3 * STRETCH // 4), last}):
        part, spikes = inputs[:, start : start + STRETCH], summed[start : start + STRETCH]
        short = STRETCH - len(spikes)
        yield np.pad(part, ((0, 0), (0, short))).astype(np.float16), np.pad(spikes, (0, short)), features, fs / n, len(spikes)


def gather(stretches: list[tuple], groups: Iterable[np.ndarray], datasets: list[str]) -> Bank:
    """The bank of some stretches; a data set of n cells is drawn as the square root of n."""
    inputs, counts, features, fs, frames = (np.array(values) for values in zip(*stretches, strict=True))
    chance = np.array([1 / np.sqrt(datasets.count(dataset)) for dataset in datasets])
    return Bank(inputs, counts.astype(np.uint8), features, fs, frames, list(groups), chance / chance.sum(), datasets)
