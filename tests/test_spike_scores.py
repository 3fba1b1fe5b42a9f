"""Scores of spike trains and activity: by hand, against plain double loops, against scipy and scikit-learn, at their limits."""

import importlib
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.stats import binom, binomtest, poisson
from sklearn.metrics import average_precision_score, roc_auc_score

from sortcore.errors import ModelError
from sortcore.metrics import (
    correlation,
    poisson_interval,
    precision_recall,
    roc,
    score_events,
    score_spikes,
    share_interval,
    van_rossum,
    victor_purpura,
)

A, B, NONE = np.array([0.05, 0.11, 0.3, 0.31, 0.72]), np.array([0.06, 0.33, 0.5]), np.zeros(0)


def test_counts_within_a_tolerance():
    score = score_spikes(A, B, 0.02)
    assert (score.n_true, score.n_found, score.n_matched) == (5, 3, 2)
    assert (score.precision, score.recall, score.f1, score.accuracy) == (2 / 3, 2 / 5, 0.5, 1 / 3)
    nothing = score_spikes(NONE, NONE, 0.02)
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.accuracy) == (0, 0, 0, 0)


def test_a_true_spike_is_found_once():
    assert score_spikes(np.array([1.0]), np.array([0.99, 1.0, 1.01]), 0.05).n_matched == 1


def test_curves_agree_with_scikit_learn(rng):
    truth = rng.random(400) < 0.2
    scores = np.round(truth + rng.standard_normal(400), 1)  # with ties
    assert roc(scores, truth).area == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert precision_recall(scores, truth).area == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_curves_begin_with_nothing_and_end_with_everything():
    curve = roc(np.array([3.0, 1.0, 2.0, 2.0]), np.array([1, 0, 1, 0]))
    np.testing.assert_array_equal(curve.thresholds, [np.inf, 3, 2, 1])
    np.testing.assert_array_equal(curve.true_positive_rate, [0, 0.5, 1, 1])
    np.testing.assert_array_equal(curve.false_positive_rate, [0, 0, 0.5, 1])
    assert curve.area == 0.875
    pr = precision_recall(np.array([3.0, 1.0, 2.0, 2.0]), np.array([1, 0, 1, 0]), n_positive=4)
    np.testing.assert_array_equal(pr.recall, [0, 0.25, 0.5, 0.5])
    np.testing.assert_allclose(pr.precision, [1, 1, 2 / 3, 0.5])


def test_curves_without_positives_have_no_area():
    assert np.isnan(roc(np.ones(3), np.zeros(3)).area) and np.isnan(precision_recall(np.ones(3), np.zeros(3)).area)
    assert np.isnan(roc(NONE, NONE).area) and np.isnan(precision_recall(NONE, NONE).area)


def test_events_take_true_spikes_from_the_highest_score_down():
    true, found, scores = np.array([1.0, 2.0, 9.0]), np.array([0.95, 1.01, 2.03, 5.0]), np.array([5.0, 4.0, 3.0, 2.0])
    curve = score_events(true, found, scores, 0.1)
    np.testing.assert_allclose(curve.recall, [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(curve.precision, [1, 1, 1 / 2, 2 / 3, 1 / 2])
    assert score_events(true, NONE, NONE, 0.1).area == 0


def test_van_rossum_is_the_integral_of_filtered_trains():
    t = np.arange(0, 6, 1e-5)
    for tau in (0.01, 0.1, 0.4):
        a, b = (sum(np.where(t >= s, np.exp(-(t - s) / tau), 0) for s in train) for train in (A, B))
        assert van_rossum(A, B, tau) == pytest.approx(np.sqrt(2 / tau * ((a - b) ** 2).sum() * 1e-5), rel=1e-3)


def test_distances_agree_with_elephant_1_2():
    """elephant.spike_train_dissimilarity, of the same trains."""
    assert [van_rossum(A, B, tau) for tau in (0.01, 0.1, 1.0)] == pytest.approx([2.7606587961510685, 2.157835243603775, 1.8877167707596367])
    assert [victor_purpura(A, B, q) for q in (0.0, 5.0, 40.0)] == pytest.approx([2.0, 3.15, 5.2])


def test_distances_agree_with_plain_double_sums_and_recursions(rng):
    a, b = rng.uniform(0, 3, 25), rng.uniform(0, 3, 30)
    k = [np.exp(-np.abs(x[:, None] - y) / 0.2).sum() for x, y in ((a, a), (b, b), (a, b))]
    assert van_rossum(a, b, 0.2) == pytest.approx(np.sqrt(k[0] + k[1] - 2 * k[2]), rel=1e-10)
    x, y = np.sort(a), np.sort(b)
    table = np.zeros((26, 31))
    table[:, 0], table[0] = np.arange(26), np.arange(31)
    for i in range(25):
        for j in range(30):
            table[i + 1, j + 1] = min(table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + 7 * abs(x[i] - y[j]))
    assert victor_purpura(a, b, 7.0) == pytest.approx(table[-1, -1], rel=1e-12)


def test_distances_at_their_limits():
    assert van_rossum(A, A, 0.1) == pytest.approx(0, abs=1e-6) and victor_purpura(A, A, 9.0) == 0
    assert van_rossum(A[:1], NONE, 0.1) == 1 and victor_purpura(A[:1], NONE, 9.0) == 1
    assert van_rossum(NONE, NONE, 0.1) == victor_purpura(NONE, NONE, 1.0) == 0
    assert van_rossum(A, B, 1e-6) ** 2 == pytest.approx(8) and van_rossum(A, B, 1e6) == pytest.approx(2, rel=1e-4)
    assert victor_purpura(A, B, 0.0) == 2 and victor_purpura(A, B, 1e9) == 8
    assert van_rossum(A, B, 0.1) == van_rossum(B[::-1], A[::-1], 0.1)


def test_correlation_smooths_and_leaves_out_the_ends(rng):
    truth, activity = rng.poisson(0.1, (2, 600)).astype(float), rng.random((2, 600))
    for row, value in enumerate(correlation(activity, truth, 25.0)):
        a, b = (gaussian_filter1d(x[row], 5.0, mode="nearest")[25:-25] for x in (activity, truth))
        assert value == pytest.approx(np.corrcoef(a, b)[0, 1], rel=1e-9)
    assert correlation(3 * truth[0] + 1, truth[0], 25.0) == pytest.approx(1)
    assert correlation(np.full(600, 0.1), truth[0], 25.0) == 0
    assert abs(correlation(activity[0], truth[0], 25.0, sigma_s=0.0)) < 0.2


def test_correlation_is_that_of_the_calcium_scorer(rng, monkeypatch):
    folder = Path(os.environ.get("SORTCORE_OPTICAL", "missing"))
    if not (folder / "score_calcium.py").is_file():
        pytest.skip("set SORTCORE_OPTICAL to the folder of score_calcium.py")
    monkeypatch.syspath_prepend(str(folder))
    scorer = importlib.import_module("score_calcium")
    truth, activity, fs = rng.poisson(0.1, 900).astype(float), rng.random(900), 29.7
    smooth = [gaussian_filter1d(v, 0.2 * fs, mode="nearest")[int(np.ceil(fs)) : -int(np.ceil(fs))] for v in (activity, truth)]
    assert correlation(activity, truth, fs) == pytest.approx(scorer.pearson(*smooth), rel=1e-10)


def test_share_intervals_agree_with_scipy_and_jeffreys_with_published_values():
    k, n = np.array([0, 1, 7, 20, 0]), np.array([20, 20, 20, 20, 3])
    for method, name in (("clopper-pearson", "exact"), ("wilson", "wilson")):
        low, high = share_interval(k, n, 0.9, method)
        known = [binomtest(int(a), int(b)).proportion_ci(0.9, method=name) for a, b in zip(k, n, strict=True)]
        np.testing.assert_allclose(low, [c.low for c in known], atol=1e-12)
        np.testing.assert_allclose(high, [c.high for c in known], atol=1e-12)
    low, high = share_interval([0, 1, 2, 5], 10, method="jeffreys")  # Brown, Cai & DasGupta 2001, table 5: n = 10
    np.testing.assert_allclose(high, [0.217, 0.381, 0.503, 0.776], atol=6e-4)
    np.testing.assert_allclose(low, [0, 0.011, 0.044, 0.224], atol=6e-4)


def test_no_event_is_not_a_rate_of_zero():
    for method in ("clopper-pearson", "wilson", "jeffreys"):
        low, high = share_interval([0, 0], [30, 0], method=method)
        assert low.tolist() == [0, 0] and 0.05 < high[0] < 0.13 and high[1] == 1
        assert share_interval(30, 30, method=method)[1] == 1
    low, high = poisson_interval(0, 100.0)
    assert low == 0 and high == pytest.approx(3.689 / 100, rel=1e-3)


def test_intervals_cover_as_often_as_they_say():
    p, n, k = 0.03, 60, np.arange(61)
    for method, least in (("clopper-pearson", 0.95), ("wilson", 0.9), ("jeffreys", 0.9)):
        low, high = share_interval(k, n, method=method)
        assert binom.pmf(k, n, p)[(low <= p) & (p <= high)].sum() >= least
    low, high = poisson_interval(np.arange(100), 10.0)
    assert poisson.pmf(np.arange(100), 3.0)[(low <= 0.3) & (high >= 0.3)].sum() >= 0.95


@pytest.mark.parametrize("call", [
    lambda: score_spikes(A, B, -1.0), lambda: score_spikes(np.array([np.nan]), B, 0.1), lambda: roc(np.ones(3), np.ones(4)),
    lambda: roc(np.array([np.nan]), np.ones(1)), lambda: precision_recall(np.ones(3), np.ones(3), 2), lambda: van_rossum(A, B, 0.0),
    lambda: van_rossum(np.array([np.inf]), B, 1.0), lambda: victor_purpura(A, B, -1.0), lambda: victor_purpura(A[:, None], B, 1.0),
    lambda: score_events(A, B, np.ones(2), 0.1), lambda: correlation(np.ones(9), np.ones(8), 1.0),
    lambda: correlation(np.full(90, np.nan), np.ones(90), 1.0), lambda: correlation(np.ones(9), np.ones(9), 30.0),
    lambda: share_interval(3, 2), lambda: share_interval(1, 2, 1.0), lambda: share_interval(1, 2, method="wald"),
    lambda: poisson_interval(-1), lambda: poisson_interval(1, 0.0),
])
def test_what_cannot_be_scored_is_refused(call):
    with pytest.raises(ModelError):
        call()
