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
