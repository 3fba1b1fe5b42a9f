"""Which cells touch: those that do not can be worked on side by side, with the same result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.ndimage import binary_dilation

from sortcore.optical.movie.footprints import EIGHT, GROWTH, Cell, Kernel, Residual, updated
from sortcore.workers import in_order


def neighbours(left: Residual, cells: Sequence[Cell], reach: int) -> list[list[int]]:
    """Of each cell those, in order, whose pixels come as near as `reach` (rows and columns) to its own."""
    own = indicator([cell.pixels for cell in cells], len(left.z))
    shared = sparse.csr_array(own @ (indicator([grown(left, cell.pixels, reach) for cell in cells], len(left.z)) if reach else own).T)
    shared.sort_indices()
    return [[int(j) for j in shared.indices[shared.indptr[i] : shared.indptr[i + 1]] if j != i] for i in range(len(cells))]


def indicator(pixels: list[np.ndarray], n_pixels: int) -> sparse.csr_array:
    """(K, P) ones in the pixels of each cell."""
    at = np.concatenate([np.zeros(0, np.int64), *pixels])
    return sparse.csr_array((np.ones(len(at), np.float32), at, np.cumsum([0, *map(len, pixels)])), shape=(len(pixels), n_pixels))


def grown(left: Residual, pixels: np.ndarray, reach: int) -> np.ndarray:
    """Pixels and all within so many rows and columns of them."""
    rows, columns = left.box(pixels, reach)
    y, x = np.divmod(pixels, left.shape[1])
    inside = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=bool)
    inside[y - rows.start, x - columns.start] = True
    y, x = np.nonzero(binary_dilation(inside, EIGHT, iterations=reach))
    return (y + rows.start) * left.shape[1] + x + columns.start


def waves(left: Residual, cells: Sequence[Cell]) -> list[list[int]]:
    """The cells in sets, one after the other, in which none sees what the update of another changes: an update changes pixels of the
    cell and up to GROWTH around. Cells that do see each other keep their order."""
    wave = np.zeros(len(cells), int)
    for k, near in enumerate(neighbours(left, cells, 2 * GROWTH)):
        wave[k] = max((wave[j] + 1 for j in near if j < k), default=0)
    return [np.flatnonzero(wave == i).tolist() for i in range(wave.max(initial=-1) + 1)]


def sweep_side_by_side(left: Residual, cells: list[Cell], kernel: Kernel, level: float) -> list[Cell]:
    """`footprints.sweep` on all cores: the same cells, byte for byte."""
    found: list[Cell | None] = list(cells)
    for wave in waves(left, cells):
        for k, new in zip(wave, in_order(lambda k: updated(left, cells[k], kernel, level), wave), strict=True):
            found[k] = new
    return [cell for cell in found if cell is not None]
