"""Clusters whose noise has sigma = 1: two are two where the data show a valley, and one stays one."""

import numpy as np
import pytest

from sortcore.cluster import cluster, drop_small, merge, parcels, separation
from sortcore.reference import merge_reference

SEEDS = range(8)


def blobs(rng, sizes, centres, p=8):
    """(S, P) unit-noise points around centres given in their first dimensions, in random order, and where each came from."""
    x = rng.standard_normal((sum(sizes), p))
    truth = np.repeat(np.arange(len(sizes)), sizes)
    for k, centre in enumerate(centres):
        x[truth == k, : len(centre)] += centre
    order = rng.permutation(len(x))
    return x[order].astype(np.float32), truth[order]


def agreement(labels, truth):
    """Share of points whose cluster is that of most of their kin, and no more clusters than there should be."""
    return sum(np.bincount(labels[truth == k] + 1).max() for k in np.unique(truth)) / len(truth)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_clusters_six_apart_are_two(seed):
    x, truth = blobs(np.random.default_rng(seed), (300, 300), ([0], [6]))
    labels = cluster(x, 10)
    assert labels.max() == 1
    assert agreement(labels, truth) > 0.98
    assert labels[truth == 0].mean().round() != labels[truth == 1].mean().round()


def test_one_gaussian_is_one():
    counts = [cluster(blobs(np.random.default_rng(seed), (600,), ([0],))[0], 10).max() + 1 for seed in range(20)]
    assert counts.count(1) >= 19, counts


@pytest.mark.parametrize("seed", SEEDS)
def test_a_small_cluster_beside_a_large_one_is_kept(seed):
    x, truth = blobs(np.random.default_rng(seed), (500, 10), ([0], [7, 6]))
    labels = cluster(x, 7)
    assert labels.max() == 1
    assert (labels[truth == 0] == 0).mean() > 0.98 and (labels[truth == 1] == 1).mean() > 0.9


def continuum(draw, n, seeds=range(10)):
    """How many clusters each seed makes of unit noise stretched along one axis by amplitudes."""
    counts = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        x, _ = blobs(rng, (n,), ([0],))
        x[:, 0] += draw(rng, n)
        counts.append(int(cluster(x, 10).max()) + 1)
    return counts


@pytest.mark.parametrize("n", [300, 600, 2000])
def test_a_continuum_of_amplitudes_is_one(n):
    counts = continuum(lambda rng, n: rng.normal(20, 3, n), n)
    assert counts.count(1) >= 9, counts


@pytest.mark.parametrize(("n", "whole"), [(100, 5), (600, 7)])
def test_even_amplitudes_over_a_wide_range_are_one(n, whole):
    """Five points a standard deviation leave gaps by chance: that some are cut is the price of finding clusters of nine."""
    counts = continuum(lambda rng, n: rng.uniform(10, 30, n), n)
    assert counts.count(1) >= whole and max(counts) <= 3, counts


@pytest.mark.parametrize("seed", SEEDS)
def test_parcels_are_joined_as_the_slow_form_does(seed):
    rng = np.random.default_rng(seed)
    x, _ = blobs(rng, (200, 90, 40, 15), 5 * rng.standard_normal((4, 3)), p=5)
    start = parcels(x, 40)
    np.testing.assert_array_equal(merge(x, start), merge_reference(x, start))
    gappy = 3 * start[start % 4 > 0] + 7  # labels need not follow on each other
    np.testing.assert_array_equal(merge(x[start % 4 > 0], gappy), merge_reference(x[start % 4 > 0], gappy))


def test_one_parcel_and_none():
    x = np.zeros((5, 3), np.float32)
    assert merge(x, np.full(5, 3)).tolist() == [0] * 5
    assert merge(x[:0], np.zeros(0, np.int64)).tolist() == []


def test_five_clusters():
    centres = ([0, 0], [8, 0], [0, 8], [8, 8], [4, -8])
    x, truth = blobs(np.random.default_rng(1), (400, 200, 100, 60, 30), centres)
    labels = cluster(x, 10)
    assert labels.max() == 4
    assert [np.bincount(labels[truth == k]).argmax() for k in range(5)] == [0, 1, 2, 3, 4], "the largest comes first"
    assert agreement(labels, truth) > 0.98


def test_too_few_points_are_one_cluster_and_none_are_none():
    assert cluster(np.zeros((3, 4), np.float32), 10).tolist() == [0, 0, 0]
    assert len(cluster(np.zeros((0, 4), np.float32), 10)) == 0


def test_the_same_points_give_the_same_clusters():
    x, _ = blobs(np.random.default_rng(2), (300, 100), ([0], [7]))
    assert np.array_equal(cluster(x, 10), cluster(x.copy(), 10))


def test_identical_points_are_one():
    assert cluster(np.ones((100, 5), np.float32), 5).max() == 0


def test_separation_grows_with_distance():
    rng = np.random.default_rng(3)
    a = rng.standard_normal((300, 5))
    gaps = [separation(a, rng.standard_normal((300, 5)) + np.eye(5)[0] * distance) for distance in (0, 2, 4, 6)]
    assert gaps[0] < 1 and gaps[1] < 1 < gaps[2] < gaps[3]


@pytest.mark.parametrize("n", [130, 400, 1500])
def test_a_shallow_valley_is_found_however_many_points_there_are(n):
    """Small parcels alone bridge it where there are many: of 1500 points at this distance they find none."""
    found = []
    for seed in range(6):
        x, truth = blobs(np.random.default_rng(seed), (n // 2, n // 2), ([0], [4]), p=6)
        labels = cluster(x, 10)
        found.append(labels.max() == 1 and agreement(labels, truth) > 0.9)
    assert sum(found) >= 4


@pytest.mark.parametrize("n", [60, 400, 1500])
def test_one_broad_or_even_cluster_is_not_cut(n):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((n, 6)).astype(np.float32)
        even = x + np.outer(rng.uniform(-2.5, 2.5, n), np.eye(6)[0])
        assert cluster(x, 10).max() == 0 and cluster(x * np.array([1.6, 1, 1, 1, 1, 1]), 10).max() == 0 and cluster(even, 10).max() == 0


def test_parcels_are_small_and_cover_all():
    x, truth = blobs(np.random.default_rng(4), (300, 40), ([0], [9]))
    labels = parcels(x, 40)
    assert labels.shape == (340,) and labels.min() >= 0
    mixed = [k for k in np.unique(labels) if 0 < truth[labels == k].mean() < 1]
    assert not mixed, "a parcel that spans two clusters could never be undone"


def test_drop_small():
    assert drop_small(np.array([0, 1, 1, 2, 2, 2]), 2).tolist() == [-1, 1, 1, 0, 0, 0]
