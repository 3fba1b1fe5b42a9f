"""Whether groups of spikes are of one cell, by their waveforms and by their trains."""

import numpy as np
from helpers_engine import FS

from sortcore import groups


def test_independent_trains_are_told_from_one_cell():
    rng = np.random.default_rng(0)
    a, b = (np.sort(rng.integers(0, 3_000_000, 3000)) for _ in range(2))
    assert groups.independent(a, b, FS)
    cell = np.cumsum(90 + rng.integers(0, 2000, 5000))  # refractory for 3 ms
    mine = rng.random(5000) < 0.5
    assert not groups.independent(cell[mine], cell[~mine], FS)


def test_trains_that_keep_out_of_each_others_refractory_period_are_one_cell():
    rng = np.random.default_rng(0)
    cell = np.cumsum(90 + rng.integers(0, 2000, 5000))  # refractory for 3 ms
    mine = rng.random(5000) < 0.3
    assert groups.refractory(cell[mine], cell[~mine], FS)
    a, b = (np.sort(rng.integers(0, 3_000_000, 3000)) for _ in range(2))
    assert not groups.refractory(a, b, FS), "two cells"
    assert not groups.refractory(a[:30], b[:30], FS), "too few spikes to say so"


def test_one_shape_at_two_sizes_is_one_cell_only_where_it_bursts():
    rng = np.random.default_rng(8)
    shape = rng.standard_normal((3, 4))
    shape /= np.linalg.norm(shape)

    def group(samples, size):
        amplitudes = rng.normal(size, 1.0, len(samples))
        features = amplitudes[:, None, None] * shape + rng.standard_normal((len(samples), 3, 4))
        return groups.Group(np.sort(samples), amplitudes.astype(np.float32), features.astype(np.float32), np.arange(3))

    long = int(120 * FS)
    first = rng.choice(long, 300, replace=False)
    alone, following = rng.choice(long, 200, replace=False), first[:200] + int(0.005 * FS)
    assert not groups.one(group(first, 22.0), group(alone, 15.0), 1.0, FS), "two cells"
    assert groups.one(group(first, 22.0), group(following, 15.0), 1.0, FS), "a cell whose later spikes in a burst are smaller"
    assert groups.one(group(first, 22.0), group(alone, 21.0), 1.0, FS), "no valley between them"


def test_spikes_within_bursts_are_told_from_another_cells():
    """A dozen bursts are enough, where two dozen spikes are too few to say that they keep out of each other's refractory period."""
    rng = np.random.default_rng(2)
    first = np.sort(rng.choice(int(60 * FS), 50, replace=False))
    within = first[:24] + (rng.uniform(0.003, 0.008, 24) * FS).astype(int)
    alone = np.sort(rng.choice(int(60 * FS), 24, replace=False))
    assert groups.bursting(first, within, FS) and groups.bursting(within, first, FS) and not groups.refractory(first, within, FS)
    for other in (alone, within[:1], first[:0]):
        assert not groups.bursting(first, other, FS)
    fast = [np.sort(rng.choice(int(60 * FS), 3000, replace=False)) for _ in range(2)]
    assert not groups.bursting(*fast, FS), "two fast cells"


def test_trains_do_not_join_what_looks_different():
    rng = np.random.default_rng(3)
    cell = np.cumsum(90 + rng.integers(0, 2000, 3000))  # refractory for 3 ms
    mine = rng.random(3000) < 0.5
    shapes = np.linalg.qr(rng.standard_normal((12, 2)))[0].T.reshape(2, 3, 4)

    def group(samples, shape):
        features = 20 * shape + rng.standard_normal((len(samples), 3, 4))
        return groups.Group(samples, np.full(len(samples), 20, np.float32), features.astype(np.float32), np.arange(3))

    for cosine, joined in ((0.95, True), (0.65, False)):
        other = cosine * shapes[0] + np.sqrt(1 - cosine**2) * shapes[1]
        assert groups.one(group(cell[mine], shapes[0]), group(cell[~mine], other), cosine, FS) == joined


def test_one_cell_at_two_places_is_told_by_never_firing_at_both():
    rng = np.random.default_rng(0)
    low, high = rng.integers(0, 6, 200), rng.integers(6, 12, 200)
    assert groups.exclusive(low, high)
    assert groups.exclusive(np.r_[low, high[:25]], np.r_[high, low[:25]]), "seldom, where templates are about as good"
    assert not groups.exclusive(low, rng.integers(0, 12, 200)) and not groups.exclusive(low[:3], high[:3])


def group_of(means, sizes, seed=0):
    """A group of spikes of several mean features (F,), and which mean each is of."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    flat = np.array(means)[truth] + rng.standard_normal((len(truth), len(means[0])))
    features = flat.reshape(len(truth), 3, -1).astype(np.float32)
    return groups.Group(np.sort(rng.choice(3_000_000, len(truth), replace=False)), np.ones(len(truth), np.float32), features,
                        np.arange(3)), truth


def test_two_cells_of_one_place_are_told_by_shape_and_size_together():
    """Three standard deviations apart in shape and as far in size: neither alone shows a valley."""
    axes = np.eye(12)
    both, truth = group_of((9 * axes[0], 12 * axes[0] + 3 * axes[1]), (400, 300))
    found = groups.split(both, 10)
    assert len(found) == 2 and sum(len(part) for part in found) == 700
    assert all(max(np.mean(truth[part] == k) for k in (0, 1)) > 0.9 for part in found)


def test_sizes_alone_do_not_split_a_cell():
    axes = np.eye(12)
    burst, _ = group_of((18 * axes[0], 11 * axes[0]), (400, 300))
    assert [len(part) for part in groups.split(burst, 10)] == [700]
    one, _ = group_of((12 * axes[0],), (500,))
    assert [len(part) for part in groups.split(one, 10)] == [500]


def test_the_difference_of_two_shapes_is_free_of_size_and_noise():
    axes = 10 * np.eye(42)
    means = (axes[0], 0.5 * axes[0] + 0.4 * axes[1], 2 * axes[0])
    a, b, same = (group_of((mean,), (200,), seed)[0].features.reshape(200, -1) for seed, mean in enumerate(means))
    assert abs(groups.shape_difference(a, b) - 4) < 0.5 and groups.shape_difference(a, same) < 1


def centred_at(starts, waveform, basis, channels, seed=0):
    """A group of spikes of a waveform (M, D) with unit noise, in a basis (B, D)."""
    noise = np.random.default_rng(seed).standard_normal((len(starts), len(channels), len(basis)))
    return groups.Group(starts, np.full(len(starts), 20.0), (waveform @ basis.T + noise).astype(np.float32), channels)


def two_troughs(lag):
    """(6, 32) waveform with a trough on three contacts, and one as large `lag` samples later on three others, from two starts."""
    pulse = np.zeros((6, 32 + lag))
    pulse[:3, 10:14], pulse[3:, 10 + lag : 14 + lag] = -4.0, -4.0
    return pulse[:, :32], pulse[:, lag:]


def test_a_cell_centred_on_either_of_two_troughs_is_one_and_its_spikes_are_brought_to_one_time():
    basis, channels, n, lag = np.eye(32), np.arange(6), 3_000_000, 5
    early, late = two_troughs(lag)
    rng = np.random.default_rng(1)
    cell = np.sort(rng.choice(n, 500, replace=False))
    first, second = centred_at(cell[:300], early, basis, channels, 1), centred_at(cell[300:] + lag, late, basis, channels, 2)
    (one,) = groups.merged([first, second], 6, FS, basis)
    assert np.array_equal(one.samples, cell)
    np.testing.assert_allclose(one.mean[:, 3:-lag], early[:, 3:-lag], atol=0.5)
    (one,) = groups.merged([second, first], 6, FS, basis)
    assert np.array_equal(one.samples, cell)
    too_far = int(groups.MOST_LAG_MS * FS / 1000) + 1
    assert len(groups.merged([first, centred_at(cell[300:] + too_far, two_troughs(too_far)[1], basis, channels, 2)], 6, FS, basis)) == 2


def test_two_cells_that_are_alike_at_a_lag_stay_two():
    basis, channels, n, lag = np.eye(32), np.arange(6), 3_000_000, 5
    early, late = two_troughs(lag)
    other = late * np.array([1, 1, 1, 0.7, 0.7, 0.2])[:, None]
    rng = np.random.default_rng(1)
    a, b = (np.sort(rng.choice(n, k, replace=False)) for k in (300, 200))
    assert len(groups.merged([centred_at(a, early, basis, channels, 1), centred_at(b, other, basis, channels, 2)], 6, FS, basis)) == 2


def test_likeness_at_a_lag_is_that_of_the_moved_waveforms():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((32, 5)))[0].T
    means = rng.standard_normal((4, 3, 5))
    cosine, lag = groups.alike(means, groups.lagged(basis, 6))
    waves = means @ basis
    for i in range(4):
        for j in range(4):
            moved = [np.pad(waves[j], ((0, 0), (6, 6)))[:, 6 + k : 38 + k] for k in range(-6, 7)]  # the slow form
            dots = [(waves[i] * (m @ basis.T @ basis)).sum() for m in moved]
            assert lag[i, j] == np.argmax(dots) - 6
            assert np.isclose(cosine[i, j], max(dots) / np.linalg.norm(waves[i]) / np.linalg.norm(waves[j]))
