"""What the command `sortcore voltage` does: voltage traces from a file to spikes in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import sparse

from sortcore.errors import RecordingError
from sortcore.optical.reading import read_traces, require_rate
from sortcore.optical.voltage.detect import detect_voltage_spikes
from sortcore.optical.voltage.movie import VoltageCells, voltage_cells
from sortcore.optical.voltage.plots import plot_voltage, plot_voltage_cells
from sortcore.optical.voltage.saving import save_voltage, voltage_to_nwb, write_estimates_csv, write_spikes_csv
from sortcore.plots import save_figure
from sortcore.progress import bars, silent
from sorters.outputs import output_folder

DRAWN, SHOWN_S, DPI = 8, 5.0, 120


def detect_in_file(path: Path, fs: float | None, out: Path, *, movie: bool, footprints: Path | None, method: str, polarity: str,
                   false_alarms: float | None, nwb: bool, overwrite: bool, quiet: bool) -> str:
    """Find the spikes in the traces of a file, or of a movie's cells, and write them into a folder; what to say of it.

    fs: frames per second, where the file does not say; footprints: file with those of a movie's cells, which are found if not given
    method: "filter", "network" or "auto"; polarity: "up", "down" or "auto"
    false_alarms: rate in Hz at which noise alone may pass for a spike; None balances precision and recall
    """
    track = silent if quiet else bars
    given = None if footprints is None else read_footprints(footprints)
    cells = voltage_cells(path, fs, given, track=track) if movie or footprints else None
    if cells is None:
        read = read_traces(path, fs)
        values, names, fs = read.values, read.names, require_rate(read)
    else:
        values, names, fs = cells.traces, tuple(f"cell {k}" for k in range(len(cells.traces))), cells.fs
    with output_folder(out, overwrite) as folder:
        result = detect_voltage_spikes(values, fs, method=method, polarity=polarity, false_alarm_hz=false_alarms, track=track)
        if cells is not None:
            save_cells(cells, folder / "cells.npz")
            save_figure(plot_voltage_cells(cells), folder / "cells.png", DPI)
        save_voltage(result, folder / "voltage.npz")
        write_spikes_csv(result, folder / "spikes.csv")
        write_estimates_csv(result, folder / "estimates.csv")
        if nwb:
            voltage_to_nwb(result, folder / "voltage.nwb")
        busiest = np.argsort(-np.bincount(result.spikes.units, minlength=len(values)), kind="stable")[:DRAWN]
        figure = plot_voltage(values, result, shown=np.sort(busiest).tolist(), names=names,
                              span_s=(0.0, min(SHOWN_S, values.shape[1] / fs)))
        save_figure(figure, folder / "traces.png", DPI)
    way = "up" if result.polarity > 0 else "down"
    what = "traces" if cells is None else "cells"
    found = f"{values.shape[0]} {what} of {values.shape[1]} frames: {len(result.spikes)} spikes, which go {way}"
    if len(result.spikes):
        found += (f"; detectability {np.nanmedian(result.detectability):.1f}, expected precision {np.nanmedian(result.precision):.2f} and "
                  f"recall {np.nanmedian(result.recall):.2f} (medians)")
    return f"{found}. Results are in {out}."


def read_footprints(path: Path) -> np.ndarray | sparse.sparray:
    """Footprints from .npy or .npz (dense, or as scipy saves sparse ones). Raises RecordingError where there are none."""
    try:
        loaded = np.load(path)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if "footprints" in loaded:
                return loaded["footprints"]
        return sparse.csr_array(sparse.load_npz(path))
    except (OSError, ValueError, KeyError) as error:
        raise RecordingError(f"{path} holds no footprints ({error}). Give .npy or .npz with footprints (cells, height, width), "
                             "or a sparse matrix as scipy.sparse.save_npz writes it.") from error


def save_cells(cells: VoltageCells, path: Path) -> None:
    """cells.npz: footprints (K, H, W) of unit peak, traces (K, T), mean_image (H, W) and fs."""
    np.savez_compressed(path, footprints=cells.footprints.toarray().reshape(-1, *cells.shape), traces=cells.traces,
                        mean_image=cells.mean_image, fs=cells.fs)
