"""Scores through the Fourier transform are the plain inner products, whatever the length, the gaps and the order of units."""

import numpy as np
import pytest
import torch

from sortcore import spectra
from sortcore.spectra import correlation, make_spectra


def plain(x, waveforms):
    """(K, T - D + 1) by the definition."""
    windows = np.lib.stride_tricks.sliding_window_view(x, waveforms.shape[2], axis=1)
    return np.einsum("ntd,knd->kt", windows, waveforms)


def sparse(rng, k, n, d, reach=3):
    """(K, N, D) waveforms on a few channels each, in no order."""
    out = np.zeros((k, n, d), np.float32)
    for w in out:
        first = rng.integers(0, n)
        w[first : first + reach] = rng.standard_normal((len(w[first : first + reach]), d))
    return out


@pytest.mark.parametrize("length", [20, 21, 108, 109, 110, 128, 217, 3000])
def test_agrees_with_the_inner_products(rng, length, device):
    waveforms = sparse(rng, 7, 5, 20)
    x = rng.standard_normal((5, length)).astype(np.float32)
    found = correlation(make_spectra(waveforms), torch.from_numpy(x).to(device)).cpu()
    assert found.is_contiguous()
    np.testing.assert_allclose(found, plain(x, waveforms), atol=2e-5)


@pytest.mark.parametrize(("units", "channels", "samples"), [(1, 1, 1), (1, 1, 64), (33, 40, 30), (70, 3, 61)])
def test_any_number_of_units_channels_and_samples(rng, units, channels, samples, monkeypatch):
    waveforms = sparse(rng, units, channels, samples)
    x = rng.standard_normal((channels, 700)).astype(np.float32)
    expected = plain(x, waveforms)
    for windows in (1, 3, 1000):  # worked on at once
        monkeypatch.setattr(spectra, "WINDOWS", 1)
        monkeypatch.setattr(spectra, "FEWEST", windows)
        np.testing.assert_allclose(correlation(make_spectra(waveforms), torch.from_numpy(x)), expected, atol=5e-5)


def test_a_unit_of_no_channel_scores_nothing(rng):
    waveforms = sparse(rng, 3, 4, 16)
    waveforms[1] = 0
    x = torch.from_numpy(rng.standard_normal((4, 200)).astype(np.float32))
    assert not correlation(make_spectra(waveforms), x)[1].any()
    assert not correlation(make_spectra(np.zeros_like(waveforms)), x).any()


@pytest.mark.parametrize("length", [0, 1, 15])
def test_data_shorter_than_a_template_have_no_score(rng, length):
    assert correlation(make_spectra(sparse(rng, 3, 4, 16)), torch.zeros(4, length)).shape == (3, 0)


def test_no_units_no_scores():
    assert correlation(make_spectra(np.zeros((0, 4, 16), np.float32)), torch.zeros(4, 100)).shape == (0, 85)
