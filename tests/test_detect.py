"""The detector: in noise it errs as often as it says, and it finds what was planted."""

import numpy as np
import pytest
import torch
from helpers_engine import FS, column

from sortcore.ephys import detect
from sortcore.ephys.config import DetectConfig
from sortcore.types import Probe

LENGTH, TROUGH = 48, 18


def prototypes():
    """(3, L) unit-norm pulses of different widths."""
    t = np.arange(LENGTH) - TROUGH
    waves = np.array([-np.exp(-0.5 * (t / w) ** 2) + 0.4 * np.exp(-0.5 * ((t - 12) / (1.5 * w)) ** 2) for w in (2.5, 4.0, 6.0)])
    return (waves / np.linalg.norm(waves, axis=1, keepdims=True)).astype(np.float32)


def bank_of(probe, config=None):
    return detect.make_bank(prototypes(), TROUGH, probe, (config or DetectConfig()).radius_um)


def noise(n, seconds, seed):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, int(seconds * FS)), dtype=np.float32))


@pytest.mark.parametrize(("probe", "rate"), [(column(8), 1.0), (column(8), 10.0), (Probe.independent(4), 2.0)])
def test_noise_is_detected_as_often_as_stated(probe, rate):
    config = DetectConfig(false_alarm_hz=rate)
    bank = bank_of(probe, config)
    expected = measured = 0.0
    for seed in range(3):
        threshold = detect.false_alarm_threshold(bank, config, FS, probe.positions_um, seed, channel_seconds=200.0)
        x = noise(probe.n_channels, 300 / probe.n_channels, 100 + seed)
        found = detect.detect_all(x, bank, threshold, config, FS, probe.positions_um)
        measured, expected = measured + len(found), expected + 300 * rate
    assert expected >= 900, "so that chance is under 4 %"
    assert measured == pytest.approx(expected, rel=0.2)


def test_the_default_rate_is_kept_too():
    config, probe = DetectConfig(), column(8)
    bank = bank_of(probe)
    threshold = detect.false_alarm_threshold(bank, config, FS, probe.positions_um, 0)
    found = sum(len(detect.detect_all(noise(8, 75, 50 + s), bank, threshold, config, FS, probe.positions_um)) for s in range(2))
    expected = 1200 * config.false_alarm_hz
    assert abs(found - expected) < 0.2 * expected + 2 * np.sqrt(expected)


def test_a_rarer_alarm_has_a_higher_threshold():
    probe = column(4)
    levels = [detect.false_alarm_threshold(bank_of(probe), DetectConfig(false_alarm_hz=hz), FS, probe.positions_um, 0, 60.0)
              for hz in (10.0, 1.0, 0.1, 0.01)]
    assert levels == sorted(levels) and 3.2 < levels[0] < levels[-1] < 8


def planted(n=8, size=12.0, per_channel=12, seed=0):
    """White noise with spikes 60 um wide on every channel of a column, their samples and channels."""
    rng = np.random.default_rng(seed)
    x = noise(n, 4.0, seed).numpy()
    waves, samples = prototypes(), 200 + np.arange(n * per_channel) * (x.shape[1] - 400) // (n * per_channel)
    channels = rng.permutation(np.repeat(np.arange(n), per_channel))
    distance = 25.0 * np.abs(np.arange(n)[:, None] - channels)
    fall = np.exp(-0.5 * (distance / 25.0) ** 2)
    fall /= np.linalg.norm(fall, axis=0)
    for i, s in enumerate(samples):
        x[:, s - TROUGH : s - TROUGH + LENGTH] += size * fall[:, i : i + 1] * waves[i % 3]
    return x, samples, channels


def test_planted_spikes_are_found_where_they_are():
    x, samples, channels = planted()
    config, probe = DetectConfig(), column(8)
    bank = bank_of(probe)
    threshold = detect.false_alarm_threshold(bank, config, FS, probe.positions_um, 0, 100.0)
    found = detect.detect_all(torch.from_numpy(x), bank, threshold, config, FS, probe.positions_um)
    gap = np.abs(found.samples[:, None] - samples).min(axis=1)
    assert (gap > LENGTH).sum() <= 4, "what is far from all spikes is noise"
    nearest = np.abs(found.samples[:, None] - samples).argmin(axis=0)
    assert np.abs(found.samples[nearest] - samples).max() <= 3
    assert (np.abs(found.channels[nearest] - channels) <= 1).all() and (found.channels[nearest] == channels).mean() > 0.85
    assert found.scores[nearest].mean() == pytest.approx(12, abs=1.0), "a matched filter gives the norm of the spike"
    assert (np.diff(found.samples) >= 0).all() and (found.scores > threshold).all()


def test_a_spike_upside_down_is_found_too():
    x, samples, _ = planted(size=-12.0)
    probe = column(8)
    found = detect.detect_all(torch.from_numpy(x), bank_of(probe), 5.5, DetectConfig(), FS, probe.positions_um)
    assert (np.abs(found.samples[:, None] - samples).min(axis=0) <= 3).all()


def test_two_spikes_at_once_are_two_where_they_are_far_apart():
    x = noise(12, 0.2, 3).numpy()
    for channel in (1, 10):
        x[channel, 1000 - TROUGH : 1000 - TROUGH + LENGTH] += 15 * prototypes()[1]
    probe = column(12)
    found = detect.detect_all(torch.from_numpy(x), bank_of(probe), 6.0, DetectConfig(), FS, probe.positions_um)
    there = np.abs(found.samples - 1000) <= 1  # further on are the echoes of a filter that matches part of a waveform
    assert sorted(found.channels[there].tolist()) == [1, 10] and found.scores[~there].max(initial=0) < 0.6 * found.scores[there].min()


def test_shanks_do_not_see_each_other():
    probe = Probe(np.zeros((2, 2)) + [[0, 0], [10, 0]], np.array([0, 1]))
    bank = detect.make_bank(prototypes(), TROUGH, probe, 75.0)
    assert bank.near.shape == (2, 1) and bank.near.ravel().tolist() == [0, 1]


def test_the_bank_has_unit_norm():
    bank = bank_of(column(6))
    np.testing.assert_allclose(np.linalg.norm(bank.profiles, axis=2), 1, rtol=1e-5)
    assert bank.near[0, 0] == 0 and (bank.near[0] >= 0).sum() == 5, "channels within 100 um, the own one first"
    assert not bank.profiles[0][:, bank.near[0] < 0].any()


def test_chunks_change_nothing():
    x, *_ = planted()
    config, probe = DetectConfig(), column(8)
    bank = bank_of(probe)
    whole = detect.detect(torch.from_numpy(x), bank, 4.5, config, FS, probe.positions_um)
    parts = detect.detect_all(torch.from_numpy(x), bank, 4.5, config, FS, probe.positions_um)
    assert len(whole) > 90
    inside = {(s, c) for s, c in zip(whole.samples.tolist(), whole.channels.tolist(), strict=True)}
    again = {(s, c) for s, c in zip(parts.samples.tolist(), parts.channels.tolist(), strict=True)}
    assert len(again) == len(parts), "no event twice"
    assert inside == again


@pytest.mark.parametrize("offset", range(-4, 5))
def test_a_spike_at_a_chunk_edge_is_one_event(offset):
    x = 0.5 * noise(3, 2.5, 1).numpy()
    start = int(FS) + offset  # the score's sample, by which the recording is cut
    x[1, start : start + LENGTH] += 15 * prototypes()[1]
    probe = column(3)
    found = detect.detect_all(torch.from_numpy(x), bank_of(probe), 6.0, DetectConfig(), FS, probe.positions_um)
    inner = detect.detect(torch.from_numpy(x[:, 20000:40000].copy()), bank_of(probe), 6.0, DetectConfig(), FS, probe.positions_um)
    assert inner.samples[0] + 20000 == pytest.approx(start + TROUGH, abs=1)
    assert found.samples.tolist() == (inner.samples + 20000).tolist(), "cut elsewhere, the same events"


@pytest.mark.parametrize("length", [0, 10, LENGTH - 1, LENGTH, 1000])
def test_silence_and_short_data_hold_no_event(length):
    probe = column(3)
    found = detect.detect_all(torch.zeros(3, length), bank_of(probe), 5.0, DetectConfig(), FS, probe.positions_um)
    assert len(found) == 0 and found.samples.dtype == np.int64


def test_prototypes_are_learned_from_the_large_events():
    x = noise(4, 8.0, 0).numpy()
    waves = prototypes()
    for i, s in enumerate(range(300, x.shape[1] - 300, 900)):
        x[i % 4, s - TROUGH : s - TROUGH + LENGTH] += 30 * waves[i % 3]
    learned, trough = detect.learn_prototypes(x, TROUGH, LENGTH - TROUGH - 1, 0)
    assert learned.shape == (detect.N_PROTOTYPES, LENGTH) and trough == TROUGH
    np.testing.assert_allclose(np.linalg.norm(learned, axis=1), 1, rtol=1e-5)
    assert (np.abs(waves @ learned.T).max(axis=1) > 0.95).all(), "each true waveform has a prototype like it"
    assert np.array_equal(learned, detect.learn_prototypes(x, TROUGH, LENGTH - TROUGH - 1, 0)[0])


def test_without_events_the_prototypes_are_pulses():
    learned, trough = detect.learn_prototypes(np.zeros((2, 5000), np.float32), 18, 30, 0)
    assert trough == 18 and np.abs(learned).argmax(axis=1).tolist() == [18] * len(learned)
    np.testing.assert_allclose(np.linalg.norm(learned, axis=1), 1, rtol=1e-5)
