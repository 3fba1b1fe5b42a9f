"""Traces at full rate, of all cells and the background at once: one reading of the movie.

    movie(t) / bleaching(t) - mean = A' f(t) + F' h(t) + noise,    weighted least squares with the noise of each pixel

The projections of every frame on footprints and fields are taken as the movie is read, cell by cell over its own pixels only; one
system of all cells and fields, the same for every frame, then tells the overlapping ones apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from sortcore.optical.movie.reading import Movie
from sortcore.optical.movie.survey import Survey, piece_frames, reader
from sortcore.progress import Track, silent
from sortcore.workers import in_order

SOLVED_AT_ONCE = 4096  # frames
RIDGE = 1e-6  # of a footprint's or field's power: two that are the same share what they explain


@dataclass(frozen=True)
class Unmixed:
    """traces: (K, T) float32 around each cell's mean; courses: (R, T) float32 of the background. NaN in frames that were not seen."""

    traces: np.ndarray
    courses: np.ndarray


def unmix(movie: Movie, seen: Survey, footprints: sparse.csr_array, fields: np.ndarray, *, track: Track = silent) -> Unmixed:
    """Traces of footprints (K, P) and courses of fields (R, P) in a movie."""
    K, T = footprints.shape[0], seen.n_frames
    inverse = np.divide(1, seen.noise**2, out=np.zeros_like(seen.noise), where=seen.noise > 0)
    weighted = sparse.csr_array(footprints.multiply(inverse[None]))
    weighted_fields = np.ascontiguousarray((fields * inverse).T, dtype=np.float32)  # (P, R)
    indptr, indices, data = weighted.indptr.astype(np.int64), weighted.indices.astype(np.int64), weighted.data.astype(np.float32)
    read, step = reader(movie), piece_frames(len(seen.mean))

    def project(start: int) -> tuple[int, np.ndarray]:
        piece = read(start, min(start + step, T))
        centre(piece, seen.bleaching[start : start + len(piece)], seen.mean)
        out = np.empty((K + len(fields), len(piece)), np.float32)
        project_cells(piece, indptr, indices, data, out)
        out[K:] = (piece @ weighted_fields).T
        return start, out

    starts = range(0, T, step)
    projections = np.empty((K + len(fields), T), np.float32)
    for start, out in track(in_order(project, starts), "traces", len(starts)):
        projections[:, start : start + out.shape[1]] = out
    solution = Normal.of(footprints, weighted, fields, weighted_fields)
    for start in range(0, T, SOLVED_AT_ONCE):
        part = slice(start, start + SOLVED_AT_ONCE)
        projections[:, part] = solution.solve(projections[:, part])
    projections[:, ~seen.seen] = np.nan
    return Unmixed(projections[:K], projections[K:])


def resting(seen: Survey, footprints: sparse.csr_array, around: np.ndarray) -> np.ndarray:
    """(K,) fluorescence of each cell at its mean, 0 or more: the share of its footprint in the mean picture less what is around (P,)."""
    if not footprints.shape[0]:
        return np.zeros(0, np.float32)
    inverse = np.divide(1, seen.noise**2, out=np.zeros_like(seen.noise), where=seen.noise > 0)
    weighted = sparse.csr_array(footprints.multiply(inverse[None]))
    nothing = np.zeros((0, len(seen.mean)), np.float32)
    level = Normal.of(footprints, weighted, nothing, nothing.T).solve((weighted @ (seen.mean - around))[:, None])
    return np.maximum(level[:, 0], 0).astype(np.float32)


class Normal:
    """The normal equations of footprints and fields, factorised once: G = D W D', D = (A; F), sparse but for the fields' rows."""

    def __init__(self, gram: sparse.csc_array) -> None:
        self.scale = 1 / np.sqrt(np.maximum(gram.diagonal(), 1e-300))
        scaled = sparse.csc_array(gram.multiply(self.scale[:, None]).multiply(self.scale[None]))
        self.factor = splu(sparse.csc_matrix(scaled + RIDGE * sparse.eye_array(len(self.scale), format="csc")))

    @classmethod
    def of(cls, footprints: sparse.csr_array, weighted: sparse.csr_array, fields: np.ndarray, weighted_fields: np.ndarray) -> Normal:
        """footprints, weighted (K, P); fields (R, P); weighted_fields (P, R)"""
        cells = (footprints.astype(np.float64) @ weighted.T.astype(np.float64)).tocsc()
        if not len(fields):
            return cls(cells)
        across = footprints.astype(np.float64) @ weighted_fields.astype(np.float64)  # (K, R)
        among = fields.astype(np.float64) @ weighted_fields.astype(np.float64)
        return cls(sparse.block_array([[cells, across], [across.T, among]], format="csc"))

    def solve(self, right: np.ndarray) -> np.ndarray:
        """G^-1 right, (K + R, n)"""
        if not right.size:
            return right
        return self.scale[:, None] * self.factor.solve(self.scale[:, None] * right.astype(np.float64))


@numba.njit(nogil=True, cache=True)
def centre(piece: np.ndarray, bleaching: np.ndarray, mean: np.ndarray) -> None:
    """Divide bleaching (T,) out of frames (T, P) and take the mean (P,) off, in place; missing pixels become 0."""
    T, P = piece.shape
    for t in range(T):
        inverse = np.float32(1) / bleaching[t]
        for p in range(P):
            x = piece[t, p] * inverse - mean[p]
            piece[t, p] = x if np.isfinite(x) else np.float32(0)


@numba.njit(nogil=True, cache=True)
def project_cells(piece: np.ndarray, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, out: np.ndarray) -> None:
    """out[k, t] = sum over a cell's pixels of its weights times the frames (T, P); footprints as rows of a sparse matrix."""
    for t in range(piece.shape[0]):
        for k in range(len(indptr) - 1):
            total = np.float32(0)
            for i in range(indptr[k], indptr[k + 1]):
                total += data[i] * piece[t, indices[i]]
            out[k, t] = total
