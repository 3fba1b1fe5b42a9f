"""Numbers that tell good cells of a movie from doubtful ones."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from sortcore.optical.movie.records import CellQuality, Demixed
from sortcore.types import Spikes

EDGE = 0.2  # of its peak, down to which a pixel counts as the cell's


def cell_quality(demixed: Demixed, spikes: Spikes) -> CellQuality:
    """The quality of each cell of a movie, from its footprint, its trace and its spikes; see `CellQuality`."""
    K, T = demixed.traces.shape
    counts = np.bincount(spikes.units, minlength=K).astype(np.int64)
    level = demixed.baseline if np.ndim(demixed.baseline) == 2 else np.reshape(demixed.baseline, (K, 1))
    height = np.max(demixed.denoised - level, axis=1) if T else np.zeros(K)
    snr = height / np.where(demixed.noise > 0, demixed.noise, np.inf)
    return CellQuality(snr, np.asarray(demixed.footprint_fit, np.float64), overlaps(demixed.footprints),
                       centres(demixed.footprints, demixed.shape), sizes(demixed.footprints), counts, counts * demixed.fs / max(T, 1))


def overlaps(footprints: sparse.csr_array) -> np.ndarray:
    """(K,) largest cosine of each footprint (K, P) with another; 0 for one that touches no other."""
    norms = np.sqrt(np.asarray(footprints.multiply(footprints).sum(axis=1)).ravel())
    unit = sparse.diags_array(1 / np.maximum(norms, 1e-12)) @ footprints
    cosines = sparse.csr_array(unit @ unit.T)
    cosines.setdiag(0)
    return np.clip(np.asarray(cosines.max(axis=1).toarray(), np.float64).ravel(), 0, 1) if len(norms) else np.zeros(0)


def centres(footprints: sparse.csr_array, shape: tuple[int, int]) -> np.ndarray:
    """(K, 2) row and column of the centre of mass of footprints (K, H W)."""
    rows, columns = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    mass = np.maximum(np.asarray(footprints.sum(axis=1)).ravel(), 1e-12)
    return np.stack([(footprints @ rows) / mass, (footprints @ columns) / mass], axis=1).astype(np.float64)


def sizes(footprints: sparse.csr_array) -> np.ndarray:
    """(K,) pixels above a fifth of the peak, which is 1."""
    return np.bincount(np.repeat(np.arange(footprints.shape[0]), np.diff(footprints.indptr)), footprints.data > EDGE,
                       minlength=footprints.shape[0]).astype(np.int64)
