"""Calcium deconvolution: solvers against a convex solver, estimates against planted data, bad input, batches, streaming."""

from __future__ import annotations

from itertools import pairwise

import cvxpy as cp
import numpy as np
import pytest

import sortcore as sc
from sortcore.errors import ModelError
from sortcore.optical.ar1 import ar1_gradient, solve_ar1, solve_ar1_l0
from sortcore.optical.ar2 import solve_ar2, solve_to_noise
from sortcore.optical.calcium import Destination
from sortcore.optical.estimate import Assumptions, estimate_times, median, noise_level, weights_of_dips
from sortcore.optical.kernel import boxcar, solve_kernel, triangle
from sortcore.optical.kernels import Exponentials, autoregressive_kernel, exponential_kernel, kkt_residual
from sortcore.optical.rise import ROUNDS, cost_of_events, estimate_rise
from sortcore.optical.stream import CalciumStream

FS = 30.0


def planted(n_frames=300, kernel=None, rate=0.03, noise=0.2, seed=0):
    """Fluorescence of spikes of size 1, and the spikes."""
    rng = np.random.default_rng(seed)
    kernel = kernel or exponential_kernel(FS, 0.6, 0.1)
    s = (rng.random(n_frames) < rate).astype(float)
    return np.convolve(s, kernel.sampled(n_frames))[:n_frames] + noise * rng.standard_normal(n_frames), s


def matrix(kernel, n_frames):
    """(T, T) K of `solve_ar2`: the first column is the slow part alone."""
    k = kernel.sampled(n_frames)
    K = np.array([[k[i - j] if i >= j else 0.0 for j in range(n_frames)] for i in range(n_frames)])
    K[:, 0] = kernel.u * kernel.d ** np.arange(n_frames)
    return K


def with_gaps(y):
    y = y.copy()
    y[[0, 50, 51, 52, 53, -1]] = np.nan
    return y


@pytest.mark.parametrize("penalty", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("case", ["plain", "gaps", "weights"])
def test_ar1_is_the_convex_solution(penalty, case):
    y, _ = planted(kernel=Exponentials(0.9))
    y = y if case == "plain" else with_gaps(y)
    w = np.random.default_rng(1).random(len(y)) + 0.1 if case == "weights" else np.ones(len(y))
    c, s = solve_ar1(y, 0.9, penalty, weights=w if case == "weights" else None)
    w, filled = np.where(np.isnan(y), 0, w), np.nan_to_num(y)
    x = cp.Variable(len(y))
    jumps = cp.hstack([x[0], x[1:] - 0.9 * x[:-1]])
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum(cp.multiply(w, cp.square(filled - x))) + penalty * cp.sum(jumps)), [jumps >= 0])
    best = problem.solve(solver=cp.CLARABEL)
    assert 0.5 * np.sum(w * (filled - c) ** 2) + penalty * s.sum() == pytest.approx(best, rel=1e-6, abs=1e-6)
    assert kkt_residual(s, ar1_gradient(y, c, 0.9, penalty, w), 1 / (1 - 0.9**2)) < 1e-9
    np.testing.assert_allclose(s[1:], c[1:] - 0.9 * c[:-1], atol=1e-12)


def test_ar1_in_single_precision_and_of_integers():
    y, _ = planted(2000, Exponentials(0.95))
    np.testing.assert_allclose(solve_ar1(y.astype(np.float32), 0.95, 0.3)[0], solve_ar1(y, 0.95, 0.3)[0], atol=1e-4)
    counts = np.round(100 * y).astype(np.int16)
    np.testing.assert_array_equal(solve_ar1(counts, 0.95)[0], solve_ar1(counts.astype(float), 0.95)[0])


def test_a_hard_minimum_size_leaves_no_smaller_event():
    y, _ = planted(1000, Exponentials(0.9))
    _, s = solve_ar1(y, 0.9, s_min=0.7)
    assert s.max() > 0.7 and not ((s[1:] > 1e-12) & (s[1:] < 0.7 - 1e-9)).any()


def test_l0_is_the_best_of_all_partitions():
    """Against every subset of event frames of a short trace."""
    y, _ = planted(10, Exponentials(0.8), rate=0.3, seed=3)
    penalty, g = 0.1, 0.8

    def cost(i, j):
        k = g ** np.arange(j - i)
        return 0.5 * np.sum((y[i:j] - max(k @ y[i:j], 0) / (k @ k) * k) ** 2)

    best = np.inf
    for subset in range(1 << 9):
        edges = [0] + [t for t in range(1, 10) if subset >> (t - 1) & 1] + [10]
        best = min(best, sum(cost(i, j) for i, j in pairwise(edges)) + penalty * (len(edges) - 2))
    c, _ = solve_ar1_l0(y, g, penalty)
    jumps = np.abs(c[1:] - g * c[:-1]) > 1e-9
    assert 0.5 * np.sum((y - c) ** 2) + penalty * jumps.sum() == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(("penalty", "drift"), [(0.0, 0.0), (0.5, 0.0), (0.5, 1e-3)])
def test_ar2_is_the_convex_solution(penalty, drift):
    kernel = exponential_kernel(FS, 0.6, 0.1)
    y = with_gaps(planted(kernel=kernel)[0]) + (2.0 if drift else 0.0)
    spread = 10.0 if drift else 0.0
    w = np.isfinite(y).astype(float)
    s, b = cp.Variable(len(y), nonneg=True), cp.Variable(len(y))
    cost = 0.5 * cp.sum(cp.multiply(w, cp.square(np.nan_to_num(y) - matrix(kernel, len(y)) @ s - b))) + penalty * cp.sum(s)
    if drift:
        cost += 0.5 * cp.sum_squares(b[1:] - b[:-1]) / drift + 0.5 * cp.square(b[0]) / spread
    best = cp.Problem(cp.Minimize(cost), [] if drift else [b == 0]).solve(solver=cp.CLARABEL)
    found = solve_ar2(y, kernel, penalty, drift=drift, spread=spread)
    assert found.objective == pytest.approx(best, rel=1e-5) and found.kkt_residual < 1e-4
    seen = slice(None, -1)  # the last frame is missing: without a penalty its activity may be anything
    np.testing.assert_allclose(found.activity[seen], s.value[seen], atol=1e-2)
    np.testing.assert_allclose(found.baseline, b.value, atol=1e-3)


def test_the_penalty_of_each_frame_is_its_own():
    kernel, each = exponential_kernel(FS, 0.6, 0.1), np.random.default_rng(4).uniform(0, 3, 200)
    y = planted(kernel=kernel)[0][:200]
    s = cp.Variable(200, nonneg=True)
    best = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(y - matrix(kernel, 200) @ s) + each @ s)).solve(solver=cp.CLARABEL)
    found = solve_ar2(y, kernel, each)
    assert found.objective == pytest.approx(best, rel=1e-5) and found.misfit == pytest.approx(best - each @ s.value, rel=1e-3)
    with pytest.raises(ModelError, match="must not be negative"):
        solve_ar2(y, kernel, each - 1)


def test_ar2_without_a_rise_is_ar1():
    y, _ = planted(kernel=Exponentials(0.9))
    np.testing.assert_allclose(solve_ar2(y, Exponentials(0.9), 0.5).calcium, solve_ar1(y, 0.9, 0.5)[0], atol=1e-3)


def test_the_noise_constraint_is_met():
    y, _ = planted(1000)
    found, penalty = solve_to_noise(y, exponential_kernel(FS, 0.6, 0.1), 0.2)
    assert np.mean((y - found.calcium) ** 2) == pytest.approx(0.04, rel=2e-3) and penalty > 0


@pytest.mark.parametrize("shape", [boxcar(8), triangle(3, 9), exponential_kernel(FS, 0.3, 0.05).sampled(40)])
def test_any_kernel_is_the_convex_solution(shape):
    y = np.stack([with_gaps(planted(200, seed=i)[0]) for i in range(2)])
    s, fit, residual = solve_kernel(y, shape, np.array([0.3, 1.0]))
    K = np.array([[shape[i - j] if 0 <= i - j < len(shape) else 0.0 for j in range(200)] for i in range(200)])
    for i, penalty in enumerate((0.3, 1.0)):
        w = np.isfinite(y[i]).astype(float)
        x = cp.Variable(200, nonneg=True)
        cost = 0.5 * cp.sum(cp.multiply(w, cp.square(np.nan_to_num(y[i]) - K @ x))) + penalty * cp.sum(x)
        best = cp.Problem(cp.Minimize(cost)).solve(solver=cp.CLARABEL)
        mine = 0.5 * np.sum(w * (np.nan_to_num(y[i]) - K @ s[i]) ** 2) + penalty * s[i].sum()
        assert mine == pytest.approx(best, rel=1e-4) and residual[i] < 1e-3
        np.testing.assert_allclose(fit[i], K @ s[i], atol=1e-9)


def test_a_kernel_is_averaged_over_its_frame_and_peaks_at_one():
    fine = exponential_kernel(3000.0, 0.6, 0.1).sampled(9000)
    assert fine.max() == pytest.approx(1, rel=1e-3)
    coarse = exponential_kernel(30.0, 0.6, 0.1).sampled(80)
    np.testing.assert_allclose(coarse[1:], [fine[100 * n - 50 : 100 * n + 50].mean() for n in range(1, 80)], atol=0.07)
    k = autoregressive_kernel(1.7, -0.712)
    c = np.zeros(50)
    c[0] = 1
    for t in range(1, 50):
        c[t] = 1.7 * c[t - 1] - 0.712 * (c[t - 2] if t > 1 else 0)
    np.testing.assert_allclose(k.sampled(50), c, atol=1e-9)
    assert k.norm == pytest.approx(np.linalg.norm(k.sampled(2000)))


@pytest.mark.parametrize(("decay", "rise"), [(0.4, 0.02), (0.65, 0.1), (1.6, 0.2)])
def test_rise_and_decay_are_found(decay, rise):
    y, _ = planted(8000, exponential_kernel(FS, decay, rise), rate=0.01, noise=0.1)
    found = estimate_times(y / noise_level(y), FS, Assumptions())
    assert abs(np.log(found[0] / decay)) < 0.6 and abs(np.log(max(found[1], 0.01) / rise)) < 0.95


@pytest.mark.parametrize(("decay", "rise"), [(0.4, 0.02), (0.65, 0.1), (1.6, 0.3)])
def test_a_rise_is_found_by_how_few_events_explain_a_trace(decay, rise):
    """Noise a twentieth of a spike, where the fit and the sum of activity alone prefer a shorter rise."""
    y, _ = planted(8000, exponential_kernel(FS, decay, rise), rate=0.02, noise=0.05, seed=5)
    found = estimate_rise(y / noise_level(y), FS, decay, Assumptions())
    assert abs(np.log(found / rise)) < 0.35
    assert sc.infer_calcium(y, FS).tau_rise_s == pytest.approx(rise, rel=0.6)


def test_the_cost_of_events_is_that_of_reweighted_convex_problems():
    kernel, given = exponential_kernel(FS, 0.6, 0.1), Assumptions()
    y = planted(300, kernel, rate=0.05, noise=0.1, seed=6)[0] / 0.1
    K, s, penalty = matrix(kernel, 300), cp.Variable(300, nonneg=True), np.full(300, given.selection_sd * kernel.norm)
    for _ in range(1 + ROUNDS):
        cp.Problem(cp.Minimize(0.5 * cp.sum_squares(y - K @ s) + penalty @ s)).solve(solver=cp.CLARABEL)
        penalty = given.event_price / (np.maximum(s.value, 0) + 1 / kernel.norm)
    cost = 0.5 * np.sum((y - K @ s.value) ** 2) + given.event_price * np.log1p(kernel.norm * np.maximum(s.value, 0)).sum()
    assert cost_of_events(y, FS, 0.6, 0.1, given, free_baseline=False) == pytest.approx(cost, rel=0.05)


def test_a_rise_that_a_trace_does_not_tell_is_the_priors():
    noise = np.random.default_rng(0).standard_normal(3000)
    assert 0.02 < estimate_rise(noise, FS, 1.0, Assumptions()) < 0.12
    assert 0 < estimate_rise(noise, FS, 0.02, Assumptions()) <= 0.01


def test_times_that_a_trace_does_not_tell_are_the_priors_and_given_ones_are_kept():
    noise = np.random.default_rng(0).standard_normal(3000)
    decay, rise = estimate_times(noise, FS, Assumptions())
    assert 0.5 < decay < 2.0 and 0.02 < rise < 0.12
    for given in (0.02, 0.3):
        decay, rise = estimate_times(noise, FS, Assumptions(), decay=given)
        assert decay == given and 0 < rise <= 0.5 * given
    decay, rise = estimate_times(noise, FS, Assumptions(), rise=0.2)
    assert rise == 0.2 and decay > 0.2


def test_the_size_of_events_does_not_depend_on_the_frame_rate():
    """The same cell, every frame of the slow recording the mean of eight of the fast one."""
    kernel = exponential_kernel(40.0, 1.0, 0.05)
    fast, s = planted(24_000, kernel, rate=0.02, noise=0.0, seed=2)
    slow = fast.reshape(-1, 8).mean(axis=1)
    rng = np.random.default_rng(3)
    per_second = [sc.infer_calcium(y + 0.3 * rng.standard_normal(len(y)), fs).activity[1:].sum() / s.sum()
                  for y, fs in ((fast, 40.0), (slow, 5.0))]
    assert per_second[1] == pytest.approx(per_second[0], rel=0.25)


def test_activity_is_found_without_delay_on_a_drifting_baseline():
    kernel = exponential_kernel(FS, 1.0, 0.1)
    y, s = planted(6000, kernel, rate=0.01, noise=0.2)
    t = np.arange(6000) / 6000
    result = sc.infer_calcium(y + 3 * np.exp(-2 * t) + 5, FS)
    smooth = np.hanning(13)
    truth = np.convolve(s, smooth, "same")
    lags = [np.corrcoef(np.convolve(np.roll(result.activity, -i), smooth, "same"), truth)[0, 1] for i in range(-6, 7)]
    assert abs(int(np.argmax(lags)) - 6) <= 1 and max(lags) > 0.85
    assert result.noise == pytest.approx(0.2, rel=0.1)
    events = result.activity[result.activity > 0.05]
    assert result.activity.min() >= 0 and events.sum() == pytest.approx(s.sum(), rel=0.3)


def test_frames_where_the_cell_dims_count_less():
    y, s = planted(3000, exponential_kernel(FS, 1.0, 0.05), rate=0.02, noise=0.2, seed=4)
    rng = np.random.default_rng(5)
    for start in rng.integers(0, 2990, 60):
        y[start : start + 2] -= 2.0
    smooth = np.hanning(13)
    truth = np.convolve(s, smooth, "same")
    r = [np.corrcoef(np.convolve(sc.infer_calcium(y, FS, assumptions=given).activity, smooth, "same"), truth)[0, 1]
         for given in (Assumptions(), Assumptions(dip_sd=np.inf))]
    assert r[0] > r[1] + 0.03


@pytest.mark.parametrize("n", [1, 2, 3, 10, 11, 1000])
def test_the_median_is_numpys(n):
    x = np.random.default_rng(n).standard_normal(n)
    assert median(x) == np.median(x)


def test_weights_of_dips():
    e = np.random.default_rng(0).uniform(-1, 1, 200)
    assert weights_of_dips(e, 3.0) is None and weights_of_dips(e, np.inf) is None
    e[:3] = -6, 6, np.nan
    np.testing.assert_allclose(weights_of_dips(e, 3.0), [0.25, *np.ones(199)])
    np.testing.assert_allclose(weights_of_dips(10 * e, 3.0)[0], (3 * np.nanmedian(np.abs(10 * e)) / 0.6745 / 60) ** 2)


def test_what_is_known_is_kept_and_scale_carries_over():
    y, _ = planted(1500)
    fixed = sc.infer_calcium(y, FS, tau_rise_s=0.1, tau_decay_s=0.6, baseline=0.0, noise=0.2, penalty=0.4)
    assert (fixed.tau_rise_s, fixed.tau_decay_s, fixed.noise) == (0.1, 0.6, 0.2) and fixed.penalty == pytest.approx(0.4)
    assert not fixed.baseline.any()
    scaled = sc.infer_calcium(1000 * y + 300, FS)
    np.testing.assert_allclose(scaled.activity, 1000 * sc.infer_calcium(y, FS).activity, rtol=1e-3, atol=1.0)


def test_a_batch_is_its_traces_and_goes_where_it_is_told(tmp_path):
    y = np.stack([planted(700, seed=i)[0] for i in range(5)])
    y[2, 10:40] = np.nan
    place = np.lib.format.open_memmap(tmp_path / "activity.npy", mode="w+", dtype=np.float32, shape=y.shape)
    result = sc.infer_calcium(y, FS, out=Destination(activity=place))
    assert result.activity is place
    for i in range(5):
        np.testing.assert_array_equal(result.activity[i], sc.infer_calcium(y[i], FS).activity)
    with pytest.raises(ModelError, match="shape"):
        sc.infer_calcium(y[:2], FS, out=Destination(activity=place))


def test_automatic_ar1():
    y, s = planted(6000, Exponentials(0.95), rate=0.01)
    result = sc.infer_ar1(y + 10, FS)
    assert result.tau_decay_s == pytest.approx(-1 / (FS * np.log(0.95)), rel=0.3) and result.noise == pytest.approx(0.2, rel=0.1)
    assert result.kkt_residual < 1e-9 and result.baseline[0] == pytest.approx(10, abs=0.3)
    assert np.corrcoef(result.activity, s)[0, 1] > 0.8


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_streaming_is_the_batch_late(penalty):
    y = with_gaps(planted(600, Exponentials(0.9))[0])
    stream = CalciumStream(0.9, penalty=penalty, lag=80)
    answers = [stream.push(frame) for frame in y]
    assert answers[:80] == [None] * 80 and None not in answers[80:]
    np.testing.assert_allclose([*answers[80:], *stream.finish()], solve_ar1(y, 0.9, penalty)[1], atol=1e-9)


@pytest.mark.parametrize("infer", [sc.infer_calcium, sc.infer_ar1])
@pytest.mark.parametrize("bad", [np.zeros(0), np.zeros((0, 5)), np.zeros((3, 0)), np.zeros(100), np.full(50, np.nan), np.ones(1),
                                 np.ones(2), np.full((2, 30), 7, np.int16)])
def test_a_trace_that_says_nothing_has_no_activity(infer, bad):
    result = infer(bad, FS)
    assert result.activity.shape == bad.shape and not result.activity.any()


def test_a_dead_trace_does_not_harm_its_neighbours():
    y = np.stack([planted(500)[0], np.full(500, np.nan), np.zeros(500)])
    result = sc.infer_calcium(y, FS)
    np.testing.assert_array_equal(result.activity[0], sc.infer_calcium(y[0], FS).activity)
    assert np.isnan(result.noise[1]) and result.noise[2] == 0


@pytest.mark.parametrize("fs", [None, 0, -3.0, np.nan, "30"])
def test_no_frame_rate_is_an_error(fs):
    with pytest.raises(ModelError, match="frame rate fs"):
        sc.infer_calcium(np.zeros(10), fs)


@pytest.mark.parametrize("known", [dict(tau_decay_s=0.0), dict(tau_rise_s=-1.0), dict(noise=0.0), dict(penalty=-1.0), dict(baseline=np.inf),
                                   dict(tau_rise_s=1.0, tau_decay_s=0.5)])
def test_impossible_knowledge_is_an_error(known):
    with pytest.raises(ModelError):
        sc.infer_calcium(np.zeros(10), FS, **known)


def test_unusable_traces_and_kernels_are_errors():
    for traces in (np.zeros((2, 2, 2)), np.array(["a"]), np.zeros(3, complex)):
        with pytest.raises(ModelError, match="real numbers"):
            sc.infer_calcium(traces, FS)
    with pytest.raises(ModelError, match="infinite"):
        sc.infer_calcium(np.array([0.0, np.inf, 1.0]), FS)
    for g in (1.0, -0.1, np.nan):
        with pytest.raises(ModelError, match="stable"):
            solve_ar1(np.zeros(3), g)
        with pytest.raises(ModelError, match="stable"):
            CalciumStream(g)
    for coefficients in ((1.0, -0.9), (1.5, 0.2), (1.2, -0.1), (0.5, 0.1, 0.1)):
        with pytest.raises(ModelError):
            autoregressive_kernel(*coefficients)
    for shape in (np.zeros(0), np.zeros(4), np.array([np.nan])):
        with pytest.raises(ModelError, match="kernel"):
            solve_kernel(np.zeros(5), shape)
