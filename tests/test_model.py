"""The model: conventions against scipy and brute force, low rank against dense."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import signal, stats

from sortcore import model
from sortcore.errors import ModelError

SIZES = [(3, 4, 50, 2, 7), (1, 4, 50, 2, 7), (3, 1, 50, 1, 7), (2, 3, 9, 2, 9), (2, 3, 5, 2, 9), (1, 1, 1, 1, 1), (3, 4, 50, 2, 1)]


def draw(K, N, T, R, D, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    footprints, profiles = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((K, N, R), (K, R, D)))
    amplitudes = torch.rand(K, T, generator=generator, dtype=dtype) * (torch.rand(K, T, generator=generator) < 0.2)
    return torch.randn(N, T, generator=generator, dtype=dtype), footprints, profiles, amplitudes


@pytest.mark.parametrize("sizes", SIZES)
def test_reconstruct_is_scipys_convolution(sizes):
    K, _, T, _, _ = sizes
    _, footprints, profiles, amplitudes = draw(*sizes)
    W = model.dense(footprints, profiles).numpy()
    expected = sum(signal.convolve(amplitudes[k].numpy()[None], W[k])[:, :T] for k in range(K))
    np.testing.assert_allclose(model.reconstruct(footprints, profiles, amplitudes).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
def test_score_is_scipys_correlation_with_the_dense_waveform(sizes):
    K, _, _, _, D = sizes
    data, footprints, profiles, _ = draw(*sizes)
    W = model.dense(footprints, profiles).numpy()
    padded = np.pad(data.numpy(), ((0, 0), (0, D - 1)))
    expected = np.concatenate([signal.correlate(padded, W[k], mode="valid") for k in range(K)])
    np.testing.assert_allclose(model.score(data, footprints, profiles).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
def test_cross_correlation_is_the_sum_of_the_stretches_that_follow_a_spike(sizes):
    K, N, T, _, D = sizes
    data, _, _, amplitudes = draw(*sizes)
    padded, expected = np.pad(data.numpy(), ((0, 0), (0, D))), np.zeros((K, N, D))
    for k, t in itertools.product(range(K), range(T)):
        expected[k] += amplitudes[k, t].item() * padded[:, t : t + D]
    np.testing.assert_allclose(model.cross_correlation(data, amplitudes, D).numpy(), expected, atol=1e-12)


def test_a_spike_starts_where_its_amplitude_stands():
    _, footprints, profiles, _ = draw(2, 3, 30, 2, 5)
    amplitudes = torch.zeros(2, 30, dtype=torch.float64)
    amplitudes[1, 11] = 4.0
    expected = torch.zeros(3, 30, dtype=torch.float64)
    expected[:, 11:16] = 4.0 * model.dense(footprints, profiles)[1]
    torch.testing.assert_close(model.reconstruct(footprints, profiles, amplitudes), expected)


def test_score_of_a_lone_unit_norm_spike_is_its_amplitude():
    footprints, profiles = model.unit_norm_low_rank(torch.randn(2, 3, 5, dtype=torch.float64), 2)
    amplitudes = torch.zeros(2, 30, dtype=torch.float64)
    amplitudes[0, 20] = 7.0
    score = model.score(model.reconstruct(footprints, profiles, amplitudes), footprints, profiles)
    assert score[0, 20].item() == pytest.approx(7.0)
    assert int(score[0].argmax()) == 20


def test_reconstruct_score_and_cross_correlation_are_each_others_transposes():
    """<X, sum_k a_k * W_k> = <score(X), a> = <C, W>."""
    data, footprints, profiles, amplitudes = draw(3, 4, 50, 2, 7)
    inner = (data * model.reconstruct(footprints, profiles, amplitudes)).sum()
    torch.testing.assert_close((model.score(data, footprints, profiles) * amplitudes).sum(), inner)
    torch.testing.assert_close((model.cross_correlation(data, amplitudes, 7) * model.dense(footprints, profiles)).sum(), inner)


def test_log_joint_is_the_sum_of_scipys_log_densities():
    data, footprints, profiles, amplitudes = draw(2, 3, 20, 2, 5)
    mean = model.reconstruct(footprints, profiles, amplitudes).numpy()
    expected = stats.norm.logpdf(data.numpy(), mean, 1.3).sum() + stats.expon.logpdf(amplitudes.numpy(), scale=1 / 0.7).sum()
    found = model.log_joint(data, footprints, profiles, amplitudes, amp_rate=0.7, noise_std=1.3)
    assert found.item() == pytest.approx(expected)
    flat = model.log_joint(data, footprints, profiles, amplitudes, amp_rate=0.0, noise_std=1.3)
    assert flat.item() == pytest.approx(stats.norm.logpdf(data.numpy(), mean, 1.3).sum())


def test_log_joint_of_a_negative_amplitude_is_minus_infinity():
    data, footprints, profiles, amplitudes = draw(2, 3, 20, 2, 5)
    amplitudes[0, 3] = -1e-9
    assert model.log_joint(data, footprints, profiles, amplitudes, amp_rate=1.0, noise_std=1.0).item() == -math.inf


@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_low_rank_projection_is_unit_norm_and_the_best_there_is(rank):
    C = torch.randn(5, 4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    footprints, profiles = model.unit_norm_low_rank(C, rank)
    assert footprints.shape == (5, 4, rank) and profiles.shape == (5, rank, 9)
    W = model.dense(footprints, profiles)
    torch.testing.assert_close(W.square().sum((1, 2)), torch.ones(5, dtype=torch.float64))
    assert all(np.linalg.matrix_rank(w) <= rank for w in W.numpy())
    best = (W * C).sum((1, 2))
    singular = np.linalg.svd(C.numpy(), compute_uv=False)[:, :rank]
    np.testing.assert_allclose(best.numpy(), np.linalg.norm(singular, axis=1))  # von Neumann's bound
    if rank >= 4:
        torch.testing.assert_close(W, C / torch.linalg.vector_norm(C, dim=(1, 2), keepdim=True))


def test_low_rank_projection_of_zero_is_zero():
    footprints, profiles = model.unit_norm_low_rank(torch.zeros(1, 3, 5), 2)
    assert model.dense(footprints, profiles).abs().max() == 0


@pytest.mark.parametrize("K, T", [(0, 20), (2, 0), (0, 0)])
def test_no_unit_or_no_sample(K, T):
    data, footprints, profiles, amplitudes = draw(K, 3, T, 2, 5)
    assert torch.equal(model.residual(data, footprints, profiles, amplitudes), data)
    assert model.score(data, footprints, profiles).shape == (K, T)
    assert model.cross_correlation(data, amplitudes, 5).shape == (K, 3, 5)
    expected = stats.norm.logpdf(data.numpy()).sum() if T else 0.0
    assert model.log_joint(data, footprints, profiles, amplitudes, amp_rate=1.0, noise_std=1.0).item() == pytest.approx(expected)


def test_float32_stays_float32_and_agrees():
    data, footprints, profiles, amplitudes = draw(3, 4, 50, 2, 7)
    single = [x.float() for x in (data, footprints, profiles, amplitudes)]
    score, double = model.score(single[0], *single[1:3]), model.score(data, footprints, profiles)
    assert score.dtype == model.residual(*single).dtype == torch.float32
    torch.testing.assert_close(score.double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu():
    arrays = draw(3, 4, 500, 2, 7)
    there = [x.cuda() for x in arrays]
    torch.testing.assert_close(model.residual(*there).cpu(), model.residual(*arrays))
    torch.testing.assert_close(model.score(*there[:3]).cpu(), model.score(*arrays[:3]))
    found, expected = (model.log_joint(*x, amp_rate=1.0, noise_std=1.0).item() for x in (there, arrays))
    assert found == pytest.approx(expected)


def test_what_does_not_fit_is_refused():
    data, footprints, profiles, amplitudes = draw(2, 3, 20, 2, 5)
    with pytest.raises(ModelError, match=r"Footprints must be .* but they are \(2, 3, 2\) and \(1, 2, 5\)"):
        model.score(data, footprints, profiles[:1])
    with pytest.raises(ModelError, match=r"residual must be \(3 channels, samples\), but the shape is \(2, 20\)"):
        model.score(data[:2], footprints, profiles)
    with pytest.raises(ModelError, match=r"amplitudes must be \(2 units, samples\), but the shape is \(1, 20\)"):
        model.reconstruct(footprints, profiles, amplitudes[:1])
    with pytest.raises(ModelError, match=r"\(3, 19\) channels and samples, but the data are \(3, 20\)"):
        model.residual(data, footprints, profiles, amplitudes[:, 1:])
    with pytest.raises(ModelError, match="of one length"):
        model.cross_correlation(data, amplitudes[:, 1:], 5)
    with pytest.raises(ModelError, match="noise_std.* must be positive, but it is 0"):
        model.log_joint(data, footprints, profiles, amplitudes, amp_rate=1.0, noise_std=0)
    with pytest.raises(ModelError, match="amp_rate.* must not be negative, but it is -1"):
        model.log_joint(data, footprints, profiles, amplitudes, amp_rate=-1, noise_std=1)
    with pytest.raises(ModelError, match="rank of a waveform must be at least 1"):
        model.unit_norm_low_rank(footprints, 0)
