"""The small numerical tools against scipy, torch and numpy."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate as scipy_correlate

from sortcore import numerics
from sortcore.errors import ConfigError
from sortcore.numerics import BLOCK
from sortcore.types import Probe


def correlated(x, kernels):
    """(P, N, T - L + 1) by the fast way."""
    valid = max(0, x.shape[1] - kernels.shape[1] + 1)
    return numerics.unblocked(numerics.correlate(x, kernels), valid)


@pytest.mark.parametrize("length", [20, 21, BLOCK - 1, BLOCK, BLOCK + 19, BLOCK + 20, 500])
def test_correlate_agrees_with_scipy_and_conv1d(rng, length, device):
    x = torch.from_numpy(rng.standard_normal((3, length)))
    kernels = torch.from_numpy(rng.standard_normal((4, 20)))
    out = correlated(x.to(device), kernels.to(device)).cpu()
    expected = np.stack([[scipy_correlate(row, k, "valid") for row in x.numpy()] for k in kernels.numpy()])
    assert out.shape == (4, 3, length - 19)
    np.testing.assert_allclose(out, expected, atol=1e-10)
    torch.testing.assert_close(out, torch.nn.functional.conv1d(x[:, None], kernels[:, None]).transpose(0, 1))


def test_blocks_count_zeros_beyond_the_end(rng):
    x, kernels = torch.from_numpy(rng.standard_normal((2, 100))), torch.from_numpy(rng.standard_normal((3, 11)))
    blocks = numerics.correlate(x, kernels)
    assert blocks.shape == (2, 2, 3, BLOCK)  # 90 valid samples are two blocks
    padded = torch.nn.functional.pad(x, (0, 10 + 2 * BLOCK - 100))
    expected = torch.nn.functional.conv1d(padded[:, None], kernels[:, None])
    torch.testing.assert_close(numerics.unblocked(blocks, 2 * BLOCK).transpose(0, 1), expected)


@pytest.mark.parametrize("length", [0, 5, 19])
def test_nothing_correlates_with_data_shorter_than_a_kernel(length):
    out = correlated(torch.zeros(2, length), torch.ones(3, 20))
    assert out.shape == (3, 2, 0)


@pytest.mark.parametrize("length", [41, 60, 1000])
def test_fft_filter_is_a_valid_convolution(rng, length):
    half = rng.standard_normal(21)
    taps = np.r_[half[:0:-1], half]  # symmetric
    x = rng.standard_normal((3, length))
    out = numerics.fft_filter(torch.from_numpy(x), torch.from_numpy(taps)).numpy()
    assert out.shape == (3, length - 40)
    np.testing.assert_allclose(out, [np.convolve(row, taps, "valid") for row in x], atol=1e-10)


@pytest.mark.parametrize("every", [2, 3, 5])
@pytest.mark.parametrize("length", [77, 1000, 1003])
def test_samples_that_are_not_kept_need_not_be_computed(rng, length, every):
    taps = rng.standard_normal(24 * every + 1)
    x, taps = torch.from_numpy(rng.standard_normal((3, length + len(taps) - 1))), torch.from_numpy(taps + taps[::-1])
    torch.testing.assert_close(numerics.fft_filter(x, taps, every), numerics.fft_filter(x, taps)[:, ::every])


def test_shift_delays_a_band_limited_wave():
    t = np.arange(64, dtype=float)

    def wave(t):
        return np.exp(-0.5 * ((t - 32) / 4) ** 2) * np.cos(0.8 * (t - 32))

    for delay in (0.0, 0.5, -0.3, 0.125, 2.0, -3.7):
        np.testing.assert_allclose(numerics.shift(wave(t), delay), wave(t - delay), atol=1e-9)


def test_shift_of_many_delays_is_each_of_them(rng):
    waves = rng.standard_normal((5, 3, 40)).astype(np.float32)
    delays = numerics.subsample_shifts(4)
    out = numerics.shift(waves, delays)
    assert out.shape == (4, 5, 3, 40) and out.dtype == np.float32
    for moved, delay in zip(out, delays, strict=True):
        np.testing.assert_allclose(moved, numerics.shift(waves, float(delay)), atol=1e-6)
    np.testing.assert_allclose(out[2], waves, atol=1e-6)


def test_shift_does_not_come_back_at_the_other_end():
    wave = np.zeros(30)
    wave[-1] = 1.0
    assert np.allclose(numerics.shift(wave, 3.0), 0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
def test_subsample_shifts(n):
    shifts = numerics.subsample_shifts(n)
    assert len(shifts) == n and 0.0 in shifts and shifts[n // 2] == 0
    assert shifts.min() >= -0.5 and shifts.max() < 0.5
    np.testing.assert_allclose(np.diff(shifts), 1 / n)


def test_mad_is_the_standard_deviation_of_gaussian_noise_and_ignores_spikes(rng):
    x = 3.0 * rng.standard_normal((2, 200_000))
    np.testing.assert_allclose(numerics.mad(x), 3.0, rtol=0.01)
    x[:, ::200] = 1000.0
    np.testing.assert_allclose(numerics.mad(x), 3.0, rtol=0.02)


def test_unit_norm(rng):
    waves = rng.standard_normal((3, 4, 5))
    waves[1] = 0
    out = numerics.unit_norm(waves)
    np.testing.assert_allclose(np.linalg.norm(out, axis=(1, 2)), [1, 0, 1])
    np.testing.assert_allclose(out[0] * np.linalg.norm(waves[0]), waves[0])


@pytest.mark.parametrize(("rows", "columns"), [(500, 60), (30, 200), (5, 3)])
def test_leading_agrees_with_eigh(rng, rows, columns):
    turn = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    x = rng.standard_normal((rows, columns)) @ np.diag(2.0 ** -np.arange(columns)) @ turn
    n = min(4, columns)
    x -= x.mean(axis=0)
    found = numerics.leading(x, n)
    values, vectors = np.linalg.eigh(x.T @ x)
    assert found.shape == (columns, n)
    np.testing.assert_allclose(found.T @ found, np.eye(n), atol=1e-8)
    np.testing.assert_allclose(np.abs((found * vectors[:, ::-1][:, :n]).sum(axis=0)), 1, atol=1e-6)
    np.testing.assert_allclose(((x @ found) ** 2).sum(axis=0), values[::-1][:n], rtol=1e-6)


def test_leading_repeats_and_takes_what_rank_there_is(rng):
    x = rng.standard_normal((6, 20)).astype(np.float32)
    assert np.array_equal(numerics.leading(x, 3), numerics.leading(x, 3))
    assert numerics.leading(x, 50).shape == (20, 6)


def test_nearest_channels_stay_on_the_shank():
    probe = Probe(np.array([[0, 0], [0, 20], [0, 60], [10, 20]]), np.array([0, 0, 0, 1]))
    assert numerics.nearest_channels(probe, 0, 25.0).tolist() == [0, 1]
    assert numerics.nearest_channels(probe, 1, 40.0).tolist() == [0, 1, 2]
    assert numerics.nearest_channels(probe, 3, 500.0).tolist() == [3]


def test_device_names():
    assert numerics.pick_device("cpu").type == "cpu"
    assert numerics.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="abacus"):
        numerics.pick_device("abacus")


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_scaled_rows_are_those_of_plain_arithmetic(dtype):
    rng = np.random.default_rng(0)
    stored = (100 * rng.standard_normal((1000, 7)) + 300).astype(dtype)
    offset, gain = rng.standard_normal(7).astype(np.float32), rng.uniform(0.1, 2, 7).astype(np.float32)
    expected = (stored.astype(np.float32) - offset) * gain
    np.testing.assert_array_equal(numerics.scaled_rows(stored, offset, gain), expected.T)
    if np.dtype(dtype).kind == "f":
        stored[5, 2], stored[900, 6] = np.nan, np.inf
        expected[5, 2], expected[900, 6] = -offset[2] * gain[2], -offset[6] * gain[6]
        np.testing.assert_array_equal(numerics.scaled_rows(stored, offset, gain), expected.T)
    assert numerics.scaled_rows(stored[:0], offset, gain).shape == (7, 0)
