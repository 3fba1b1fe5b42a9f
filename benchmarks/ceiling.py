"""The ceiling with whitening in time: sortcore's own matcher, given the true mean waveforms.

What a sorter that learned every waveform perfectly would reach with this project's preprocessing and pursuit; `oracle` is the
same with SpikeInterface's matcher and whitening in space alone. For a recording that drifts, run it on the one made still.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.recordings import open_recording
from benchmarks.trains import Trains, load_truth, make_trains
from sortcore import matching
from sortcore.bank import low_rank
from sortcore.ephys import deconvolve as pursuit
from sortcore.ephys import preprocess
from sortcore.ephys.config import SortConfig
from sortcore.ephys.pipeline import template_window
from sortcore.numerics import mad, unit_norm
from sortcore.recording import Chunk, Recording
from sortcore.types import Priors

MOST_SPIKES = 1000


def run_ceiling(folder: Path, parameters: dict[str, Any]) -> Trains:
    """Find the spikes of a recording whose units' waveforms and rates are told."""
    from sorters.adapter import SpikeInterfaceRecording, probe_of

    config, known = SortConfig(**parameters), load_truth(folder).trains
    config = replace(config, preprocess=replace(config.preprocess, least_rate_hz=0.0))  # true times are of the recording's samples
    opened = open_recording(folder)
    recording = SpikeInterfaceRecording(opened)
    learned = preprocess.learn(recording, probe_of(opened), config.preprocess)
    whitener = preprocess.Whitener(learned, torch.device("cpu"))
    before, after = template_window(recording.fs, config)
    waves, priors, ids = true_waveforms(recording, whitener, known, before, after, config.fit.rank)
    matcher = matching.prepare(unit_norm(waves), priors, recording.fs, config.pursuit.subsamples, config.pursuit.amplitude_prior)
    spikes = pursuit.deconvolve(lambda c: whitener(recording, c), recording.segment_lengths, matcher, before, recording.fs, config.pursuit)
    return make_trains(spikes.samples, ids[spikes.units], known.fs, known.ids)


def true_waveforms(recording: Recording, whitener: preprocess.Whitener, known: Trains, before: int, after: int,
                   rank: int) -> tuple[np.ndarray, Priors, np.ndarray]:
    """(K, N, D) mean whitened waveforms of the units that fire, their priors, and which of `known.ids` they are."""
    n, waves, sizes, rates, ids = recording.segment_lengths[0], [], [], [], []
    for unit, train in zip(known.ids, known.split(), strict=True):
        train = train[(train > 2 * before) & (train < n - 2 * after)]
        if not len(train):
            continue
        some = train[np.linspace(0, len(train) - 1, min(len(train), MOST_SPIKES)).astype(int)]
        seen = [whitener(recording, Chunk(int(t) - before, int(t) + after + 1, 0, n)).numpy() for t in some]
        wave = low_rank(np.mean(seen, axis=0), rank, 1.0 / len(some))
        norm = float(np.linalg.norm(wave))
        if norm == 0:
            continue
        amplitudes = np.array([(s * wave).sum() for s in seen]) / norm
        waves.append(wave)
        sizes.append((norm, np.sqrt(max(float(mad(amplitudes)) ** 2 - 1, 0.25))))
        rates.append(len(train) / n * recording.fs)
        ids.append(unit)
    mean, spread = np.array(sizes).reshape(-1, 2).T
    return np.array(waves, np.float32), Priors(mean, spread, np.array(rates)), np.array(ids)
