"""Scores against truth: against brute force and against SpikeInterface."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from sortcore import metrics
from sortcore.errors import ModelError


def trains_with_refractoriness(rng, n_units, n_spikes=200, refractory=30):
    return [np.cumsum(refractory + rng.exponential(300, size=rng.integers(1, n_spikes)).astype(int)) for _ in range(n_units)]


def spoiled(rng, trains, jitter):
    """A sorting of these units: some spikes missed, some false, all moved a little; one unit split, two merged, one false."""
    found = []
    for train in trains:
        kept = train[rng.random(len(train)) < rng.uniform(0.4, 1)]
        false = rng.integers(0, train[-1] + 1, rng.integers(0, 1 + len(train) // 4))
        found.append(np.sort(np.concatenate([kept + rng.integers(-jitter, jitter + 1, len(kept)), false])))
    found += [found[0][::2], np.sort(np.concatenate(found[1:3])), rng.integers(0, 30000, 50)]
    found[0] = found[0][1::2]
    found = [apart(np.sort(train)) for train in found]
    return [found[i] for i in rng.permutation(len(found))]


def apart(train, distance=30):
    """Leave out every spike closer than this to the one kept before it."""
    kept = []
    for t in train:
        if not kept or t - kept[-1] >= distance:
            kept.append(t)
    return np.array(kept, dtype=np.int64)


def brute_force_matches(a, b, tolerance):
    """Largest one-to-one pairing, as an assignment problem over all pairs."""
    allowed = np.abs(np.subtract.outer(a, b)) <= tolerance
    rows, columns = linear_sum_assignment(-allowed.astype(float))
    return int(allowed[rows, columns].sum())


@pytest.mark.parametrize("seed", range(20))
def test_no_one_to_one_pairing_has_more_matches(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 150, rng.integers(0, 40)) for _ in range(2))  # crowded and unsorted
    expected = brute_force_matches(a, b, 5) if len(a) and len(b) else 0
    assert metrics.match_spikes(a, b, 5) == metrics.match_spikes(b, a, 5) == expected


def test_tolerance_is_inclusive():
    assert metrics.match_spikes(np.array([100]), np.array([106]), 6) == 1
    assert metrics.match_spikes(np.array([100]), np.array([107]), 6) == 0
    assert metrics.match_spikes(np.array([0.0100]), np.array([0.0103]), 0.0004) == 1


def test_a_spike_is_matched_once():
    assert metrics.match_spikes(np.array([10, 11, 12]), np.array([11]), 5) == 1


@pytest.mark.parametrize("seed", range(5))
def test_same_figures_as_spikeinterface(seed):
    core = pytest.importorskip("spikeinterface.core")
    comparison = pytest.importorskip("spikeinterface.comparison")
    rng, fs = np.random.default_rng(seed), 30000.0
    true = trains_with_refractoriness(rng, 6)
    found = spoiled(rng, true, jitter=8)
    as_sorting = [core.NumpySorting.from_unit_dict([dict(enumerate(trains))], fs) for trains in (true, found)]
    theirs = comparison.compare_sorter_to_ground_truth(*as_sorting, delta_time=0.4, match_score=0.5, exhaustive_gt=True)
    ours = metrics.compare(true, found, tolerance=int(0.4e-3 * fs))
    np.testing.assert_array_equal(ours.n_matched, theirs.match_event_count.values)
    np.testing.assert_allclose(ours.agreement, theirs.agreement_scores.values)
    np.testing.assert_array_equal(ours.match, theirs.hungarian_match_12.values)
    np.testing.assert_array_equal(ours.extra, np.flatnonzero(theirs.hungarian_match_21.values == -1))
    performance = theirs.get_performance()
    for name in ("accuracy", "precision", "recall"):
        np.testing.assert_allclose(getattr(ours, name), performance[name].astype(float))
    assert ours.n_well_detected() == theirs.count_well_detected_units(0.8)
    assert 0 < ours.mean_accuracy < 1 and (ours.match == -1).any() and len(ours.extra)  # the trains try every branch


def test_figures_by_hand():
    true = [np.array([100, 200, 300, 400]), np.array([1000, 2000])]
    found = [np.array([5000]), np.array([101, 201, 301, 350, 360])]
    c = metrics.compare(true, found, tolerance=5)
    np.testing.assert_array_equal(c.n_matched, [[0, 3], [0, 0]])
    np.testing.assert_array_equal(c.match, [1, -1])
    np.testing.assert_allclose(c.accuracy, [3 / 6, 0])
    np.testing.assert_allclose(c.precision, [3 / 5, 0])
    np.testing.assert_allclose(c.recall, [3 / 4, 0])
    np.testing.assert_array_equal(c.extra, [0])
    assert c.mean_accuracy == pytest.approx(0.25)
    assert c.n_well_detected(0.5) == 1 and c.n_well_detected() == 0


def test_pairing_takes_the_largest_total_agreement():
    agreement = np.array([[0.9, 0.8], [0.8, 0.1]])
    np.testing.assert_array_equal(metrics.pair_units(agreement, match_score=0.2), [1, 0])
    np.testing.assert_array_equal(metrics.pair_units(agreement, match_score=0.85), [0, -1])


def test_below_a_low_match_score_nothing_is_paired():
    np.testing.assert_array_equal(metrics.pair_units(np.zeros((2, 3))), [-1, -1])


@pytest.mark.parametrize("true, found", [([], []), ([], [np.array([1])]), ([np.array([1, 50])], []),
                                         ([np.zeros(0, int)], [np.zeros(0, int)])])
def test_nothing_to_compare(true, found):
    c = metrics.compare(true, found, tolerance=5)
    assert c.agreement.shape == c.n_matched.shape == (len(true), len(found))
    assert (c.accuracy == 0).all() and (c.match == -1).all() and len(c.extra) == len(found)
    assert np.isnan(c.mean_accuracy) if not true else c.mean_accuracy == 0


def test_one_unit_found_exactly():
    c = metrics.compare([np.array([5, 40, 90])], [np.array([90, 5, 40])], tolerance=0)
    assert c.accuracy[0] == c.precision[0] == c.recall[0] == 1 and len(c.extra) == 0


def test_spike_trains_take_units_apart():
    trains = metrics.spike_trains(np.array([30, 10, 20, 5]), np.array([0, 2, 0, 2]), n_units=4)
    assert [t.tolist() for t in trains] == [[20, 30], [], [5, 10], []]
    assert [t.tolist() for t in metrics.spike_trains(np.array([3]), np.array([1]))] == [[], [3]]
    assert metrics.spike_trains(np.zeros(0), np.zeros(0, int)) == []


def test_bad_times_are_refused():
    with pytest.raises(ModelError, match="NaN"):
        metrics.match_spikes(np.array([1.0, np.nan]), np.array([1.0]), 1)
    with pytest.raises(ModelError, match="must not be negative, but it is -1"):
        metrics.match_spikes(np.array([1]), np.array([1]), -1)
