"""Channel-sparse matching pursuit: the same spikes as the slow reference, however many there are at once."""

import numpy as np
import pytest
import torch
from helpers_engine import FS, D, flat_priors, pair, plant, random_trains, unit_waveforms

from sortcore import matching, pursuit
from sortcore.numerics import unit_norm
from sortcore.reference_pursuit import pursuit_reference, shifted, spike_gain
from sortcore.types import Priors, Spikes

DEAD = 15


def found_in(x, matcher):
    return matching.match(matcher, matching.scores(matcher, torch.from_numpy(x)).numpy(), DEAD)


def case(n_units=5, n_channels=8, per_unit=8, n_samples=4000, shifts=False, seed=0):
    """Waveforms, planted starts, units, amplitudes, sub-sample shifts in eighths, and the data."""
    rng = np.random.default_rng(seed)
    waves = unit_waveforms(n_units, n_channels, seed=seed)
    starts, units = random_trains(n_units, per_unit, n_samples, seed)
    amplitudes = rng.normal(20, 2, len(starts))
    sub = rng.integers(-4, 4, len(starts)) / 8 if shifts else None
    return waves, starts, units, amplitudes, sub, plant(waves, starts, units, amplitudes, n_samples, sub, seed)


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("subsamples", [1, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agrees_with_the_reference_spike_for_spike(prior, subsamples, seed):
    waves, starts, units, _, _, x = case(shifts=subsamples > 1, seed=seed)
    matcher = matching.prepare(waves, flat_priors(5), FS, subsamples, prior)
    fast = found_in(x.copy(), matcher)
    amplitude = dict(amp_mean=matcher.amp_mean, amp_std=matcher.amp_precision.astype(float) ** -0.5) if prior else {}
    slow = pursuit_reference(x, matcher.waveforms(), log_odds=matcher.log_odds, subsamples=subsamples, dead=DEAD, **amplitude)
    order = np.lexsort((slow.units, slow.samples))
    clear = slow.gains > 3  # a spike of hardly any gain may be rounded away
    clear = clear[order]
    slow_time, slow_units, slow_amp = (v[order][clear] for v in (slow.samples + slow.shifts, slow.units, slow.amplitudes))
    fast_time = fast.samples + fast.shifts
    assert len(slow_time) >= len(starts) and pair(starts, units, slow_time, slow_units, 3.0) == len(starts)
    near = 2 / subsamples if subsamples > 1 else 0  # scores are interpolated here, and waveforms shifted there,
    nearly = 1 if subsamples > 1 else 0  # so of two places that explain as much, either may be chosen
    assert pair(slow_time, slow_units, fast_time, fast.units, near) >= len(slow_time) - nearly
    sure = fast.scores > 4
    assert pair(slow_time, slow_units, fast_time[sure], fast.units[sure], near) >= sure.sum() - 2 * nearly
    assert log_joint(x, matcher, fast, prior) > log_joint(x, matcher, slow, prior) - 2
    for k in range(5):  # amplitudes and gains of the same spikes
        near = np.abs(fast_time[fast.units == k][:, None] - slow_time[slow_units == k]).argmin(axis=0)
        same = np.abs(fast_time[fast.units == k][near] - slow_time[slow_units == k]) < 0.3
        np.testing.assert_allclose(fast.amplitudes[fast.units == k][near][same], slow_amp[slow_units == k][same], rtol=0.02)
        gains = slow.gains[order][clear][slow_units == k]
        np.testing.assert_allclose(fast.scores[fast.units == k][near][same], gains[same], rtol=0.03, atol=0.5)


def log_joint(x, matcher, spikes, prior):
    """The log joint of spikes, but for constants, by the waveforms themselves."""
    left, waves = x.astype(float), matcher.waveforms().astype(float)
    for t, by, k, a in zip(spikes.samples, spikes.shifts, spikes.units, spikes.amplitudes, strict=True):
        left[:, t : t + D] -= a * shifted(waves[k], float(by))
    k = spikes.units
    off = matcher.amp_precision[k] * (spikes.amplitudes - matcher.amp_mean[k]) ** 2 if prior else 0.0
    return -0.5 * (left**2).sum() + (matcher.log_odds[k] - 0.5 * off).sum()


@pytest.mark.parametrize("seed", [0, 1])
def test_of_colliding_spikes_of_like_units_more_are_found_by_looking_again(seed, monkeypatch):
    """Ten units within four channels, in pairs no further than six samples apart: greedily, many are taken for others."""
    rng, n_pairs = np.random.default_rng(seed), 60
    waves = unit_waveforms(10, 4, reach=4, seed=seed)
    starts = np.repeat(100 * np.arange(1, n_pairs + 1), 2)
    starts[1::2] += rng.integers(-6, 7, n_pairs)
    units = np.concatenate([rng.choice(10, 2, replace=False) for _ in range(n_pairs)])
    x = plant(waves, starts, units, rng.normal(70, 4, 2 * n_pairs), 100 * n_pairs + 200, seed=seed)
    matcher = matching.prepare(waves, flat_priors(10, 70.0, 4.0, 5.0), FS)
    found = found_in(x.copy(), matcher)
    how = dict(log_odds=matcher.log_odds, subsamples=8, dead=DEAD, amp_mean=matcher.amp_mean, amp_std=matcher.amp_precision**-0.5)
    slow = pursuit_reference(x, matcher.waveforms(), **how)
    monkeypatch.setattr("sortcore.reference_pursuit._Pursuit.look_again", lambda self, again: [])
    greedy = pursuit_reference(x, matcher.waveforms(), **how)
    right, right_slow, right_greedy = (pair(starts, units, f.samples + f.shifts, f.units, 2.0) for f in (found, slow, greedy))
    assert right > 1.6 * right_greedy and abs(right - right_slow) <= 3
    gained, gained_slow = (log_joint(x, matcher, f, True) - log_joint(x, matcher, greedy, True) for f in (found, slow))
    assert gained_slow > 1000 and gained > 0.95 * gained_slow


@pytest.mark.parametrize("lag", [0, 1])
def test_large_spikes_that_collide_share_the_data_as_they_made_it(lag):
    """The first takes part of the second for its own; what both leave must not become a third."""
    waves = unit_waveforms(3, 6, seed=3)
    waves[1] = unit_norm((0.5 * waves[0] + waves[1])[None])[0]
    waves[2] = unit_norm((waves[0] - waves[1] + 0.5 * waves[2])[None])[0]  # like what they leave
    x = plant(waves, np.array([100, 100 + lag]), np.array([0, 1]), np.array([100.0, 80.0]), 300)
    found = found_in(x, matching.prepare(waves, Priors(np.array([100.0, 80.0, 30.0]), np.array([12.0, 10.0, 4.0]), np.full(3, 5.0)), FS))
    assert found.units.tolist() == [0, 1] and found.samples.tolist() == [100, 100 + lag]
    np.testing.assert_allclose(found.amplitudes, [100, 80], atol=3)


def test_the_gain_is_the_references():
    for x, p in ((18.0, 0.16), (5.0, 0.0), (2.0, 0.3)):
        args = (20.0, p, -7.0)
        assert pursuit.gain_of(np.float32(x), *args) == pytest.approx(float(spike_gain(x, *args)), rel=1e-6)


def test_threshold_is_where_a_spike_gains_nothing():
    for prior in (False, True):
        matcher = matching.prepare(unit_waveforms(3, 6), flat_priors(3), FS, 8, prior)
        for k in range(3):
            gain = pursuit.gain_of(matcher.threshold[k], matcher.amp_mean[k], matcher.amp_precision[k], matcher.log_odds[k])
            assert gain == pytest.approx(0, abs=1e-3)


def test_sub_sample_shifts_are_found():
    waves = unit_waveforms(2, 8, reach=1)  # two units that do not touch
    starts, units = random_trains(2, 40, 20000)
    shifts = np.random.default_rng(1).integers(-4, 4, 80) / 8
    x = plant(waves, starts, units, np.full(80, 100.0), 20000, shifts)
    found = found_in(x, matching.prepare(waves, flat_priors(2, 100.0, 10.0), FS))
    times = found.samples + found.shifts
    error = [np.abs(times[found.units == k] - (s + h)).min() for s, h, k in zip(starts, shifts, units, strict=True)]
    assert len(found) == 80 and np.median(error) <= 0.126 and np.max(error) < 0.3
    assert found.shifts.min() >= -0.5 and found.shifts.max() < 0.5 and len(np.unique(found.shifts)) > 4


def test_scores_are_the_inner_products(rng, device):
    waves = unit_waveforms(4, 6)
    matcher = matching.prepare(waves, flat_priors(4), FS)
    x = rng.standard_normal((6, 300)).astype(np.float32)
    score = matching.scores(matcher, torch.from_numpy(x).to(device)).cpu().numpy()
    windows = np.lib.stride_tricks.sliding_window_view(x, D, axis=1)
    assert score.shape == (4, 300 - D + 1)
    np.testing.assert_allclose(score, np.einsum("ntd,knd->kt", windows, matcher.waveforms()), atol=1e-4)
    assert (np.einsum("knd,knd->k", matcher.waveforms(), waves) > 0.995).all(), "the shared basis keeps the templates"
    np.testing.assert_allclose(np.linalg.norm(matcher.waveforms(), axis=(1, 2)), 1, rtol=1e-5)


def test_scores_near_a_unit_are_the_scores_and_all_others_are_dead(rng):
    waves = unit_waveforms(6, 12)
    waves[:3, 6:] = 0
    waves[3:, :6] = 0
    matcher = matching.prepare(waves, flat_priors(6), FS)
    x = torch.from_numpy(rng.standard_normal((12, 300)).astype(np.float32))
    near = matching.scores_near(matcher, x, 1)
    np.testing.assert_allclose(near[:3], matching.scores(matcher, x)[:3], atol=1e-4)
    assert (near[3:] == float(pursuit.DEAD)).all()
    assert matching.scores_near(matcher, x[:, :5], 1).shape == (6, 0)


def test_the_basis_keeps_of_a_large_unit_what_noise_would_show():
    waves = unit_waveforms(4, 6)
    small, large = (matching.shared_basis(waves, np.array([10.0, 10.0, 10.0, norm])) for norm in (10.0, 80.0))
    np.testing.assert_allclose(large @ large.T, np.eye(len(large)), atol=1e-5)
    lost = [np.linalg.norm(waves - waves @ b.T @ b, axis=(1, 2)) for b in (small, large)]
    assert len(large) > len(small) and 80 * lost[0][3] > matching.MOST_LOST
    assert 80 * lost[1][3] <= matching.MOST_LOST or len(large) == matching.MOST_BASIS


def test_data_shorter_than_a_template_hold_no_spike():
    matcher = matching.prepare(unit_waveforms(2, 4), flat_priors(2), FS)
    for length in (0, 1, D - 1, D, D + 1):
        assert len(found_in(np.zeros((4, length), np.float32), matcher)) == 0


@pytest.mark.parametrize("lag", [0, 3, 8, 15, 30, 50, D - 1, D])
def test_two_units_on_shared_channels_are_resolved_closer_than_a_template(lag):
    waves = unit_waveforms(2, 5, reach=1, seed=4)
    assert ((waves[0] != 0).any(axis=1) & (waves[1] != 0).any(axis=1)).any()
    starts, units = np.array([300, 300 + lag, 900, 900 + lag]), np.array([0, 1, 1, 0])
    x = plant(waves, starts, units, np.full(4, 25.0), 1500, seed=lag)
    found = found_in(x, matching.prepare(waves, flat_priors(2, 25.0, 3.0), FS))
    assert len(found) == 4 and pair(starts, units, found.samples, found.units, 1) == 4
    np.testing.assert_allclose(found.amplitudes, 25, atol=7)


def test_one_unit_fires_again_after_its_dead_time():
    waves = unit_waveforms(1, 3)
    x = plant(waves, np.array([300, 300 + 30]), np.array([0, 0]), np.array([25.0, 22.0]), 1000)
    found = found_in(x, matching.prepare(waves, flat_priors(1), FS))
    assert len(found) == 2 and np.abs(found.samples - [300, 330]).max() <= 1


def test_600_spikes_at_two_instants_on_channels_that_do_not_touch():
    n = 300
    t = np.arange(D)
    waves = np.zeros((n, n, D), np.float32)
    waves[np.arange(n), np.arange(n)] = -np.exp(-0.5 * ((t - 24) / 4) ** 2) + 0.3 * np.exp(-0.5 * ((t - 38) / 6) ** 2)
    waves /= np.linalg.norm(waves, axis=(1, 2), keepdims=True)
    starts, units = np.repeat([200, 500], n), np.tile(np.arange(n), 2)
    x = plant(waves, starts, units, np.full(2 * n, 20.0), 800)
    matcher = matching.prepare(waves, flat_priors(n), FS)
    assert len(matcher.other) == n, "no unit shares a channel with another"
    found = found_in(x, matcher)
    assert len(found) == 600 and pair(starts, units, found.samples, found.units, 1) == 600


def test_there_is_no_cap_on_the_number_of_spikes():
    waves = unit_waveforms(8, 8, reach=0)
    per = 2000
    starts, units = np.repeat(D + np.arange(per) * (D + 6), 8), np.tile(np.arange(8), per)
    x = plant(waves, starts, units, np.full(len(starts), 20.0), starts.max() + 2 * D)
    found = found_in(x, matching.prepare(waves, flat_priors(8, rate_hz=400.0), FS))
    assert pair(starts, units, found.samples, found.units, 1) == len(starts) == 16000
    assert len(found) - len(starts) < 0.001 * len(starts)


def test_spikes_come_in_order_and_gain_something():
    waves, *_, x = case(seed=7)
    found = found_in(x, matching.prepare(waves, flat_priors(5), FS))
    assert (np.diff(found.samples) >= 0).all() and (found.scores > 0).all() and (found.amplitudes > 0).all()


def test_noise_alone_holds_hardly_a_spike():
    waves = unit_waveforms(5, 8)
    x = plant(waves, np.zeros(0, int), np.zeros(0, int), np.zeros(0), 60000)
    assert len(found_in(x, matching.prepare(waves, flat_priors(5), FS))) == 0


def test_sharing_lists_the_units_that_touch():
    first, other = matching.sharing(np.array([[[1.0], [0], [0]], [[1], [1], [0]], [[0], [0], [1]]]))
    assert first.tolist() == [0, 2, 4, 5] and other.tolist() == [0, 1, 0, 1, 2]


def test_overlaps_are_the_inner_products_at_every_lag_and_shift():
    waves = unit_waveforms(3, 5, seed=2)
    matcher = matching.prepare(waves, flat_priors(3), FS, 4)
    w = matcher.waveforms().astype(np.float64)
    for k in range(3):
        for pair_index in range(matcher.first[k], matcher.first[k + 1]):
            j = matcher.other[pair_index]
            for m, sub in enumerate(matcher.shifts):
                moved = np.pad(shifted(w[k], sub), ((0, 0), (D, D)))
                for lag in (-40, -3, 0, 1, 25):
                    expected = (moved[:, D + lag : 2 * D + lag] * w[j]).sum()  # j starts `lag` samples after k
                    assert matcher.overlaps[pair_index, m, lag + D - 1] == pytest.approx(expected, abs=0.01)


def test_subtract_leaves_white_noise():
    waves, starts, *_, x = case(per_unit=20, n_samples=8000, shifts=True)
    noise = plant(waves, np.zeros(0, int), np.zeros(0, int), np.zeros(0), 8000)
    matcher = matching.prepare(waves, flat_priors(5), FS)
    found = found_in(x.copy(), matcher)
    left = x.copy()
    matching.subtract(matcher, left, found)
    assert left.std() == pytest.approx(1, abs=0.02) and x.std() > 1.2
    assert ((left - noise) ** 2).mean() < 0.02 * ((x - noise) ** 2).mean(), "nearly all that was planted is taken off"
    here = left[:, (starts[:, None] + np.arange(D)).ravel()]
    assert here.std() == pytest.approx(1, abs=0.04)


def test_subtract_is_the_inverse_of_planting():
    waves = unit_waveforms(3, 6)
    matcher = matching.prepare(waves, flat_priors(3), FS)
    w = matcher.waveforms()
    starts, units, amplitudes = np.array([-20, 100, 130, 290]), np.array([0, 1, 2, 0]), np.array([10.0, 20, 15, 12])
    x = plant(w, starts, units, amplitudes, 300, noise=0.0)  # the first and last reach past the ends
    spikes = Spikes(starts, np.zeros(4, np.float32), units, amplitudes.astype(np.float32), np.ones(4, np.float32))
    matching.subtract(matcher, x, spikes)
    assert np.abs(x).max() < 1e-4


def test_cleaned_features_have_noise_of_unit_variance_and_the_templates_mean():
    waves, starts, units, _, _, _ = case(per_unit=80, n_samples=40000)
    x = plant(waves, starts, units, np.full(len(starts), 20.0), 40000, seed=3)
    matcher = matching.prepare(waves, flat_priors(5), FS, 1, False)
    zero, twenty, one = (np.full(len(starts), v, np.float32) for v in (0, 20, 1))
    spikes = Spikes(starts, zero, units, twenty, one)
    residual = x.copy()
    matching.subtract(matcher, residual, spikes)
    channels = np.array([[0, 1, 2, 3, -1]] * 5)
    features = matching.cleaned_features(matcher, residual, spikes, channels)
    assert features.shape == (len(starts), 5, len(matcher.basis)) and not features[:, 4].any(), "no channel, no feature"
    for k in range(5):
        mine = features[units == k][:, :4]
        np.testing.assert_allclose(mine.mean(axis=0), 20 * matcher.coefficients[k, :4], atol=0.6)
    centred = features[:, :4] - 20 * matcher.coefficients[units][:, :4]
    assert centred.std() == pytest.approx(1, abs=0.03)


def test_a_matcher_of_no_units_finds_none():
    matcher = matching.prepare(np.zeros((0, 4, D), np.float32), Priors(*(np.zeros(0),) * 3), FS)
    assert len(found_in(np.ones((4, 500), np.float32), matcher)) == 0
