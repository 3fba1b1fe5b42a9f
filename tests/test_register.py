"""Motion that was planted is found and taken away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from sortcore.errors import ConfigError, ModelError, RecordingError
from sortcore.optical import register
from sortcore.optical.movies import open_movie
from sortcore.optical.register import RegisterConfig, Registration, believed, estimate_motion, in_place, registered
from sortcore.optical.simulate_movie import Scene, simulate_movie

MOVING = Scene(motion_px=1.5, gain=2.0)


def errors(found: Registration, truth: np.ndarray) -> np.ndarray:
    """(T, 2) how far shifts are from the true ones; where the picture lies as a whole is nobody's to know."""
    off = found.shifts - truth
    return off - np.median(off, axis=0)


@pytest.fixture(scope="module")
def made():
    return simulate_movie(20, 12.0, 20.0, (72, 80), scene=MOVING, seed=2)


@pytest.mark.parametrize(("scene", "rms"), [
    (MOVING, 0.06),
    (replace(MOVING, gain=9.0), 0.1),
    (replace(MOVING, motion_px=4.0), 0.06),
    (replace(MOVING, motion_px=4.0, motion_s=10.0), 0.06),
    (replace(MOVING, neuropil=40.0), 0.06),
])
def test_planted_motion_is_found_to_a_small_part_of_a_pixel(scene: Scene, rms: float) -> None:
    moved = simulate_movie(20, 12.0, 20.0, (72, 80), scene=scene, seed=2)
    found = estimate_motion(open_movie(moved.movie, fs=20.0))
    off = errors(found, moved.shifts)
    assert not found.lost.any() and found.correlation.min() > 0.1
    assert np.sqrt((off**2).mean()) < rms and np.abs(off).max() < 6 * rms


def test_a_movie_that_is_still_stays_where_it_is() -> None:
    still = simulate_movie(20, 6.0, 20.0, (72, 80), scene=replace(MOVING, motion_px=0.0), seed=2)
    assert np.abs(estimate_motion(open_movie(still.movie)).shifts).max() < 0.2


def test_put_in_place_a_movie_is_the_one_that_never_moved() -> None:
    rng = np.random.default_rng(0)
    picture = 1000 * ndimage.gaussian_filter(rng.random((90, 100)), 1.5)
    shifts = 2 * rng.standard_normal((60, 2))
    frames = np.stack([ndimage.shift(picture, s, order=5)[10:-10, 10:-10] for s in shifts])
    movie = open_movie(np.round(frames).astype(np.uint16), fs=20.0)
    found = estimate_motion(movie)
    offset = np.median(found.shifts - shifts, axis=0)  # of the picture as a whole
    again = registered(movie, replace(found, shifts=found.shifts - offset))
    before, after = (np.nanmean(np.abs(m[:].astype(float) - picture[10:-10, 10:-10])) for m in (movie, again))
    assert after < 1.5 and before > 25 * after
    np.testing.assert_array_equal(again[7:12], again[0:20][7:12])
    assert again.fs == 20.0 and again.shape == movie.shape


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_what_lies_beyond_the_picture_is_missing(dtype: str) -> None:
    frames = np.random.default_rng(0).integers(0, 100, (40, 20, 24)).astype(dtype)
    shifts = np.zeros((40, 2))
    shifts[1], shifts[2], shifts[3], shifts[8:16, 1] = (2, -3), (0.4, 0), (-1.6, 0), 1
    movie = registered(open_movie(frames), Registration(shifts, np.ones(40), np.zeros(40, bool), frames[0]))
    again = movie[:]
    assert movie.dtype == again.dtype == np.float32
    assert np.isnan(again[:, :, -1]).all()  # beyond the picture in a fifth of the frames
    again, frames = again[:, :, :-1], frames[:, :, :-1]
    np.testing.assert_array_equal(again[0], frames[0])
    np.testing.assert_allclose(again[1, :-2, 3:], frames[1, 2:, :-3], atol=1e-3)
    missing = np.isnan(again)
    assert missing[1, -2:].all() and missing[1, :, :3].all() and missing[1].sum() == 2 * 23 + 3 * 20 - 6
    assert not missing[2].any() and missing[3, :2].all() and missing[3].sum() == 2 * 23
    np.testing.assert_array_equal(movie[1:3], movie[:][1:3])


def test_frames_that_show_nothing_move_as_their_neighbours(made) -> None:
    frames = made.movie[:100].astype(np.float32)
    frames[40] = np.nan
    frames[41] = 5.0
    frames[50, :8] = np.nan  # part of a frame is enough
    found = estimate_motion(open_movie(frames))
    assert found.lost[40] and found.lost[41] and found.lost.sum() == 2
    off = errors(found, made.shifts[:100])
    assert np.sqrt((off[~found.lost] ** 2).mean()) < 0.07 and np.abs(off[50]).max() < 0.3
    low, high = np.sort(found.shifts[[39, 42]], axis=0)
    assert (low <= found.shifts[40]).all() and (found.shifts[40] <= high).all()
    again = registered(open_movie(frames), found)[39:52]
    assert np.isnan(again[1]).all() and np.isfinite(again[0, 5:-5, 5:-5]).all() and 0.05 < np.isnan(again[11]).mean() < 0.2


def test_shifts_too_far_away_are_not_believed() -> None:
    shifts = np.zeros((9, 2))
    shifts[3], shifts[4], shifts[8] = (1, 1), (40, 0), (np.nan, 0)
    kept, lost = believed(shifts, 10.0)
    np.testing.assert_array_equal(np.flatnonzero(lost), [4, 8])
    np.testing.assert_allclose(kept[4], [0.5, 0.5])
    np.testing.assert_allclose(kept[8], [0, 0])
    for all_lost in (np.full((3, 2), np.nan), np.array([[50.0, 0], [-50, 0]])):
        kept, lost = believed(all_lost, 10.0)
        assert lost.all() and not kept.any()


def test_a_whole_shift_is_exact_and_its_own_inverse() -> None:
    frame = np.random.default_rng(0).random((20, 24))
    np.testing.assert_allclose(in_place(frame, np.array([2, -3]))[3:-3, 4:-4], np.roll(frame, (-2, 3), (0, 1))[3:-3, 4:-4], atol=1e-6)
    assert in_place(frame, np.zeros(2)) is frame


@pytest.mark.parametrize("shift", [(0.3, -0.7), (-2.25, 0.0), (0.0, 1.5), (5.9, -7.1), (3.0, 2.0)])
def test_putting_back_is_what_scipy_does(shift: tuple[float, float]) -> None:
    frame = np.random.default_rng(1).random((33, 47)).astype(np.float32)
    expected = ndimage.shift(frame, -np.array(shift), order=3, mode="nearest")
    np.testing.assert_allclose(in_place(frame, np.array(shift)), expected, atol=1e-5)


def test_what_cannot_be_registered_is_said(made) -> None:
    for empty in (np.full((20, 16, 16), 7, np.uint8), np.full((20, 16, 16), np.nan, np.float32)):
        with pytest.raises(RecordingError, match="cannot be registered"):
            estimate_motion(open_movie(empty))
    found = Registration(np.zeros((5, 2)), np.ones(5), np.zeros(5, bool), np.zeros((16, 16)))
    with pytest.raises(ModelError, match="5 frames"):
        registered(open_movie(made.movie), found)
    with pytest.raises(ModelError, match="shifts"):
        replace(found, correlation=np.ones(4))
    with pytest.raises(ConfigError, match="max_shift"):
        RegisterConfig(max_shift=0.9)


def test_pieces_do_not_matter(made, monkeypatch) -> None:
    movie = open_movie(made.movie)
    whole = estimate_motion(movie)
    monkeypatch.setattr(register, "PIECE_BYTES", 7 * 4 * 72 * 80)
    np.testing.assert_array_equal(estimate_motion(movie).shifts, whole.shifts)
