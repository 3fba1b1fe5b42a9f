"""Simulated calcium: the indicator's laws against plain sums and each other, and the truth that comes with the traces."""

from dataclasses import replace

import numpy as np
import pytest

from sortcore.errors import ConfigError
from sortcore.optical.indicator import INDICATORS, Indicator, autoregression, difference, spike_counts
from sortcore.optical.simulate import Baseline, Firing, Noise, simulate_calcium, standardised_noise

LINEAR = ("ar1", "ar2", "difference")


@pytest.mark.parametrize("kind", ["ar1", "ar2", "difference", "hill", "binding"])
@pytest.mark.parametrize("fs", [7.5, 30.0, 1000.0])
def test_one_spike_of_a_resting_cell_peaks_at_the_amplitude(kind, fs):
    indicator = Indicator(kind, 0.1, 0.5, 0.3, cooperativity=2.0, half=4.0, rest=0.5)
    trace = indicator.response(np.zeros(1), int(4 * fs), fs)
    assert trace.max() <= 0.3 * (1 + 1e-3)
    assert trace.max() == pytest.approx(0.3, rel=1e-5 if kind in ("ar1", "ar2") else (0.15 if fs < 10 else 0.02))


def test_autoregressions_follow_their_recursion(rng):
    spikes = rng.poisson(0.2, 300).astype(float)
    g = Indicator("ar2", 0.05, 0.6).g(30.0)
    slow = np.zeros(300)
    for t in range(300):
        slow[t] = spikes[t] + (g[0] * slow[t - 1] if t > 0 else 0) + (g[1] * slow[t - 2] if t > 1 else 0)
    np.testing.assert_allclose(autoregression(spikes, g), slow, rtol=1e-12)


def test_the_difference_of_exponentials_is_the_sum_over_spikes(rng):
    times, weights = np.sort(rng.uniform(-1, 10, 40)), rng.uniform(0.5, 2, 40)
    frames = np.arange(250) / 25.0
    late = np.maximum(frames[:, None] - times, 0)
    norm = np.ptp(difference(np.zeros(1), np.ones(1), 60_000, 20_000.0, 0.07, 0.5))  # fine enough for the peak
    slow = ((np.exp(-late / 0.5) - np.exp(-late / 0.07)) * (frames[:, None] >= times) * weights).sum(axis=1)
    fine = np.arange(60_000) / 20_000
    slow /= (np.exp(-fine / 0.5) - np.exp(-fine / 0.07)).max()
    np.testing.assert_allclose(difference(times, weights, 250, 25.0, 0.07, 0.5), slow, rtol=1e-6, atol=1e-9)
    assert norm == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["hill", "binding"])
def test_without_cooperativity_and_saturation_the_law_is_linear(kind, rng):
    times = np.sort(rng.uniform(0, 20, 30))
    plain = Indicator("difference", 0.08, 0.5, 0.2)
    same = replace(plain, kind=kind, half=1e6)
    np.testing.assert_allclose(same.response(times, 600, 30.0), plain.response(times, 600, 30.0), atol=0.2 * 6e-3)


def test_binding_agrees_with_a_plain_integration(rng):
    indicator = Indicator("binding", 0.05, 0.4, 1.0, cooperativity=2.3, half=2.5, rest=0.7)
    times, step = np.sort(rng.uniform(0, 2, 25)), 1e-5
    grid = np.arange(0, 3, step)
    calcium = 0.7 + difference(times, np.ones(25), len(grid), 1 / step, 0.0, 0.05)
    a = (calcium / 2.5) ** 2.3
    b = np.zeros(len(grid))
    b[0] = (0.7 / 2.5) ** 2.3 / (1 + (0.7 / 2.5) ** 2.3)
    for t in range(1, len(grid)):
        b[t] = b[t - 1] + step * (a[t - 1] * (1 - b[t - 1]) - b[t - 1]) / 0.4
    slow = (b - b[0])[::2000]  # 50 frames per second
    fast = indicator.response(times, len(slow), 50.0)
    np.testing.assert_allclose(fast / fast.max(), slow / slow.max(), atol=2e-3)


@pytest.mark.parametrize("name", INDICATORS)
def test_presets_saturate_and_genetic_ones_cooperate(name):
    indicator, fs = INDICATORS[name], 500.0
    one, pair, train = (indicator.response(np.arange(n) / 200, 1500, fs).max() for n in (1, 2, 1000))
    assert one == pytest.approx(indicator.amplitude, rel=0.01)
    assert train < (70 if indicator.kind == "binding" else 1 + indicator.half) * one
    assert (pair > 2.02 * one) == (indicator.kind == "binding")


def test_the_parts_of_a_simulation_add_up():
    moving = Baseline(0.3, 40.0, 0.1, 5.0, 0.2)
    s = simulate_calcium(5, 60.0, 20.0, firing=Firing(1.0, 1.0, bursting=0.3), noise=Noise(0.0), baseline=moving)
    assert s.traces.shape == s.counts.shape == s.calcium.shape == s.baseline.shape == (5, 1200)
    np.testing.assert_allclose(s.traces, s.baseline + s.calcium, atol=1e-12)
    for k, train in enumerate(s.spike_times_s):
        assert (np.diff(train) >= 0.002 - 1e-12).all()
        np.testing.assert_array_equal(s.counts[k], np.histogram(train, (np.arange(1201) - 0.5) / 20.0)[0])
        assert s.counts[k].sum() == len(train) > 0


def test_the_same_seed_gives_the_same_bytes_and_a_cell_does_not_know_the_others():
    a, b, c = (simulate_calcium(n, 20.0, 30.0, indicator=INDICATORS["gcamp6f"], noise=Noise(0.05, 0.05), seed=s)
               for n, s in ((3, 4), (2, 4), (3, 5)))
    np.testing.assert_array_equal(a.traces[:2], b.traces)
    assert not np.array_equal(a.traces, c.traces)


@pytest.mark.parametrize("firing", [Firing(2.0), Firing(2.0, 0.7, 0.5), Firing(2.0, bursting=0.5, burst_spikes=4.0)],
                         ids=["poisson", "wandering", "bursts"])
def test_cells_fire_at_their_mean_rate(firing):
    s = simulate_calcium(30, 300.0, 10.0, indicator=Indicator("ar1"), firing=firing)
    rate = s.counts.sum() / (30 * 300.0)
    assert rate == pytest.approx(2.0, rel=0.08)
    fano = np.var(s.counts.reshape(30, -1, 50).sum(axis=2)) / 10.0  # of 5 s
    assert (0.85 < fano < 1.15) if firing == Firing(2.0) else fano > 1.6


def test_noise_has_the_standardised_level_asked_for_and_shot_noise_grows_with_fluorescence():
    for fs in (7.5, 30.0, 100.0):
        s = simulate_calcium(20, 6000 / fs, fs, firing=Firing(0.0), noise=Noise.at_level(3.0, fs, 0.5))
        assert standardised_noise(s.traces, fs).mean() == pytest.approx(3.0, rel=0.02)
        np.testing.assert_allclose(s.traces.std(axis=1), s.noise_std, rtol=0.06)
    bright = simulate_calcium(20, 200.0, 30.0, indicator=Indicator("ar1", amplitude=0.5), firing=Firing(20.0, 1.0), noise=Noise(0.0, 0.1))
    noise, level = bright.traces - bright.calcium, 1 + bright.calcium
    assert (noise**2).sum() / level.sum() == pytest.approx(0.01, rel=0.02)
    assert (noise**2)[level > 6].mean() > 3 * (noise**2)[level < 2].mean()


def test_bleaching_takes_its_share():
    s = simulate_calcium(1, 1000.0, 5.0, firing=Firing(0.0), noise=Noise(0.0), baseline=Baseline(0.4, 100.0))
    assert s.traces[0, 0] == 0
    assert s.traces[0, -1] == pytest.approx(-0.4, abs=1e-3)


def test_cells_may_differ_and_sizes_may_be_small():
    kinds = [Indicator(kind) for kind in LINEAR]
    s = simulate_calcium(3, 1 / 30, 30.0, indicator=kinds)
    assert s.traces.shape == (3, 1)
    assert s.indicators == tuple(kinds)
    assert simulate_calcium(0, 1.0, 30.0).traces.shape == (0, 30)
    np.testing.assert_array_equal(Indicator("binding").response(np.zeros(0), 4, 30.0), np.zeros(4))
    np.testing.assert_array_equal(spike_counts(np.array([-0.02, -0.01, 0.9, 5.0]), 30, 30.0).nonzero()[0], [0, 27])


@pytest.mark.parametrize("call", [
    lambda: simulate_calcium(2, 1.0, 0.0), lambda: simulate_calcium(2, 1.0, np.nan), lambda: simulate_calcium(2, 0.0, 30.0),
    lambda: simulate_calcium(-1, 1.0, 30.0), lambda: simulate_calcium(2, 1.0, 30.0, firing=[Firing()]),
    lambda: Indicator(tau_rise_s=0.7), lambda: Indicator("magic"), lambda: Indicator(tau_decay_s=np.nan), lambda: Firing(-1.0),
    lambda: Indicator("binding", tau_rise_s=0.0), lambda: Noise.at_level(1.0, 30.0, 2.0), lambda: Baseline(bleaching=2.0),
])
def test_what_makes_no_trace_is_refused(call):
    with pytest.raises(ConfigError):
        call()
