"""What the command `sortcore movie` does: a calcium movie from a file to cells and spikes in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sortcore.archive import write_text, writing
from sortcore.errors import MissingPackageError
from sortcore.optical.movies import Movie, look, open_movie, require_movie_rate
from sortcore.optical.nwb_movie import save_movie_nwb
from sortcore.optical.plots_movie import save_movie_pictures
from sortcore.optical.records import MovieResult
from sortcore.optical.register import Registration, estimate_motion, registered
from sortcore.optical.saving_movie import save_movie, shifts_table
from sortcore.optical.suite2p import save_suite2p
from sortcore.optional import require
from sortcore.progress import bars, silent
from sorters.console import say
from sorters.outputs import output_folder
from sorters.summary import MAX_ROWS, ending, table

SHIFTS = "shifts.csv"


@dataclass(frozen=True)
class Wanted:
    """What is to be done beside the sorting. nwb: None where it is wanted only if pynwb is there."""

    register: bool = False
    nwb: bool | None = None
    suite2p: bool = True
    report: bool = True


def sort_movie_file(path: Path, out: Path, fs: float | None = None, *, axes: str | None = None, key: str | None = None,
                    channel: int | None = None, decay_s: float | None = None, wanted: Wanted | None = None, overwrite: bool = False,
                    quiet: bool = False) -> str:
    """Sort the movie of a file or folder into a folder; what to say of it. Arguments as those of the command."""
    from sortcore.optical.demix import DemixConfig
    from sortcore.optical.sort_movie import MovieConfig, sort_movie

    wanted, track = wanted or Wanted(), silent if quiet else bars
    config = MovieConfig(demix=DemixConfig() if decay_s is None else DemixConfig(decay_s=decay_s))
    movie = open_movie(path, fs, axes=axes, key=key, channel=channel)
    rate = require_movie_rate(movie)
    for package, asked in (("skimage", wanted.register), ("pynwb", wanted.nwb)):
        if asked:
            require(package)
    say(plan(movie, rate, out))
    with output_folder(out, overwrite) as folder:
        motion = estimate_motion(movie, track=track) if wanted.register else None
        result = sort_movie(movie if motion is None else registered(movie, motion), rate, config, track=track)
        files = save_all(result, folder, motion, wanted)
    return movie_summary(result, files)


def plan(movie: Movie, fs: float, out: Path) -> str:
    """What will be sorted, and where to, in words."""
    T, H, W = movie.shape
    seen = look(movie)
    odd = [f"{100 * share:.0f} % of them {what}" for share, what in ((seen.missing, "NaN"), (seen.constant, "never changing")) if share > 0]
    return (f"Sorting {movie.name}:\n{T:,} frames of {H} x {W} pixels, {movie.dtype}, {T / fs:.1f} s at {fs:g} frames per second.\n"
            f"Values from {seen.low:g} to {seen.high:g}{', pixels ' if odd else ''}{' and '.join(odd)}. The result goes to {out}.")


def save_all(result: MovieResult, folder: Path, motion: Registration | None, wanted: Wanted) -> list[tuple[str, Path]]:
    """Write what is wanted; returns what lies where."""
    files = [("Result", save_movie(result, folder, overwrite=True))]
    (folder / SHIFTS).unlink(missing_ok=True)
    if motion is not None:
        with writing(folder / SHIFTS):
            write_text(folder / SHIFTS, shifts_table(motion))
        files.append(("Motion", folder / SHIFTS))
    if wanted.nwb is not False:
        try:
            files.append(("NWB", save_movie_nwb(result, folder / "cells.nwb")))
        except MissingPackageError as error:
            say(f"No NWB file is written. {error}", error=True)
    if wanted.suite2p:
        files.append(("suite2p", save_suite2p(result, folder)))
    if wanted.report:
        files += [("Picture", path) for path in save_movie_pictures(result, folder, motion)]
    return files


def movie_summary(result: MovieResult, files: Sequence[tuple[str, Path]] = ()) -> str:
    """What was found: totals, one row a cell, the seconds of each stage, and where the files are."""
    lines = ["", f"{result.n_cells} cells, {len(result.spikes)} spikes in {result.duration_s:.1f} s."]
    lines += ["", cell_table(result)] if result.n_cells else ["No cell was found: nothing local changed as an indicator would."]
    return "\n".join([*lines, *ending(result.timings_s, result.duration_s, files)])


def cell_table(result: MovieResult) -> str:
    """One row a cell, the first 60 of them."""
    quality, demixed = result.quality, result.demixed
    header = ["cell", "row", "column", "pixels", "spikes", "rate Hz", "SNR", "fit", "overlap", "decay s"]
    rows = [[k, f"{quality.centre[k, 0]:.0f}", f"{quality.centre[k, 1]:.0f}", int(quality.size_px[k]), int(quality.n_spikes[k]),
             f"{quality.rate_hz[k]:.2f}", f"{quality.snr[k]:.1f}", f"{quality.footprint_fit[k]:.2f}", f"{quality.overlap[k]:.2f}",
             f"{demixed.tau_decay_s[k]:.2f}"] for k in range(min(result.n_cells, MAX_ROWS))]
    more = f"\n... and {result.n_cells - MAX_ROWS} more, in cells.csv" if result.n_cells > MAX_ROWS else ""
    return table(header, rows) + more


def to_spikeinterface(result: MovieResult) -> Any:
    """The spikes of a sorted movie as a SpikeInterface sorting at the movie's frame rate; quality and place are properties.

    A spike's time is its frame; what it has of a part of a frame is left out, as SpikeInterface counts samples.
    """
    from spikeinterface import NumpySorting

    sorting = NumpySorting.from_samples_and_labels([result.spikes.samples], [result.spikes.units], sampling_frequency=result.fs,
                                                   unit_ids=np.arange(result.n_cells))
    for f in fields(result.quality):
        if result.n_cells:
            sorting.set_property(f.name, np.asarray(getattr(result.quality, f.name)))
    return sorting
