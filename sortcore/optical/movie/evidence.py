"""Whether a cell is one: whether its pixels agree, whether two cells are one, and whether the data are worth a cell.

The pixels of a footprint are dealt into two halves like the fields of a chessboard. In noise the course of one half says nothing of
that of the other, however well each fits itself: their agreement has variance 1.

A cell costs what its events cost, EVENT nats each: where and how large each is must be said. Two cells that touch are one where the
weaker's course is the stronger's but for less than that; a cell goes where its neighbours, fitted anew without it, lose less than that
or than a small share of what it explained, since no footprint is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from sortcore.optical.movie.footprints import GROWTH, Cell, Kernel, Part, Residual, deconvolved, observed, single, sweep
from sortcore.optical.movie.touching import neighbours
from sortcore.workers import in_order

EVENT = 6.0
SAME = 0.9  # correlation of two courses that are one
SIMILAR = 0.3  # below this they are two, however noisy
TOUCH = 2  # pixels between two cells that may be one
SPARE = 0.1  # share of what a mixture explains that its neighbours may fail to explain without it
COVERED = 0.5  # share of a footprint in pixels of others, above which it may be a mixture of them
REFITS = 4  # rounds in which the neighbours of a cell take its place


def agreement(left: Residual, cell: Cell, kernel: Kernel, around: np.ndarray | None = None) -> float:
    """How far the two halves of a cell's pixels agree, in sd of what they would in noise; `around` as in `fit_seed`."""
    y, x = np.divmod(cell.pixels, left.shape[1])
    z = single(left.z[cell.pixels]) + cell.weights[:, None] * cell.seen
    if around is not None:
        z -= around / left.noise[cell.pixels, None]
    halves = [(z[part], cell.weights[part]) for part in ((y + x) % 2 == 0, (y + x) % 2 == 1)]
    total = 0.0
    for (z_a, a), (z_b, b) in (halves, halves[::-1]):
        if not len(a) or not len(b):
            return 0.0
        course = deconvolved(a @ z_a / (a @ a), float(a @ a) ** -0.5, kernel)
        centred = course - course.mean()
        energy = float(centred @ centred)
        total += float(b @ z_b @ centred) / np.sqrt(energy * float(b @ b)) if energy > 0 else 0.0
    return total / np.sqrt(2)


def merged(left: Residual, cells: list[Cell]) -> list[Cell]:
    """Cells of which those that are one are joined, the weaker to the stronger."""
    cells = sorted(cells, key=lambda cell: -cell.gain)
    gone: set[int] = set()
    for i, near in enumerate(neighbours(left, cells, TOUCH)):
        if i in gone:
            continue
        for j in near:
            if j > i and j not in gone and one(cells[i], cells[j]):
                cells[i] = joined(left, cells[i], cells[j])
                gone.add(j)
    return [cell for i, cell in enumerate(cells) if i not in gone]


def one(strong: Cell, weak: Cell) -> bool:
    """Whether the course of the weaker is the stronger's."""
    c, y = strong.centred, weak.seen
    correlation = float(np.corrcoef(strong.course, weak.course)[0, 1])
    if not correlation > SIMILAR:
        return False
    shared = y - max(0.0, float(y @ c) / float(c @ c)) * c
    own = y - weak.centred
    return correlation > SAME or 0.5 * weak.power * float(shared @ shared - own @ own) < EVENT * weak.n_events


def joined(left: Residual, strong: Cell, weak: Cell) -> Cell:
    """Both with the course of the stronger; the residual follows."""
    left.add(strong)
    left.add(weak)
    pixels, c = np.union1d(strong.pixels, weak.pixels), strong.centred
    weights = single(left.z[pixels]) @ c / (c @ c)
    pixels, weights = pixels[weights > 0], weights[weights > 0]
    new = Cell(pixels, weights, strong.course, observed(left, pixels, weights))
    left.take(new)
    return new


def needed(left: Residual, cells: list[Cell], kernel: Kernel, level: float) -> list[Cell]:
    """Cells without those that their neighbours can do without; the residual follows.

    The weakest are tried first. Then those that lie within others for the most part, as a mixture of two cells does, the easiest to
    spare first.
    """
    cells = sorted(cells, key=lambda cell: -cell.gain)
    near, gone = neighbours(left, cells, 0), set()

    def beside(k: int) -> list[int]:
        return [j for j in near[k] if j not in gone]

    def without(k: int, cost: float) -> Without | None:
        others = [cells[j] for j in beside(k)]
        if 0.5 * cells[k].gain * (1 - replaceable(cells[k], others)) > cost:
            return None
        return replaced(left, cells[k], others, kernel, level)

    def leave_out(k: int, cost: float) -> None:
        found = without(k, cost)
        if found is not None and found.lost < cost:
            found.put_back(left)
            for j, cell in zip(beside(k), found.cells, strict=True):
                cells[j] = cell
            gone.add(k)

    def share(k: int) -> float:
        found = without(k, SPARE * cells[k].gain)
        return np.inf if found is None else found.lost / (SPARE * cells[k].gain)

    for k in range(len(cells) - 1, -1, -1):
        leave_out(k, EVENT * cells[k].n_events)
    mixed = [k for k, cell in enumerate(cells) if k not in gone and SPARE * cell.gain > EVENT * cell.n_events
             and covered(cell, [cells[j] for j in beside(k)]) > COVERED]
    for cost, k in sorted(zip(in_order(share, mixed), mixed, strict=True)):
        if cost < 1:  # else fewer neighbours will not do without it either
            leave_out(k, SPARE * cells[k].gain)
    return [cell for k, cell in enumerate(cells) if k not in gone]


def replaceable(cell: Cell, beside: list[Cell]) -> float:
    """Share of what a cell explains that others could, about, by footprints like its own or by courses like its own; up to 1.

    It spares the trial for cells that have next to nothing in common with their neighbours.
    """
    share = 0.0
    for other in beside:
        _, own, theirs = np.intersect1d(cell.pixels, other.pixels, assume_unique=True, return_indices=True)
        share += float(cell.weights[own] @ other.weights[theirs]) ** 2 / (cell.power * other.power)
    if share < 1 and beside:
        courses = np.array([other.centred for other in beside]).T
        rest = cell.centred - courses @ np.linalg.lstsq(courses, cell.centred, rcond=None)[0]
        share += 1 - float(rest @ rest) / max(float(cell.centred @ cell.centred), 1e-30)
    return min(share, 1.0)


def covered(cell: Cell, beside: list[Cell]) -> float:
    """Share of a footprint that lies in pixels of others."""
    if not beside:
        return 0.0
    shared = np.isin(cell.pixels, np.concatenate([other.pixels for other in beside]))
    return float(np.square(cell.weights[shared]).sum()) / cell.power


@dataclass(frozen=True)
class Without:
    """A box of the residual without one cell, its neighbours in its place, and what that loses in nats; they are all there yet."""

    part: Part
    cells: list[Cell]
    lost: float

    def put_back(self, left: Residual) -> None:
        """The residual becomes so."""
        self.part.put_back(left, np.arange(len(self.part.left.z)))


def replaced(left: Residual, cell: Cell, beside: list[Cell], kernel: Kernel, level: float) -> Without | None:
    """What happens when its neighbours take a cell's place; the residual stays as it is. None where one of them goes too."""
    if not beside:
        return None
    part = Part.of(left, *left.box(np.concatenate([cell.pixels, *(other.pixels for other in beside)]), REFITS * GROWTH + 1))
    before, new = energy(part.left.z), [part.inside(other) for other in beside]
    part.left.add(part.inside(cell))
    for _ in range(REFITS):
        new = sweep(part.left, new, kernel, level)
    if len(new) < len(beside):
        return None
    lost = 0.5 * (energy(part.left.z) - before - part.left.z.shape[1])
    return Without(part, [part.outside(other) for other in new], lost)


@numba.njit(cache=True, nogil=True, fastmath=True)
def energy(z: np.ndarray) -> float:
    """Sum of squares of z (P, B)."""
    total = 0.0
    for p in range(z.shape[0]):
        for t in range(z.shape[1]):
            total += float(z[p, t]) * float(z[p, t])
    return total
