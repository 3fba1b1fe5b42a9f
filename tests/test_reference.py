"""The textbook algorithms: they climb, they find what was planted, and they do what their formulas say."""

import itertools

import numpy as np
import pytest
import torch

from sortcore import model, reference
from sortcore.errors import ModelError

AMP_RATE, NOISE_STD = 4.5, 1.0


def ripples(K, N, D, seed=0):
    """(K, N, D) unit-norm waveforms of rank one that start and end near zero: damped oscillations with their footprints."""
    rng, t = np.random.default_rng(seed), np.arange(D)
    W = np.stack([np.outer(rng.normal(size=N), np.exp(-0.5 * ((t - D / 2) / (D / 9 + k / 2)) ** 2) * np.cos(t * (0.5 + 0.3 * k) + k))
                  for k in range(K)])
    return W / np.linalg.norm(W, axis=(1, 2), keepdims=True)


def plant(W, times, amplitudes, T, noise_std=1.0, seed=1):
    """(N, T) noise with waveform k added at each time of times[k]."""
    X = noise_std * np.random.default_rng(seed).normal(size=(W.shape[1], T))
    for k, D in enumerate([W.shape[2]] * len(W)):
        for t, a in zip(times[k], amplitudes[k], strict=True):
            X[:, t : t + D] += a * W[k]
    return X


@pytest.fixture(scope="module")
def planted():
    """Three units of 12 spikes each, those of one unit two templates apart; spikes of different units overlap."""
    rng = np.random.default_rng(5)
    W = ripples(3, 5, 24)
    times = [10 + 17 * k + 60 * np.arange(12) + rng.integers(0, 12, 12) for k in range(3)]
    amplitudes = [rng.uniform(18, 26, 12) for _ in range(3)]
    return W, times, amplitudes, torch.from_numpy(plant(W, times, amplitudes, 800))


def never_falls(path, tolerance=1e-9):
    return bool((path.diff() >= -tolerance * path.abs().max()).all())


def cosines(found, W):
    """(K,) cosine of each planted waveform with the found one most like it, at the best shift."""
    found, W = (np.asarray(w) for w in (found, W))
    D = W.shape[-1]
    padded = np.pad(found, ((0, 0), (0, 0), (D, D)))
    return np.array([[max((padded[j, :, s : s + D] * w).sum() for s in range(2 * D)) for j in range(len(found))] for w in W])


# The simple model


def simple_data(K=3, N=6, T=500, seed=0):
    rng = np.random.default_rng(seed)
    W = np.linalg.qr(rng.normal(size=(N, K)))[0].T
    A = rng.uniform(10, 20, (K, T)) * (rng.random((K, T)) < 0.1)
    return W, A, torch.from_numpy(W.T @ A + rng.normal(size=(N, T)))


def test_simple_ascent_never_falls_and_finds_what_was_planted():
    W, A, X = simple_data()
    start = torch.from_numpy(W + 0.4 * np.random.default_rng(1).normal(size=W.shape))
    found = reference.simple_ascent(X, start, amp_rate=3.0, noise_std=1.0)
    assert never_falls(found.log_joint) and found.log_joint[-1] > found.log_joint[0]
    assert ((found.waveforms.numpy() * W).sum(1) > 0.99).all()
    spikes = A > 0
    assert np.abs(found.amplitudes.numpy() + 3.0 - A)[spikes].mean() < 1.5  # the prior takes off lambda sigma^2 = 3
    assert ((found.amplitudes.numpy() > 0) == spikes).mean() > 0.99


def test_simple_ascent_climbs_from_anywhere():
    _, _, X = simple_data(seed=2)
    for seed in range(5):
        start = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert never_falls(reference.simple_ascent(X, start, amp_rate=0.5, noise_std=0.8, iterations=10).log_joint)


def test_simple_amplitudes_are_the_maximum():
    """Moving any amplitude of the unit updated last lowers the log joint."""
    _, _, X = simple_data(K=1, T=40)
    start = torch.randn(1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = reference.simple_ascent(X, start, amp_rate=2.0, noise_std=1.0, iterations=200)  # to convergence

    def value(A):
        return model.log_joint(X, one.waveforms[:, :, None], torch.ones(1, 1, 1, dtype=X.dtype), A, amp_rate=2.0, noise_std=1.0)

    best = value(one.amplitudes)
    for t in range(40):
        for step in (-0.01, 0.01):
            moved = one.amplitudes.clone()
            moved[0, t] += step
            assert value(moved) < best


def test_simple_model_is_the_convolutive_one_with_templates_of_one_sample():
    W, _, X = simple_data()
    start = torch.from_numpy(W + 0.3)
    simple = reference.simple_ascent(X, start, amp_rate=3.0, noise_std=1.0, iterations=5)
    for separate in (reference.separate_greedily, reference.separate_exactly):
        convolutive = reference.convolutive_ascent(X, start[:, :, None], rank=1, amp_rate=3.0, noise_std=1.0, iterations=5,
                                                   separate=separate)
        torch.testing.assert_close(convolutive.log_joint, simple.log_joint)
        torch.testing.assert_close(convolutive.amplitudes, simple.amplitudes)
        torch.testing.assert_close(model.dense(convolutive.footprints, convolutive.profiles)[:, :, 0], simple.waveforms)


# The convolutive model


@pytest.mark.parametrize("separate", [reference.separate_greedily, reference.separate_exactly])
def test_convolutive_ascent_finds_what_was_planted(planted, separate):
    W, times, amplitudes, X = planted
    start = torch.from_numpy(W + 0.08 * np.random.default_rng(0).normal(size=W.shape))
    assert cosines(start / torch.linalg.vector_norm(start, dim=(1, 2), keepdim=True), W).diagonal().max() < 0.85
    found = reference.convolutive_ascent(X, start, rank=1, amp_rate=AMP_RATE, noise_std=NOISE_STD, separate=separate)
    assert never_falls(found.log_joint) and found.log_joint[-1] > found.log_joint[0]
    assert (cosines(model.dense(found.footprints, found.profiles), W).diagonal() > 0.99).all()
    for k in range(3):
        spikes = np.flatnonzero(found.amplitudes[k].numpy())
        np.testing.assert_array_equal(spikes, times[k])
        off = found.amplitudes[k].numpy()[spikes] + AMP_RATE * NOISE_STD**2 - amplitudes[k]
        assert abs(off.mean()) < 1 and np.abs(off).max() < 4


def test_convolutive_ascent_from_the_data_alone(planted):
    W, _, _, X = planted
    start = reference.start_waveforms(X, 3, 24, rank=1, amp_rate=AMP_RATE, noise_std=NOISE_STD)
    found = reference.convolutive_ascent(X, start, rank=1, amp_rate=AMP_RATE, noise_std=NOISE_STD)
    similarity = cosines(model.dense(found.footprints, found.profiles), W)
    assert sorted(similarity.argmax(1)) == [0, 1, 2] and (similarity.max(1) > 0.97).all()


def test_exact_separation_never_lets_the_log_joint_fall():
    """Crowded spikes, too many units, low thresholds, any rank: where greedy separation may step down."""
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        X = torch.randn(3, 150, generator=generator, dtype=torch.float64) * 2
        start = torch.randn(3, 3, 8, generator=generator, dtype=torch.float64)
        found = reference.convolutive_ascent(X, start, rank=1 + seed % 3, amp_rate=0.2, noise_std=1.1, separate=reference.separate_exactly)
        assert never_falls(found.log_joint)
        assert all((np.diff(np.flatnonzero(a)) >= 8).all() for a in found.amplitudes.numpy())


def test_greedy_separation_may_step_down_where_spikes_crowd():
    generator = torch.Generator().manual_seed(10)
    X = torch.randn(2, 60, generator=generator, dtype=torch.float64) * 2
    start = torch.randn(2, 2, 8, generator=generator, dtype=torch.float64)
    climbs = [never_falls(reference.convolutive_ascent(X, start, rank=1, amp_rate=0.2, noise_std=1.0, separate=separate).log_joint)
              for separate in (reference.separate_greedily, reference.separate_exactly)]
    assert climbs == [False, True]


def test_waveforms_stay_unit_norm_and_low_rank(planted):
    W, _, _, X = planted
    found = reference.convolutive_ascent(X, torch.from_numpy(W), rank=2, amp_rate=AMP_RATE, noise_std=NOISE_STD, iterations=2)
    W = model.dense(found.footprints, found.profiles)
    torch.testing.assert_close(W.square().sum((1, 2)), torch.ones(3, dtype=torch.float64))
    assert found.footprints.shape == (3, 5, 2) and found.profiles.shape == (3, 2, 24)


def brute_force_separation(a, D):
    best, kept = -1.0, None
    for chosen in range(2 ** len(a)):
        times = [t for t in range(len(a)) if chosen >> t & 1]
        if all(j - i >= D for i, j in itertools.pairwise(times)) and sum(a[t] ** 2 for t in times) > best:
            best, kept = sum(a[t] ** 2 for t in times), times
    return best, kept


@pytest.mark.parametrize("D", [1, 2, 3, 5, 20])
def test_exact_separation_is_the_best_there_is(D):
    for seed in range(5):
        a = torch.rand(10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.2
        a = a.clamp(min=0)
        kept = reference.separate_exactly(a, D)
        assert kept.square().sum().item() == pytest.approx(brute_force_separation(a.tolist(), D)[0])
        assert (np.diff(np.flatnonzero(kept)) >= D).all()
        assert torch.equal(kept[kept > 0], a[kept > 0])


def test_greedy_separation_takes_the_largest_first():
    a = torch.tensor([4.0, 5.0, 4.0, 0.0, 1.0, 0.0, 0.0])
    assert reference.separate_greedily(a, 2).tolist() == [0, 5, 0, 0, 1, 0, 0]
    assert reference.separate_exactly(a, 2).tolist() == [4, 0, 4, 0, 1, 0, 0]  # 16 + 16 > 25


@pytest.mark.parametrize("N, T, K", [(1, 200, 2), (3, 200, 1), (3, 200, 0), (3, 5, 2), (3, 0, 2)])
def test_one_channel_one_unit_no_unit_and_too_few_samples(N, T, K):
    generator = torch.Generator().manual_seed(0)
    X, start = torch.randn(N, T, generator=generator), torch.randn(K, N, 8, generator=generator)
    found = reference.convolutive_ascent(X, start, rank=3, amp_rate=1.0, noise_std=1.0, iterations=3)
    assert found.amplitudes.shape == (K, T) and found.footprints.shape == (K, N, 3)
    assert never_falls(found.log_joint, 1e-3) and found.log_joint.isfinite().all()
    assert found.amplitudes.any() == (T > 8 and K > 0)
    simple = reference.simple_ascent(X, start[:, :, 0], amp_rate=1.0, noise_std=1.0, iterations=3)
    assert simple.amplitudes.shape == (K, T) and never_falls(simple.log_joint, 1e-5)


def test_ascent_leaves_its_input_alone(planted):
    W, _, _, X = planted
    before, start = X.clone(), torch.from_numpy(W.copy())
    reference.convolutive_ascent(X, start, rank=2, amp_rate=AMP_RATE, noise_std=NOISE_STD, iterations=1)
    reference.simple_ascent(X, start[:, :, 0], amp_rate=AMP_RATE, noise_std=NOISE_STD, iterations=1)
    assert torch.equal(X, before) and np.array_equal(start.numpy(), W)


def test_bad_starts_are_refused():
    X = torch.randn(3, 50)
    with pytest.raises(ModelError, match="zero or not finite"):
        reference.convolutive_ascent(X, torch.zeros(1, 3, 8), rank=1, amp_rate=1.0, noise_std=1.0)
    with pytest.raises(ModelError, match="noise_std"):
        reference.simple_ascent(X, torch.ones(1, 3), amp_rate=1.0, noise_std=-1.0)
    with pytest.raises(ModelError, match="does not fit"):
        reference.start_waveforms(X, 1, 51, rank=1, amp_rate=1.0, noise_std=1.0)
    with pytest.raises(ModelError, match="nothing left to start from after 0 of 1"):
        reference.start_waveforms(torch.zeros(3, 50), 1, 8, rank=1, amp_rate=1.0, noise_std=1.0)


# Matching pursuit


def test_shifted_waveforms_are_the_signal_sampled_elsewhere():
    t = np.arange(41)

    def bump(t):
        return np.exp(-0.5 * ((t - 20) / 3) ** 2) * np.cos(t)

    w = np.stack([bump(t), 0.5 * bump(t)])[None]
    for shift in (-0.5, -0.125, 0.0, 0.25, 0.5):
        expected = np.stack([bump(t - shift), 0.5 * bump(t - shift)])[None]
        moved = reference.shifted(w, shift)
        np.testing.assert_allclose(moved, expected, atol=2e-4)
        assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(w))
    with pytest.raises(ModelError, match="smaller than one sample"):
        reference.shifted(w, 1.0)


@pytest.mark.parametrize("mu, p", [(0.0, 0.0), (12.0, 0.25), (12.0, 4.0)])
def test_spike_gain_is_the_maximum_over_amplitudes(mu, p):
    amplitudes = np.linspace(0, 40, 400001)
    for x in (-30.0, 3.0, 10.0, 14.0):
        joint = amplitudes * x - amplitudes**2 / 2 - p * (amplitudes - mu) ** 2 / 2 - 9.0
        assert reference.spike_gain(x, mu, p, -9.0) == pytest.approx(joint.max(), abs=1e-6)
        assert max(0, x + p * mu) / (1 + p) == pytest.approx(amplitudes[joint.argmax()], abs=1e-3)


def test_pursuit_finds_overlapping_spikes_and_ends_when_none_is_worth_it(planted):
    W, times, amplitudes, X = planted
    odds, order = np.full(3, -9.0), np.argsort(np.concatenate(times))
    found = reference.pursuit_reference(X.numpy(), W, log_odds=odds)
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
    found = reference.pursuit_reference(X.numpy(), W, log_odds=odds, amp_mean=mean if prior else None, amp_std=std if prior else None)
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
        X[:, 20 + 50 * i : 60 + 50 * i] += 20 * reference.shifted(W[0], s)
    found = reference.pursuit_reference(X, W, log_odds=np.array([-9.0]), subsamples=8)
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
    assert reference.pursuit_reference(X, W, log_odds=odds).units.tolist() == [1]
    found = reference.pursuit_reference(X, W, log_odds=odds, amp_mean=np.array([10.0, 30.0]), amp_std=np.array([1.5, 3.0]))
    assert found.units.tolist() == [0] and found.samples.tolist() == [30]


def test_noise_alone_gives_no_spike():
    X = np.random.default_rng(0).normal(size=(4, 500))
    found = reference.pursuit_reference(X, ripples(2, 4, 20), log_odds=np.full(2, -15.0))
    assert len(found.samples) == 0 and np.array_equal(found.residual, X)


@pytest.mark.parametrize("N, T, K", [(1, 100, 1), (2, 100, 0), (2, 10, 1), (2, 0, 1)])
def test_pursuit_with_one_channel_no_unit_or_too_few_samples(N, T, K):
    W = ripples(K, N, 20) if K else np.zeros((0, N, 20))
    X = np.zeros((N, T))
    if K and T >= 20:
        X[:, :20] += 15 * W[0]  # at the very edge
        X[:, -20:] += 15 * W[0]
    found = reference.pursuit_reference(X, W, log_odds=np.full(K, -9.0), subsamples=4)
    assert sorted(found.samples.tolist()) == ([0, 80] if K and T >= 20 else [])
    assert found.residual.shape == (N, T)


def test_pursuit_refuses_what_it_cannot_use():
    X, W = np.zeros((2, 50)), ripples(1, 2, 20)
    with pytest.raises(ModelError, match="do not fit together"):
        reference.pursuit_reference(X[:1], W, log_odds=np.array([-9.0]))
    with pytest.raises(ModelError, match="must be below zero"):
        reference.pursuit_reference(X, W, log_odds=np.array([0.0]))
    with pytest.raises(ModelError, match="both amp_mean and amp_std"):
        reference.pursuit_reference(X, W, log_odds=np.array([-9.0]), amp_mean=np.array([9.0]))
    with pytest.raises(ModelError, match="amp_std, must be positive"):
        reference.pursuit_reference(X, W, log_odds=np.array([-9.0]), amp_mean=np.array([9.0]), amp_std=np.array([0.0]))
    with pytest.raises(ModelError, match="waveform is zero"):
        reference.pursuit_reference(X, 0 * W, log_odds=np.array([-9.0]))
