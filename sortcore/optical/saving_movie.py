"""A sorted movie in a folder, and back.

Files are written beside their place and moved there when all are complete: a folder without movie.json is not a result. Nothing is
pickled; README.txt says what every file holds.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from sortcore.archive import FORMAT, check_format, explained, pack, read_record, staging, to_disk, to_json, write_npz, write_text
from sortcore.errors import OutputError
from sortcore.export import check_free
from sortcore.optical.records import Background, CellQuality, Demixed, MovieResult
from sortcore.optical.register import Registration
from sortcore.optical.spikes import Events
from sortcore.optional import require
from sortcore.types import Spikes
from sortcore.version import __version__

SEAL = "movie.json"
KIND = "sorted movie"
TRACES = ("traces", "denoised", "dff", "activity")  # files of their own, (K, T)
REST = ("baseline", "noise", "mean_image", "tau_rise_s", "tau_decay_s", "footprint_fit")  # arrays of demixed.npz

CELL_COLUMNS = (  # of cells.csv: field of the quality or of the demixed cells, heading, format
    ("snr", "snr", ".3f"), ("footprint_fit", "footprint_fit", ".4f"), ("overlap", "overlap", ".4f"), ("size_px", "size_px", "d"),
    ("n_spikes", "n_spikes", "d"), ("rate_hz", "rate_hz", ".4f"), ("noise", "noise", ".6g"), ("tau_rise_s", "tau_rise_s", ".4f"),
    ("tau_decay_s", "tau_decay_s", ".4f"))

README = """A movie sorted by sortcore: K cells, T frames of H x W pixels. Read it with sortcore.optical.saving_movie.load_movie(folder),
or with numpy, scipy and json alone: nothing but suite2p's own files is pickled.

footprints.npz        (K, H W) footprints, 0 or more, each with a peak of 1: scipy.sparse.load_npz(...); pictures (K, H, W) are
                      scipy.sparse.load_npz("footprints.npz").toarray().reshape(-1, H, W)
traces.npy (K, T)     fluorescence of each cell alone, in the movie's units at the footprint's peak; noise kept
denoised.npy (K, T)   what the indicator's kernel explains of it
dff.npy (K, T)        dF/F as a fraction
activity.npy (K, T)   spiking activity, in which the spikes were found
spikes.npz            one row a spike, in order of time:
  samples (S,)        frame; shifts (S,) part of a frame to be added; times_s (S,) the sum in seconds
  units (S,)          cell, 0 to K - 1
  amplitudes (S,)     in standard deviations of the trace's noise
  scores (S,)         above 0, the surer the larger
cells.csv             one row a cell: row and column of its centre (pixels), snr (largest denoised peak over the noise of a frame),
                      footprint_fit (correlation of the footprint with what the movie shows of the cell), overlap (largest cosine
                      with another footprint), size_px (pixels above a fifth of the peak), spikes and their rate, noise and baseline of
                      the trace (the movie's units), rise and decay (s)
demixed.npz           baseline, noise, mean_image (H, W), background.fields (R, H, W) and background.courses (R, T), quality.*
movie.json            frames per second, H, W, settings, seconds of each stage
shifts.csv            of a movie that was registered: displacement of the tissue in each frame (pixels), and how like the template it is
cells.nwb             all of it as NWB: plane segmentation, fluorescence, dF/F, deconvolved activity, units
suite2p/plane0        the same as suite2p writes it: F - 0.7 Fneu is traces.npy, Fneu the background at the cell, spks the activity
*.png                 pictures
"""


def save_movie(result: MovieResult, folder: str | Path, overwrite: bool = False) -> Path:
    """Save a sorted movie to a folder of its own, and return that folder. The same result gives the same bytes.

    overwrite: write into a folder that is not empty; only files of the same names are replaced
    Raises OutputError where the folder is not empty and `overwrite` is false, cannot be written, or the disk is full.
    """
    folder, demixed = Path(folder), result.demixed
    check_free(folder, overwrite)
    rest = {name: np.asarray(getattr(demixed, name)) for name in REST}
    rest |= pack(demixed.background, KIND, "background.")[0] | pack(result.quality, KIND, "quality.")[0]
    if result.activity is not demixed.activity:
        rest["demixed_activity"] = demixed.activity
    times = (result.spikes.samples + result.spikes.shifts.astype(np.float64)) / result.fs
    with staging(folder, SEAL) as stage:
        with open(stage / "footprints.npz", "wb") as file:
            sparse.save_npz(file, demixed.footprints, compressed=True)
            to_disk(file)
        for name in TRACES:
            with open(stage / f"{name}.npy", "wb") as file:
                np.save(file, getattr(result if name in ("dff", "activity") else demixed, name), allow_pickle=False)
                to_disk(file)
        write_npz(stage / "spikes.npz", pack(result.spikes, "spikes")[0] | {"times_s": times, "fs": np.array(result.fs)})
        write_npz(stage / "demixed.npz", rest)
        write_text(stage / "cells.csv", cells_table(result))
        write_text(stage / "README.txt", README)
        write_text(stage / SEAL, to_json(header(result)))
    return folder


def load_movie(folder: str | Path) -> MovieResult:
    """Read a sorted movie back: the inverse of `save_movie`, to the bit. Raises OutputError where there is none, or a damaged one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise OutputError(f"There is no folder {folder}.")
    if not (folder / SEAL).is_file():
        raise OutputError(f"{folder} is no sorted movie: it holds no {SEAL}. If saving it was interrupted, sort again.")
    with explained(folder / SEAL):
        meta = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        check_format(meta, KIND, folder / SEAL)
    spikes = read_record(Spikes, folder / "spikes.npz")
    with explained(folder):
        with open(folder / "footprints.npz", "rb") as file:
            footprints = sparse.csr_array(sparse.load_npz(file))
        traces = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in TRACES}
        with open(folder / "demixed.npz", "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        background = Background(arrays["background.fields"], arrays["background.courses"])
        quality = CellQuality(*(arrays[f"quality.{f.name}"] for f in dataclasses.fields(CellQuality)))
        demixed = Demixed(footprints, (meta["height"], meta["width"]), traces["traces"], traces["denoised"],
                          arrays.get("demixed_activity", traces["activity"]), background=background, fs=meta["fs"],
                          **{name: arrays[name] for name in REST})
        activity = traces["activity"] if "demixed_activity" in arrays else demixed.activity
        return MovieResult(demixed, traces["dff"], activity, spikes, quality, meta["config"], meta["timings_s"])


def header(result: MovieResult) -> dict[str, Any]:
    """The contents of movie.json."""
    (H, W), T = result.demixed.shape, result.demixed.n_frames
    return {"sortcore": KIND, "format": FORMAT, "fs": result.fs, "height": H, "width": W, "n_frames": T, "n_cells": result.n_cells,
            "n_spikes": len(result.spikes), "config": result.config, "timings_s": result.timings_s, "version": __version__}


def cells_table(result: MovieResult) -> str:
    """One row a cell, comma-separated."""
    lines = [",".join(["cell", "row_px", "column_px", *(heading for _, heading, _ in CELL_COLUMNS), "baseline"])]
    base = np.asarray(result.demixed.baseline)
    base = np.median(base, axis=1) if base.ndim == 2 and base.size else base.reshape(result.n_cells)
    for k in range(result.n_cells):
        row, column = result.quality.centre[k]
        values = [format(getattr(result.quality if hasattr(result.quality, name) else result.demixed, name)[k], form)
                  for name, _, form in CELL_COLUMNS]
        lines.append(",".join([str(k), f"{row:.2f}", f"{column:.2f}", *values, f"{base[k]:.6g}"]))
    return "\n".join(lines) + "\n"


def shifts_table(found: Registration) -> str:
    """One row a frame: how the tissue is displaced, comma-separated."""
    rows = zip(found.shifts, found.correlation, found.lost, strict=True)
    return "frame,rows_px,columns_px,correlation,lost\n" + "".join(
        f"{t},{shift[0]:.3f},{shift[1]:.3f},{alike:.4f},{int(lost)}\n" for t, (shift, alike, lost) in enumerate(rows))


def movie_events(result: MovieResult) -> Events:
    """The spikes of a sorted movie as events, whose sizes are their amplitudes in standard deviations of the noise."""
    spikes = result.spikes
    return Events(spikes.samples, (spikes.samples + spikes.shifts.astype(np.float64)) / result.fs, spikes.units, spikes.amplitudes,
                  np.zeros(result.n_cells))


def movie_to_pynapple(result: MovieResult, start_s: float = 0.0) -> Any:
    """The spikes of a sorted movie as a pynapple TsGroup over its time: one Ts a cell, its quality and place as metadata.

    start_s: instant of the first frame. Raises MissingPackageError without pynapple.
    """
    nap = require("pynapple")
    quality = result.quality
    metadata = {f.name: np.asarray(getattr(quality, f.name)) for f in dataclasses.fields(quality) if f.name not in ("centre", "rate_hz")}
    metadata |= {"row_px": quality.centre[:, 0], "column_px": quality.centre[:, 1]}
    support = nap.IntervalSet(start=start_s, end=start_s + result.duration_s)
    trains = {k: nap.Ts(t=np.clip(start_s + train, start_s, start_s + result.duration_s)) for k, train in enumerate(result.trains())}
    return nap.TsGroup(trains, time_support=support, metadata=metadata)
