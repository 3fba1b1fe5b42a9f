"""The textbook algorithms: they climb, they find what was planted, and they do what their formulas say."""

import itertools

import numpy as np
import pytest
import torch
from helpers_reference import planted_units

from sortcore import model, reference
from sortcore.errors import ModelError

AMP_RATE, NOISE_STD = 4.5, 1.0


@pytest.fixture(scope="module")
def planted():
    return planted_units()


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
