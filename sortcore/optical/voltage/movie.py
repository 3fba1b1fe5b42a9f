"""From a voltage imaging movie to spikes: a trace for each cell, and the spikes in it.

Footprints are given, or found by the demixing of calcium movies with a kernel as short as the potential's. Traces are those of all
cells at once, with a background of smooth fields, one over every few cells' widths, whose light may do as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from sortcore.errors import ModelError
from sortcore.optical.movie.demix import DemixConfig, as_rows, find_cells
from sortcore.optical.movie.reading import open_movie, require_movie_rate
from sortcore.optical.movie.survey import survey
from sortcore.optical.movie.unmixing import resting, unmix
from sortcore.optical.voltage.detect import VoltageResult, detect_voltage_spikes
from sortcore.progress import Track, silent
from sortcore.workers import one_thread_each

DECAY_S, BIN_S = 0.02, 0.01  # of the potential below the spikes, by which cells are looked for
APART = 2.5  # distance of the background's fields in widths of a cell
LEAST_APART_PX = 8.0
CONFIG = DemixConfig(decay_s=DECAY_S)


@dataclass(frozen=True)
class VoltageCells:
    """Cells of a voltage imaging movie.

    footprints: (K, P) float32 sparse, of unit peak, P = H W; shape: (H, W)
    traces: (K, T) float32 in the movie's units, of the footprint's peak; NaN in frames that are missing
    mean_image: (H, W) float32 mean of the movie over time
    fs: frames per second
    """

    footprints: sparse.csr_array
    shape: tuple[int, int]
    traces: np.ndarray
    mean_image: np.ndarray
    fs: float


@dataclass(frozen=True)
class VoltageMovie(VoltageCells):
    """Cells of a voltage imaging movie and, in `voltage`, their spikes and potentials."""

    voltage: VoltageResult


def sort_voltage_movie(movie: Any, fs: float | None = None, footprints: np.ndarray | sparse.sparray | None = None, *,
                       config: DemixConfig = CONFIG, polarity: str = "auto", track: Track = silent) -> VoltageMovie:
    """Cells, traces and spikes of a voltage imaging movie.

    movie: frames (T, H, W), motion-corrected; an array, a memory map, a path, or what `sortcore.open_movie` gives
    fs: frames per second, where the movie does not say
    footprints: (K, H, W), or (K, H W) dense or sparse, not negative; None finds them
    polarity: the way in which spikes go, as in `detect_voltage_spikes`
    Raises RecordingError for what is no movie or holds nothing, ModelError for footprints that do not fit it, ConfigError for settings.
    """
    cells = voltage_cells(movie, fs, footprints, config=config, track=track)
    return VoltageMovie(**vars(cells), voltage=detect_voltage_spikes(cells.traces, cells.fs, polarity=polarity, track=track))


def voltage_cells(movie: Any, fs: float | None = None, footprints: np.ndarray | sparse.sparray | None = None, *,
                  config: DemixConfig = CONFIG, track: Track = silent) -> VoltageCells:
    """Cells and traces alone; arguments and errors as in `sort_voltage_movie`."""
    opened = open_movie(movie, fs)
    rate = require_movie_rate(opened)
    binned = replace(config.survey, bin_s=min(config.survey.bin_s, BIN_S))
    with one_thread_each():
        given = None if footprints is None else rows_of(footprints, opened.shape[1:])
        seen = survey(opened, rate, binned, track=track)
        if given is None:
            cells, _, left = find_cells(seen, config, track)
            given = as_rows(cells, left)
        fields = tents(seen.shape, apart(given))
        traces = unmix(opened, seen, given, fields, track=track).traces + resting(seen, given, np.zeros_like(seen.mean))[:, None]
    return VoltageCells(given, seen.shape, traces, seen.mean.reshape(seen.shape), rate)


def rows_of(footprints: np.ndarray | sparse.sparray, shape: tuple[int, int]) -> sparse.csr_array:
    """(K, P) float32 of unit peak."""
    H, W = shape
    if not sparse.issparse(footprints):
        dense = np.asarray(footprints, dtype=np.float32)
        if dense.ndim == 3 and dense.shape[1:] == (H, W):
            dense = dense.reshape(len(dense), H * W)
        footprints = sparse.csr_array(dense) if dense.ndim == 2 else dense
    if footprints.ndim != 2 or footprints.shape[1] != H * W:
        raise ModelError(f"Footprints must be (cells, {H}, {W}) or (cells, {H * W}) for this movie, but their shape is {footprints.shape}.")
    rows = sparse.csr_array(footprints, dtype=np.float32)
    peak = rows.max(axis=1).toarray().ravel() if rows.shape[0] else np.zeros(0)
    if not np.isfinite(rows.data).all() or (rows.data < 0).any() or (peak <= 0).any():
        raise ModelError("Footprints must be finite and not negative, and none of them empty.")
    return sparse.csr_array(rows.multiply(1 / peak[:, None]), dtype=np.float32)


def apart(footprints: sparse.csr_array) -> float:
    """Distance of the background's fields in pixels: a few widths of a typical cell."""
    area = np.diff(footprints.indptr)
    return max(LEAST_APART_PX, APART * 2 * float(np.sqrt(np.median(area) / np.pi))) if len(area) else LEAST_APART_PX


def tents(shape: tuple[int, int], distance: float) -> np.ndarray:
    """(R, P) float32 fields that rise to 1 at the points of a grid and fall to 0 at their neighbours; they sum to 1 everywhere."""
    along = []
    for length in shape:
        points = np.linspace(0, length - 1, max(2, round(length / distance) + 1)) if length > 1 else np.zeros(1)
        step = points[1] - points[0] if len(points) > 1 else 1.0
        along.append(np.maximum(0, 1 - np.abs(np.arange(length) - points[:, None]) / step))
    return np.einsum("ay,bx->abyx", *along).reshape(-1, shape[0] * shape[1]).astype(np.float32)
