"""Footprints and courses of cells in a binned movie: the model's coordinate ascent for light.

    Z(x, t) = sum_k a_k(x) c_k(t) + noise of variance 1,    a_k >= 0, local and connected,    c_k = kernel * activity_k

With R_k = Z - sum_{j != k} a_j y_j, what is left for one cell after the other,

    y_k <- R_k' a_k / ||a_k||^2                        its course by least squares
    c_k <- non-negative deconvolution of y_k           what of it the kernel explains
    a_k <- max(0, R_k c_k / ||c_k||^2)                 where that stands out of its noise and hangs together

The residual is kept, with y_k and not c_k taken off: then nothing of what a footprint sees is left in it for others to find, even
where the kernel is not quite the cell's. Every update touches the cell's own pixels only. Every pixel of Z has mean 0, so courses
have their means taken off where they explain it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import binary_dilation, convolve, label

from sortcore.optical.ar1 import solve_ar1

BINOMIAL = np.outer([1, 2, 1], [1, 2, 1]) / 16.0
BINOMIAL_NORM = float(np.sqrt((BINOMIAL**2).sum()))
EIGHT = np.ones((3, 3), dtype=bool)
GROWTH = 2  # pixels that a footprint may grow by in one update
FEWEST_PIXELS = 3
DIRECTIONS = 8
EDGE = 0.2  # of its peak, down to which a footprint counts as the cell's body
QUIET_PERCENTILE = 20.0


@dataclass(frozen=True)
class Kernel:
    """What the course of a cell is taken to be: decay g per bin, and the penalty on activity in sd of the kernel's matched filter."""

    g: float
    penalty_sd: float = 2.0


@dataclass(frozen=True)
class Cell:
    """One cell of a binned movie in units of its noise.

    pixels: (n,) indices into H W, increasing; weights: (n,) float32 above 0
    course: (B,) float32, 0 or more, what the kernel explains; seen: (B,) float32 of mean 0, by least squares
    """

    pixels: np.ndarray
    weights: np.ndarray
    course: np.ndarray
    seen: np.ndarray

    @property
    def power(self) -> float:
        """||a||^2: the course's noise has variance 1 / power."""
        return float(self.weights @ self.weights)

    @property
    def area(self) -> int:
        """Pixels above a fifth of the peak."""
        return int(np.count_nonzero(self.weights > EDGE * self.weights.max()))

    @property
    def centred(self) -> np.ndarray:
        return self.course - self.course.mean()

    @property
    def gain(self) -> float:
        """Log likelihood that the cell explains, in nats: half the energy of what the kernel explains."""
        return 0.5 * self.power * float(self.centred @ self.centred)

    @property
    def n_events(self) -> int:
        """Bins in which the course rises."""
        return int((np.diff(self.course) > 1e-6 * max(float(self.course.max(initial=0)), 1e-30)).sum())


@dataclass(frozen=True)
class Residual:
    """What is left of a binned movie; z is changed in place.

    z: (P, B) float32 or float16 in sd of the noise; noise: (P,) float32, 0 in pixels that cannot be used; shape: (H, W)
    """

    z: np.ndarray
    noise: np.ndarray
    shape: tuple[int, int]

    @property
    def usable(self) -> np.ndarray:
        """(H, W) bool"""
        return (self.noise > 0).reshape(self.shape)

    @property
    def movie(self) -> np.ndarray:
        """(H, W, B), the same memory"""
        return self.z.reshape(*self.shape, -1)

    def add(self, cell: Cell) -> None:
        """Give a cell back."""
        self.z[cell.pixels] = stored(single(self.z[cell.pixels]) + cell.weights[:, None] * cell.seen, self.z.dtype)

    def take(self, cell: Cell) -> None:
        """Take a cell off."""
        self.z[cell.pixels] = stored(single(self.z[cell.pixels]) - cell.weights[:, None] * cell.seen, self.z.dtype)

    def box(self, pixels: np.ndarray, margin: int) -> tuple[slice, slice]:
        """Rows and columns of the pixels, and so many around."""
        y, x = np.divmod(pixels, self.shape[1])
        return (slice(max(0, int(y.min()) - margin), int(min(self.shape[0], y.max() + margin + 1))),
                slice(max(0, int(x.min()) - margin), int(min(self.shape[1], x.max() + margin + 1))))


def single(z: np.ndarray) -> np.ndarray:
    """In float32; itself where it is so. torch turns halves ten times faster than numpy."""
    return z if z.dtype == np.float32 else torch.from_numpy(z).float().numpy()


def stored(z: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """float32 in the precision in which the residual is kept."""
    return z if dtype == np.float32 else torch.from_numpy(z).half().numpy()


def deconvolved(y: np.ndarray, noise: float, kernel: Kernel) -> np.ndarray:
    """(B,) float32 non-negative course of a trace (B,) with white noise of this sd and a free constant baseline."""
    lam = kernel.penalty_sd * noise / np.sqrt(1 - kernel.g**2)
    floor = float(np.percentile(y, QUIET_PERCENTILE))
    for _ in range(3):
        c, _ = solve_ar1(y - floor, kernel.g, lam)
        floor = float(np.mean(y - c))
    return c.astype(np.float32)


def local_support(scores: np.ndarray, allowed: np.ndarray, level: float, start: tuple[int, int] | None = None) -> np.ndarray:
    """(h, w) bool: allowed pixels of scores (h, w) that with their neighbours stand out of noise of sd 1, and hang together with the
    pixel `start` where that does, else with the largest."""
    smooth = convolve(np.where(allowed, scores, 0), BINOMIAL, mode="constant") / BINOMIAL_NORM
    out = (smooth > level) & (scores > 0) & allowed
    if not out.any():
        return out
    parts, _ = label(out, EIGHT)
    at = start if start is not None and parts[start] else np.unravel_index(np.argmax(np.where(out, smooth, -np.inf)), out.shape)
    return parts == parts[at]


@dataclass(frozen=True)
class Part:
    """A copy of a box of a residual, as a residual of its own, in float32. rows, columns: where it is in one `width` pixels wide"""

    left: Residual
    rows: slice
    columns: slice
    width: int

    @classmethod
    def of(cls, whole: Residual, rows: slice, columns: slice) -> Part:
        noise, z = whole.noise.reshape(whole.shape)[rows, columns], whole.movie[rows, columns]
        z = z.copy() if z.dtype == np.float32 else single(z)
        shape = (noise.shape[0], noise.shape[1])
        return cls(Residual(z.reshape(noise.size, -1), noise.ravel(), shape), rows, columns, whole.shape[1])

    def put_back(self, whole: Residual, pixels: np.ndarray) -> None:
        """These pixels of the whole, by their places in the box, become as they are here."""
        whole.z[self.places(pixels)] = stored(self.left.z[pixels], whole.z.dtype)

    def places(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of the box in the whole."""
        y, x = np.divmod(pixels, self.left.shape[1])
        return (y + self.rows.start) * self.width + x + self.columns.start

    def inside(self, cell: Cell) -> Cell:
        """A cell of the whole in the box."""
        y, x = np.divmod(cell.pixels, self.width)
        return replace(cell, pixels=(y - self.rows.start) * self.left.shape[1] + x - self.columns.start)

    def outside(self, cell: Cell) -> Cell:
        """The inverse."""
        return replace(cell, pixels=self.places(cell.pixels))


def observed(left: Residual, pixels: np.ndarray, weights: np.ndarray, around: np.ndarray | None = None) -> np.ndarray:
    """(B,) course of a footprint by least squares, all others being taken off; and what is `around` (B,), in the movie's units."""
    y = weights @ single(left.z[pixels])
    if around is not None:
        y -= float((weights / left.noise[pixels]).sum()) * around
    return y / (weights @ weights)


def shaped(left: Residual, course: np.ndarray, allowed: np.ndarray, level: float, start: tuple[int, int] | None = None,
           around: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and weights of the footprint that a course has among allowed pixels (H, W); none where nothing stands out.

    around: (B,) in the movie's units, is taken off every pixel before
    """
    centred = course - course.mean()
    energy = float(centred @ centred)
    if energy <= 0:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    scores = left.movie @ (centred / np.float32(np.sqrt(energy)))
    if around is not None:
        noise = left.noise.reshape(left.shape)
        scores -= np.divide(float(around @ centred) / np.sqrt(energy), noise, out=np.zeros_like(noise), where=allowed)
    pixels = np.flatnonzero(local_support(scores, allowed, level, start))
    return pixels, (scores.ravel()[pixels] / np.float32(np.sqrt(energy))).astype(np.float32)


def window(left: Residual, y: float, x: float, width: float) -> tuple[slice, slice]:
    """Rows and columns around a place where a cell of that width would end."""
    H, W = left.shape
    at = int(np.clip(round(y), 0, H - 1)) * W + int(np.clip(round(x), 0, W - 1))
    return left.box(np.array([at]), int(3 * width + 5))


def ring(left: Residual, y: float, x: float, width: float) -> np.ndarray:
    """(B,) course of the pixels around a cell of that width, in the movie's units: the median over eight directions."""
    rows, columns = window(left, y, x, width)
    grid = np.mgrid[rows, columns]
    far = np.hypot(grid[0] - y, grid[1] - x) > 2 * width + 4
    direction = (np.arctan2(grid[0] - y, grid[1] - x) / (2 * np.pi) * DIRECTIONS).round().astype(int) % DIRECTIONS
    noise, z, means = left.noise.reshape(left.shape)[rows, columns], left.movie[rows, columns], []
    for i in range(DIRECTIONS):
        here = far & (direction == i) & (noise > 0)
        if here.any():
            means.append(noise[here] @ single(z[here]) / here.sum())
    return np.median(means, axis=0) if means else np.zeros(z.shape[2], np.float32)


def fit_seed(left: Residual, y: float, x: float, width: float, kernel: Kernel, level: float, around: np.ndarray | None = None,
             rounds: int = 4) -> Cell | None:
    """The cell at a place of the residual, from a Gaussian of that width; None where there is none.

    around: (B,) what is no cell's, in the movie's units, where the residual still holds it
    """
    part = Part.of(left, *window(left, y, x, width))
    box, grid = part.left, np.mgrid[part.rows, part.columns]
    if not box.usable.any():
        return None
    bump = np.exp(-0.5 * ((grid[0] - y) ** 2 + (grid[1] - x) ** 2) / width**2)
    pixels = np.flatnonzero(box.usable)
    weights = bump.ravel()[pixels].astype(np.float32)
    nearest = np.unravel_index(np.argmax(bump), bump.shape)
    start = (int(nearest[0]), int(nearest[1]))
    for _ in range(rounds):
        course = deconvolved(observed(box, pixels, weights, around), 1 / float(np.sqrt(weights @ weights)), kernel)
        pixels, weights = shaped(box, course, box.usable, level, start, around)
        if len(pixels) < FEWEST_PIXELS:
            return None
    return part.outside(Cell(pixels, weights, course, observed(box, pixels, weights, around)))


def updated(left: Residual, cell: Cell, kernel: Kernel, level: float) -> Cell | None:
    """One round of the coordinate ascent for a cell; None where nothing is left of it. The residual follows."""
    part = Part.of(left, *left.box(cell.pixels, GROWTH))
    box, old = part.left, part.inside(cell)
    box.add(old)
    course = deconvolved(observed(box, old.pixels, old.weights), old.power**-0.5, kernel)
    pixels, weights = shaped(box, course, reach(box, old.pixels), level)
    if len(pixels) < FEWEST_PIXELS:
        part.put_back(left, old.pixels)
        return None
    new = Cell(pixels, weights, course, observed(box, pixels, weights))
    box.take(new)
    part.put_back(left, np.union1d(old.pixels, pixels))
    return part.outside(new)


def reach(box: Residual, pixels: np.ndarray) -> np.ndarray:
    """(H, W) bool: where a footprint on these pixels may be after one update."""
    own = np.zeros(box.shape, dtype=bool)
    own.flat[pixels] = True
    return binary_dilation(own, EIGHT, iterations=GROWTH) & box.usable


def sweep(left: Residual, cells: list[Cell], kernel: Kernel, level: float) -> list[Cell]:
    """Every cell updated once, in order; those of which nothing is left are gone."""
    found = [updated(left, cell, kernel, level) for cell in cells]
    return [cell for cell in found if cell is not None]


def footprint_fit(left: Residual, cell: Cell) -> float:
    """Correlation of a footprint with the picture of its course in the movie less all other cells, within and near it."""
    part = Part.of(left, *left.box(cell.pixels, GROWTH))
    box, mine, c = part.left, part.inside(cell), cell.centred
    picture, own = box.movie @ c / (c @ c), np.zeros(box.shape, np.float32)
    own.flat[mine.pixels] = cell.weights
    picture += own * (float(cell.seen @ c) / float(c @ c))
    near = reach(box, mine.pixels)
    return float(np.corrcoef(own[near], picture[near])[0, 1])
