"""The slow pursuit: it finds what was planted, and its gains are what the log joint gains."""

import numpy as np
import pytest
import torch
from helpers_reference import planted_units, ripples

from sortcore import model
from sortcore.errors import ModelError
from sortcore.reference_pursuit import pursuit_reference, shifted, spike_gain


@pytest.fixture(scope="module")
def planted():
    return planted_units()


def test_shifted_waveforms_are_the_signal_sampled_elsewhere():
    t = np.arange(41)

    def bump(t):
        return np.exp(-0.5 * ((t - 20) / 3) ** 2) * np.cos(t)

    w = np.stack([bump(t), 0.5 * bump(t)])[None]
    for shift in (-0.5, -0.125, 0.0, 0.25, 0.5):
        expected = np.stack([bump(t - shift), 0.5 * bump(t - shift)])[None]
        moved = shifted(w, shift)
        np.testing.assert_allclose(moved, expected, atol=2e-4)
        assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(w))
    with pytest.raises(ModelError, match="smaller than one sample"):
        shifted(w, 1.0)


@pytest.mark.parametrize("mu, p", [(0.0, 0.0), (12.0, 0.25), (12.0, 4.0)])
def test_spike_gain_is_the_maximum_over_amplitudes(mu, p):
    amplitudes = np.linspace(0, 40, 400001)
    for x in (-30.0, 3.0, 10.0, 14.0):
        joint = amplitudes * x - amplitudes**2 / 2 - p * (amplitudes - mu) ** 2 / 2 - 9.0
        assert spike_gain(x, mu, p, -9.0) == pytest.approx(joint.max(), abs=1e-6)
        assert max(0, x + p * mu) / (1 + p) == pytest.approx(amplitudes[joint.argmax()], abs=1e-3)


def test_pursuit_finds_overlapping_spikes_and_ends_when_none_is_worth_it(planted):
    W, times, amplitudes, X = planted
    odds, order = np.full(3, -9.0), np.argsort(np.concatenate(times))
    found = pursuit_reference(X.numpy(), W, log_odds=odds)
    mine = np.argsort(found.samples)
    np.testing.assert_array_equal(found.samples[mine], np.concatenate(times)[order])
    np.testing.assert_array_equal(found.units[mine], np.repeat(np.arange(3), 12)[order])
    assert np.abs(found.amplitudes[mine] - np.concatenate(amplitudes)[order]).mean() < 1.5
    assert (found.gains > 0).all() and (np.diff(found.gains) <= 1e-9).sum() > 25  # largest first, but for collisions
    left = sum(signal_scores(found.residual, W[k]).max() ** 2 / 2 - 9.0 > 0 for k in range(3))
    assert left == 0


def signal_scores(X, w):
    return np.array([(X[:, t : t + w.shape[1]] * w).sum() for t in range(X.shape[1] - w.shape[1] + 1)])


@pytest.mark.parametrize("prior", [False, True])
def test_the_gains_are_what_the_log_joint_gains(planted, prior):
    """The model's own log joint of all spikes found, less that of none, is the sum of the gains."""
    W, _, _, X = planted
    odds, mean, std = np.array([-9.0, -8.0, -10.0]), np.full(3, 22.0), np.full(3, 3.0)
    found = pursuit_reference(X.numpy(), W, log_odds=odds, amp_mean=mean if prior else None, amp_std=std if prior else None)
    assert len(found.samples) >= 36
    U, V = model.unit_norm_low_rank(torch.from_numpy(W), 1)
    A = torch.zeros(3, X.shape[1], dtype=torch.float64)
    A.index_put_((torch.from_numpy(found.units), torch.from_numpy(found.samples)), torch.from_numpy(found.amplitudes), accumulate=True)
    with_spikes, without = (model.log_joint(X, U, V, a, amp_rate=0.0, noise_std=1.0).item() for a in (A, 0 * A))
    gained = with_spikes - without + odds[found.units].sum()
    if prior:
        gained -= 0.5 * np.square((found.amplitudes - 22.0) / 3.0).sum()
    assert found.gains.sum() == pytest.approx(gained)
    np.testing.assert_allclose(found.residual, model.residual(X, U, V, A).numpy(), atol=1e-9)


def test_pursuit_finds_the_sub_sample_shift():
    W = ripples(1, 4, 40)
    shifts = np.array([-0.5, -0.25, 0.0, 0.25, 0.375])
    X = np.zeros((4, 300))
    for i, s in enumerate(shifts):
        X[:, 20 + 50 * i : 60 + 50 * i] += 20 * shifted(W[0], s)
    found = pursuit_reference(X, W, log_odds=np.array([-9.0]), subsamples=8)
    order = np.argsort(found.samples)
    np.testing.assert_allclose((found.samples + found.shifts)[order], 20 + 50 * np.arange(5) + shifts)
    np.testing.assert_allclose(found.amplitudes, 20)
    assert np.abs(found.residual).max() < 1e-6


def test_the_prior_keeps_a_large_unit_from_explaining_a_small_ones_spikes():
    """A small and a large unit of similar shape: free amplitudes take the better shape, the prior the right size."""
    W = ripples(2, 4, 30, seed=3)
    similar = 0.97 * W[0] + np.sqrt(1 - 0.97**2) * W[1]
    W = np.stack([W[0], similar / np.linalg.norm(similar)])
    truth = 0.4 * W[0] + 0.6 * W[1]
    X = np.zeros((4, 100))
    X[:, 30:60] += 10 * truth / np.linalg.norm(truth)
    odds = np.full(2, -9.0)
    assert pursuit_reference(X, W, log_odds=odds).units.tolist() == [1]
    found = pursuit_reference(X, W, log_odds=odds, amp_mean=np.array([10.0, 30.0]), amp_std=np.array([1.5, 3.0]))
    assert found.units.tolist() == [0] and found.samples.tolist() == [30]


def test_noise_alone_gives_no_spike():
    X = np.random.default_rng(0).normal(size=(4, 500))
    found = pursuit_reference(X, ripples(2, 4, 20), log_odds=np.full(2, -15.0))
    assert len(found.samples) == 0 and np.array_equal(found.residual, X)


@pytest.mark.parametrize("N, T, K", [(1, 100, 1), (2, 100, 0), (2, 10, 1), (2, 0, 1)])
def test_pursuit_with_one_channel_no_unit_or_too_few_samples(N, T, K):
    W = ripples(K, N, 20) if K else np.zeros((0, N, 20))
    X = np.zeros((N, T))
    if K and T >= 20:
        X[:, :20] += 15 * W[0]  # at the very edge
        X[:, -20:] += 15 * W[0]
    found = pursuit_reference(X, W, log_odds=np.full(K, -9.0), subsamples=4)
    assert sorted(found.samples.tolist()) == ([0, 80] if K and T >= 20 else [])
    assert found.residual.shape == (N, T)


def test_pursuit_refuses_what_it_cannot_use():
    X, W = np.zeros((2, 50)), ripples(1, 2, 20)
    with pytest.raises(ModelError, match="do not fit together"):
        pursuit_reference(X[:1], W, log_odds=np.array([-9.0]))
    with pytest.raises(ModelError, match="must be below zero"):
        pursuit_reference(X, W, log_odds=np.array([0.0]))
    with pytest.raises(ModelError, match="both amp_mean and amp_std"):
        pursuit_reference(X, W, log_odds=np.array([-9.0]), amp_mean=np.array([9.0]))
    with pytest.raises(ModelError, match="amp_std, must be positive"):
        pursuit_reference(X, W, log_odds=np.array([-9.0]), amp_mean=np.array([9.0]), amp_std=np.array([0.0]))
    with pytest.raises(ModelError, match="waveform is zero"):
        pursuit_reference(X, 0 * W, log_odds=np.array([-9.0]))
