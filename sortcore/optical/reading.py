"""Fluorescence traces from files: .npy, .npz, .csv, suite2p folders, CaImAn HDF5 and NWB."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from sortcore.errors import ConfigError, RecordingError
from sortcore.optical.foreign import read_caiman, read_nwb, read_suite2p, readable
from sortcore.types import Traces

TRACE_KEYS = ("traces", "dff", "dFF", "dfof", "F_dff", "F", "fluorescence", "C")
NEUROPIL_KEYS = ("neuropil", "Fneu")
RATE_KEYS = ("fs", "frame_rate", "fps", "rate")
TIME_COLUMNS = ("time", "times", "t", "time_s", "seconds", "s")
CLEARLY_LONGER = 2  # the longer axis of an array is time if it is so many times the other


def read_traces(path: str | Path, fs: float | None = None, *, time_axis: int | None = None, key: str | None = None,
                all_rois: bool = False) -> Traces:
    """Read traces (K, T) with what the file says of them; of .npy and suite2p as memory maps, so that they need not fit in memory.

    fs: frames per second, in place of what the file says
    time_axis: 0 where a .npy, .npz or .csv has a row for each frame, 1 where it has one for each cell; by default the axis
        that is clearly longer. suite2p, CaImAn and NWB have an order of their own.
    key: which array of an .npz, CaImAn or NWB file, by name
    all_rois: of suite2p and CaImAn, also the ROIs that they took for no cells
    Raises RecordingError where the file cannot be read or does not hold traces, ConfigError where something must be said,
    MissingPackageError where a package is missing.
    """
    path = Path(path)
    if fs is not None and not (np.isfinite(fs) and fs > 0):
        raise ConfigError(f"fs is the number of frames per second and must be above 0, but it is {fs}.")
    if time_axis not in (None, 0, 1):
        raise ConfigError(f"time_axis must be 0 (a row for each frame) or 1 (a row for each cell), but it is {time_axis!r}.")
    if not path.exists():
        raise RecordingError(f"There is no file or folder {path}.")
    kind = path.suffix.lower()
    if path.is_dir():
        found = read_suite2p(path, all_rois)
    elif kind == ".npy":
        found = read_npy(path, time_axis)
    elif kind == ".npz":
        found = read_npz(path, time_axis, key)
    elif kind in (".csv", ".tsv"):
        found = read_csv(path, time_axis)
    elif kind in (".h5", ".hdf5"):
        found = read_caiman(path, key, all_rois)
    elif kind == ".nwb":
        found = read_nwb(path, key)
    else:
        raise RecordingError(f"{path} has no known ending. Traces are read from .npy, .npz, .csv, .tsv, .nwb, CaImAn's .hdf5, and "
                             "suite2p folders.")
    if found.fs is not None and not (np.isfinite(found.fs) and found.fs > 0) and fs is None:
        raise ConfigError(f"{path} says that its frame rate is {found.fs}, which cannot be; give fs.")
    return Traces(found.values, found.fs if fs is None else float(fs), found.neuropil, found.names, found.source)


def require_rate(traces: Traces) -> float:
    """Frames per second of traces. Raises ConfigError where they are not known."""
    if traces.fs is None:
        raise ConfigError(f"The frame rate is not known: {traces.source} does not say it. Give it as fs (command line: --fs), in "
                          "frames per second.")
    return traces.fs


def read_npy(path: Path, time_axis: int | None) -> Traces:
    """Traces of one array."""
    if path.name == "F.npy" and (path.parent / "Fneu.npy").is_file():
        return read_suite2p(path.parent)
    with readable(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    return Traces(oriented(array, path, time_axis), source=".npy")


def read_npz(path: Path, time_axis: int | None, key: str | None) -> Traces:
    """Traces of one array of several, with fs and neuropil where they have a usual name."""
    with readable(path), open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        names = list(file.files)
        wide = [n for n in names if file[n].ndim == 2 and n not in NEUROPIL_KEYS]
        known = [n for n in TRACE_KEYS if n in names]
        chosen = key or (known[0] if known else wide[0] if len(wide) == 1 else None)
        if chosen not in names:
            raise RecordingError(f"{path} holds {', '.join(names) or 'nothing'}; which of them are the traces is not clear. Name it "
                                 "as key.")
        values = oriented(file[chosen], path, time_axis)
        rate = next((float(file[n]) for n in RATE_KEYS if n in names and file[n].size == 1), None)
        around = next((file[n] for n in NEUROPIL_KEYS if n in names and n != chosen), None)
        turned = file[chosen].shape != values.shape
        neuropil = None if around is None else (around.T if turned else around).reshape(values.shape)
    return Traces(values, rate, neuropil, source=f".npz, {chosen}")


def read_csv(path: Path, time_axis: int | None) -> Traces:
    """Traces of a table, whose first row may name the columns; a column of times gives fs."""
    with readable(path):
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            separator = max(",;\t", key=first.count)
            head = next(csv.reader([first], delimiter=separator), [])
        named = any(not is_number(cell) for cell in head)
        rows = np.genfromtxt(path, delimiter=separator, skip_header=int(named), dtype=np.float64, ndmin=2, encoding="utf-8-sig") \
            if path.stat().st_size > len(first.encode()) * named else np.zeros((0, len(head)))
    rate, names = None, [cell.strip() for cell in head] if named else []
    timed = [i for i, name in enumerate(names) if name.lower() in TIME_COLUMNS]
    if timed and len(rows) > 1:
        steps = np.diff(rows[:, timed[0]])
        rate = float(1 / np.median(steps)) if np.nanmin(steps) > 0 else None
        rows, names = np.delete(rows, timed[0], axis=1), [n for i, n in enumerate(names) if i != timed[0]]
    values = oriented(rows, path, 0 if named and time_axis is None else time_axis)
    return Traces(values, rate, names=tuple(names) if len(names) == len(values) else (), source="table")


def is_number(text: str) -> bool:
    """Whether a cell of a table is a number, or empty."""
    try:
        float(text.strip() or "nan")
    except ValueError:
        return False
    return True


def oriented(array: np.ndarray, path: Path, time_axis: int | None) -> np.ndarray:
    """(K, T) of an array (T,), (K, T) or (T, K): a view, so that what is mapped from a file stays there."""
    if array.dtype.kind not in "iufb" or array.ndim not in (1, 2):
        raise RecordingError(f"{path} holds an array of {array.dtype} and shape {array.shape}; traces are numbers, (cells, frames), "
                             "(frames, cells), or (frames,) of one cell.")
    if array.size == 0:
        raise RecordingError(f"{path} holds no numbers: its shape is {array.shape}. Was it written to the end?")
    if array.ndim == 1:
        return array[None]
    if time_axis is None:
        short, long = sorted(array.shape)
        if short > 1 and long < CLEARLY_LONGER * short:
            raise ConfigError(f"{path} has shape {array.shape}, and which axis is time cannot be told from that. Give time_axis: 0 where "
                              "each row is a frame, 1 where each row is a cell.")
        time_axis = int(np.argmax(array.shape))
    return array.T if time_axis == 0 else array
