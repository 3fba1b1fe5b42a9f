"""First templates: every unit that was planted is among them, small ones too."""

import numpy as np
import pytest
from helpers_engine import AFTER, BEFORE, D, column, cosines, plant, random_trains, unit_waveforms

from sortcore.ephys.config import InitializeConfig
from sortcore.ephys.initialize import components, initialize, robust_mean, split, take
from sortcore.types import Detections

T = 120_000


def events(waves, starts, units):
    """Detections at the true times, on each unit's largest channel."""
    channels = (waves**2).sum(axis=2).argmax(axis=1)[units]
    order = np.lexsort((channels, starts))
    return Detections(starts[order] + BEFORE, channels[order], np.full(len(starts), 20.0, np.float32))


def planted(sizes, counts, n_channels=8, seed=0):
    """Units of given norms and numbers of spikes."""
    k = len(sizes)
    waves = unit_waveforms(k, n_channels, seed=seed)
    starts, units = random_trains(k, max(counts), T, seed)
    keep = np.concatenate([np.flatnonzero(units == u)[:: max(counts) // n][:n] for u, n in enumerate(counts)])
    keep.sort()
    starts, units = starts[keep], units[keep]
    amplitudes = np.random.default_rng(seed).normal(1, 0.08, len(units)) * np.array(sizes, float)[units]
    return plant(waves, starts, units, amplitudes, T, seed=seed), waves, starts, units


def test_every_unit_is_among_the_first_templates():
    sizes = [20, 15, 25, 18]
    x, waves, starts, units = planted(sizes, [200] * 4)
    found, counts = initialize(x, events(waves, starts, units), column(8), BEFORE, AFTER, InitializeConfig())
    assert found.shape[1:] == (8, D) and found.dtype == np.float32 and len(counts) == len(found)
    match = cosines(found, waves)
    assert (match.max(axis=1) > 0.98).all()
    best = match.argmax(axis=1)
    np.testing.assert_allclose(np.linalg.norm(found[best], axis=(1, 2)), sizes, rtol=0.1)
    assert (counts[best] > 100).all() and counts.sum() <= len(starts)


def test_a_small_unit_is_kept():
    x, waves, starts, units = planted([20, 12, 20], [300, 15, 300])
    found, counts = initialize(x, events(waves, starts, units), column(8), BEFORE, AFTER, InitializeConfig())
    match = cosines(found, waves)
    assert match[1].max() > 0.85, "the mean of 15 spikes has noise of its own"
    assert 10 <= counts[match[1].argmax()] <= 20


def test_two_units_of_one_channel_are_two():
    waves = unit_waveforms(2, 3, reach=1, seed=3)
    other = -waves[0] * np.hanning(D).astype(np.float32)  # the same place, upside down
    waves = np.stack([waves[0], other / np.linalg.norm(other)])
    starts, units = random_trains(2, 150, T)
    x = plant(waves, starts, units, np.full(len(units), 18.0), T)
    channel = (waves[0] ** 2).sum(axis=1).argmax()
    detections = Detections(starts + BEFORE, np.full(len(starts), channel), np.full(len(starts), 18, np.float32))
    found, _ = initialize(x, detections, column(3), BEFORE, AFTER, InitializeConfig())
    assert len(found) >= 2 and (cosines(found, waves).max(axis=1) > 0.98).all()


def test_noise_events_are_no_unit_of_many_shapes():
    x = plant(np.zeros((1, 4, D), np.float32), np.zeros(0, int), np.zeros(0, int), np.zeros(0), T)
    samples = np.arange(500, T - 500, 500)
    detections = Detections(samples, np.zeros(len(samples), int), np.full(len(samples), 5, np.float32))
    found, _ = initialize(x, detections, column(4), BEFORE, AFTER, InitializeConfig())
    assert len(found) <= 2 and np.linalg.norm(found, axis=(1, 2)).max() < 2.5


def test_no_events_no_templates():
    none = Detections(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    found, counts = initialize(np.zeros((4, 1000), np.float32), none, column(4), BEFORE, AFTER, InitializeConfig())
    assert found.shape == (0, 4, D) and counts.shape == (0,)


def test_events_at_the_ends_are_left_out():
    x = plant(np.zeros((1, 2, D), np.float32), np.zeros(0, int), np.zeros(0, int), np.zeros(0), 500)
    detections = Detections(np.array([0, 3, 497]), np.zeros(3, np.int64), np.ones(3, np.float32))
    assert len(initialize(x, detections, column(2), BEFORE, AFTER, InitializeConfig())[0]) == 0


def test_the_same_events_give_the_same_templates():
    x, waves, starts, units = planted([20, 15, 18], [60] * 3)
    one, two = (initialize(x, events(waves, starts, units), column(8), BEFORE, AFTER, InitializeConfig()) for _ in range(2))
    assert one[0].tobytes() == two[0].tobytes() and np.array_equal(one[1], two[1])


def test_take_cuts_snippets_out(rng):
    x = rng.standard_normal((4, 100)).astype(np.float32)
    out = take(x, np.array([30, 50]), np.array([2, 0]), 5, 7)
    assert out.shape == (2, 2, 13)
    assert np.array_equal(out[1, 0], x[2, 45:58]) and np.array_equal(out[0, 1], x[0, 25:38])


def test_components_keep_unit_noise(rng):
    flat = rng.standard_normal((3000, 40)).astype(np.float32)
    flat[:, 0] += 10 * rng.standard_normal(3000)
    scores = components(flat, 5)
    assert scores.shape == (3000, 5) and scores[:, 0].std() == pytest.approx(10, rel=0.05)
    np.testing.assert_allclose(scores[:, 1:].std(axis=0), 1, atol=0.15)


def test_split_leaves_few_points_alone():
    assert split(np.zeros((3, 10), np.float32), InitializeConfig(min_spikes=7)) == []


def test_the_mean_leaves_collisions_out(rng):
    snippets = rng.standard_normal((100, 2, 10))
    snippets[::20] += 500
    assert np.abs(robust_mean(snippets)).max() < 0.6
