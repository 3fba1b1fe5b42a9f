"""Coordinate ascent on planted data: the waveforms come out, the log joint does not fall, splits and merges are right."""

import numpy as np
import pytest
import torch
from helpers_engine import AFTER, BEFORE, FS, D, column, cosines, pair, plant, random_trains, unit_waveforms

from sortcore import matching
from sortcore.bank import Bank, sums_removed
from sortcore.ephys import fit as stage
from sortcore.ephys.config import FitConfig, InitializeConfig, PursuitConfig
from sortcore.ephys.initialize import initialize
from sortcore.groups import Group
from sortcore.numerics import unit_norm
from sortcore.types import Detections, Priors, Spikes

N, K, T = 8, 4, 240_000
SIZES = np.array([22.0, 16.0, 26.0, 18.0])


def make(per_unit=150, seed=0, n_units=K, sizes=SIZES):
    """Data, waveforms, starts and units; amplitudes vary by 8 %."""
    waves = unit_waveforms(n_units, N, seed=seed)
    starts, units = random_trains(n_units, per_unit, T, seed)
    amplitudes = np.random.default_rng(seed).normal(1, 0.08, len(units)) * sizes[units]
    return torch.from_numpy(plant(waves, starts, units, amplitudes, T, seed=seed)), waves, starts, units


@pytest.fixture(scope="module")
def planted():
    return make()


def run(x, waveforms, counts, iterations=3, **more):
    matcher, priors, log = stage.fit(x, np.asarray(waveforms, np.float32), np.asarray(counts), column(N), FS,
                                     FitConfig(iterations=iterations), PursuitConfig(), BEFORE, 10, **more)
    return matcher.waveforms(), priors, log


def blurred(waves, sizes=SIZES, seed=1, amount=0.4):
    """Waveforms as a first clustering of few spikes would give them."""
    rng = np.random.default_rng(seed)
    touched = (waves != 0).any(axis=2, keepdims=True)
    return sizes[:, None, None] * waves + amount * 0.5 * touched * rng.standard_normal(waves.shape)


@pytest.mark.parametrize(("n_own", "n_background"), [(200, 60), (40, 220)])
def test_background_does_not_blur_the_last_waveforms(n_own, n_background):
    """Small events of another shape that a unit's template takes for its own are left out of its mean, not of its splits; but a unit
    that they are most of stays what it is, as the largest of them alone would seem a cell."""
    rng = np.random.default_rng(3)
    wave, other = unit_waveforms(2, N, seed=5)
    matcher = matching.prepare(unit_norm(np.array([wave])), Priors(np.array([9.0]), np.array([1.1]), np.array([2.0])), FS)
    threshold = float(matcher.threshold[0])
    scores = np.r_[rng.normal(9.0, 1.1, n_own), threshold + rng.exponential(0.3, n_background)]
    p = float(matcher.amp_precision[0])
    shape = np.repeat(np.array([wave, 0.5 * wave + other]) @ matcher.basis.T, [n_own, n_background], axis=0)
    features = (scores[:, None, None] * shape + rng.standard_normal(shape.shape)).astype(np.float32)
    samples = np.sort(rng.choice(T, 260, replace=False))
    spikes = Spikes(samples, np.zeros(260, np.float32), np.zeros(260, np.int64), ((scores + 9.0 * p) / (1 + p)).astype(np.float32),
                    np.ones(260, np.float32))
    sweep = stage.Sweep(spikes, np.zeros(260, np.int64), features, np.arange(N)[None], 0.0, torch.empty(0))
    (group,) = stage.regroup(stage.without_background(sweep, matcher, FS), matcher, FS, True, 10)
    kept = np.isin(samples, group.samples)
    if n_own > n_background:
        assert kept[:n_own].mean() > 0.97 and kept[n_own:].mean() < 0.1
    else:
        assert kept.all()
    assert sum(len(g.samples) for g in stage.regroup(sweep, matcher, FS, False, 10)) == 260


def test_the_waveforms_come_out(planted):
    x, waves, *_ = planted
    found, priors, log = run(x, blurred(waves), [150] * K)
    assert len(found) == K
    match = cosines(found, waves)
    assert (match.max(axis=1) > 0.99).all()
    best = match.argmax(axis=1)
    assert sorted(best) == list(range(K))
    np.testing.assert_allclose(np.linalg.norm(found, axis=(1, 2)), 1, rtol=1e-4)
    np.testing.assert_allclose(priors.amp_mean[best], SIZES, rtol=0.05)
    np.testing.assert_allclose(priors.rate_hz[best], 150 / (T / FS), rtol=0.05)
    assert (priors.amp_std > 0).all()
    assert len(log.log_joint) == 3 and log.n_units.tolist() == [K] * 3 and len(log.steps) >= 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_log_joint_does_not_fall(seed):
    """But where a unit goes, by no more than its parameters cost: at least a waveform's samples."""
    x, waves, *_ = make(60, seed)
    _, _, log = run(x, blurred(waves, seed=seed, amount=0.8), [60] * K, iterations=4)
    assert len(log.log_joint) == 4
    silence = -0.5 * float((x.double() ** 2).sum())
    slack = 1e-3 * (log.log_joint[0] - silence)  # priors and the shared basis are learned anew in each round
    gone = np.maximum(-np.diff(log.n_units), 0)
    assert slack > 0 and (np.diff(log.log_joint) > -slack - gone * 0.5 * D * np.log(T)).all(), (log.log_joint, log.n_units)
    assert log.log_joint[-1] > log.log_joint[0]


def test_the_spikes_of_what_was_fitted_are_those_planted(planted):
    x, waves, starts, units = planted
    found, priors, _ = run(x, blurred(waves), [150] * K)
    names = cosines(found, waves).argmax(axis=0)  # the true unit of each
    matcher = matching.prepare(found, priors, FS)
    sweep = stage.run_sweep(x, matcher, column(N), FS, PursuitConfig())
    lag = [int(np.median(np.subtract.outer(starts[units == k], sweep.spikes.samples[names[sweep.spikes.units] == k])[
        np.abs(np.subtract.outer(starts[units == k], sweep.spikes.samples[names[sweep.spikes.units] == k])) < 12])) for k in range(K)]
    times = sweep.spikes.samples + np.array(lag)[names[sweep.spikes.units]]
    assert pair(starts, units, times, names[sweep.spikes.units], 3) > 0.99 * len(starts)
    assert len(sweep.spikes) < 1.02 * len(starts)
    assert float(sweep.residual.float().std()) == pytest.approx(1, abs=0.01), "noise is all that is left"


def test_a_unit_given_twice_becomes_one(planted):
    x, waves, *_ = planted
    twice = np.concatenate([blurred(waves), blurred(waves[:2], SIZES[:2], seed=9)])
    found, _, _ = run(x, twice, [100] * K + [50] * 2)
    assert len(found) == K and (cosines(found, waves).max(axis=1) > 0.99).all()


def test_two_units_given_as_one_are_split_or_found_again(planted):
    x, waves, *_ = planted
    start = blurred(waves)

    def find_new(residual):
        residual = residual.numpy()
        samples = []
        for c in range(N):
            peaks = np.flatnonzero(np.abs(residual[c]) > 6)
            samples += [(s, c) for s in peaks if abs(residual[c, s]) == np.abs(residual[:, max(0, s - 20) : s + 20]).max()]
        samples.sort()
        s, c = np.array(samples).T if samples else np.zeros((2, 0), int)
        return initialize(residual, Detections(s, c, np.full(len(s), 6, np.float32)), column(N), BEFORE, AFTER, InitializeConfig())

    found, _, log = run(x, start[:3], [150] * 3, iterations=4, find_new=find_new)
    assert (cosines(found, waves).max(axis=1) > 0.99).all() and len(found) <= K + 1
    assert any("new units" in step for step in log.steps)


def test_a_small_unit_is_kept():
    sizes = np.array([20.0, 12.0, 20.0])
    waves = unit_waveforms(3, N, seed=4)
    starts, units = random_trains(3, 300, T, 4)
    few = np.flatnonzero(units == 1)[::20][:15]
    keep = np.sort(np.concatenate([np.flatnonzero(units != 1), few]))
    x = torch.from_numpy(plant(waves, starts[keep], units[keep], sizes[units[keep]], T, seed=4))
    found, priors, _ = run(x, blurred(waves, sizes), [300, 15, 300])
    match = cosines(found, waves)
    assert len(found) == 3 and (match.max(axis=1) > [0.99, 0.95, 0.99]).all()
    assert priors.amp_mean[match[1].argmax()] == pytest.approx(12, rel=0.15)


def test_a_waveform_that_is_not_there_is_dropped(planted):
    x, waves, *_ = planted
    ghost = 15 * np.roll(waves[:1, ::-1], 9, axis=2) * np.where(np.arange(D) % 2, 1, -1)
    found, _, _ = run(x, np.concatenate([blurred(waves), unit_norm(ghost) * 15]), [150] * K + [20])
    assert len(found) == K and (cosines(found, waves).max(axis=1) > 0.99).all()


def test_bursting_amplitudes_stay_one_unit():
    waves = unit_waveforms(1, N, seed=2)
    starts, units = random_trains(1, 400, T, 2)
    amplitudes = np.random.default_rng(2).choice([25.0, 20.0, 16.0, 13.0], len(units))  # as within a burst
    x = torch.from_numpy(plant(waves, starts, units, amplitudes, T, seed=2))
    found, priors, _ = run(x, 19 * waves, [400])
    assert len(found) == 1 and cosines(found, waves)[0, 0] > 0.99 and 12 < priors.amp_mean[0] < 26


def test_noise_and_nothing_are_no_units():
    x = torch.from_numpy(plant(np.zeros((1, N, D), np.float32), np.zeros(0, int), np.zeros(0, int), np.zeros(0), 60_000))
    found, priors, log = run(x, np.zeros((0, N, D)), np.zeros(0, int))
    assert found.shape == (0, N, D) and len(priors.amp_mean) == 0 and len(log.log_joint) == 0
    found, *_ = run(x, 15 * unit_waveforms(2, N), [20, 20])
    assert len(found) == 0


def test_denoising_leaves_out_channels_of_noise():
    waves = unit_waveforms(1, N, reach=1)
    rng = np.random.default_rng(0)
    noisy = 20 * waves + rng.standard_normal(waves.shape).astype(np.float32) / np.sqrt(100)
    out, counts = stage.denoised(noisy, np.array([100]), 5, BEFORE, 5.0)
    assert len(out) == 1 and counts.tolist() == [100]
    assert ((out != 0).any(axis=2) == (waves != 0).any(axis=2)).all()
    assert ((out - 20 * waves) ** 2).sum() < ((noisy - 20 * waves) ** 2).sum()
    assert np.linalg.matrix_rank(stage.low_rank(noisy[0], 2, 0.01), tol=1e-3) <= 2
    weak, _ = stage.denoised(noisy / 10, np.array([100]), 5, BEFORE, 5.0)
    assert len(weak) == 0, "norm 2 is below what noise lets be seen"


def test_moved_by_and_centred():
    w = np.zeros((2, 20))
    w[1, 5] = -3.0
    assert stage.moved_by(w, 4)[1, 9] == -3 and stage.moved_by(w, -4)[1, 1] == -3
    assert not stage.moved_by(w, 16).any() and not stage.moved_by(w, -6).any()
    assert stage.centred(w, 8)[1, 8] == -3


def test_a_unit_centred_on_another_of_its_extrema_is_not_a_second_unit():
    t = np.arange(D)
    first, second = (np.exp(-0.5 * ((t - c) / 3.0) ** 2) for c in (D // 2 - 4, D // 2 + 4))
    shape = np.zeros((2, 4, D), np.float32)
    shape[0, 1:3] = first - second
    shape[1] = np.roll(shape[0], 8, axis=1)  # the same, centred on its other extremum
    matcher = matching.prepare(unit_norm(shape), stage.first_priors(10 * shape, np.array([90, 50]), 10.0), FS, 1)

    train = 60 * np.arange(5000) + 20  # one cell that fires every 2 ms, half of its spikes taken for another

    def group(waveform, samples):
        rng = np.random.default_rng(len(samples))
        features = (waveform @ matcher.basis.T)[None] + 0.1 * rng.standard_normal((len(samples), 4, len(matcher.basis)))
        return Group(samples, np.full(len(samples), 10, np.float32), features.astype(np.float32), np.arange(4))

    large, small = group(10 * shape[0], np.delete(train, slice(None, None, 3))), group(10 * shape[1], train[::3] - 8)
    assert stage.realigned([small, large], matcher, FS) == [large]
    faint = group(3 * shape[1], train[::3] - 8)
    assert stage.realigned([large, faint], matcher, FS) == [large, faint], "of another size"
    other = group(10 * shape[1], np.sort(np.random.default_rng(1).integers(0, 300_000, 1500)))
    assert stage.realigned([large, other], matcher, FS) == [large, other], "another cell: it fires when the first has just fired"
    rare = 3000 * np.arange(60) + 500  # too few to show that they keep out of each other's refractory period
    few = [group(10 * shape[0], rare[::2]), group(10 * shape[1], rare[1::4] - 8)]
    assert stage.realigned(few, matcher, FS) == few[:1], "two cells would not look so alike at a lag"
    unlike = shape[1].copy()
    unlike[1] += shape[0, 1]
    less = [few[0], group(10 * unlike / np.linalg.norm(unlike) * np.linalg.norm(shape[1]), rare[1::4] - 8)]
    assert stage.realigned(less, matcher, FS) == less
    twin = group(10 * shape[0], train[::3])
    assert stage.realigned([large, twin], matcher, FS) == [large, twin], "at no lag: whether they are one is asked elsewhere"


def test_a_unit_that_the_others_do_without_goes():
    waves = unit_waveforms(2, N, reach=3)
    rng = np.random.default_rng(4)
    first = np.sort(rng.choice(np.arange(1, 900), 300, replace=False)) * 300
    second = np.unique(np.r_[first[::20] + rng.integers(4, 9, 15), np.sort(rng.choice(np.arange(1, 900), 200, replace=False)) * 300 + 130])
    starts, units = np.r_[first, second], np.r_[np.zeros(len(first), int), np.ones(len(second), int)]
    order = np.argsort(starts, kind="stable")
    starts, units = starts[order], units[order]
    x = torch.from_numpy(plant(waves, starts, units, np.where(units == 0, 25.0, 15.0), 280_000))
    both = 25 * waves[0] + 15 * stage.moved_by(waves[1], 6)  # a cluster of their collisions
    bank = unit_norm(np.array([waves[0], waves[1], both]))
    priors = stage.first_priors(np.array([25 * waves[0], 15 * waves[1], both]), np.array([300, 215, 15]), 280_000 / FS)
    matcher = matching.prepare(bank, priors, FS)
    sweep = stage.run_sweep(x, matcher, column(N), FS, PursuitConfig())
    assert (sweep.spikes.units == 2).sum() > 5
    kept = stage.needed(sweep, x, matcher, FS)
    assert set(kept.spikes.units) == {0, 1} and len(kept.spikes) == len(kept.features) == len(kept.knots)
    two = matching.prepare(bank[:2], Priors(priors.amp_mean[:2], priors.amp_std[:2], np.array([1.0, 0.1])), FS)
    alone = stage.run_sweep(x, two, column(N), FS, PursuitConfig())
    assert set(stage.needed(alone, x, two, FS).spikes.units) == {0, 1}, "a cell that nothing else explains is needed"


def test_a_cluster_of_collisions_goes_and_a_cell_that_a_small_part_of_another_would_explain_stays():
    waves = unit_waveforms(4, N, reach=3)
    large, small = 80 * waves[0], 7 * waves[1]
    counts = np.array([1500, 9000, 300, 400])
    for third, stays in ((large + small, False), (28 * waves[0] + small, True)):
        bank = Bank(np.array([large, small, third, 20 * waves[3]]), counts)
        kept = sums_removed(bank, FS, n_samples=int(60 * FS))
        assert len(kept) == 3 + stays and (kept.counts == 300).any() == stays


def test_the_fit_repeats(planted):
    x, waves, *_ = planted
    one, two = (run(x[:, :60_000], blurred(waves), [40] * K, iterations=2) for _ in range(2))
    assert one[0].tobytes() == two[0].tobytes() and np.array_equal(one[2].log_joint, two[2].log_joint)
