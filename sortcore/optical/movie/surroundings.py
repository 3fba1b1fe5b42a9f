"""The light that is no cell's: of low rank, smooth in space, as fast as it likes.

The field is cut into blocks larger than cells. The median over a block's pixels does not see cells that fill less than half of it, so
the medians' courses are those of the neuropil, and a median over neighbouring blocks removes what a block full of cells has alone. The
singular vectors that stand out of the rest (Gavish and Donoho, IEEE Trans Inf Theory 2014: the noise is the median singular value) are
the background's courses. Its fields are interpolated between the blocks while the cells are not known, and regressed pixel by pixel,
then smoothed, when they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import RectBivariateSpline
from scipy.ndimage import gaussian_filter, median_filter

from sortcore.optical.movie.footprints import Cell, Residual, single, stored
from sortcore.workers import in_order

MOST_COMPONENTS = 32
STRIP_BYTES = 2**24
FEWEST_BLOCKS, MOST_BLOCKS, SMALLEST_BLOCK = 6, 20, 6  # along a side; pixels
ENOUGH = 0.25  # share of a block's pixels that must be free of cells for the others to be left out
ALIKE = 0.6  # share of a cell's course that the background explains when it is no cell


@dataclass(frozen=True)
class Surroundings:
    """fields: (R, P) float32 in the movie's units; courses: (R, B) float32"""

    fields: np.ndarray
    courses: np.ndarray


def nothing(left: Residual) -> Surroundings:
    """A background without components."""
    P, B = left.z.shape
    return Surroundings(np.zeros((0, P), np.float32), np.zeros((0, B), np.float32))


def from_blocks(left: Residual, cells: list[Cell], block: float, before: Surroundings) -> Surroundings:
    """The background that blocks of so many pixels show, in a residual from which `before` is taken off; that is replaced in place.

    Where a block has pixels enough beside the cells, only those are looked at.
    """
    (H, W), B = left.shape, left.z.shape[1]
    ys, xs = edges(H, block), edges(W, block)
    courses = block_medians(left, before, free_pixels(left, cells), ys, xs)
    flat = courses.reshape(-1, B).astype(np.float64)
    _, s, U = np.linalg.svd(flat, full_matrices=False)
    R = n_components(s, flat.shape)
    if not len(before.fields):
        wide = median_filter(courses, size=(3, 3, 1), mode="nearest")
        _, s, U = np.linalg.svd(wide.reshape(-1, B).astype(np.float64), full_matrices=False)
    found = U[:R] * s[:R, None]
    values = flat @ found.T / np.maximum(s[:R] ** 2, 1e-30)  # (blocks, R)
    fields = [interpolated(v.reshape(courses.shape[:2]), ys, xs).ravel() for v in values.T]
    new = Surroundings(np.array(fields, dtype=np.float32).reshape(R, H * W), found.astype(np.float32))
    change(left, np.concatenate([new.fields, -before.fields]), np.concatenate([new.courses, before.courses]))
    return new


def refined(left: Residual, around: Surroundings, smoothing: float, *, courses: bool = False) -> Surroundings:
    """The fields regressed on the courses where the cells are taken off, and smoothed over so many pixels; the residual follows.

    courses: regress the courses on the fields too, when next to nothing is left of cells that are not known
    """
    if not len(around.fields):
        return around
    onto = (around.courses.T @ inverse(around.courses.astype(np.float64) @ around.courses.T)).astype(np.float32)  # (B, R)
    more = np.zeros_like(around.fields)

    def one(part: slice) -> None:
        more[:, part] = (single(left.z[part]) @ onto * left.noise[part, None]).T

    list(in_order(one, strips(left)))
    share = np.maximum(gaussian_filter(left.usable.astype(np.float32), smoothing, mode="nearest"), 1e-6)
    for field in more:
        field[:] = (gaussian_filter(field.reshape(left.shape), smoothing, mode="nearest") / share).ravel()
    change(left, more, around.courses)
    fields = around.fields + more
    if not courses:
        return Surroundings(fields, around.courses)
    whitened = in_noise(fields, left)
    projected = np.zeros(around.courses.shape)
    for part in strips(left):
        projected += whitened[:, part] @ single(left.z[part])
    later = (inverse(whitened.astype(np.float64) @ whitened.T) @ projected).astype(np.float32)
    change(left, fields, later)
    return Surroundings(fields, around.courses + later)


def inverse(gram: np.ndarray) -> np.ndarray:
    """Of a positive semi-definite matrix, slightly regularised."""
    return np.linalg.inv(gram + (1e-9 * np.trace(gram) + 1e-300) * np.eye(len(gram)))


def in_noise(fields: np.ndarray, left: Residual) -> np.ndarray:
    """Fields (R, P) in units of the noise."""
    return np.divide(fields, left.noise, out=np.zeros_like(fields), where=left.noise > 0)


def change(left: Residual, fields: np.ndarray, courses: np.ndarray) -> None:
    """Take fields (R, P) times courses (R, B) off, in place."""
    if not len(fields):
        return
    whitened = in_noise(fields, left)

    def one(part: slice) -> None:
        left.z[part] = stored(single(left.z[part]) - whitened[:, part].T @ courses, left.z.dtype)

    list(in_order(one, strips(left)))


def without_background(left: Residual, cells: list[Cell], around: Surroundings, block: float) -> list[Cell]:
    """The cells that are smaller than a block and whose courses are not for the most part the background's; what the others explain
    is given back."""
    basis = np.linalg.qr((around.courses - around.courses.mean(axis=1, keepdims=True)).T.astype(np.float64))[0]
    out = []
    for cell in cells:
        if cell.area > block**2 or shared(cell, basis) > ALIKE:
            left.add(cell)
        else:
            out.append(cell)
    return out


def shared(cell: Cell, basis: np.ndarray) -> float:
    """Share of a cell's course, without its noise, that R orthonormal courses (B, R) explain beyond what R others would by chance.

    By chance it is R / n for n independent samples; courses that last have few: n = B (1 - r^2) / (1 + r^2), r being the correlation of
    one bin with the next (Bartlett, J R Stat Soc 1946).
    """
    y, noise, (B, R) = cell.seen - cell.seen.mean(), 1 / cell.power, basis.shape
    signal = float(y @ y) - B * noise
    explained = float(np.square(basis.T @ y).sum()) - R * noise
    if not signal > 0:
        return 0.0
    c = cell.centred
    r = float(c[1:] @ c[:-1]) / max(float(c @ c), 1e-30)
    n = B * (1 - r * r) / (1 + r * r)
    return 1 - (1 - min(explained / signal, 1.0)) * (n - 1) / (n - R - 1) if n > R + 2 else 0.0


def smooth_picture(picture: np.ndarray, left: Residual, block: float) -> np.ndarray:
    """(P,) picture (P,) without what is smaller than blocks: a spline through their medians."""
    (H, W), usable = left.shape, left.usable
    ys, xs = edges(H, block), edges(W, block)
    image = np.where(usable, picture.reshape(H, W), np.nan)
    values = np.full((len(ys) - 1, len(xs) - 1), float(np.median(image[usable])) if usable.any() else 0.0)
    for i in range(len(ys) - 1):
        for j in range(len(xs) - 1):
            part = image[ys[i] : ys[i + 1], xs[j] : xs[j + 1]]
            if np.isfinite(part).any():
                values[i, j] = np.nanmedian(part)
    return interpolated(values, ys, xs).ravel().astype(np.float32)


def strips(left: Residual) -> list[slice]:
    """Pixels in pieces that fit the memory."""
    P, B = left.z.shape
    step = max(1, STRIP_BYTES // (4 * max(B, 1)))
    return [slice(start, min(start + step, P)) for start in range(0, P, step)]


def edges(length: int, block: float) -> np.ndarray:
    """Edges of blocks of nearly equal size, of which there are neither very few nor very many."""
    n = max(min(round(length / block), MOST_BLOCKS), min(FEWEST_BLOCKS, length // SMALLEST_BLOCK), 1)
    return np.linspace(0, length, n + 1).round().astype(np.int64)


def free_pixels(left: Residual, cells: list[Cell]) -> np.ndarray:
    """(H, W) bool: pixels that can be used and belong to no cell."""
    free = left.noise > 0
    for cell in cells:
        free[cell.pixels] = False
    return free.reshape(left.shape)


def block_medians(left: Residual, before: Surroundings, free: np.ndarray, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """(len(ys) - 1, len(xs) - 1, B) medians over blocks of the residual with the background that was taken off it, in the movie's
    units: of free pixels, or of all where few are free."""
    noise, movie, fields = left.noise.reshape(left.shape), left.movie, before.fields.reshape(-1, *left.shape)

    def one(i: int) -> np.ndarray:
        out = np.zeros((len(xs) - 1, movie.shape[2]), np.float32)
        for j in range(len(xs) - 1):
            here = np.s_[ys[i] : ys[i + 1], xs[j] : xs[j + 1]]
            chosen = free[here] if free[here].mean() >= ENOUGH else noise[here] > 0
            if chosen.any():
                values = single(movie[here][chosen]) * noise[here][chosen][:, None]
                values += fields[(slice(None), *here)][:, chosen].T @ before.courses
                out[j] = np.median(values, axis=0)
        return out

    return np.array(list(in_order(one, range(len(ys) - 1))))


def n_components(s: np.ndarray, shape: tuple[int, int]) -> int:
    """How many singular values (falling) of a matrix of this shape are no noise."""
    if not len(s) or not s[0] > 0:
        return 0
    beta = min(shape) / max(shape)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    return int(min((s > omega * np.median(s)).sum(), MOST_COMPONENTS, max(len(s) // 2, 1)))


def interpolated(values: np.ndarray, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """(H, W) spline through the values of blocks (h, w) at their middles."""
    middles, order = [(ys[1:] + ys[:-1] - 1) / 2, (xs[1:] + xs[:-1] - 1) / 2], []
    for axis, last in ((0, ys[-1]), (1, xs[-1])):
        if len(middles[axis]) == 1:
            middles[axis], values = np.array([0.0, max(last - 1.0, 1.0)]), np.repeat(values, 2, axis=axis)
        order.append(min(2, len(middles[axis]) - 1))
    spline = RectBivariateSpline(*middles, values, kx=order[0], ky=order[1], s=0)
    return spline(np.arange(ys[-1], dtype=float), np.arange(xs[-1], dtype=float))
