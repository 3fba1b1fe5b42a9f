"""Whether a cell is one: whether its pixels agree, whether two cells are one, and whether the data are worth a cell.

The pixels of a footprint are dealt into two halves like the fields of a chessboard. In noise the course of one half says nothing of
that of the other, however well each fits itself: their agreement has variance 1.

A cell costs what its events cost, EVENT nats each: where and how large each is must be said. Two cells that touch are one where the
weaker's course is the stronger's but for less than that; a cell goes where its neighbours, fitted anew without it, lose less.
"""

from __future__ import annotations

import numpy as np

from sortcore.optical.footprints import Cell, Kernel, Residual, deconvolved, observed, sweep

EVENT = 6.0
SAME = 0.9  # correlation of two courses that are one
SIMILAR = 0.3  # below this they are two, however noisy
TOUCH = 2  # pixels between two cells that may be one
REFITS = 4  # rounds in which the neighbours of a cell take its place


def agreement(left: Residual, cell: Cell, kernel: Kernel, around: np.ndarray | None = None) -> float:
    """How far the two halves of a cell's pixels agree, in sd of what they would in noise; `around` as in `fit_seed`."""
    y, x = np.divmod(cell.pixels, left.shape[1])
    z = left.z[cell.pixels].astype(np.float32, copy=False) + cell.weights[:, None] * cell.seen
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
    """Cells of which those that are one are joined."""
    cells = sorted(cells, key=lambda cell: -cell.gain)
    boxes = [left.box(cell.pixels, TOUCH) for cell in cells]
    i = 0
    while i < len(cells):
        j = i + 1
        while j < len(cells):
            if overlap(boxes[i], boxes[j]) and one(cells[i], cells[j]):
                cells[i] = joined(left, cells[i], cells[j])
                boxes[i] = left.box(cells[i].pixels, TOUCH)
                del cells[j], boxes[j]
            else:
                j += 1
        i += 1
    return cells


def overlap(a: tuple[slice, slice], b: tuple[slice, slice]) -> bool:
    return all(p.start < q.stop and q.start < p.stop for p, q in zip(a, b, strict=True))


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
    weights = left.z[pixels].astype(np.float32, copy=False) @ c / (c @ c)
    pixels, weights = pixels[weights > 0], weights[weights > 0]
    new = Cell(pixels, weights, strong.course, observed(left, pixels, weights))
    left.take(new)
    return new


def needed(left: Residual, cells: list[Cell], kernel: Kernel, level: float) -> list[Cell]:
    """Cells without those that their neighbours can do without, tried from the weakest on; the residual follows."""
    cells = sorted(cells, key=lambda cell: -cell.gain)
    for k in range(len(cells) - 1, -1, -1):
        near = [j for j in range(len(cells)) if j != k and len(np.intersect1d(cells[j].pixels, cells[k].pixels, assume_unique=True))]
        if not near:
            continue
        area = np.unique(np.concatenate([cells[j].pixels for j in (k, *near)]))
        rows, columns = left.box(area, 2 * REFITS + 1)
        kept = left.movie[rows, columns].copy()
        before = float(np.square(kept, dtype=np.float32).sum(dtype=np.float64))
        left.add(cells[k])
        new = [cells[j] for j in near]
        for _ in range(REFITS):
            new = sweep(left, new, kernel, level)
        after = float(np.square(left.movie[rows, columns], dtype=np.float32).sum(dtype=np.float64))
        lost = 0.5 * (after - before - kept.shape[2])
        if len(new) == len(near) and lost < EVENT * cells[k].n_events:
            for j, cell in zip(near, new, strict=True):
                cells[j] = cell
            del cells[k]
        else:
            left.movie[rows, columns] = kept
    return cells
