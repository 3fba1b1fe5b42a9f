"""From a calcium movie to cells: footprints, traces and activity.

    movie(t, p) / bleaching(t) = mean(p) + sum_k footprint_k(p) (kernel_k * activity_k)(t) + sum_r field_r(p) course_r(t) + noise

This is the model of `sortcore.model` with footprints that are not negative and local, and the indicator's kernel as the profile. It is
climbed by the same coordinate ascent. One reading of the movie makes a short one of binned frames in units of their noise; in it cells
are looked for with matched filters, fitted one after the other, and what they leave is searched again; the background is learned anew
as cells become known. A second reading gives the traces of all cells at full rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse

from sortcore.optical.calcium import CalciumResult, infer_calcium
from sortcore.optical.movie.evidence import agreement, merged, needed
from sortcore.optical.movie.footprints import Cell, Kernel, Residual, fit_seed, footprint_fit, ring
from sortcore.optical.movie.reading import Movie, open_movie, require_movie_rate
from sortcore.optical.movie.records import Background, Demixed
from sortcore.optical.movie.seeds import energies, maxima, n_levels
from sortcore.optical.movie.surroundings import Surroundings, from_blocks, nothing, refined, smooth_picture, without_background
from sortcore.optical.movie.survey import Survey, SurveyConfig, survey
from sortcore.optical.movie.touching import sweep_side_by_side
from sortcore.optical.movie.unmixing import resting, unmix
from sortcore.progress import Track, silent
from sortcore.settings import Checked, setting
from sortcore.workers import one_thread_each

CLEAR = 2.0  # times the least agreement: what a cell must have before the background is known
BACKGROUND_ROUNDS = 3  # first rounds, in which the background is learned anew
FEWEST_BINS = 10
LARGEST = 1 / 5  # share of the field that a cell fills at most
BLOCK, BLOCKS = 2.0, (12.0, 120.0)  # size of the background's blocks in widths of cells; least and largest in pixels


@dataclass(frozen=True)
class DemixConfig(Checked):
    decay_s: float = setting(0.7, "rough decay of the indicator, by which cells are looked for; their own is estimated", "s", 0.01, 30.0)
    block_px: float = setting(0.0, "the background is read off blocks of this size; 0 takes it from the size of cells", "px", 0.0)
    least_energy: float = setting(60.0, "energy of the matched filter above which a cell is looked for", "", 1.0)
    agreement_sd: float = setting(10.0, "agreement of two halves of a cell's pixels that makes it one", "sd", 0.0)
    edge_sd: float = setting(2.5, "a footprint ends where it, smoothed, falls below so many sd of its noise", "sd", 0.0, 20.0)
    rounds: int = setting(6, "times that the residual is searched for more cells, at most", "", 1, 100)
    smoothing_px: float = setting(3.0, "the background's fields are smoothed over this", "px", 0.5)
    survey: SurveyConfig = field(default_factory=SurveyConfig)


CONFIG = DemixConfig()


def demix(movie: Any, fs: float | None = None, config: DemixConfig = CONFIG, *, track: Track = silent) -> Demixed:
    """Footprints, traces and activity of the cells of a calcium movie, which are found by themselves.

    movie: frames (T, H, W), motion-corrected, any real dtype, NaN where missing: an array, a memory map, a path, or what
        `sortcore.optical.movie.reading.open_movie` gives; it is read twice, in pieces
    fs: frames per second, where the movie does not say
    config: none of it needs changing
    track: progress, see `sortcore.progress`
    Raises RecordingError for what is no movie or holds nothing, ConfigError for settings and an fs out of range.
    """
    opened = open_movie(movie, fs)
    rate = require_movie_rate(opened)
    with one_thread_each():
        seen = survey(opened, rate, config.survey, track=track)
        cells, around, left = find_cells(seen, config, track)
        return at_full_rate(opened, seen, cells, around, left, config, track)


def find_cells(seen: Survey, config: DemixConfig, track: Track = silent) -> tuple[list[Cell], Surroundings, Residual]:
    """Cells and background of a surveyed movie, whose binned frames become the residual."""
    left = Residual(seen.binned, seen.noise / np.float32(np.sqrt(seen.bin_frames)), seen.shape)
    kernel = Kernel(float(np.exp(-seen.bin_frames / (seen.fs * config.decay_s))))
    cells: list[Cell] = []
    if left.z.shape[1] < FEWEST_BINS or not left.usable.any():
        return cells, nothing(left), left
    around, cells = nothing(left), new_cells(left, kernel, config, CLEAR * config.agreement_sd, LARGEST * len(left.z), local=True)
    block = block_size(cells, config)
    for i in track(range(config.rounds), "cells", config.rounds):
        if i < BACKGROUND_ROUNDS:
            around = from_blocks(left, cells, block, around)
        cells = without_background(left, cells, around, block)
        block = block_size(cells, config)
        if i <= BACKGROUND_ROUNDS:
            around = refined(left, around, config.smoothing_px, courses=i == BACKGROUND_ROUNDS)
        cells = merged(left, ascend(left, cells, kernel, config.edge_sd))
        more = new_cells(left, kernel, config, config.agreement_sd, block**2)
        cells += more
        if i >= BACKGROUND_ROUNDS and not more:
            break
    cells = ascend(left, needed(left, cells, kernel, config.edge_sd), kernel, config.edge_sd)
    cells = without_background(left, cells, around, block)
    return [cell for cell in cells if agreement(left, cell, kernel) > config.agreement_sd], around, left


def new_cells(left: Residual, kernel: Kernel, config: DemixConfig, least: float, largest: float, *, local: bool = False) -> list[Cell]:
    """Cells that the residual holds, taken off it one after the other, the clearest first.

    least: their agreement; largest: their area in pixels; local: the background is not known, and is what is around each
    """
    maps = energies(left.movie, left.usable, kernel.g, n_levels(left.shape), surround=True)
    seeds, out = maxima(maps, config.least_energy), []
    for y, x, level in zip(seeds.y, seeds.x, seeds.level, strict=True):
        around = ring(left, y, x, 2.0**level) if local else None
        cell = fit_seed(left, y, x, 2.0**level, kernel, config.edge_sd, around)
        if cell is None or cell.area > largest:
            continue
        left.take(cell)
        if agreement(left, cell, kernel, around) > least:
            out.append(cell)
        else:
            left.add(cell)
    return out


def block_size(cells: list[Cell], config: DemixConfig) -> float:
    """Side of the background's blocks in pixels: twice the width of a typical cell, where it is not given.

    Typical are those half of the cells that explain most in a pixel: what is wide and faint may yet turn out to be background.
    """
    if config.block_px or not cells:
        return config.block_px or BLOCKS[0]
    sharp = sorted(cells, key=lambda cell: -cell.gain / len(cell.pixels))[: -(-len(cells) // 2)]
    return float(np.clip(BLOCK * 2 * np.sqrt(np.median([cell.area for cell in sharp]) / np.pi), *BLOCKS))


def ascend(left: Residual, cells: list[Cell], kernel: Kernel, level: float, rounds: int = 3) -> list[Cell]:
    """Rounds of the coordinate ascent over all cells."""
    for _ in range(rounds):
        cells = sweep_side_by_side(left, cells, kernel, level)
    return cells


def at_full_rate(movie: Movie, seen: Survey, cells: list[Cell], around: Surroundings, left: Residual, config: DemixConfig,
                 track: Track) -> Demixed:
    """The record: traces from the movie itself, and their deconvolution."""
    cells = sorted(cells, key=lambda cell: -cell.gain)
    footprints = as_rows(cells, left)
    found = unmix(movie, seen, footprints, around.fields, track=track)
    smooth = smooth_picture(seen.mean, left, block_size(cells, config))
    rest = resting(seen, footprints, smooth)
    traces = found.traces + rest[:, None]
    inferred = infer_calcium(traces, seen.fs, track=track) if cells else None
    still = seen.mean - footprints.T @ rest
    background = Background(np.concatenate([still[None], around.fields]).reshape(-1, *seen.shape).astype(np.float32),
                            np.concatenate([np.ones((1, seen.n_frames), np.float32), found.courses]))
    return record(seen, footprints, traces, inferred, background, np.array([footprint_fit(left, cell) for cell in cells]))


def as_rows(cells: list[Cell], left: Residual) -> sparse.csr_array:
    """(K, P) float32 footprints in the movie's units, of unit peak."""
    weights = [cell.weights * left.noise[cell.pixels] for cell in cells]
    indptr = np.concatenate([[0], np.cumsum([len(cell.pixels) for cell in cells])]).astype(np.int64)
    data = np.concatenate([np.zeros(0), *(w / w.max() for w in weights)]).astype(np.float32)
    indices = np.concatenate([np.zeros(0, np.int64), *(cell.pixels for cell in cells)])
    return sparse.csr_array((data, indices, indptr), shape=(len(cells), len(left.z)))


def record(seen: Survey, footprints: sparse.csr_array, traces: np.ndarray, inferred: CalciumResult | None, background: Background,
           fit: np.ndarray) -> Demixed:
    """All in one."""
    none = np.zeros((0, seen.n_frames), np.float32)
    mean = seen.mean.reshape(seen.shape)
    if inferred is None:
        empty = np.zeros(0)
        return Demixed(footprints, seen.shape, none, none, none, empty, empty, mean, background, seen.fs)
    return Demixed(footprints, seen.shape, traces, inferred.calcium + inferred.baseline, inferred.activity, inferred.baseline,
                   inferred.noise, mean, background, seen.fs, inferred.tau_rise_s, inferred.tau_decay_s, fit)
