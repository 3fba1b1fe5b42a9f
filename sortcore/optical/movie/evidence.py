"""Whether a cell is one: whether its pixels agree, whether two cells are one, and whether the data are worth a cell.

The pixels of a footprint are dealt into two halves like the fields of a chessboard. In noise the course of one half says nothing of
that of the other, however well each fits itself: their agreement has variance 1.

A cell costs what its events cost, EVENT nats each: where and how large each is must be said. Two cells that touch are one where the
weaker's course is the stronger's but for less than that; a cell goes where its neighbours, fitted anew without it, lose less than that
or than a small share of what it explained, since no footprint is exact.
"""

from __future__ import annotations

import numpy as np

from sortcore.optical.movie.footprints import GROWTH, Cell, Kernel, Residual, deconvolved, observed, single, sweep
from sortcore.optical.movie.touching import neighbours

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

    def tried(k: int, cost: float, trial: bool = False) -> float:
        beside = [j for j in near[k] if j not in gone]
        if 0.5 * cells[k].gain * (1 - replaceable(cells[k], [cells[j] for j in beside])) > cost:
            return np.inf
        lost, instead = replaced(left, cells[k], [cells[j] for j in beside], kernel, level, 0.0 if trial else cost)
        if instead is not None:
            gone.add(k)
            for j, cell in zip(beside, instead, strict=True):
                cells[j] = cell
        return lost / max(cost, 1e-12)

    for k in range(len(cells) - 1, -1, -1):
        tried(k, EVENT * cells[k].n_events)
    mixed = [k for k, cell in enumerate(cells) if k not in gone and SPARE * cell.gain > EVENT * cell.n_events
             and covered(cell, [cells[j] for j in near[k] if j not in gone]) > COVERED]
    for _, k in sorted((tried(k, SPARE * cells[k].gain, trial=True), k) for k in mixed):
        tried(k, SPARE * cells[k].gain)
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


def replaced(left: Residual, cell: Cell, beside: list[Cell], kernel: Kernel, level: float, cost: float) -> tuple[float, list[Cell] | None]:
    """What is lost when its neighbours take a cell's place, in nats; and they, where that is less than the cost.

    The residual is then with them, else as it was.
    """
    if not beside:
        return np.inf, None
    rows, columns = left.box(np.concatenate([cell.pixels, *(other.pixels for other in beside)]), REFITS * GROWTH + 1)
    kept = left.movie[rows, columns].copy()
    left.add(cell)
    new = beside
    for _ in range(REFITS):
        new = sweep(left, new, kernel, level)
    lost = 0.5 * (energy(left.movie[rows, columns]) - energy(kept) - kept.shape[2])
    if len(new) == len(beside) and lost < cost:
        return lost, new
    left.movie[rows, columns] = kept
    return lost, None


def energy(z: np.ndarray) -> float:
    return float(np.square(z, dtype=np.float32).sum(dtype=np.float64))
