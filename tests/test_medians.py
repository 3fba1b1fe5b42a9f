"""The median by a sorting network is numpy's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sortcore.medians import TILE, channel_median, comparators


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 31, 64, 100])
@pytest.mark.parametrize("t", [1, TILE, TILE + 1, 3 * TILE - 5])
def test_it_is_numpys(rng: np.random.Generator, n: int, t: int) -> None:
    x = rng.standard_normal((n, t)).astype(np.float32)
    np.testing.assert_allclose(channel_median(x), np.median(x, axis=0), rtol=1e-6)


@pytest.mark.parametrize("n", range(1, 9))
def test_every_order_of_zeros_and_ones_comes_out_right(n: int) -> None:
    """A network of comparisons that is right for all zeros and ones is right for all numbers (Knuth's zero-one principle)."""
    x = np.array(list(itertools.product([0.0, 1.0], repeat=n)), np.float32).T
    np.testing.assert_array_equal(channel_median(x), np.median(x, axis=0))


def test_ties_and_infinities() -> None:
    x = np.array([[1, np.inf], [1, 2], [1, 2]], np.float32)
    np.testing.assert_array_equal(channel_median(x), [1, 2])


def test_comparisons_that_do_not_matter_are_left_out() -> None:
    assert len(comparators(64)) < 543  # of Batcher's whole sort of 64


def test_rows_that_are_not_contiguous(rng: np.random.Generator) -> None:
    x = rng.standard_normal((300, 9)).astype(np.float32)
    np.testing.assert_allclose(channel_median(x.T[::2]), np.median(x.T[::2], axis=0), rtol=1e-6)
