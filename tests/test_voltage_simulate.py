"""Simulated voltage traces are what their settings say."""

import numpy as np
import pytest

from sortcore.errors import ConfigError
from sortcore.optical.voltage.simulate import SpikeShape, VoltageFiring, VoltageNoise, simulate_voltage, spikes_seen

QUIET = VoltageNoise(snr=1e6, subthreshold=0.0, bleaching=0.0)


def test_the_same_seed_gives_the_same_traces():
    one, same, other = (simulate_voltage(2, 5.0, 500.0, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.traces, same.traces)
    assert not np.array_equal(one.traces, other.traces)
    assert one.traces.shape == one.subthreshold.shape == (2, 2500) and one.traces.dtype == np.float32


def test_a_spike_is_seen_as_its_mean_over_frames():
    shape, fs, T = SpikeShape(), 400.0, 40
    fine = 4000
    for onset in (0.0300, 0.0312):
        seen = spikes_seen(np.array([onset]), np.ones(1), T, fs, shape)
        t = (np.arange(T * fine) + 0.5) / (fs * fine)
        exact = shape.at(t - onset).reshape(T, fine).mean(1)
        unit = shape.at(t).reshape(T, fine).mean(1).max()
        np.testing.assert_allclose(seen, exact / unit, atol=0.02)


def test_spikes_keep_their_distance_and_rate():
    made = simulate_voltage(20, 60.0, 400.0, firing=VoltageFiring(8.0, bursting=0.3, refractory_s=0.004), noise=QUIET)
    assert min(np.diff(t).min() for t in made.spike_times_s) >= 0.004
    total = sum(map(len, made.spike_times_s)) / 1200
    assert 8 < total < 8 / 0.7 * 1.2


def test_heights_rates_and_plateaus():
    made = simulate_voltage(3, 30.0, 400.0, firing=VoltageFiring(0.0, plateau_hz=0.5, shrinking=0.8), noise=QUIET)
    for heights in made.heights:
        assert heights.min() > 0.8**8 and heights.max() == pytest.approx(0.8)
    assert made.subthreshold.max() > 0.3
    spread = simulate_voltage(3, 60.0, 400.0, firing=VoltageFiring(10.0, spread=0.2), noise=QUIET)
    assert np.concatenate(spread.heights).std() == pytest.approx(0.2, rel=0.2)


def test_noise_is_as_large_as_it_should_be():
    noise = VoltageNoise(snr=4, subthreshold=0.5, bleaching=0.0)
    made = simulate_voltage(5, 60.0, 500.0, firing=VoltageFiring(0.0), noise=noise)
    assert (made.traces - 8 - made.subthreshold).std() == pytest.approx(0.25, rel=0.05)
    assert made.subthreshold.std() == pytest.approx(0.5, rel=0.1)
    x = made.subthreshold - made.subthreshold.mean()
    assert (x[:, 10:] * x[:, :-10]).mean() / x.var() == pytest.approx(np.exp(-1), abs=0.06)  # 10 frames are 20 ms


def test_bleaching_and_artefacts():
    made = simulate_voltage(1, 60.0, 200.0, firing=VoltageFiring(0.0), noise=VoltageNoise(1e6, 0.0, bleaching=0.5, bleaching_s=10.0))
    assert made.traces[0, 0] == pytest.approx(8, abs=0.01) and made.traces[0, -1] == pytest.approx(4, abs=0.02)
    still = simulate_voltage(1, 60.0, 200.0, firing=VoltageFiring(0.0), noise=VoltageNoise(1e6, 0.0, bleaching=0.0, artefact_hz=0.2))
    steps = np.abs(np.diff(still.traces[0])) > 0.05
    assert 2 < steps.sum() < 60


def test_no_cells_and_no_time():
    assert simulate_voltage(0, 1.0, 400.0).traces.shape == (0, 400)
    for bad in ((-1, 1.0, 400.0), (1, 0.0, 400.0), (1, 1.0, np.nan)):
        with pytest.raises(ConfigError):
            simulate_voltage(*bad)
    with pytest.raises(ConfigError):
        VoltageFiring(rate_hz=-1.0)
