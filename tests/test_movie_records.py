"""Records of a sorted movie: what does not fit together is refused, and quality is what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers_movie import planted_result
from scipy import sparse

from sortcore.errors import ModelError
from sortcore.optical.movie.quality import cell_quality, overlaps
from sortcore.optical.movie.records import Background, Demixed
from sortcore.types import Spikes


@pytest.fixture(scope="module")
def result():
    return planted_result()


def test_footprints_are_pictures_of_some_cells_or_all(result) -> None:
    demixed, (H, W) = result.demixed, result.demixed.shape
    assert demixed.images().shape == (len(demixed), H, W) and demixed.footprints.dtype == np.float32
    np.testing.assert_array_equal(demixed.images(np.array([2, 0])), demixed.images()[[2, 0]])
    np.testing.assert_allclose(demixed.images().max(axis=(1, 2)), 1, atol=1e-6)
    np.testing.assert_array_equal(demixed.images().reshape(len(demixed), -1), demixed.footprints.toarray())
    with pytest.raises(ModelError, match="gigabyte"):
        Demixed(sparse.csr_array(([1.0], ([0], [0])), shape=(1, 40000 * 40000)), (40000, 40000), *[np.zeros((1, 3), np.float32)] * 3,
                np.zeros(1), np.ones(1), np.broadcast_to(np.float32(0), (40000, 40000)),
                Background(np.broadcast_to(np.float32(0), (0, 40000, 40000)), np.zeros((0, 3))), 30.0).images()


@pytest.mark.parametrize(("change", "match"), [
    (dict(traces=np.zeros((2, 5))), "denoised must have the shape|traces must have the shape"),
    (dict(traces=np.zeros(5)), "cells, frames"),
    (dict(noise=np.zeros(1)), "noise must have the shape"),
    (dict(shape=(3, 3)), "footprints must have the shape"),
    (dict(mean_image=np.zeros((3, 3))), "mean_image must have"),
    (dict(fs=0.0), "above 0"),
    (dict(footprint_fit=np.zeros(99)), "footprint_fit must have"),
    (dict(background=Background(np.zeros((1, 2, 2)), np.zeros((1, 2)))), "background.fields must have"),
])
def test_what_does_not_fit_together_is_refused(result, change: dict, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        replace(result.demixed, **change)


def test_footprints_must_be_positive_and_of_unit_peak(result) -> None:
    footprints = result.demixed.footprints
    for wrong, match in ((2 * footprints, "peak of a footprint must be 1"), (0 * footprints, "peak"), (-footprints, "0 or more"),
                         (footprints * np.float32(np.nan), "finite")):
        with pytest.raises(ModelError, match=match):
            replace(result.demixed, footprints=wrong)


def test_a_background_is_a_sum_of_fields_and_courses() -> None:
    fields, courses = np.random.default_rng(0).random((2, 3, 4)), np.random.default_rng(1).random((2, 5))
    expected = sum(courses[r, :, None, None] * fields[r] for r in range(2))
    np.testing.assert_allclose(Background(fields, courses).frames(1, 4), expected[1:4])
    assert not Background.none((3, 4), 5).frames(0, 5).any()
    with pytest.raises(ModelError, match="fields"):
        Background(fields, courses[:1])


def test_spikes_of_no_cell_or_no_frame_are_refused(result) -> None:
    for samples, units, match in ((0, 99, "99"), (10**6, 0, "1000000"), (-1, 0, "-1"), (0, -1, "-1")):
        spikes = Spikes(np.array([samples]), np.zeros(1, np.float32), np.array([units]), np.ones(1, np.float32), np.ones(1, np.float32))
        with pytest.raises(ModelError, match=match):
            replace(result, spikes=spikes)


def test_trains_are_in_seconds_and_frames(result) -> None:
    for k, train in enumerate(result.trains()):
        np.testing.assert_allclose(train * result.fs, result.spike_train(k), atol=0.5 + 1e-6)
        assert (np.diff(train) >= 0).all()
    assert result.duration_s == result.demixed.n_frames / result.fs


def test_quality_is_that_of_planted_discs() -> None:
    """Two discs that share a third of their pixels, and one apart: everything is known in closed form."""
    rows, columns = np.mgrid[:20, :40]
    squares = np.stack([(rows < 6) & (columns < 6), (rows < 6) & (columns >= 4) & (columns < 10), (rows > 10) & (columns == 30)])
    footprints = sparse.csr_array(squares.reshape(3, -1).astype(np.float32))
    np.testing.assert_allclose(overlaps(footprints), [1 / 3, 1 / 3, 0], atol=1e-6)
    denoised = np.full((3, 100), 5.0, np.float32)
    denoised[:, 50] = [7, 9, 5]
    demixed = Demixed(footprints, (20, 40), denoised, denoised, np.zeros((3, 100), np.float32), np.full(3, 5.0), np.array([1.0, 2.0, 0.0]),
                      np.zeros((20, 40), np.float32), Background.none((20, 40), 100), 10.0)
    spikes = Spikes(np.array([3, 7, 50]), np.zeros(3, np.float32), np.array([0, 1, 0]), np.ones(3, np.float32), np.ones(3, np.float32))
    quality = cell_quality(demixed, spikes)
    np.testing.assert_allclose(quality.snr, [2, 2, 0])
    np.testing.assert_allclose(quality.centre, [[2.5, 2.5], [2.5, 6.5], [15, 30]])
    np.testing.assert_array_equal(quality.size_px, [36, 36, 9])
    np.testing.assert_array_equal(quality.n_spikes, [2, 1, 0])
    np.testing.assert_allclose(quality.rate_hz, [0.2, 0.1, 0])
    assert np.isnan(quality.footprint_fit).all() and len(quality) == 3


def test_no_cells_have_a_record_and_a_quality_too() -> None:
    empty = planted_result(n_cells=0)
    assert empty.n_cells == 0 and empty.trains() == [] and len(empty.quality) == 0
    assert empty.demixed.images().shape == (0, *empty.demixed.shape)
