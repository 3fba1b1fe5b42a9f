"""Each stage of demixing: against slow and plain versions, on planted data, and on data that hold nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.ndimage import gaussian_filter1d

from sortcore.errors import RecordingError
from sortcore.optical.movie import survey as surveying
from sortcore.optical.movie.evidence import agreement, merged, needed
from sortcore.optical.movie.footprints import Cell, Kernel, Residual, deconvolved, fit_seed, local_support, observed, sweep
from sortcore.optical.movie.reading import open_movie
from sortcore.optical.movie.reference import ascend_reference, deconvolve_reference, energy_reference
from sortcore.optical.movie.seeds import HALF, LEVEL, energies, maxima, pool
from sortcore.optical.movie.surroundings import from_blocks, n_components, nothing, refined, without_background
from sortcore.optical.movie.survey import Survey, SurveyConfig, survey
from sortcore.optical.movie.touching import sweep_side_by_side, waves
from sortcore.optical.movie.unmixing import resting, unmix

KERNEL = Kernel(0.8)


def bump(shape, y, x, width):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-0.5 * ((rows - y) ** 2 + (columns - x) ** 2) / width**2).astype(np.float32)


def courses(n, length, seed, rate=0.05, g=0.8):
    rng = np.random.default_rng(seed)
    spikes = rng.poisson(rate, (n, length)).astype(float)
    out = np.zeros((n, length))
    for t in range(length):
        out[:, t] = (g * out[:, t - 1] if t else 0) + spikes[:, t]
    return out


def planted(shape=(24, 28), length=300, size=6.0, seed=0, places=((8, 8, 2.0), (11, 13, 2.0), (18, 22, 1.5))):
    """Residual of white noise with cells in it; their footprints (K, P) and courses (K, B)."""
    a = np.array([bump(shape, *place) for place in places]).reshape(len(places), -1)
    a[a < 0.1] = 0
    c = size * courses(len(places), length, seed)
    noise = np.random.default_rng(seed + 100).standard_normal((a.shape[1], length))
    z = a.T @ (c - c.mean(axis=1, keepdims=True)) + noise - noise.mean(axis=1, keepdims=True)
    return Residual(z.astype(np.float32), np.ones(a.shape[1], np.float32), shape), a, c


def as_cells(left, a, g=KERNEL):
    """Cells started at given footprints and taken off."""
    out = []
    for row in a:
        pixels = np.flatnonzero(row)
        weights = row[pixels].astype(np.float32)
        y = observed(left, pixels, weights)
        out.append(Cell(pixels, weights, deconvolved(y, float(np.linalg.norm(weights)) ** -1, g), y))
        left.take(out[-1])
    return out


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


# survey

def noisy_movie(T=120, H=9, W=11, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    level = rng.uniform(100, 300, (H, W))
    return (level + rng.standard_normal((T, H, W)) * np.sqrt(level)).astype(dtype), level


def test_a_survey_is_what_numpy_says(monkeypatch):
    movie, level = noisy_movie(600)
    monkeypatch.setattr(surveying, "PIECE_BYTES", 4 * 99 * 13)  # several pieces
    seen = survey(open_movie(movie), 30.0)
    assert seen.bin_frames == 6 and seen.binned.shape == (99, 100) and seen.seen.all()
    np.testing.assert_allclose(seen.noise, np.sqrt(level).ravel(), rtol=0.2)
    np.testing.assert_allclose(seen.bleaching, 1, atol=0.02)
    flat = movie.reshape(600, 99) / seen.bleaching[:, None]
    bins = flat.reshape(100, 6, 99).mean(axis=1)
    expected = (bins - bins.mean(axis=0)) / seen.noise * np.sqrt(6)
    np.testing.assert_allclose(seen.binned, expected.T, atol=0.02)
    np.testing.assert_allclose(seen.mean, bins.mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float64])
def test_any_number_type_gives_the_same(dtype):
    whole = np.clip(np.round(noisy_movie()[0] / 2), 0, 255)
    a, b = survey(open_movie(whole.astype(dtype)), 30.0), survey(open_movie(whole.astype(np.float32)), 30.0)
    np.testing.assert_array_equal(a.binned, b.binned)
    np.testing.assert_array_equal(a.noise, b.noise)


def test_bleaching_is_found_and_taken_out():
    movie, _ = noisy_movie(2000, 20, 20)
    curve = 0.7 + 0.3 * np.exp(-np.arange(2000) / 800)
    seen = survey(open_movie(movie * curve[:, None, None].astype(np.float32)), 30.0)
    np.testing.assert_allclose(seen.bleaching, curve / curve.mean(), rtol=0.01)
    halves = seen.binned[:, :166].mean() - seen.binned[:, 166:].mean()
    assert abs(halves) < 0.1, "in noise sd of a bin; 20 without"


def test_a_long_movie_is_binned_until_it_fits():
    seen = survey(open_movie(noisy_movie(4000, 20, 25)[0]), 5.0, SurveyConfig(most_bytes=1e6))
    assert seen.binned.nbytes <= 1.0e6 and seen.binned.dtype == np.float16 and seen.bin_frames == 4


def test_missing_values_do_not_count():
    movie, _ = noisy_movie(240)
    movie[50] = np.nan
    movie[100:103, 0, :] = np.inf
    movie[:, 3, 3] = 7.0
    movie[:, 4, 4] = np.nan
    seen = survey(open_movie(movie), 30.0)
    assert not seen.seen[50] and seen.seen.sum() == 239
    assert np.isfinite(seen.binned).all() and np.isfinite(seen.mean).all()
    assert seen.noise.reshape(9, 11)[3, 3] == 0 and seen.noise.reshape(9, 11)[4, 4] == 0 and (seen.noise > 0).sum() == 97
    assert not seen.binned.reshape(9, 11, -1)[3, 3].any()


def test_a_movie_of_nothing_says_so():
    with pytest.raises(RecordingError, match="finite"):
        survey(open_movie(np.full((20, 8, 8), np.nan, np.float32)), 10.0)


# seeds

def test_energies_are_the_slow_ones():
    z = np.random.default_rng(0).standard_normal((7, 9, 25)).astype(np.float32)
    z[3, 4] += 2
    fast = energies(z, np.ones((7, 9), bool), 0.7, 1)[0]
    np.testing.assert_allclose(fast, energy_reference(z, 0.7, LEVEL, HALF), rtol=2e-3, atol=1e-3)


def test_energies_do_not_depend_on_how_the_field_is_cut(monkeypatch):
    left, _, _ = planted((40, 30), 60)
    whole = energies(left.movie, left.usable, 0.8, 3, surround=True)
    monkeypatch.setattr("sortcore.optical.movie.seeds.STRIP_BYTES", 1)
    for a, b in zip(whole, energies(left.movie, left.usable, 0.8, 3, surround=True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_pooled_noise_is_white_and_bad_pixels_are_left_out():
    z = np.random.default_rng(1).standard_normal((21, 17, 400)).astype(np.float32)
    mask = np.ones((21, 17), np.float32)
    mask[4:8, 5] = 0
    z[mask == 0] = 0
    pooled, count = pool(z, mask)
    assert pooled.shape == (11, 9, 400) and count.all()
    np.testing.assert_allclose(pooled.std(axis=2), 1, atol=0.15)


def test_planted_cells_are_the_largest_energies():
    left, _, _ = planted()
    found = maxima(energies(left.movie, left.usable, 0.8, 3), 60.0)
    near = [min(np.hypot(y - cy, x - cx) for y, x in zip(found.y[:4], found.x[:4], strict=True)) for cy, cx in ((8, 8), (11, 13), (18, 22))]
    assert max(near) < 3 and (np.diff(found.energy) <= 0).all()


def test_noise_and_silence_have_no_places():
    z = np.random.default_rng(3).standard_normal((40, 40, 300)).astype(np.float32)
    assert len(maxima(energies(z, np.ones((40, 40), bool), 0.8, 3), 60.0)) == 0
    assert len(maxima(energies(0 * z, np.zeros((40, 40), bool), 0.8, 3), 60.0)) == 0


# footprints

def test_a_course_is_that_of_non_negative_least_squares():
    rng = np.random.default_rng(4)
    y = courses(1, 60, 4)[0] + 0.3 * rng.standard_normal(60)
    np.testing.assert_allclose(deconvolved(y, 0.3, KERNEL), deconvolve_reference(y, 0.3, 0.8, KERNEL.penalty_sd), atol=1e-4)


def test_the_ascent_is_the_slow_one():
    """Without a threshold, and with supports that cannot grow, the residual's bookkeeping gives what dense algebra gives."""
    left, a, _ = planted((10, 12), 80, places=((4, 4, 1.5), (5, 7, 1.5)))
    z = left.z.copy()
    expected_a, expected_c, expected_y = ascend_reference(z, a, 0.8, KERNEL.penalty_sd, 3)
    cells = as_cells(left, 0 * a + (a > 0) * a)
    for cell in cells:
        left.add(cell)
    cells = [Cell(cell.pixels, cell.weights, cell.course, 0 * cell.seen) for cell in cells]
    for _ in range(3):
        cells = [step(left, cell) for cell in cells]
    for k, cell in enumerate(cells):
        np.testing.assert_allclose(cell.course, expected_c[k], atol=2e-3)
        np.testing.assert_allclose(cell.seen, expected_y[k], atol=2e-3)
        np.testing.assert_allclose(cell.weights, expected_a[k][cell.pixels], atol=2e-3)
    np.testing.assert_allclose(left.z, z - expected_a.T @ expected_y, atol=5e-3)


def test_cells_side_by_side_are_the_same_as_one_after_the_other():
    places = tuple((y, x, 1.5) for y in range(6, 60, 9) for x in range(6, 60, 7 + y % 3))
    left, a, _ = planted((64, 64), 200, places=places)
    cells = as_cells(left, a)
    sets = waves(left, cells)
    assert sorted(k for one in sets for k in one) == list(range(len(cells))) and 1 < len(sets) < len(cells) / 2
    other, more = Residual(left.z.copy(), left.noise, left.shape), list(cells)
    for _ in range(3):
        cells, more = sweep_side_by_side(left, cells, KERNEL, 2.5), sweep(other, more, KERNEL, 2.5)
    np.testing.assert_array_equal(left.z, other.z)
    for one, two in zip(cells, more, strict=True):
        np.testing.assert_array_equal(one.pixels, two.pixels)
        np.testing.assert_array_equal(one.weights, two.weights)
    assert waves(left, []) == [] and sweep_side_by_side(left, [], KERNEL, 2.5) == []


def step(left, cell):
    """`footprints.updated` and taken off again, on the pixels that the cell has."""
    left.add(cell)
    course = deconvolved(observed(left, cell.pixels, cell.weights), cell.power**-0.5, KERNEL)
    centred = course - course.mean()
    weights = np.maximum(left.z[cell.pixels] @ centred / (centred @ centred), 0)
    new = Cell(cell.pixels, weights, course, observed(left, cell.pixels, weights))
    left.take(new)
    return new


def test_planted_cells_are_recovered_though_they_overlap():
    left, a, c = planted()
    cells = [fit_seed(left, y, x, 2.0, KERNEL, 2.5) for y, x in ((8, 8), (18, 22))]
    for cell in cells:
        left.take(cell)
    cells.append(fit_seed(left, 11, 13, 2.0, KERNEL, 2.5))
    left.take(cells[-1])
    before = float(np.square(left.z).sum())
    for _ in range(5):
        cells = sweep(left, cells, KERNEL, 2.5)
    assert np.square(left.z).sum() < before, "the ascent explains more"
    for k, cell in zip((0, 2, 1), cells, strict=True):
        dense = np.zeros(a.shape[1])
        dense[cell.pixels] = cell.weights
        assert cosine(dense, a[k]) > 0.9 and np.corrcoef(cell.course, c[k])[0, 1] > 0.94
    assert np.square(left.z).sum() == pytest.approx(left.z.size, rel=0.03), "what is left is noise"


def test_the_residual_in_half_precision_is_nearly_as_good():
    left, a, _ = planted()
    half = Residual(left.z.astype(np.float16), left.noise, left.shape)
    fine, coarse = (sweep(r, as_cells(r, a), KERNEL, 2.5) for r in (left, half))
    for one, other in zip(fine, coarse, strict=True):
        assert np.corrcoef(one.course, other.course)[0, 1] > 0.999


def test_a_footprint_hangs_together():
    scores = np.zeros((12, 12))
    scores[2:5, 2:5], scores[8:11, 8:11] = 6, 9
    allowed = np.ones((12, 12), bool)
    assert local_support(scores, allowed, 2.5)[9, 9] and not local_support(scores, allowed, 2.5)[3, 3]
    assert local_support(scores, allowed, 2.5, (3, 3))[3, 3] and not local_support(scores, allowed, 2.5, (3, 3))[9, 9]
    assert not local_support(0 * scores, allowed, 2.5).any()
    assert not local_support(scores, ~allowed, 2.5).any()


def test_nothing_is_found_where_nothing_is():
    left = Residual(np.zeros((100, 50), np.float32), np.ones(100, np.float32), (10, 10))
    assert fit_seed(left, 5, 5, 1.0, KERNEL, 2.5) is None
    dead = Residual(np.zeros((100, 50), np.float32), np.zeros(100, np.float32), (10, 10))
    assert fit_seed(dead, 5, 5, 1.0, KERNEL, 2.5) is None


# evidence

def test_halves_of_a_cell_agree_and_those_of_noise_do_not():
    left, a, _ = planted()
    assert min(agreement(left, cell, KERNEL) for cell in as_cells(left, a)) > 20
    values = []
    for seed in range(40):
        empty, *_ = planted(seed=seed, size=0.0)
        values += [agreement(empty, cell, KERNEL) for cell in as_cells(empty, a)]
    assert np.mean(values) == pytest.approx(0, abs=0.4) and np.std(values) == pytest.approx(1, abs=0.35)


def test_two_halves_of_one_cell_are_joined_and_two_cells_are_not():
    left, a, _ = planted(places=((10, 10, 2.0), (10, 15, 2.0)), size=4.0)
    split = np.array([a[0] * (np.arange(a.shape[1]) % 28 < 10), a[0] * (np.arange(a.shape[1]) % 28 >= 10), a[1]])
    cells = merged(left, as_cells(left, split))
    assert len(cells) == 2
    dense = np.zeros((2, a.shape[1]))
    for row, cell in zip(dense, cells, strict=True):
        row[cell.pixels] = cell.weights
    assert max(cosine(row, a[0]) for row in dense) > 0.95


def test_a_mixture_of_two_cells_is_not_needed_and_the_residual_is_kept_in_order():
    left, a, _ = planted(places=((10, 10, 2.0), (10, 13, 2.0)), size=5.0)
    z = left.z.copy()
    cells = sweep(left, as_cells(left, [a[0] + a[1], a[0], a[1]]), KERNEL, 2.5)
    kept = needed(left, cells, KERNEL, 2.5)
    assert len(cells) == 3 and len(kept) == 2
    model = np.zeros_like(z)
    for cell in kept:
        model[cell.pixels] += cell.weights[:, None] * cell.seen
    np.testing.assert_allclose(left.z, z - model, atol=1e-3)


# surroundings

def with_neuropil(shape=(60, 66), length=200, seed=0):
    rng = np.random.default_rng(seed)
    fields = np.array([bump(shape, 10, 10, 25.0), bump(shape, 50, 40, 25.0)]).reshape(2, -1)
    drive = gaussian_filter1d(rng.standard_normal((2, length)), 2.0, axis=1)
    drive = 3 * (drive - drive.mean(axis=1, keepdims=True)) / drive.std(axis=1, keepdims=True)
    z = fields.T @ drive + rng.standard_normal((shape[0] * shape[1], length))
    return Residual((z / 1.0).astype(np.float32), np.full(shape[0] * shape[1], 2.0, np.float32), shape), fields, drive


def test_smooth_light_is_found_and_taken_off():
    left, _, drive = with_neuropil()
    around = from_blocks(left, [], 12.0, nothing(left))
    assert len(around.fields) == 2
    fit = np.linalg.lstsq(around.courses.T, drive.T, rcond=None)[0]
    np.testing.assert_allclose(around.courses.T @ fit, drive.T, atol=0.5)
    for with_courses in (False, True):
        around = refined(left, around, 3.0, courses=with_courses)
    assert left.z.std() == pytest.approx(1, abs=0.02)
    again = from_blocks(left, [], 12.0, around)
    assert len(again.fields) == 2 and left.z.std() == pytest.approx(1, abs=0.03)


def test_noise_has_no_background():
    left, *_ = planted((40, 40), 200, size=0.0)
    assert len(from_blocks(left, [], 10.0, nothing(left)).fields) == 0
    assert n_components(np.zeros(5), (5, 9)) == 0 and n_components(np.zeros(0), (0, 9)) == 0
    assert refined(left, nothing(left), 3.0).fields.shape == (0, 1600)


def test_what_goes_with_the_background_is_no_cell():
    left, fields, _ = with_neuropil()
    around = from_blocks(left, [], 12.0, nothing(left))
    course = around.courses[0] - around.courses[0].mean()
    spot = bump((60, 66), 30, 30, 2.0).ravel()
    own = 5 * courses(1, 200, 9)[0]
    left.z[:] += np.outer(spot, course).astype(np.float32) + np.outer(fields[1] * (fields[1] > 0.7), own - own.mean()).astype(np.float32)
    small = np.where(bump((60, 66), 50, 40, 3.0).ravel() > 0.3, 1, 0)
    cells = as_cells(left, [np.where(spot > 0.1, spot, 0), np.where(fields[1] > 0.7, fields[1], 0)])
    z = left.z.copy()
    assert without_background(left, cells, around, 12.0) == [], "the one is the background's course, the other is too large"
    np.testing.assert_allclose(left.z, z + sum(np.outer(np.bincount(c.pixels, c.weights, len(z)), c.seen) for c in cells), atol=1e-3)
    assert len(without_background(left, as_cells(left, [small]), around, 12.0)) == 1


# unmixing

def test_traces_are_weighted_least_squares_of_every_frame():
    rng = np.random.default_rng(7)
    H, W, T = 8, 9, 40
    a = np.array([bump((H, W), 3, 3, 1.2), bump((H, W), 4, 5, 1.2)]).reshape(2, -1)
    a[a < 0.1] = 0
    fields = rng.standard_normal((2, H * W)).astype(np.float32)
    mean, noise = rng.uniform(50, 60, H * W).astype(np.float32), rng.uniform(0.5, 2, H * W).astype(np.float32)
    bleach = np.linspace(1.1, 0.9, T).astype(np.float32)
    movie = rng.standard_normal((T, H * W)).astype(np.float32) * 3 + mean
    movie[5] = np.nan
    seen = Survey((H, W), T, 10.0, mean, noise, bleach, np.isfinite(movie).all(axis=1), 1, np.zeros((H * W, T), np.float32))
    found = unmix(open_movie(movie.reshape(T, H, W)), seen, sparse.csr_array(a), fields)
    D = np.concatenate([a, fields]) / noise
    expected = np.linalg.lstsq(D.T, ((movie / bleach[:, None] - mean) / noise)[seen.seen].T, rcond=None)[0]
    np.testing.assert_allclose(np.concatenate([found.traces, found.courses])[:, seen.seen], expected, atol=2e-3)
    assert np.isnan(found.traces[:, 5]).all()
    alone = unmix(open_movie(movie.reshape(T, H, W)), seen, sparse.csr_array(a[:0]), fields[:0])
    assert alone.traces.shape == (0, T) and alone.courses.shape == (0, T)
    np.testing.assert_allclose(resting(seen, sparse.csr_array(a), mean - a.T @ np.array([3.0, 8.0])), [3, 8], rtol=1e-3)
    assert (resting(seen, sparse.csr_array(a), mean + a[0]) >= 0).all()


def test_a_mapped_file_is_read_as_it_is_and_parts_of_it_as_they_are(tmp_path):
    movie = noisy_movie(40, dtype=np.uint16)[0]
    np.save(tmp_path / "movie.npy", movie)
    mapped = np.load(tmp_path / "movie.npy", mmap_mode="r")
    for source, truth in ((mapped, movie), (mapped[5:], movie[5:]), (mapped[::2], movie[::2])):
        np.testing.assert_array_equal(surveying.reader(open_movie(source))(3, 9), truth[3:9].reshape(6, -1))
