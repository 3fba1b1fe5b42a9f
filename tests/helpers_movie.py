"""A sorted movie as it should come out: planted cells, given to the records by hand."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from sortcore.optical.quality import cell_quality
from sortcore.optical.records import Background, Demixed, MovieResult
from sortcore.optical.simulate_movie import MovieSimulation, simulate_movie
from sortcore.types import Spikes

FS = 20.0


def planted_result(n_cells: int = 4, seconds: float = 20.0, seed: int = 0, made: MovieSimulation | None = None) -> MovieResult:
    """The result that a perfect demixing of a simulated movie would give."""
    made = made or simulate_movie(n_cells, seconds, FS, (30, 42), seed=seed)
    K, (T, H, W) = n_cells, made.movie.shape
    rng = np.random.default_rng(seed)
    light = (made.brightness[:, None] * (1 + made.dff)).astype(np.float32)
    traces = light + rng.standard_normal(light.shape).astype(np.float32)
    activity = (made.counts * 0.2 * made.brightness[:, None]).astype(np.float32)
    fit = np.linspace(0.7, 0.99, K)
    background = Background(np.ones((1, H, W), np.float32), 100 + np.sin(np.arange(T) / 9).astype(np.float32)[None])
    demixed = Demixed(sparse.csr_array(made.footprints.reshape(K, H * W)), (H, W), traces, light, activity, made.brightness.copy(),
                      np.ones(K), made.movie.mean(axis=0).astype(np.float32), background, made.fs, np.full(K, 0.05), np.full(K, 0.6), fit)
    frames, cells = np.nonzero(made.counts.T)
    S = len(frames)
    spikes = Spikes(frames, np.full(S, 0.25, np.float32), cells, activity[cells, frames], np.ones(S, np.float32))
    return MovieResult(demixed, ((traces - made.brightness[:, None]) / made.brightness[:, None]).astype(np.float32), activity, spikes,
                       cell_quality(demixed, spikes), {"fs": made.fs}, {"demix": 1.0})
