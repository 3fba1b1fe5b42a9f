"""Pursuit over a whole recording: where it is cut into chunks changes nothing."""

import numpy as np
import pytest
import torch
from helpers_engine import BEFORE, FS, D, flat_priors, pair, plant, random_trains, unit_waveforms

from sortcore import matching
from sortcore.ephys import deconvolve as stage
from sortcore.ephys.config import PursuitConfig
from sortcore.recording import Chunk
from sortcore.types import Priors

T = 60_000
SIZES = [1500, 1501, 2111, 5000, 30_000]


def source(x):
    tensor = torch.from_numpy(x)
    return lambda chunk: tensor[:, chunk.start : chunk.stop].clone()


def run(x, matcher, size, lengths=None):
    config = PursuitConfig(chunk_seconds=size / FS)
    return stage.deconvolve(source(x), lengths or (x.shape[1],), matcher, BEFORE, FS, config)


@pytest.fixture(scope="module")
def case():
    """Five units that overlap in space and time: data, waveforms, true trough samples and units."""
    waves = unit_waveforms(5, 8)
    starts, units = random_trains(5, 120, T)
    amplitudes = np.random.default_rng(2).normal(25, 2, len(starts))
    x = plant(waves, starts, units, amplitudes, T)
    return x, waves, starts + BEFORE, units


@pytest.mark.parametrize("size", SIZES)
def test_one_chunk_equals_many(case, size):
    x, waves, samples, units = case
    matcher = matching.prepare(waves, flat_priors(5, 25.0, 3.0), FS)
    whole, parts = run(x, matcher, T), run(x, matcher, size)
    assert np.array_equal(whole.units, parts.units) and np.array_equal(whole.samples, parts.samples)
    np.testing.assert_allclose(parts.shifts, whole.shifts, atol=0.126)
    np.testing.assert_allclose(parts.amplitudes, whole.amplitudes, rtol=1e-3)
    np.testing.assert_allclose(parts.scores, whole.scores, rtol=1e-2, atol=0.1)
    assert pair(samples, units, parts.samples, parts.units, 3) > 0.99 * len(samples)
    assert len(parts) < 1.01 * len(samples)


@pytest.mark.parametrize("offset", [-D, -BEFORE - 1, -BEFORE, -5, -3, -2, -1, 0, 1, 2, 3, 5, D - BEFORE])
def test_spikes_across_edges_are_neither_lost_nor_doubled(offset):
    size, n_edges = 1500, 20
    waves = unit_waveforms(3, 6)
    edges = size * np.arange(1, n_edges + 1)
    samples = np.repeat(edges + offset, 2)  # on every edge, two units that share channels, half a millisecond apart
    samples[1::2] += 15
    units = np.tile([0, 2, 1, 0, 2, 1], n_edges)[: len(samples)]
    x = plant(waves, samples - BEFORE, units, np.full(len(samples), 25.0), size * (n_edges + 1) + 17, seed=offset + D)
    found = run(x, matching.prepare(waves, flat_priors(3, 25.0, 3.0), FS), size)
    assert len(found) == len(samples)
    assert pair(samples, units, found.samples, found.units, 2) == len(samples)


def test_segments_do_not_see_each_other():
    waves = unit_waveforms(2, 4)
    lengths = (5000, 4000, 30, 6000)
    bounds = np.cumsum((0, *lengths))
    pieces = [plant(waves, np.array([1000, 2000]), np.array([0, 1]), np.full(2, 25.0), n, seed=i) for i, n in enumerate(lengths)]
    matcher = matching.prepare(waves, flat_priors(2, 25.0, 3.0), FS)
    asked: list[Chunk] = []
    x = np.concatenate(pieces, axis=1)

    def whitened(chunk):
        asked.append(chunk)
        assert chunk.first <= chunk.start < chunk.stop <= chunk.last
        return source(x)(chunk)

    found = stage.deconvolve(whitened, lengths, matcher, BEFORE, FS, PursuitConfig(chunk_seconds=0.05))
    expected = np.concatenate([[b + 1000 + BEFORE, b + 2000 + BEFORE] for b, n in zip(bounds, lengths, strict=False) if n > 2500])
    assert len(found) == 6 and np.abs(found.samples - expected).max() <= 1
    assert {c.first for c in asked} == set(bounds[:-1].tolist())


def test_a_waveform_half_in_each_of_two_segments_is_no_spike():
    waves = unit_waveforms(1, 3)
    x = plant(waves, np.array([5000 - BEFORE]), np.array([0]), np.array([25.0]), 10_000)
    matcher = matching.prepare(waves, flat_priors(1, 25.0, 3.0), FS)
    assert len(run(x, matcher, 10_000)) == 1
    found = run(x, matcher, 10_000, (5000, 5000))
    assert not len(found) or np.abs(found.samples - 5000).min() > D


def test_no_units_no_spikes():
    matcher = matching.prepare(np.zeros((0, 4, D), np.float32), Priors(*(np.zeros(0),) * 3), FS)
    assert len(run(np.zeros((4, 5000), np.float32), matcher, 2000)) == 0


@pytest.mark.parametrize("length", [1, D - 1, D, 100])
def test_silence_and_short_recordings_hold_no_spike(length):
    matcher = matching.prepare(unit_waveforms(2, 4), flat_priors(2), FS)
    assert len(run(np.zeros((4, length), np.float32), matcher, 2000)) == 0


def test_spikes_at_the_very_ends_lie_inside(case):
    _, waves, *_ = case
    starts, units = np.array([1, 4000 - D - 1]), np.array([0, 3])
    x = plant(waves, starts, units, np.full(2, 30.0), 4000)
    found = run(x, matching.prepare(waves, flat_priors(5, 30.0, 4.0), FS), 4000)
    assert pair(starts + BEFORE, units, found.samples, found.units, 2) == 2
    assert found.samples.min() >= 0 and found.samples.max() < 4000


def test_spikes_come_in_order_of_time_and_repeat(case):
    x, waves, *_ = case
    matcher = matching.prepare(waves, flat_priors(5, 25.0, 3.0), FS)
    one, two = run(x, matcher, 5000), run(x, matcher, 5000)
    assert (np.diff(one.samples) >= 0).all() and one.samples.dtype == np.int64
    for name in ("samples", "shifts", "units", "amplitudes", "scores"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()


@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_number_of_threads_changes_no_byte(case, threads, monkeypatch):
    x, waves, *_ = case
    matcher = matching.prepare(waves, flat_priors(5, 25.0, 3.0), FS)
    usual = run(x, matcher, 5000)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    again = run(x, matcher, 5000)
    assert usual.samples.tobytes() == again.samples.tobytes() and usual.amplitudes.tobytes() == again.amplitudes.tobytes()
