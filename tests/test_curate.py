"""What the unit table says of a unit: strangers, losses, labels, and units that are none."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from sortcore.ephys import curate
from sortcore.ephys.config import CurateConfig
from sortcore.types import Preprocessing, Priors, Probe, Spikes

FS = 30000.0
SECONDS = 100
T = int(FS) * SECONDS


def spikes_of(trains, scores=20.0):
    """Spikes of units given as trains of samples, in order of time."""
    samples, units = np.concatenate(trains), np.repeat(np.arange(len(trains)), [len(t) for t in trains])
    order = np.lexsort((units, samples))
    n = len(samples)
    return Spikes(samples[order].astype(np.int64), np.zeros(n, np.float32), units[order], np.full(n, 15, np.float32),
                  np.full(n, scores, np.float32))


def poisson(seed, rate, refractory_s=0.0):
    gaps = refractory_s + np.random.default_rng(seed).exponential(1 / rate - refractory_s, int(2 * rate * SECONDS) + 50)
    train = (np.cumsum(gaps) * FS).astype(np.int64)
    return train[train < T]


def strangers(violations, count, refractory=45.0):
    return float(curate.rate_of_strangers(np.array([violations]), np.array([count]), refractory, T)[0])


def test_known_rates_of_strangers():
    expected = 2000**2 * 45 / T  # violations that 2000 independent spikes make: 60
    assert expected == 60
    assert strangers(0, 2000) == 0
    assert strangers(60, 2000) == pytest.approx(1)
    assert strangers(1000, 2000) == 1
    assert strangers(60 * (1 - 0.9**2), 2000) == pytest.approx(0.1)
    assert strangers(60 * 0.75, 2000) == pytest.approx(0.5)
    assert strangers(0, 0) == 0


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_contamination_of_a_mixed_train_is_estimated(share):
    found = []
    for seed in range(6):
        cell = poisson(seed, 40 * (1 - share), refractory_s=0.003)
        other = poisson(100 + seed, 40 * share)  # many strangers that do not know of each other
        train = np.sort(np.concatenate([cell, other]))
        found.append(strangers((np.diff(train) < 45).sum(), len(train)))
    assert np.mean(found) == pytest.approx(share, abs=0.03)


def test_no_violations_of_few_spikes_say_little():
    few, many = (curate.rate_of_strangers(chi2.ppf(0.95, 2) / 2 * np.ones(1), np.array([n]), 45.0, T)[0] for n in (100, 10000))
    assert few == 1.0 and many < 0.01


@pytest.fixture
def noise():
    probe = Probe(np.array([[0, 0], [0, 20], [0, 40]]), np.zeros(3, int))
    taps = np.ones(1, np.float32)
    return Preprocessing(np.array([4, 5, 7]), 9, FS, np.ones(3), np.zeros(3), probe, "none", taps, taps, np.eye(3, dtype=np.float32),
                         np.full(3, np.inf))


def table(noise, trains, amp_mean=None, threshold=5.0, amp_std=1.5, parameters=0, scores=20.0):
    k = len(trains)
    waves = np.zeros((k, 3, 10), np.float32)
    waves[np.arange(k), np.arange(k) % 3, 4] = -100
    waves[np.arange(k), np.arange(k) % 3, 7] = 30
    mean = np.full(k, 15.0) if amp_mean is None else np.asarray(amp_mean, float)
    priors = Priors(mean, np.full(k, amp_std), np.full(k, 10.0))
    return curate.measure(spikes_of(trains, scores), waves, priors, np.full(k, threshold), np.full(k, parameters), noise, T, CurateConfig())


def test_the_table_of_units(noise):
    trains = [poisson(0, 30, refractory_s=0.003), poisson(1, 60), np.array([T // 2, T // 2 + 10]), poisson(2, 30, 0.003)[:600]]
    units = table(noise, trains)
    assert units.n_spikes.tolist() == [len(t) for t in trains]
    np.testing.assert_allclose(units.firing_rate_hz, units.n_spikes / SECONDS)
    assert units.channel.tolist() == [4, 5, 7, 4], "channels as they were recorded"
    np.testing.assert_allclose(units.position_um, [[0, 0], [0, 20], [0, 40], [0, 0]])
    np.testing.assert_allclose(units.amplitude_uv, 130)
    assert units.refractory_violations.tolist() == [int((np.diff(t) < 45).sum()) for t in trains]
    assert units.refractory_violations[0] == 0 and units.refractory_violations[2] == 1
    assert units.label.tolist() == ["good", "mua", "noise", "good"]
    assert units.contamination[0] == 0 and units.contamination[1] > 0.5
    assert (units.contamination_upper >= units.contamination).all()
    assert units.presence[0] == 1 and units.presence[2] == pytest.approx(0.1) and 0.1 < units.presence[3] < 0.5


def test_a_unit_without_a_violation_has_a_bound_that_falls_with_its_spikes(noise):
    upper = table(noise, [poisson(s, rate, 0.003) for s, rate in enumerate((2, 20, 100))]).contamination_upper
    assert upper[0] == 1 > upper[1] > upper[2] and upper[2] < 0.02


def test_missed_spikes_are_those_below_the_threshold(noise):
    trains = [poisson(s, 10, 0.003) for s in range(3)]
    units = table(noise, trains, amp_mean=[6.5, 5.0, 30.0], amp_std=1e-6)
    np.testing.assert_allclose(units.missed, [0.0668, 0.5, 0], atol=1e-3)  # unit noise around each amplitude
    assert units.label.tolist() == ["good", "mua", "good"], "half of its spikes are lost"
    assert table(noise, trains[:1], amp_mean=[8.0], threshold=8.0).label.tolist() == ["mua"]


def test_labels():
    config = CurateConfig()
    count, snr = np.array([100] * 4 + [5, 100, 100]), np.array([10, 10, 10, 4.0, 10, 10, 10])
    share, missed = np.array([0, 0.3, 0, 0.3, 0, 0, 0]), np.array([0, 0, 0.4, 0, 0, 0, 0])
    evidence = np.array([1000, 1000, 1000, 1000, 1000, -1.0, 300])  # the last: too little a spike
    names = ["good", "mua", "mua", "noise", "noise", "noise", "noise"]
    assert curate.labels(count, snr, share, missed, evidence, config).tolist() == names
    loose = replace(config, max_contamination=0.5, max_missed=0.5, min_snr=0.0, min_spikes=0, min_evidence=0.0)
    assert set(curate.labels(count, snr, share, missed, np.abs(evidence), loose)) == {"good"}


def test_evidence_is_the_gain_less_what_the_parameters_cost(noise):
    trains = [poisson(s, rate, 0.003) for s, rate in enumerate((2, 20))]
    units = table(noise, trains, parameters=1000)
    cost = 0.5 * 1000 * np.log(T)
    np.testing.assert_allclose(units.evidence, [20.0 * len(t) - cost for t in trains])
    assert units.label.tolist() == ["noise", "good"], "too few spikes to pay for a waveform"


def test_one_violation_among_few_spikes_condemns_no_unit(noise):
    few = np.sort(np.r_[np.arange(1, 150) * (T // 150), T // 2 + T // 300 + 30])
    few[np.searchsorted(few, T // 2)] = few[np.searchsorted(few, T // 2) - 1] + 30
    units = table(noise, [np.unique(few)])
    assert units.refractory_violations[0] == 1 and units.contamination[0] > 0.2
    assert units.label.tolist() == ["good"]


def test_an_empty_table(noise):
    none = Priors(*(np.zeros(0),) * 3)
    units = curate.measure(Spikes.empty(), np.zeros((0, 3, 10), np.float32), none, np.zeros(0), np.zeros(0), noise, T, CurateConfig())
    assert len(units) == 0 and units.position_um.shape == (0, 2)


def duplicates(trains, snr, used=None):
    used = np.ones((len(trains), 2), bool) if used is None else np.array(used, bool)
    return curate.duplicates(spikes_of(trains), used, np.asarray(snr, float), FS).tolist()


def test_what_coincides_with_a_larger_unit_goes():
    cell, other = poisson(0, 20, 0.003), poisson(1, 20, 0.003)
    assert duplicates([cell, cell[::2] + 5, other], [20, 10, 12]) == [False, True, False]


def test_what_follows_a_larger_unit_at_a_fixed_lag_goes():
    cell = poisson(0, 10, 0.01)
    echo = cell[::2] + 70 + np.random.default_rng(2).integers(-2, 3, len(cell[::2]))
    assert duplicates([cell, echo], [20, 10]) == [False, True]


def test_what_is_left_after_a_much_larger_unit_goes():
    """Later than a template's misfit would be, and at no fixed lag."""
    cell, rng = poisson(0, 10, 0.01), np.random.default_rng(3)
    own = poisson(4, 10)
    left = np.unique(np.r_[own, cell[::2] + rng.integers(25, 55, len(cell[::2]))])
    assert duplicates([cell, left], [40, 8]) == [False, True]
    assert duplicates([cell, left], [12, 8]) == [False, False], "a unit hardly larger leaves nothing of that size"


def test_cells_of_their_own_stay():
    trains = [poisson(s, 30, 0.003) for s in range(4)]
    assert not any(duplicates(trains, [20, 15, 12, 8]))


def test_fast_cells_that_coincide_by_chance_stay():
    trains = [poisson(s, 120) for s in range(3)]
    assert not any(duplicates(trains, [20, 15, 8]))


def test_twins_on_channels_that_do_not_touch_stay():
    cell = poisson(0, 20, 0.003)
    assert duplicates([cell, cell + 3], [20, 10], [[1, 0], [0, 1]]) == [False, False]


def test_the_far_field_of_a_very_large_unit_goes():
    """On channels that the large unit's waveform no longer touches: near in time to a very large one, or locked to a larger one."""
    cell = poisson(0, 20, 0.003)
    near = np.sort(cell[::2] + np.random.default_rng(1).integers(-25, 26, len(cell[::2])))

    def gone(train, snr, away_um):
        apart, trains = np.array([[True, False], [False, True]]), [cell, train]
        return curate.duplicates(spikes_of(trains), apart, np.array(snr), FS, np.array([[0.0, 0.0], [0.0, away_um]])).tolist()

    assert gone(near, [60.0, 8.0], 200.0) == [False, True]
    assert gone(near, [30.0, 8.0], 200.0) == gone(near, [60.0, 8.0], 900.0) == [False, False]
    assert gone(cell[::2] + 8, [30.0, 8.0], 200.0) == [False, True]
    assert gone(cell[::2] + 8, [9.0, 8.0], 200.0) == gone(cell[::2] + 8, [30.0, 8.0], 900.0) == [False, False]


def test_a_unit_without_spikes_is_no_duplicate():
    assert duplicates([poisson(0, 20), np.zeros(0, int)], [20, 5]) == [False, False]


def test_locked_share():
    cell = np.arange(1, 200) * 3000
    assert curate.locked_share(cell + 60, cell, FS) == 1.0
    assert curate.locked_share(np.concatenate([cell[::2] + 60, cell[1::2] + 1500]), cell, FS) == pytest.approx(0.5, abs=0.01)
    assert curate.locked_share(cell, np.zeros(0, int), FS) == 0
