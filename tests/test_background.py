"""Background beside a unit's spikes is told from them, and nothing is taken from units that have none."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, log_ndtr
from scipy.stats import norm, truncnorm

from sortcore.background import (
    TAU,
    cost,
    larger_beside,
    leftover,
    log_normal_below,
    log_parts,
    log_unit,
    own,
    probability,
    unit_probability,
    with_bursts,
)
from sortcore.matching import prepare
from sortcore.numerics import unit_norm
from sortcore.types import Priors, Spikes

FS = 30000.0


def planted(rng, n_own, mean, std, n_background, threshold=5.0, tau=0.4):
    """Scores above a threshold, and whether each is the unit's own."""
    own_scores = rng.normal(mean, std, n_own)
    own_scores = own_scores[own_scores > threshold]
    scores = np.r_[own_scores, threshold + rng.exponential(tau, n_background)]
    return scores, np.arange(len(scores)) < len(own_scores)


def test_densities_are_those_of_the_textbook():
    x, q = np.linspace(0.1, 9, 50), np.array([2.5, np.log(1.4), 0.7, -0.3])
    unit = truncnorm(-2.5 / 1.4, np.inf, 2.5, 1.4)
    tau, share = TAU[0] + (TAU[1] - TAU[0]) * expit(-0.3), expit(0.7)
    np.testing.assert_allclose(log_unit(x, q), unit.logpdf(x), atol=1e-9)
    itself, background = log_parts(x, q)
    np.testing.assert_allclose(np.exp(itself), share * unit.pdf(x), rtol=1e-9)
    np.testing.assert_allclose(np.exp(background), (1 - share) * np.exp(-x / tau) / tau, rtol=1e-9)
    z = np.array([-200.0, -26.0, -24.9, -3.0, 0.0, 6.0])
    np.testing.assert_allclose([log_normal_below(v) for v in z], log_ndtr(z), rtol=2e-3, atol=1e-12)


@pytest.mark.parametrize("q", [(2.5, np.log(1.4), 0.7, -0.3), (-3.0, 0.2, -2.0, 1.5), (6.0, -1.0, 3.0, -4.0)])
def test_the_slope_of_the_cost_is_its_difference(q):
    x, counts, step = np.linspace(0.1, 9, 50), np.random.default_rng(0).poisson(20, 50).astype(float), 1e-5
    by_difference = [(cost(q + step * one, x, counts)[0] - cost(q - step * one, x, counts)[0]) / (2 * step) for one in np.eye(4)]
    np.testing.assert_allclose(cost(np.array(q), x, counts)[1], by_difference, rtol=1e-5, atol=1e-4)
    parts = log_parts(x, np.array(q))
    flatter, steeper = (cost(np.array([*q[:3], v]), x, 0 * counts)[0] for v in (-30.0, 30.0))  # without data, the prior of tau alone
    assert cost(np.array(q), x, counts)[0] > -(counts * np.logaddexp(*parts)).sum() and flatter > 1 and steeper > 1


@pytest.mark.parametrize(("mean", "std", "n_background"), [(10.0, 1.3, 100), (8.0, 1.2, 400), (7.2, 1.1, 150)])
def test_as_good_as_knowing_the_mixture(mean, std, n_background):
    scores, true = planted(np.random.default_rng(1), 400, mean, std, n_background)
    n_own = true.sum()
    density = n_own * norm.pdf(scores, mean, std) / norm.sf(5.0, mean, std)
    oracle = density > n_background * np.exp(-(scores - 5.0) / 0.4) / 0.4
    found = unit_probability(scores, 5.0) > 0.5
    assert (found != true).mean() <= (oracle != true).mean() + 0.03
    assert (true & ~found).sum() < 0.15 * n_own


def test_background_is_told_where_a_few_spikes_lie_far_under_the_threshold():
    """Spikes that collide, or where tissue has moved, may; they are not where the background begins."""
    scores, true = planted(np.random.default_rng(6), 300, 9.0, 1.4, 60)
    found = unit_probability(np.r_[scores, 3.5, 3.8], 5.0)[: len(scores)] > 0.5
    assert (found != true).mean() < 0.05


def test_a_few_spikes_of_background_are_told():
    """By what is known of it beforehand: twelve of them would not pay for parameters of their own."""
    left, lost = [], []
    for seed in range(20):
        scores, true = planted(np.random.default_rng(seed), 200, 8.5, 1.5, 12)
        found = unit_probability(scores, 5.0) > 0.5
        left.append((found & ~true).sum())
        lost.append((true & ~found).sum())
    assert np.mean(left) < 5 and np.mean(lost) < 6


def test_probabilities_are_right():
    """Of the spikes given a probability near p, a share p is the unit's own."""
    rng, p, true = np.random.default_rng(2), [], []
    for _ in range(20):
        scores, own_spike = planted(rng, 300, 7.5, 1.2, 300)
        p.append(unit_probability(scores, 5.0))
        true.append(own_spike)
    p, true = np.concatenate(p), np.concatenate(true)
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 0.99)):
        some = (p >= low) & (p < high)
        assert some.sum() > 50
        assert abs(p[some].mean() - true[some].mean()) < 0.12


@pytest.mark.parametrize("seed", range(5))
def test_small_spikes_of_bursts_are_no_background(seed):
    """Both lie right above the threshold; one of the two follows the unit's spikes."""
    rng = np.random.default_rng(seed)
    first = np.sort(rng.choice(int(120 * FS), 400, replace=False))
    late = rng.choice(first, 40, replace=False) + (rng.uniform(0.003, 0.008, 40) * FS).astype(int)
    strange = rng.choice(int(120 * FS), 60, replace=False)
    scores = np.r_[rng.normal(9.0, 1.1, 400), 5.0 + rng.exponential(0.4, 100)]
    p = with_bursts(unit_probability(scores, 5.0), np.r_[first, late, strange], FS) > 0.5
    assert p[:400].mean() > 0.97 and p[400:440].mean() > 0.9 and p[440:].mean() < 0.15


def test_spikes_that_follow_by_chance_are_no_burst():
    rng = np.random.default_rng(1)
    p = np.r_[np.ones(2000), np.full(300, 0.1)]
    after = with_bursts(p, rng.choice(int(120 * FS), 2300, replace=False), FS)
    assert (after >= p - 1e-12).all() and after[2000:].max() < 0.5
    np.testing.assert_allclose(with_bursts(np.array([0.2]), np.array([100]), FS), 0.2)
    assert with_bursts(np.array([0.2, 0.2]), np.array([100, 100]), FS).tolist() == [0.2, 0.2]
    assert with_bursts(np.ones(3), np.arange(3), FS).tolist() == [1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("mean", "std"), [(30.0, 3.0), (12.0, 1.5), (8.0, 1.2), (5.5, 1.2)])
def test_a_clean_unit_keeps_its_spikes(seed, mean, std):
    scores, _ = planted(np.random.default_rng(seed), 300, mean, std, 0)
    assert (unit_probability(scores, 5.0) > 0.5).mean() > 0.98


def test_a_bursting_unit_keeps_its_smaller_spikes():
    rng = np.random.default_rng(3)
    size = np.where(rng.random(500) < 0.3, 0.6, 1.0)
    assert (unit_probability(16.0 * size * rng.normal(1, 0.08, 500) + rng.normal(0, 1, 500), 5.0) > 0.5).mean() > 0.99


def test_few_spikes_tell_nothing():
    scores, _ = planted(np.random.default_rng(0), 8, 10.0, 1.0, 8)
    assert (unit_probability(scores, 5.0) == 1).all()
    assert unit_probability(np.zeros(0), 5.0).shape == (0,)
    assert (unit_probability(np.full(50, 7.0), 5.0) > 0.99).all()


def matcher_of(rng, mean):
    n = len(mean)
    waveforms = unit_norm(rng.normal(size=(n, 3, 20)).astype(np.float32))
    return prepare(waveforms, Priors(np.array(mean), 0.12 * np.array(mean), np.full(n, 3.0)), FS, 1)


def spikes_of(samples, units, amplitudes):
    order = np.argsort(samples, kind="stable")
    n = len(samples)
    return Spikes(np.asarray(samples)[order], np.zeros(n, np.float32), np.asarray(units)[order], np.asarray(amplitudes, np.float32)[order],
                  np.ones(n, np.float32))


def test_scores_are_found_again_from_shrunk_amplitudes():
    rng = np.random.default_rng(4)
    matcher = matcher_of(rng, [9.0, 40.0])
    scores, true = planted(rng, 300, 9.0, 1.2, 150, threshold=float(matcher.threshold[0]))
    p = float(matcher.amp_precision[0])
    amplitudes = np.r_[(scores + p * 9.0) / (1 + p), rng.normal(40, 3, 100)]
    units = np.r_[np.zeros(len(scores), int), np.ones(100, int)]
    spikes = spikes_of(np.sort(rng.integers(0, 3_000_000, len(units))), units, amplitudes)
    found = probability(spikes, matcher, FS) > 0.5
    assert (found[: len(scores)] == true).mean() > 0.96
    assert found[len(scores) :].all()
    assert np.array_equal(own(spikes, matcher, FS, 0.5), found & ~leftover(spikes, matcher, FS))


def test_what_a_larger_spike_leaves_is_no_spike():
    rng = np.random.default_rng(5)
    matcher = matcher_of(rng, [90.0, 30.0])
    times = np.arange(1, 201) * 3000
    large, small = np.full(200, 90.0), rng.normal(30, 2, 200)
    units = np.repeat([0, 1, 1], [200, 200, 200])
    rests = spikes_of(np.r_[times, times + 1500, times[:40] + 6], units[:440], np.r_[large, small, np.full(40, 11.0)])
    assert rests.amplitudes[leftover(rests, matcher, FS)].tolist() == [11.0] * 40
    few = spikes_of(np.r_[times, times + 1500, times[:2] + 6], units[:402], np.r_[large, small, np.full(2, 11.0)])
    assert not leftover(few, matcher, FS).any(), "a collision or two may make a spike look small"
    bursting = spikes_of(np.r_[times, times + 1500, times + 1620], units, np.r_[large, small, small / 2])
    assert not leftover(bursting, matcher, FS).any()
    colliding = spikes_of(np.r_[times, times + 6], units[:400], np.r_[large, small])
    assert not leftover(colliding, matcher, FS).any()
    seldom = spikes_of(np.r_[times, times[:20] + 1500, times + 6], np.repeat([0, 1, 1], [200, 20, 200]),
                       np.r_[large, small[:20], np.full(200, 11.0)])
    assert (seldom.amplitudes[leftover(seldom, matcher, FS)] == 11).sum() == 200, "most of a unit's spikes may be another's rests"


def test_what_lies_on_other_channels_leaves_nothing():
    rng = np.random.default_rng(6)
    times, matcher = np.arange(1, 201) * 3000, matcher_of(rng, [90.0, 30.0])
    spikes = spikes_of(np.r_[times, times + 1500, times[:40] + 6], np.repeat([0, 1, 1], [200, 200, 40]),
                       np.r_[np.full(200, 90.0), np.full(200, 30.0), np.full(40, 11.0)])
    apart = replace(matcher, first=np.array([0, 1, 2]), other=np.array([0, 1]))
    assert leftover(spikes, matcher, FS).sum() == 40
    assert not leftover(spikes, apart, FS).any()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_larger_spike_beside_is_that_of_the_plain_search(seed):
    rng = np.random.default_rng(seed)
    shares = rng.random((6, 6)) < 0.6
    shares |= shares.T | np.eye(6, dtype=bool)
    first, other = np.r_[0, np.cumsum(shares.sum(axis=1))], np.nonzero(shares)[1]
    spikes = spikes_of(np.sort(rng.integers(0, 3000, 300)), rng.integers(0, 6, 300), rng.uniform(1, 20, 300).astype(np.float32))
    expected = []
    for t, k, a in zip(spikes.samples, spikes.units, spikes.amplitudes, strict=True):
        near = (abs(spikes.samples - t) <= 12) & shares[k][spikes.units] & (spikes.amplitudes > 2 * a)
        expected.append(spikes.units[near][spikes.amplitudes[near].argmax()] if near.any() else -1)
    assert larger_beside(spikes.samples, spikes.units, spikes.amplitudes, first, other, 12).tolist() == expected


def test_no_spikes():
    assert own(Spikes.empty(), matcher_of(np.random.default_rng(0), [9.0]), FS, 0.5).shape == (0,)
