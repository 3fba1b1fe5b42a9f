from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy.signal import welch

from sortcore.cells import SUBSAMPLES, draw_neuron, template_size
from sortcore.errors import ConfigError
from sortcore.probes import load_probe
from sortcore.simulate import BURST_DECAY, REFRACTORY_S, coloured_noise, delay, demo_simulation, draw_train, planted, simulate
from sortcore.types import Probe

FS = 30000.0


def line(n: int, pitch: float = 25.0) -> Probe:
    return Probe(np.column_stack([np.zeros(n), pitch * np.arange(n)]), np.zeros(n, int))


def fingerprint(simulation) -> str:
    arrays = (simulation.data, simulation.spike_samples, simulation.spike_units, simulation.spike_shifts, simulation.templates_uv)
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others():
    first, again, other = (fingerprint(simulate(line(6), 2.0, 3, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_shapes_and_order(small_simulation):
    s = small_simulation
    n_spikes, (trough, length) = len(s.spike_samples), template_size(FS)
    assert s.data.shape == (360_000, 12)
    assert s.data.dtype == np.int16
    assert s.templates_uv.shape == (6, 12, length)
    assert {len(s.spike_units), len(s.spike_shifts), len(s.spike_amplitudes)} == {n_spikes}
    assert (np.diff(s.spike_samples) >= 0).all()
    assert np.unique(s.spike_units).tolist() == list(range(6))
    assert s.spike_samples.min() >= trough
    assert s.spike_samples.max() + length - trough <= len(s.data)
    assert s.recording().read(0, 10).shape == (10, 12)


def test_troughs_are_where_and_as_deep_as_said(small_simulation):
    s = small_simulation
    best = s.templates_uv[np.arange(6), s.best_channels]
    assert (best.argmin(axis=1) == s.trough).all()
    np.testing.assert_allclose(-best.min(axis=1), s.snr * s.noise_uv, rtol=0.02)  # the deepest point lies between samples
    assert ((s.snr >= 9) & (s.snr <= 20)).all()


def test_the_mean_waveform_in_the_recording_is_the_template(small_simulation):
    s = small_simulation
    window = np.arange(s.templates_uv.shape[2]) - s.trough
    for unit in range(s.n_units):
        mine = s.spike_units == unit
        snippets = s.data[s.spike_samples[mine][:, None] + window, s.best_channels[unit]] * s.gain_uv
        mean = np.median(snippets / s.spike_amplitudes[mine][:, None], axis=0)
        template = s.templates_uv[unit, s.best_channels[unit]]
        assert mean @ template / np.linalg.norm(mean) / np.linalg.norm(template) > 0.98
        assert mean.min() == pytest.approx(template.min(), rel=0.1)


def test_recording_minus_planted_spikes_is_noise_of_the_stated_size(small_simulation):
    """The truth explains the recording to the last spike, at its sub-sample shift and amplitude."""
    s = small_simulation
    spikes = planted(s.templates_uv, s.spike_samples, s.spike_units, len(s.data), trough=s.trough, amplitudes=s.spike_amplitudes,
                     shifts=s.spike_shifts, noise_std=0.0)
    left = s.data.T * s.gain_uv - spikes
    np.testing.assert_allclose(left.std(axis=1), s.noise_uv, rtol=0.03)
    np.testing.assert_allclose(1.4826 * np.median(np.abs(left), axis=1), left.std(axis=1), rtol=0.02)  # no tails: no spike left
    assert s.data.astype(float).std(axis=0).max() * s.gain_uv > 1.1 * s.noise_uv


def test_shifts_are_spread_and_matter(small_simulation):
    s = small_simulation
    assert set(np.unique(s.spike_shifts * SUBSAMPLES).tolist()) == set(range(-SUBSAMPLES // 2, SUBSAMPLES // 2))
    wave = draw_neuron(np.random.default_rng(2), line(4), 1).waveform(line(4), FS)
    middle, late = wave.stack[SUBSAMPLES // 2].T, wave.stack[-1].T
    np.testing.assert_allclose(delay(middle, 0.5 - 1 / SUBSAMPLES), late, atol=0.01)
    assert np.abs(middle - late).max() > 0.05


def test_units_differ_and_fade_with_distance():
    s = simulate(line(24), 1.0, 10, seed=1)
    flat = s.templates_uv.reshape(10, -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    assert (flat @ flat.T - np.eye(10)).max() < 0.9
    y = s.probe.positions_um[:, 1]
    for unit, best in enumerate(s.best_channels):
        size = np.abs(s.templates_uv[unit]).max(axis=1) / np.abs(s.templates_uv[unit]).max()
        assert size[np.abs(y - y[best]) > 150].max(initial=0) < 0.12


def test_no_cell_fires_within_its_refractory_period(small_simulation):
    for unit in range(small_simulation.n_units):
        assert np.diff(small_simulation.spike_train(unit)).min() >= np.floor(REFRACTORY_S * FS)


@pytest.mark.parametrize("burst", [False, True])
@pytest.mark.parametrize("rate", [2.0, 20.0])
def test_trains_have_the_asked_rate(rate, burst):
    seconds = 2000.0
    times, place = draw_train(np.random.default_rng(7), rate, burst, seconds)
    assert len(times) / seconds == pytest.approx(rate, rel=0.08)
    assert (np.diff(times) >= REFRACTORY_S).all()
    assert times[-1] < seconds
    assert place.max() == (4 if burst else 0)
    assert (np.diff(times)[place[1:] > 0] < 0.0081).all()


def test_amplitudes_fall_within_bursts():
    s = simulate(line(4), 60.0, 1, rate_hz=(8.0, 8.0), bursting=1.0, seed=2)
    interval = np.diff(s.spike_samples) / FS
    second = np.flatnonzero((interval[1:] < 0.0085) & (interval[:-1] > 0.05)) + 2
    assert len(second) > 30
    ratio = s.spike_amplitudes[second] / s.spike_amplitudes[second - 1]
    assert np.median(ratio) == pytest.approx(BURST_DECAY, abs=0.03)


def test_noise_is_coloured_and_shared_by_neighbours_of_a_shank():
    probe = Probe(np.array([[0, 0], [0, 25], [0, 600], [10, 0]], float), np.array([0, 0, 0, 1]))
    noise = coloured_noise(np.random.default_rng(0), probe, 200_000, 5.0)
    np.testing.assert_allclose(noise.std(axis=0), 5.0, rtol=0.02)
    r = np.corrcoef(noise.T)
    assert r[0, 1] > 0.2
    assert abs(r[0, 2]) < 0.02
    assert abs(r[0, 3]) < 0.02
    frequency, power = welch(noise[:, 0], FS, nperseg=1024)
    assert power[(frequency > 300) & (frequency < 1000)].mean() > 2.5 * power[frequency > 8000].mean()
    np.testing.assert_allclose(noise[:200].std(), noise.std(), rtol=0.2)  # from the first sample on


def test_a_unit_is_seen_on_one_shank_only():
    s = simulate(load_probe("cambridge-h2"), 0.5, 8, seed=0)
    for template in s.templates_uv:
        assert len(np.unique(s.probe.shank[np.abs(template).max(axis=1) > 0])) == 1


@pytest.mark.parametrize(("n", "units", "seconds", "fs"), [(1, 1, 1.0, FS), (4, 0, 0.5, FS), (4, 2, 0.002, FS), (2, 1, 1.0, 15000.0)])
def test_small_recordings(n, units, seconds, fs):
    s = simulate(line(n), seconds, units, fs=fs, rate_hz=(20.0, 50.0))
    assert s.data.shape == (round(seconds * fs), n)
    assert s.templates_uv.shape[:2] == (units, n)
    assert len(s.snr) == units
    assert (len(s.spike_samples) > 0) == (units > 0 and seconds >= 0.5)


@pytest.mark.parametrize("bad", [{"seconds": 0.0}, {"n_units": -1}, {"noise_uv": -1.0}, {"gain_uv": 0.0}, {"snr": (0.0, 5.0)},
                                 {"snr": (9.0, 5.0)}, {"rate_hz": (1.0, 4000.0)}, {"bursting": 1.5}])
def test_arguments_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        simulate(line(2), **{"seconds": 1.0, "n_units": 1, **bad})


def test_the_demo_is_a_minute_of_clear_units():
    s = demo_simulation()
    assert s.data.shape == (1_800_000, 32)
    assert s.n_units == 12
    assert ((s.snr >= 6) & (s.snr <= 20)).all()
    assert np.bincount(s.spike_units).min() > 100


def test_planted_templates_stand_in_white_noise():
    rng = np.random.default_rng(0)
    templates = rng.standard_normal((2, 3, 20)).astype(np.float32)
    times, units, amplitudes = np.array([100, 110, 2, 498]), np.array([0, 1, 1, 0]), np.array([2.0, 1, 1, 1])
    data = planted(templates, times, units, 500, trough=8, amplitudes=amplitudes, noise_std=0)
    expected = np.zeros((3, 500), np.float32)
    expected[:, 92:112] += 2 * templates[0]
    expected[:, 102:122] += templates[1]
    expected[:, :14] += templates[1][:, 6:]
    expected[:, 490:] += templates[0][:, :10]
    np.testing.assert_allclose(data, expected, atol=1e-6)
    noise = planted(templates, np.zeros(0, int), np.zeros(0, int), 50_000, trough=8, noise_std=3.0)
    assert noise.std() == pytest.approx(3.0, rel=0.02)
    assert abs(np.corrcoef(noise[0, 1:], noise[0, :-1])[0, 1]) < 0.03


def test_a_delay_is_later_by_that_much():
    t = np.arange(64.0)
    bump = np.exp(-0.5 * ((t - 30) / 3) ** 2)
    np.testing.assert_allclose(delay(bump, 0.3), np.exp(-0.5 * ((t - 30.3) / 3) ** 2), atol=1e-6)
    np.testing.assert_allclose(delay(bump, 0.0), bump, atol=1e-12)
