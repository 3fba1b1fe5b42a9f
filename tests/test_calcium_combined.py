"""Deconvolution and network together."""

import numpy as np
import pytest

import sortcore as sc
from sortcore.metrics import correlation
from sortcore.optical.combined import combine
from sortcore.optical.simulate import Noise, simulate_calcium


def test_both_say_more_than_one_on_traces_of_known_spikes():
    fs = 30.0
    made = simulate_calcium(6, 120.0, fs, noise=Noise.at_level(4.0, fs), seed=3)
    found = sc.infer_combined(made.traces, fs)
    r = {name: np.mean([correlation(a, n, fs) for a, n in zip(rows, made.counts, strict=True)]) for name, rows in
         (("both", found.activity), ("deconvolved", found.deconvolved.activity), ("network", found.network.expected))}
    assert r["both"] > max(0.6, min(r["deconvolved"], r["network"]))
    np.testing.assert_allclose(found.activity.sum(axis=1), found.network.total, rtol=1e-3)


def test_one_trace_is_as_in_a_batch_and_missing_ones_say_nothing():
    made = simulate_calcium(2, 40.0, 20.0, seed=4)
    traces = np.vstack([made.traces, np.full((1, made.traces.shape[1]), np.nan)])
    many, one = sc.infer_combined(traces, 20.0), sc.infer_combined(made.traces[1], 20.0)
    np.testing.assert_allclose(one.activity, many.activity[1], rtol=1e-3, atol=1e-5)
    assert np.isnan(many.activity[2]).all()
    into = np.zeros(traces.shape, np.float32)
    assert sc.infer_combined(traces, 20.0, out=into).activity is into
    with pytest.raises(sc.SortcoreError, match="shape"):
        sc.infer_combined(traces, 20.0, out=np.zeros((1, 2), np.float32))


def test_the_sum_is_of_parts_of_one_spread_and_keeps_the_total():
    a, b = np.array([0.0, 1.0, 0.0, 3.0]), np.array([0.0, 200.0, 0.0, 0.0])
    both = combine(a, b)
    np.testing.assert_allclose(both / both[3], (a / a.std() + b / b.std()) / (3 / a.std()))
    assert both.sum() == pytest.approx(4.0)
    np.testing.assert_array_equal(combine(a, np.zeros(4)), a)
    assert np.isnan(combine(np.full(3, np.nan), np.ones(3))).all()
