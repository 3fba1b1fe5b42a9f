"""From activity to spikes: thresholds by hand, peaks planted, and the rate of false positives on pure noise."""

import numpy as np
import pytest

from sortcore.errors import ConfigError, ModelError
from sortcore.metrics import score_spikes
from sortcore.optical.spikes import Threshold, find_events, peaks, thresholds
from sortcore.optical.tails import beyond, beyond_pareto, fit_law, fit_pareto, level_beyond, level_beyond_pareto

ROW = np.array([0.0, 1, 0, 0, 5, 4, 0, 3, 0, 2])


def test_peaks_are_local_maxima_the_ends_included():
    np.testing.assert_array_equal(peaks(ROW, 0.0), [1, 4, 7, 9])
    np.testing.assert_array_equal(peaks(ROW, 2.0), [4, 7])
    np.testing.assert_array_equal(peaks(ROW, 0.0, distance=4), [0 + 4, 9])
    np.testing.assert_array_equal(peaks(np.array([2.0]), 0.0), [0])
    assert len(peaks(np.zeros(5), 0.0)) == len(peaks(np.zeros(0), 0.0)) == len(peaks(np.full(4, np.nan), 0.0)) == 0


def test_thresholds_mean_what_they_say():
    rows = np.stack([ROW, 2 * ROW])
    level = {kind: thresholds(rows, 10.0, Threshold(kind, value)).tolist()
             for kind, value in (("absolute", 1.5), ("fraction", 0.5), ("percentile", 75.0), ("sigma", 2.0))}
    assert level["absolute"] == [1.5, 1.5] and level["fraction"] == [2.5, 5.0]
    assert level["percentile"] == [np.percentile(ROW, 75), 2 * np.percentile(ROW, 75)]
    assert level["sigma"] == pytest.approx([ROW.mean() + 2 * ROW.std(), 2 * (ROW.mean() + 2 * ROW.std())])


def test_events_are_in_order_with_their_cells_and_seconds():
    events = find_events(np.stack([ROW, np.roll(ROW, 1)]), 10.0, Threshold("absolute", 2.5), start_s=3.0, min_distance_s=0.3)
    np.testing.assert_array_equal(events.frames, [4, 5, 7, 8])
    np.testing.assert_allclose(events.times_s, [3.4, 3.5, 3.7, 3.8])
    np.testing.assert_array_equal(events.cells, [0, 1, 0, 1])
    np.testing.assert_array_equal(events.sizes, [5, 5, 3, 3])
    np.testing.assert_allclose(events.trains()[1], [3.5, 3.8])
    assert len(find_events(ROW, 10.0, Threshold("absolute", 0.5), min_distance_s=0.31)) == 2


def test_missing_frames_silent_cells_and_nothing_at_all():
    holed = ROW.copy()
    holed[4] = np.nan
    np.testing.assert_array_equal(find_events(holed, 10.0, Threshold("absolute", 2.5)).frames, [5, 7])
    for rows in (np.zeros((2, 50)), np.full((2, 50), np.nan), np.zeros((2, 0))):
        events = find_events(rows, 10.0)
        assert len(events) == 0 and np.isinf(events.thresholds).all() and len(events.trains()) == 2
    assert find_events(np.zeros((0, 10)), 10.0).trains() == []
    assert len(find_events((10 * ROW).astype(np.int16), 10.0, Threshold("fraction", 0.5))) == 2


def sparse_noise(rng, shape):
    """What a sparse deconvolution leaves of noise: mostly nothing, the rest exponential."""
    return np.where(rng.random(shape) < 0.1, rng.exponential(0.2, shape), 0.0)


MAKERS = {"heavy": lambda rng, shape: 0.01 * np.exp(rng.standard_normal(shape)), "sparse": sparse_noise,
          "gaussian": lambda rng, shape: rng.standard_normal(shape),
          "rectified": lambda rng, shape: np.maximum(rng.standard_normal(shape), 0)}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("rate", [0.2, 0.02])
def test_noise_alone_exceeds_the_threshold_at_the_rate_asked_for(make, rate, rng):
    noise, seconds = make(rng, (20, 12_000)), 12_000 / 30.0
    measured = len(find_events(noise, 30.0, Threshold("false_positives", rate))) / (20 * seconds)
    assert rate / 3 < measured < 3 * rate


def test_given_activity_without_spikes_the_rate_is_kept_closely(rng):
    noise, null = MAKERS["rectified"](rng, (20, 12_000)), MAKERS["rectified"](rng, (20, 12_000))
    measured = len(find_events(noise, 30.0, Threshold("false_positives", 0.1), null=null)) / (20 * 400.0)
    assert measured == pytest.approx(0.1, rel=0.2)


def test_spikes_do_not_raise_the_threshold_and_are_found(rng):
    activity = sparse_noise(rng, (10, 9000))
    quiet = thresholds(activity, 30.0, Threshold("false_positives", 0.02))
    frames = np.arange(60, 9000, 120)  # 0.25 Hz
    activity[:, frames] += rng.uniform(3, 6, (10, len(frames)))
    events = find_events(activity, 30.0, Threshold("false_positives", 0.02))
    np.testing.assert_allclose(events.thresholds, quiet, rtol=0.35)
    scores = [score_spikes(frames / 30.0, train, 0.05) for train in events.trains()]
    assert min(s.recall for s in scores) == 1
    assert np.mean([s.n_found - s.n_matched for s in scores]) / 300 < 0.04


@pytest.mark.parametrize("draw", [lambda rng, n: rng.exponential(0.7, n), lambda rng, n: np.abs(rng.normal(0, 0.7, n)),
                                  lambda rng, n: (x := rng.normal(0.5, 0.7, 2 * n))[x > 0]], ids=["exponential", "half", "shifted"])
def test_the_light_law_is_found_from_its_body(draw, rng):
    sizes = draw(rng, 60_000)
    cut = np.quantile(sizes, 0.9)
    law = fit_law(sizes[sizes <= cut], cut)
    for share in (0.1, 0.01, 0.001):
        level = level_beyond(share, law)
        assert beyond(level, law) == pytest.approx(share, rel=1e-6)
        assert level == pytest.approx(np.quantile(sizes, 1 - share), rel=0.06)


@pytest.mark.parametrize("shape", [0.3, 0.5])
def test_the_heavy_law_is_found_from_its_body(shape, rng):
    sizes = 0.7 * (rng.random(60_000) ** -shape - 1) / shape
    cut = np.quantile(sizes, 0.9)
    law = fit_pareto(sizes[sizes <= cut], cut)
    for part in (0.1, 0.01, 0.001):
        level = level_beyond_pareto(part, law)
        assert beyond_pareto(level, law) == pytest.approx(part, rel=1e-6)
        assert level == pytest.approx(np.quantile(sizes, 1 - part), rel=0.3)


def test_a_single_cell_and_one_of_few_peaks_have_thresholds(rng):
    level = thresholds(sparse_noise(rng, (1, 20_000)), 30.0, Threshold("false_positives", 0.05))[0]
    assert 0.2 * np.log(3 / 0.05) == pytest.approx(level, rel=0.35)
    few = np.zeros(300)
    few[20:300:20] = 1.0
    assert 1 < thresholds(few, 30.0, Threshold("false_positives", 0.01))[0] < 20
    assert thresholds(few, 30.0, Threshold("false_positives", 20.0))[0] == 0


@pytest.mark.parametrize("call", [
    lambda: Threshold("magic"), lambda: Threshold("fraction", 1.2), lambda: Threshold("percentile", 101.0),
    lambda: Threshold("false_positives", 0.0), lambda: Threshold("sigma", -1.0), lambda: find_events(ROW, 0.0),
    lambda: find_events(ROW, 10.0, min_distance_s=-1.0),
])
def test_settings_out_of_range_are_refused(call):
    with pytest.raises(ConfigError):
        call()


@pytest.mark.parametrize("activity", [np.zeros((2, 3, 4)), np.array([1.0, np.inf])])
def test_what_is_no_activity_is_refused(activity):
    with pytest.raises(ModelError):
        find_events(activity, 10.0)


def test_each_cell_needs_its_own_activity_without_spikes():
    with pytest.raises(ModelError, match="one each"):
        find_events(np.stack([ROW, ROW]), 10.0, null=ROW)
