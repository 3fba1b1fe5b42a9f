"""Where cells may be: matched filters of several sizes over a binned movie whose noise is white and of variance 1.

    score_s(x, t) = sum_t' g^t' sum_x' w_s(x' - x) Z(x', t + t'),      of variance 1 in noise
    energy_s(x)   = sum_t max(0, score_s(x, t) - LEVEL)^2

w_s is a Gaussian of s pixels and g^t the decay of the indicator. What surpasses LEVEL is activity, nearly; its energy is the log
likelihood ratio of a cell there, up to a factor. Sizes go by factors of two: the movie is pooled by 2 x 2, which keeps its noise
white, and filtered with the same narrow Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from scipy.ndimage import maximum_filter

from sortcore.optical.movie.footprints import single
from sortcore.workers import in_order

LEVEL = 2.0  # sd of the score's noise
HALF = 2  # half width of the Gaussian's window
WEIGHTS = np.exp(-0.5 * np.arange(-HALF, HALF + 1) ** 2).astype(np.float32)
STRIP_BYTES, MOST_BYTES = 2**26, 2**28
APART = 2.5  # widths of the Gaussian that two places of one reading lie apart
NOTHING, NO_MASK = np.zeros((0, 0, 0), np.float32), np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class Seeds:
    """Places in order of falling energy. y, x: (S,) pixels, float; level: (S,) pixels are 2^level wide; energy: (S,)"""

    y: np.ndarray
    x: np.ndarray
    level: np.ndarray
    energy: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


def n_levels(shape: tuple[int, int], most: int = 4) -> int:
    """Sizes that fit into a field."""
    return int(np.clip(np.log2(max(min(shape), 1) / (2 * HALF + 1)) + 1, 1, most))


def energies(z: np.ndarray, usable: np.ndarray, decay: float, levels: int, *, surround: bool = False) -> list[np.ndarray]:
    """Energy at each size, a list of (ceil(H / 2^level), ceil(W / 2^level)) float32.

    z: (H, W, B) noise of variance 1; usable: (H, W) bool; decay: g per bin
    surround: take the mean of what lies around off, so that what is smooth does not count
    """
    H, W, B = z.shape
    block = 1 << (levels - 1 + 2 * surround)
    height, halo = max(1, STRIP_BYTES // (4 * W * B * block)) * block, (2 if surround else HALF + 1) * block

    def one(start: int) -> list[np.ndarray]:
        top, bottom = max(0, start - halo), min(H, start + height + halo)
        stop = min(start + height, H)
        pyramid = [(single(z[top:bottom]), usable[top:bottom].astype(np.float32))]
        for _ in range(1, levels + 2 * surround):
            pyramid.append(pool(*pyramid[-1]))
        out = []
        for level in range(levels):
            first, last = (start - top) >> level, -(-(stop - top) // (1 << level))
            (pooled, mask), (around, around_mask) = pyramid[level], pyramid[level + 2] if surround else (NOTHING, NO_MASK)
            out.append(energy_rows(pooled, mask, around, around_mask, decay, first, last))
        return out

    heavy = 4 * W * B * (height + 2 * halo) > MOST_BYTES  # then one strip at a time is enough for the memory
    parts = list(in_order(one, range(0, H, height), 1 if heavy else None))
    return [np.concatenate([part[level] for part in parts]) for level in range(levels)]


def pool(z: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums over 2 x 2 pixels divided by the root of the pixels that can be used, whose noise is white again; and the mask."""
    H, W, B = z.shape
    out, count = np.zeros((-(-H // 2), -(-W // 2), B), np.float32), np.zeros((-(-H // 2), -(-W // 2)), np.float32)
    for i in range(2):
        for j in range(2):
            part = z[i::2, j::2]
            out[: part.shape[0], : part.shape[1]] += part
            count[: part.shape[0], : part.shape[1]] += mask[i::2, j::2]
    out /= np.sqrt(np.maximum(count, 1))[:, :, None]
    return out, (count > 0).astype(np.float32)


@numba.njit(nogil=True, cache=True, fastmath=True)
def energy_rows(z: np.ndarray, mask: np.ndarray, around: np.ndarray, around_mask: np.ndarray, g: float, first: int,
                last: int) -> np.ndarray:
    """Energies (last - first, W) of these rows of z (H, W, B); `around` is z pooled by 4 x 4, or empty."""
    H, W, B = z.shape
    out = np.zeros((last - first, W), dtype=np.float32)
    score = np.empty(B, dtype=np.float32)
    surround = around.shape[0] > 0
    gain = np.sqrt(1 - g * g)
    for y in range(first, last):
        for x in range(W):
            if mask[y, x] == 0:
                continue
            score[:] = 0
            total, square = np.float32(0), np.float32(0)
            for i in range(max(0, y - HALF), min(H, y + HALF + 1)):
                for j in range(max(0, x - HALF), min(W, x + HALF + 1)):
                    if mask[i, j] > 0:
                        w = WEIGHTS[i - y + HALF] * WEIGHTS[j - x + HALF]
                        total += w
                        square += w * w
                        for t in range(B):
                            score[t] += w * z[i, j, t]
            if surround:
                n = 0
                for i in range(max(0, y // 4 - 1), min(around.shape[0], y // 4 + 2)):
                    for j in range(max(0, x // 4 - 1), min(around.shape[1], x // 4 + 2)):
                        n += (around_mask[i, j] > 0) and (i != y // 4 or j != x // 4)
                if n > 0:
                    w = -total / np.float32(4 * n)
                    for i in range(max(0, y // 4 - 1), min(around.shape[0], y // 4 + 2)):
                        for j in range(max(0, x // 4 - 1), min(around.shape[1], x // 4 + 2)):
                            if around_mask[i, j] > 0 and (i != y // 4 or j != x // 4):
                                for t in range(B):
                                    score[t] += w * around[i, j, t]
                    square += n * w * w
            scale = gain / np.sqrt(square)
            sum_over, carry = np.float32(0), np.float32(0)
            for t in range(B - 1, -1, -1):
                carry = g * carry + score[t]
                over = carry * scale - LEVEL
                if over > 0:
                    sum_over += over * over
            out[y - first, x] = sum_over
    return out


def maxima(maps: list[np.ndarray], threshold: float) -> Seeds:
    """Places whose energy is above the threshold and the largest, of all sizes, within the size of the cell that they would be."""
    found = []
    for level, energy in enumerate(maps):
        y, x = np.nonzero((energy > threshold) & (energy >= maximum_filter(energy, 3)))
        width = 1 << level
        found.append(np.column_stack([(y + 0.5) * width - 0.5, (x + 0.5) * width - 0.5, np.full(len(y), level), energy[y, x]]))
    rows = np.concatenate(found)
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0], rows[:, 2], -rows[:, 3]))]
    kept: list[int] = []
    places, reach = rows[:, :2], APART * 2.0 ** rows[:, 2]
    for i in range(len(rows)):
        if not kept or (np.hypot(*(places[kept] - places[i]).T) > np.maximum(reach[kept], reach[i])).all():
            kept.append(i)
    rows = rows[kept]
    return Seeds(rows[:, 0], rows[:, 1], rows[:, 2].astype(np.int64), rows[:, 3])
