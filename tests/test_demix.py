"""From a movie to cells: planted cells are found, nothing is found in nothing, and the same bytes come out however it is worked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import sortcore as sc
from sortcore.errors import ConfigError, RecordingError
from sortcore.optical.movie.simulate import Scene, simulate_movie

SCENE = Scene(radius_px=4.0, distance_px=7.0)
FS = 20.0


@pytest.fixture(scope="module")
def made():
    return simulate_movie(8, 60.0, FS, (64, 72), scene=SCENE, seed=3)


@pytest.fixture(scope="module")
def result(made):
    return sc.sort_movie(made.movie, FS)


def matched(found, truth):
    """Pairs of found and true cells whose footprints correlate above .6."""
    a, b = found.reshape(len(found), -1), truth.reshape(len(truth), -1)
    c = np.corrcoef(np.concatenate([a, b]))[: len(a), len(a) :]
    rows, columns = linear_sum_assignment(-c)
    return [(i, j) for i, j in zip(rows, columns, strict=True) if c[i, j] > 0.6]


def test_planted_cells_are_found_with_their_traces_and_spikes(made, result):
    demixed = result.demixed
    pairs = matched(demixed.images(), made.footprints)
    assert len(pairs) == 8 and result.n_cells <= 9
    truth = made.brightness[:, None] * made.dff
    for i, j in pairs:
        assert np.corrcoef(demixed.denoised[i] - demixed.baseline[i], truth[j])[0, 1] > 0.95
        assert demixed.activity[i].sum() > 0
        slope = np.polyfit(truth[j], demixed.traces[i], 1)[0]
        assert slope == pytest.approx(1, abs=0.15), "traces are in the movie's units"
    assert np.median(demixed.footprint_fit) > 0.9 and len(result.spikes) > 8


def test_the_parts_add_up_to_the_movie(made, result):
    demixed = result.demixed
    model = (demixed.footprints.T @ demixed.denoised).T.reshape(made.movie.shape) + demixed.background.frames(0, len(made.movie))
    left = made.movie / np.maximum(model, 1) - 1
    assert abs(left.mean()) < 0.01
    photon = np.sqrt(SCENE.gain / model.mean())
    assert left[400:800].std() == pytest.approx(photon, rel=0.25), "what is left over is the noise of photons"


def test_overlapping_cells_are_told_apart_better_than_by_averaging():
    made = simulate_movie(14, 100.0, FS, (72, 72), scene=replace(SCENE, radius_px=4.5, distance_px=5.0), seed=5)
    flat = made.footprints.reshape(14, -1)
    cosines = flat @ flat.T / np.outer(*[np.linalg.norm(flat, axis=1)] * 2) - np.eye(14)
    overlapping = np.flatnonzero(cosines.max(axis=1) > 0.15)
    assert len(overlapping) >= 4, "or the test says nothing"
    demixed = sc.demix(made.movie, FS)
    found = {j: i for i, j in matched(demixed.images(), made.footprints)}
    assert len(found) >= 13 and len(demixed) <= 16
    gains = []
    for j in overlapping:
        if j in found:
            plain = np.tensordot(made.movie, made.footprints[j], 2) / made.footprints[j].sum()
            gains.append(np.corrcoef(demixed.traces[found[j]], made.dff[j])[0, 1] - np.corrcoef(plain, made.dff[j])[0, 1])
    assert np.median(gains) > 0.03 and np.mean(np.array(gains) > 0) > 0.7


@pytest.mark.parametrize("radius", [2.5, 9.0])
def test_cells_of_other_sizes_are_found_without_a_word(radius):
    scene = Scene(radius_px=radius, distance_px=2 * radius)
    made = simulate_movie(6, 60.0, FS, (96, 96), scene=scene, seed=1)
    found = sc.demix(made.movie, FS)
    assert len(matched(found.images(), made.footprints)) == 6 and len(found) <= 8


def test_noise_and_neuropil_hold_no_cells():
    assert len(sc.demix(simulate_movie(0, 40.0, FS, (64, 64), seed=2).movie, FS)) <= 1
    noise = np.random.default_rng(0).poisson(100, (600, 48, 48)).astype(np.uint16)
    found = sc.sort_movie(noise, FS)
    assert found.n_cells == 0 and len(found.spikes) == 0 and found.demixed.traces.shape == (0, 600)


def test_the_bytes_do_not_depend_on_threads_or_on_how_the_movie_comes(made, result, monkeypatch, tmp_path):
    np.save(tmp_path / "movie.npy", made.movie)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    again = sc.sort_movie(str(tmp_path / "movie.npy"), FS)
    for name in ("traces", "denoised", "activity", "noise", "mean_image"):
        np.testing.assert_array_equal(getattr(again.demixed, name), getattr(result.demixed, name))
    np.testing.assert_array_equal(again.demixed.footprints.toarray(), result.demixed.footprints.toarray())
    np.testing.assert_array_equal(again.spikes.samples, result.spikes.samples)


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
def test_the_movies_type_changes_nothing(made, result, dtype):
    np.testing.assert_array_equal(sc.demix(made.movie.astype(dtype), FS).traces, result.demixed.traces)


def test_units_scale_and_an_offset_is_background(made, result):
    other = sc.demix(made.movie.astype(np.float32) * 8 + 512, FS)
    pairs = matched(other.images(), result.demixed.images())
    assert abs(len(other) - result.n_cells) <= 1 and len(pairs) >= 8
    for i, j in pairs[:8]:
        assert np.polyfit(result.demixed.traces[j], other.traces[i], 1)[0] == pytest.approx(8, rel=0.1)


def test_missing_frames_and_dead_pixels_are_survived(made, result):
    movie = made.movie.astype(np.float32)
    movie[100:103] = np.nan
    movie[:, 10, :5] = np.nan
    movie[:, 20, 20] = 3.0
    found = sc.sort_movie(movie, FS)
    assert len(matched(found.demixed.images(), made.footprints)) >= 7
    assert np.isnan(found.demixed.traces[:, 100:103]).all() and np.isfinite(np.delete(found.demixed.traces, [100, 101, 102], 1)).all()
    assert not found.demixed.images()[:, 20, 20].any() and not found.demixed.images()[:, 10, :5].any()


@pytest.mark.parametrize("n_frames", [2, 5, 30])
def test_a_few_frames_hold_no_cells(made, n_frames):
    found = sc.sort_movie(made.movie[:n_frames], FS)
    assert found.demixed.traces.shape[1] == n_frames and found.dff.shape == found.demixed.traces.shape


def test_what_is_no_movie_is_refused(made):
    with pytest.raises(RecordingError, match="single frame"):
        sc.demix(made.movie[:1], FS)
    with pytest.raises(RecordingError, match="NaN|finite"):
        sc.demix(np.full((50, 20, 20), np.nan, np.float32), FS)
    with pytest.raises(RecordingError, match="no movie"):
        sc.demix(made.movie[0], FS)
    with pytest.raises(RecordingError):
        sc.demix(made.movie.astype(complex), FS)
    with pytest.raises(ConfigError, match="frame rate|fs"):
        sc.demix(made.movie)
    with pytest.raises(ConfigError):
        sc.demix(made.movie, -3.0)
    with pytest.raises(ConfigError):
        sc.DemixConfig(agreement_sd=-1.0)


def test_constant_pixels_alone_give_nothing():
    found = sc.sort_movie(np.full((200, 20, 20), 7, np.uint8), FS)
    assert found.n_cells == 0 and (found.demixed.mean_image == 7).all()


def test_frames_last_are_turned_with_a_warning(made, result):
    with pytest.warns(UserWarning, match="last axis"):
        found = sc.demix(np.moveaxis(made.movie, 0, -1), FS)
    np.testing.assert_array_equal(found.traces, result.demixed.traces)
