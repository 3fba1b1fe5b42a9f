"""The parts of the voltage front end, each against a slow and obvious form of it."""

import itertools

import numpy as np
import pytest
from helpers_voltage import all_placements, covariance, exact_posterior, log_density, ornstein_noise, placed

from sortcore.optical.traces import filled
from sortcore.optical.voltage.decision import balanced_threshold, coloured_noise, expected_quality, noise_threshold
from sortcore.optical.voltage.evidence import RATE_HZ, RATE_PRIOR_S, Neuron, best_spread, frame_ratios, log_partition, rate_and_evidence
from sortcore.optical.voltage.filter import find_spikes, matched_filter, score_spread
from sortcore.optical.voltage.guess import first_guess, points_down
from sortcore.optical.voltage.history import burst_kernel, prior_log_odds, slow_rate
from sortcore.optical.voltage.learning import relearned
from sortcore.optical.voltage.noise import baseline, measure_noise, noise_of, without_spikes
from sortcore.optical.voltage.pursuit import log_ratio
from sortcore.optical.voltage.steps import noise_energy, step_templates, without_steps
from sortcore.optical.voltage.waveform import DECAYS_S, Grid, exposure, generic, grid_at

SMALL = Grid(500.0, 2, 1, 5)


def planted(grid, fine, noise, T, spikes, seed=0, sd=1.0):
    """Noise of a spectrum with spikes (frame, phase, amplitude)."""
    x = sd * coloured_noise(noise, T) if seed == 0 else np.random.default_rng(seed).multivariate_normal(np.zeros(T), covariance(noise, T))
    for n, p, a in spikes:
        x = x + a * placed(fine, grid, T, n, p)
    return x


def test_frames_see_means_of_the_fine_waveform():
    grid = Grid(500.0, 4, 1, 3)
    fine = np.random.default_rng(0).standard_normal(grid.n_points)
    for p, template in enumerate(exposure(grid) @ fine):
        shifted = np.concatenate([np.zeros(p), fine, np.zeros(grid.n_frames * 4 - p - len(fine))])
        np.testing.assert_allclose(template, shifted.reshape(-1, 4).mean(1))


@pytest.mark.parametrize("fs", [100.0, 400.0, 1000.0, 3000.0])
def test_the_generic_spike_peaks_at_time_zero(fs):
    grid = grid_at(fs)
    for decay in DECAYS_S:
        fine = generic(grid, decay)
        assert abs(grid.times_s[fine.argmax()]) <= 1 / (fs * grid.P)
        assert 0.5 < fine.max() <= 1.01


def test_scores_are_those_of_dense_linear_algebra():
    noise, T = ornstein_noise(500.0), 120
    fine = generic(SMALL, 0.002)
    x = planted(SMALL, fine, noise, T, [(60, 1, 1.0)], seed=1)
    matched = matched_filter(fine, SMALL, noise)
    scores, solved = matched.scores(noise.decorrelated(x)), np.linalg.solve(covariance(noise, T), x)
    for n, p in itertools.product(range(40, 80), range(2)):
        wave = placed(fine, SMALL, T, n, p)
        assert scores[p, n] == pytest.approx(wave @ solved, abs=0.03 * np.sqrt(matched.energies[p]))
        assert matched.energies[p] == pytest.approx(wave @ np.linalg.solve(covariance(noise, T), wave), rel=0.01)


def test_interactions_are_scores_of_lone_spikes():
    noise, T = ornstein_noise(500.0), 200
    fine = generic(SMALL, 0.002)
    matched = matched_filter(fine, SMALL, noise)
    reach = matched.interactions.shape[2] // 2
    for p in range(2):
        scores = matched.scores(noise.decorrelated(placed(fine, SMALL, T, 100, p)))
        np.testing.assert_allclose(matched.interactions[p], scores[:, 100 - reach : 101 + reach], atol=1e-9 * matched.energies[p])


@pytest.mark.parametrize("rho", [0.05, 0.3])
def test_the_likelihood_ratio_is_that_of_two_gaussians(rho):
    noise, T = noise_of(np.full(51, 0.1)), 30
    fine = generic(SMALL, 0.002)
    x = planted(SMALL, fine, noise, T, [(15, 0, 1.2)], seed=2)
    matched, C = matched_filter(fine, SMALL, noise), covariance(noise, T)
    scores = matched.scores(noise.decorrelated(x))
    for n, p in ((15, 0), (15, 1), (12, 0)):
        wave = placed(fine, SMALL, T, n, p)
        exact = log_density(x, wave, C + rho**2 * np.outer(wave, wave)) - log_density(x, np.zeros(T), C)
        assert log_ratio(scores[p, n], matched.energies[p], rho**-2) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_all_placements_are_summed(gap):
    ratios = np.random.default_rng(gap).lognormal(0, 2, 9)
    chances = np.array([0.01, 0.2])
    found = log_partition(ratios, chances, gap)
    np.testing.assert_allclose(found, [np.log(all_placements(ratios, c, gap)) for c in chances], rtol=1e-9)


@pytest.mark.parametrize("seed", range(1, 7))
def test_probabilities_are_those_of_all_configurations(seed):
    noise = noise_of(np.full(51, 0.06))
    fine, T, rho, chance = generic(SMALL, 0.002), 24, 0.1, 0.03
    spikes = [(9, 0, 1.0), (13, 1, 1.0)][: seed % 3]
    x = planted(SMALL, fine, noise, T, spikes, seed=seed)
    matched = matched_filter(fine, SMALL, noise)
    found = find_spikes(matched.scores(noise.decorrelated(x)), matched, rho, np.full(T, np.log(chance / (1 - chance))))
    exact = exact_posterior(x, fine, SMALL, noise, rho, chance, 1, range(2, 20))
    sure = found.frames[found.subtracted]
    for n, p, own in zip(found.frames, found.probabilities, found.subtracted, strict=True):
        if 3 <= n < 19:  # the frames around a spike that is sure belong to it, also where it may come a frame sooner or later
            frames = [m for m in (n - 1, n, n + 1) if own or not (np.abs(sure - m) <= 1).any()]
            assert p == pytest.approx(exact[frames].sum(), abs=0.12)
    assert found.expected[2:20].sum() == pytest.approx(exact.sum(), abs=0.3)


def test_close_spikes_are_both_found():
    grid = grid_at(1000.0)
    noise, fine = ornstein_noise(1000.0, white=0.01, slow=0.01), generic(grid, 0.0013)
    x = planted(grid, fine, noise, 1000, [(200, 0, 1.0), (208, 1, 1.0), (500, 0, 1.0), (504, 0, 1.0)])
    matched = matched_filter(fine, grid, noise)
    found = find_spikes(matched.scores(noise.decorrelated(x)), matched, 0.1, np.full(1000, np.log(0.005)))
    np.testing.assert_array_equal(found.frames[found.probabilities > 0.9], [200, 208, 500, 504])
    np.testing.assert_allclose(found.amplitudes[found.probabilities > 0.9], 1, atol=0.35)


def test_the_noise_is_measured_and_what_spikes_left_in_it_taken_off():
    noise, grid = ornstein_noise(400.0, seconds=0.02), grid_at(400.0)
    x = coloured_noise(noise, 40_000)
    measured = measure_noise(x, 400.0)
    np.testing.assert_allclose(measured.spectrum[4:], noise.spectrum[4:], rtol=0.25)
    assert np.log(measured.spectrum[4:] / noise.spectrum[4:]).mean() == pytest.approx(0, abs=0.04)
    fine = 2 * generic(grid, 0.0013)
    for n in np.random.default_rng(0).choice(39_000, 500, replace=False) + 100:
        x[n - grid.before : n - grid.before + grid.n_frames] += exposure(grid)[n % grid.P] @ fine
    with_spikes = measure_noise(x, 400.0)
    less = without_spikes(with_spikes, exposure(grid) @ fine, 500 / 40_000)
    assert with_spikes.sd > 1.05 * noise.sd
    assert less.sd == pytest.approx(noise.sd, rel=0.04)


def test_missing_frames_do_not_count_as_noise():
    x = np.random.default_rng(0).standard_normal(20_000)
    missing = np.zeros(20_000, bool)
    missing[3000:9000] = True
    x[missing] = 0
    assert measure_noise(x, 400.0, missing).sd == pytest.approx(1, rel=0.05)
    assert measure_noise(x, 400.0).sd < 0.95
    np.testing.assert_allclose(filled(np.array([np.nan, 1, np.nan, 3, np.nan])), [1, 1, 2, 3, 3])


def test_the_wiener_filter_finds_the_potential():
    rng = np.random.default_rng(1)
    slow = coloured_noise(noise_of(ornstein_noise(400.0, white=0.0, seconds=0.02).spectrum), 20_000)
    noise = ornstein_noise(400.0, seconds=0.02)
    x = slow + 0.2 * rng.standard_normal(20_000)
    assert np.mean((noise.smoothed(x) - slow) ** 2) < 0.5 * np.mean((x - slow) ** 2)


def test_the_baseline_follows_bleaching_and_not_spikes():
    t = np.arange(20_000) / 400
    bleaching = 6 + 2 * np.exp(-t / 20)
    y = bleaching + 0.2 * np.random.default_rng(0).standard_normal(len(t))
    y[::80] += 2
    assert np.abs(baseline(y, 400.0) - bleaching).max() < 0.06


def test_scores_of_misjudged_noise_spread_more():
    noise, grid = ornstein_noise(400.0), grid_at(400.0)
    matched = matched_filter(generic(grid, 0.0013), grid, noise)
    x = coloured_noise(noise, 40_000)
    assert score_spread(matched, noise.decorrelated(x)) == pytest.approx(1, abs=0.03)
    assert score_spread(matched, noise.decorrelated(1.3 * x)) == pytest.approx(1.3, abs=0.04)


@pytest.mark.parametrize(("height", "rate"), [(1.0, 8.0), (1.5, 3.0)])
def test_the_first_guess_finds_height_and_rate(height, rate):
    grid = grid_at(500.0)
    noise, fine, T = ornstein_noise(500.0, seconds=0.02), generic(grid, 0.0013), 20_000
    rng = np.random.default_rng(3)
    spikes = [(n, rng.integers(grid.P), height) for n in np.flatnonzero(rng.random(T - 40) < rate / 500) + 20]
    x = coloured_noise(noise, T)
    for n, p, a in spikes:
        x[n - grid.before : n - grid.before + grid.n_frames] += a * (exposure(grid)[p] @ fine)
    neuron, left = first_guess(x, grid, measure_noise(x, 500.0))
    assert (exposure(grid) @ neuron.fine).max() == pytest.approx(height * (exposure(grid) @ fine).max(), rel=0.2)
    assert neuron.rate_hz == pytest.approx((len(spikes) + RATE_HZ * RATE_PRIOR_S) / (T / 500 + RATE_PRIOR_S), rel=0.35)
    assert left.sd == pytest.approx(noise.sd, rel=0.06)
    assert points_down(x, grid) < -20
    assert points_down(-x, grid) > 20


def test_evidence_is_for_the_rate_that_there_is():
    rng = np.random.default_rng(0)
    grid, T = Grid(500.0, 2, 1, 5), 30_000
    scores = 5 * rng.standard_normal((2, T))
    scores[:, rng.choice(T, 240, replace=False)] += 25
    rate, evidence = rate_and_evidence(scores, np.full(2, 25.0), grid, 0.1)
    assert rate == pytest.approx(240 / 60 * 0.8 + 5 * 0.2, rel=0.15)
    assert evidence > 1000
    ratios = np.maximum(frame_ratios(scores, np.full(2, 25.0), 100.0), 1e-30)
    around = log_partition(ratios, np.array([0.5, 1.0, 2.0]) * rate / 500, 1)
    assert around.argmax() == 1


def test_the_waveform_is_learned_from_the_trace():
    grid = grid_at(1000.0)
    noise, T = ornstein_noise(1000.0, white=0.03, slow=0.02), 30_000
    true = generic(grid, 0.0022) - 0.15 * (np.abs(grid.times_s - 0.005) < 0.002)
    rng = np.random.default_rng(5)
    x = coloured_noise(noise, T)
    for n in np.arange(50, T - 50, 90):
        x[n - grid.before : n - grid.before + grid.n_frames] += exposure(grid)[rng.integers(grid.P)] @ true
    shape = generic(grid, 0.0013)
    neuron = Neuron(shape, 0.15, 10.0)
    error = [np.linalg.norm(shape - true)]
    for _ in range(3):
        matched, z = matched_filter(neuron.fine, grid, noise), noise.decorrelated(x)
        found = find_spikes(matched.scores(z), matched, neuron.rho, np.full(T, np.log(0.01)))
        neuron = relearned(neuron, z, found, matched, noise, shape)
        error.append(np.linalg.norm(neuron.fine - true))
    assert error[-1] < 0.35 * error[0]
    matched = matched_filter(neuron.fine, grid, noise)
    assert best_spread(neuron, matched, matched.scores(noise.decorrelated(x))).rho <= 0.1
    assert neuron.rate_hz == pytest.approx(1000 / 90, rel=0.25)


def test_without_spikes_nothing_is_learned():
    grid, noise = grid_at(400.0), ornstein_noise(400.0)
    neuron = Neuron(generic(grid, 0.0013) * 3, 0.15, 0.1)
    matched, z = matched_filter(neuron.fine, grid, noise), noise.decorrelated(0.1 * coloured_noise(noise, 2000))
    found = find_spikes(matched.scores(z), matched, 0.15, np.full(2000, -9.0))
    assert relearned(neuron, z, found, matched, noise, neuron.fine) is neuron


def test_a_spike_makes_others_likelier_but_not_itself():
    expected = np.full(8000, 0.001)
    expected[[1000, 1008, 2000, 2008, 3000, 3008, 4000, 4008, 5000, 6000]] = 1
    prior = prior_log_odds(expected, 1000.0, 3.0, 4)
    assert prior[1000 + 8] > prior[1020] > prior[7500]
    assert prior[5008] > prior[5012]
    slow = slow_rate(expected, 1000.0, 3.0, 4)
    alone = np.zeros(8000)
    alone[4000] = 1
    assert slow_rate(alone, 1000.0, 3.0, 4)[4000] < slow_rate(alone, 1000.0, 3.0, 4)[4030]
    h = burst_kernel(expected, slow, np.arange(5, 31), 1000.0)
    assert h.argmax() == 3 and (h >= 0).all()


def test_the_balanced_threshold_has_the_largest_expected_f1():
    p = np.random.default_rng(0).beta(0.4, 1, 12)
    n = p.sum() + 0.7
    best = max(2 * p[list(chosen)].sum() / (len(chosen) + n) for k in range(1, 13) for chosen in itertools.combinations(range(12), k))
    kept = p >= balanced_threshold(p, n)
    assert 2 * p[kept].sum() / (kept.sum() + n) == pytest.approx(best)
    assert balanced_threshold(np.zeros(0), 1.0) == np.inf
    precision, recall = expected_quality(p, kept, n)
    assert 2 / (1 / precision + 1 / recall) == pytest.approx(best)


@pytest.mark.parametrize("rate", [0.3, 3.0])
def test_noise_passes_at_the_stated_rate(rate):
    grid, noise = grid_at(500.0), ornstein_noise(500.0)
    matched = matched_filter(1.2 * generic(grid, 0.0013), grid, noise)
    level = noise_threshold(matched, noise, 0.15, rate)
    x = np.random.default_rng(11).standard_normal(150_000)
    spectrum = np.interp(np.fft.rfftfreq(len(x)), np.linspace(0, 0.5, len(noise.spectrum)), noise.spectrum)
    x = np.fft.irfft(np.fft.rfft(x) * np.sqrt(spectrum), len(x))
    found = find_spikes(matched.scores(noise.decorrelated(x)), matched, 0.15, np.zeros(len(x)) - 6)
    assert (found.log_odds + 6 > level).sum() / 300 == pytest.approx(rate, rel=0.25)


def test_steps_are_taken_off_and_spikes_stay():
    grid = grid_at(500.0)
    noise, T = ornstein_noise(500.0, white=0.02), 4000
    fine = generic(grid, 0.0013)
    x = coloured_noise(noise, T)
    for n in (300, 1500, 1700):
        x += placed(fine, grid, T, n, 1)
    clean = x.copy()
    x[1000:1030] += 3
    x[2500:2520] -= 3
    neuron, matched = Neuron(fine, 0.15, 5.0), matched_filter(fine, grid, noise)
    left = without_steps(x, neuron, matched, noise)
    edges = [1000, 1030, 2500, 2520]
    before, after, truth = (matched.scores(noise.decorrelated(y)).max(axis=0) for y in (x, left, clean))
    assert np.abs(after - truth)[edges].sum() < 0.4 * np.abs(before - truth)[edges].sum()
    np.testing.assert_array_equal(without_steps(clean, neuron, matched, noise), clean)
    for step in step_templates(500.0):
        alone = np.zeros(600)
        alone[200 : 200 + len(step)] = step
        assert noise_energy(step, noise) == pytest.approx(alone @ noise.decorrelated(alone))
