"""The network that infers spikes from calcium traces: what goes in, what comes out, and what its numbers mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.stats import nbinom

from sortcore.errors import ConfigError, ModelError
from sortcore.optical import inputs as given
from sortcore.optical import network as net
from sortcore.optical.network import infer_network


def planted(seed: int, fs: float = 30.0, seconds: float = 60.0, noise: float = 0.05, size: float = 0.3, decay: float = 0.5,
            rate: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """A trace of exponential transients, and its spike counts."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rate / fs, int(fs * seconds)).astype(float)
    kernel = size * np.exp(-np.arange(int(6 * decay * fs)) / (decay * fs))
    return np.convolve(counts, kernel)[: len(counts)] + noise * rng.standard_normal(len(counts)), counts


def smooth_r(a: np.ndarray, b: np.ndarray, fs: float) -> float:
    return float(np.corrcoef(gaussian_filter1d(a, 0.2 * fs), gaussian_filter1d(b, 0.2 * fs))[0, 1])


@pytest.mark.parametrize("fs", [7.5, 15.0, 30.0, 61.0, 120.0])
@pytest.mark.parametrize(("decay", "size"), [(0.15, 0.4), (0.5, 0.3), (1.5, 0.2)])
def test_planted_spikes_are_found_at_any_frame_rate_and_decay(fs: float, decay: float, size: float) -> None:
    pairs = [planted(seed, fs, noise=0.04 * np.sqrt(fs / 30), size=size, decay=decay) for seed in range(4)]
    found = infer_network(np.stack([trace for trace, _ in pairs]), fs)
    r = [smooth_r(row, counts, fs) for row, (_, counts) in zip(found.expected, pairs, strict=True)]
    assert np.median(r) > 0.85


def test_activity_is_at_the_time_of_the_spikes() -> None:
    trace, counts = planted(0, seconds=200.0)
    found = gaussian_filter1d(infer_network(trace, 30.0).expected, 2)
    lags = range(-6, 7)
    r = [np.corrcoef(np.roll(found, -lag)[30:-30], gaussian_filter1d(counts, 2)[30:-30])[0, 1] for lag in lags]
    assert abs(lags[int(np.argmax(r))]) <= 1


def test_noise_alone_holds_few_spikes() -> None:
    noise = 0.05 * np.random.default_rng(0).standard_normal((8, 3000))
    quiet = infer_network(noise, 30.0).total
    busy = infer_network(np.stack([planted(seed, seconds=100.0)[0] for seed in range(8)]), 30.0).total
    assert quiet.mean() < 0.3 * busy.mean()


def test_every_device_expects_the_same(device: str) -> None:
    traces = np.stack([planted(seed)[0] for seed in range(3)])
    here, there = infer_network(traces, 30.0, device="cpu"), infer_network(traces, 30.0, device=device)
    np.testing.assert_allclose(there.expected, here.expected, atol=0.01)
    np.testing.assert_allclose(there.total, here.total, rtol=0.01)


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or mps"):
        infer_network(planted(0)[0], 30.0, device="gpu")


def test_a_batch_is_each_trace_by_itself() -> None:
    traces = np.stack([planted(seed)[0] for seed in range(5)])
    together = infer_network(traces, 30.0)
    for k, trace in enumerate(traces):
        alone = infer_network(trace, 30.0)
        np.testing.assert_allclose(alone.expected, together.expected[k], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(alone.total_high, together.total_high[k], atol=1.0)


def test_results_have_the_shapes_and_sums_that_they_say() -> None:
    found = infer_network(np.stack([planted(seed, 61.0, 20.0)[0] for seed in range(3)]), 61.0, level=0.8)
    assert found.expected.shape == (3, 1220) and found.total.shape == found.gain_variance.shape == (3,)
    assert (found.expected >= 0).all() and (found.gain_variance > 0).all()
    np.testing.assert_allclose(found.total, found.expected.sum(1), rtol=1e-5)
    assert ((found.total_low <= found.total) & (found.total <= found.total_high)).all()
    low, high = found.frame_interval()
    assert low.shape == high.shape == found.expected.shape and (low <= high).all()


def test_missing_frames_change_little() -> None:
    trace, _ = planted(1)
    whole = infer_network(trace, 30.0)
    trace[::11] = np.nan
    trace[500:510] = np.nan
    holed = infer_network(trace, 30.0)
    assert np.isfinite(holed.expected).all()
    assert smooth_r(whole.expected, holed.expected, 30.0) > 0.9


def test_a_trace_that_says_nothing_is_nan_and_harms_no_other() -> None:
    trace, _ = planted(2)
    found = infer_network(np.stack([np.full_like(trace, np.nan), trace, np.ones_like(trace)]), 30.0)
    assert np.isnan(found.expected[[0, 2]]).all() and np.isnan(found.total[[0, 2]]).all() and np.isnan(found.total_low[[0, 2]]).all()
    np.testing.assert_allclose(found.expected[1], infer_network(trace, 30.0).expected, rtol=1e-3, atol=1e-5)
    assert np.isnan(infer_network(np.array([0.1]), 30.0).total).all()
    assert infer_network(np.zeros((0, 100)), 30.0).expected.shape == (0, 100)
    empty = infer_network(np.zeros((2, 0)), 30.0)
    assert empty.expected.shape == (2, 0) and np.isnan(empty.total).all()


def test_a_memory_map_takes_the_result(tmp_path: Path) -> None:
    traces = np.stack([planted(seed, seconds=20.0)[0] for seed in range(3)])
    out = np.lib.format.open_memmap(tmp_path / "out.npy", mode="w+", dtype=np.float32, shape=traces.shape)
    found = infer_network(traces, 30.0, out=out)
    np.testing.assert_array_equal(np.asarray(out), infer_network(traces, 30.0).expected)
    assert found.expected is out
    with pytest.raises(ModelError, match="shape of the traces"):
        infer_network(traces, 30.0, out=out[:1])


@pytest.mark.parametrize("n_frames", [16, 17, 33, 150])
def test_short_traces(n_frames: int) -> None:
    found = infer_network(planted(3)[0][:n_frames], 30.0)
    assert found.expected.shape == (n_frames,) and np.isfinite(found.expected).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int16])
def test_other_types(dtype: type) -> None:
    trace = planted(4)[0]
    trace = np.round(5 * trace) if dtype is np.int16 else trace
    assert np.isfinite(infer_network(trace.astype(dtype), 30.0).expected).all()


@pytest.mark.parametrize(("traces", "what"), [
    (np.zeros((2, 3, 4)), "of shape"), (np.array([0.1, np.inf, 0.2]), "infinite"),
    (np.full(100, 812.0), "raw"), (np.array(["a", "b"]), "real numbers"), (np.ones(4, complex), "real numbers")])
def test_what_cannot_be_dff_is_refused(traces: np.ndarray, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        infer_network(traces, 30.0)


@pytest.mark.parametrize("fs", [0.0, -1.0, np.nan, np.inf])
def test_a_frame_rate_that_is_none_is_refused(fs: float) -> None:
    with pytest.raises(ModelError, match="frames per second"):
        infer_network(np.zeros(100), fs)


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(ModelError, match="probability"):
        infer_network(planted(0)[0], 30.0, level=90)


def test_intervals_hold_what_they_say_of_a_gamma_poisson_count() -> None:
    rng = np.random.default_rng(0)
    for mean, variance in ((3.0, 0.5), (80.0, 0.2), (400.0, 1.0)):
        counts = rng.poisson(mean * rng.gamma(1 / variance, variance, 20000))
        low, high = net.count_interval(np.array(mean), np.array(variance), 0.9)
        assert 0.893 < np.mean((counts >= low) & (counts <= high)) < 0.97
        assert nbinom.var(1 / variance, 1 / (1 + variance * mean)) == pytest.approx(mean + variance * mean**2)


def test_moments_of_differences_against_the_obvious() -> None:
    x = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    lags = np.array([1, 4, 50])
    square, cube = given.difference_moments(x, lags, np.float32(2.0))
    steps = [np.clip(x[lag:] - x[:-lag], -2, 2) for lag in lags]
    np.testing.assert_allclose(square, [np.mean(s.astype(float) ** 2) for s in steps], rtol=1e-5)
    np.testing.assert_allclose(cube, [np.mean(s.astype(float) ** 3) for s in steps], rtol=1e-4, atol=1e-6)


def test_the_baseline_follows_a_drift_and_not_the_transients() -> None:
    trace, _ = planted(5, seconds=600.0, noise=0.01)
    drift = 0.5 * np.sin(np.arange(len(trace)) / 30 * 2 * np.pi / 600)
    moved = given.running_baseline(trace + drift, 30.0) - given.running_baseline(trace, 30.0)
    assert np.abs(moved - drift)[450:-450].max() < 0.1


def test_the_features_do_not_depend_on_how_many_frames_a_trace_has() -> None:
    trace, _ = planted(6, seconds=400.0)
    half, whole = given.standardise(trace[:6000], 30.0)[1], given.standardise(trace, 30.0)[1]
    assert half.shape == (given.N_FEATURES,)
    np.testing.assert_allclose(half, whole, atol=0.5)


def test_the_deconvolution_that_the_network_sees_finds_planted_decay_and_sizes() -> None:
    trace, counts = planted(7, seconds=100.0, size=0.3, decay=0.5)
    inputs, features = given.deconvolved(trace, 30.0)
    assert inputs.shape == (3, 3000) and np.exp(features[0]) == pytest.approx(0.5, rel=0.7) and np.exp(features[1]) < 0.1
    in_dff = np.sinh(inputs[2]) * given.DFF_SCALE
    assert in_dff.sum() == pytest.approx(0.3 * counts.sum(), rel=0.3)
    assert smooth_r(in_dff, counts, 30.0) > 0.9


def test_a_brighter_trace_is_the_same_but_for_its_dff() -> None:
    trace, _ = planted(8)
    (inputs, features), (brighter, those) = given.deconvolved(trace, 30.0), given.deconvolved(3 * trace, 30.0)
    np.testing.assert_allclose(brighter[:2], inputs[:2], rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(those, features, atol=1e-3)
    np.testing.assert_allclose(np.sinh(brighter[2]), 3 * np.sinh(inputs[2]), rtol=1e-2, atol=1e-3)


def test_weights_survive_being_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = net.CalciumNetwork()
    net.save_network(fresh, tmp_path / "w.npz")
    again = net.load_network(tmp_path / "w.npz")
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", something=np.zeros(3))
    with pytest.raises(ModelError, match="train them again"):
        net.load_network(tmp_path / "w.npz")


def test_the_weights_that_ship_are_small() -> None:
    assert net.WEIGHTS.stat().st_size < 3_000_000
