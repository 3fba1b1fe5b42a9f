"""The simulated movie is what its record says it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from sortcore.errors import ConfigError
from sortcore.optical.movie.simulate import SCENE, Scene, simulate_movie


def test_a_movie_is_the_same_for_the_same_seed_and_goes_where_it_is_told() -> None:
    out = np.zeros((60, 24, 30), np.uint16)
    made = simulate_movie(3, 6.0, 10.0, (24, 30), seed=4, out=out)
    again = simulate_movie(3, 6.0, 10.0, (24, 30), seed=4)
    assert made.movie is out and made.movie.shape == (60, 24, 30)
    np.testing.assert_array_equal(made.movie, again.movie)
    assert (simulate_movie(3, 6.0, 10.0, (24, 30), seed=5).movie != made.movie).any()
    assert made.footprints.shape == (3, 24, 30) and made.dff.shape == made.counts.shape == (3, 60)
    np.testing.assert_allclose(made.footprints.max(axis=(1, 2)), 1)


def test_light_is_the_sum_of_the_cells_and_the_rest() -> None:
    """Without photon noise, neuropil and bleaching the movie less its rest is exactly the planted cells, to rounding."""
    scene = Scene(gain=0.0, neuropil=0.0, bleaching=0.0)
    made, empty = simulate_movie(5, 10.0, 10.0, scene=scene, seed=1), simulate_movie(0, 10.0, 10.0, scene=scene, seed=1)
    assert empty.footprints.shape == (0, 64, 64)
    light = np.tensordot((made.brightness[:, None] * (1 + made.dff)).T, made.footprints, 1)
    rest = made.movie - light
    assert np.abs(rest - rest.mean(axis=0)).max() <= 1.01


def test_noise_has_the_variance_of_its_photons_and_light_bleaches() -> None:
    still = Scene(gain=3.0, neuropil=0.0, bleaching=0.0, rest=300.0)
    movie = simulate_movie(0, 100.0, 10.0, (16, 16), scene=still).movie.astype(float)
    np.testing.assert_allclose((movie.var(axis=0) / movie.mean(axis=0)).mean(), 3.0, rtol=0.05)
    fading = simulate_movie(0, 100.0, 10.0, (16, 16), scene=replace(still, bleaching=0.5)).movie.astype(float)
    np.testing.assert_allclose(fading[-50:].mean() / fading[:50].mean(), 0.5, rtol=0.06)


def test_motion_moves_the_picture_as_it_says() -> None:
    scene = Scene(gain=0.0, neuropil=0.0, bleaching=0.0, motion_px=1.5)
    made, still = simulate_movie(6, 5.0, 10.0, scene=scene), simulate_movie(6, 5.0, 10.0, scene=replace(scene, motion_px=0.0))
    assert not still.shifts.any() and 1.0 < made.shifts.std() < 2.0
    for t in (3, 20, 44):
        moved = np.tensordot(made.brightness * (1 + made.dff[:, t]), made.footprints, 1)
        shifted = ndimage.shift(moved, made.shifts[t], order=3)[8:-8, 8:-8].ravel()
        seen = made.movie[t, 8:-8, 8:-8].ravel()
        assert np.corrcoef(seen, shifted)[0, 1] > np.corrcoef(seen, moved[8:-8, 8:-8].ravel())[0, 1]


def test_cells_keep_their_distance_where_there_is_room() -> None:
    made = simulate_movie(8, 1.0, 10.0, (100, 100), scene=replace(SCENE, distance_px=20.0))
    centres = np.array([ndimage.center_of_mass(f) for f in made.footprints])
    apart = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1)) + 1e9 * np.eye(8)
    assert apart.min() > 15


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 x 4"):
        simulate_movie(1, 1.0, 10.0, (3, 50))
    with pytest.raises(ConfigError, match="out must have the shape"):
        simulate_movie(1, 1.0, 10.0, (20, 20), out=np.zeros((1, 20, 20), np.uint16))
    with pytest.raises(ConfigError, match="at least a frame"):
        simulate_movie(1, 0.0, 10.0)
