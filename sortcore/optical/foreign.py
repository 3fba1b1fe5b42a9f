"""Fluorescence that other programs extracted: suite2p, CaImAn, and NWB.

Files are opened by packages that are imported when needed (`pip install "sortcore[optical]"`), and what goes wrong in them becomes a
RecordingError that names the file, the cause and the cure.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sortcore.errors import ModelError, RecordingError
from sortcore.optional import require
from sortcore.types import Traces

CLASSES = ("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer")  # of numpy
PLAIN = {("builtins", name) for name in ("set", "frozenset", "slice", "complex", "range", "bytearray")} | {
    ("collections", "OrderedDict"), ("datetime", "datetime"), ("datetime", "date"), ("datetime", "timedelta"), ("_codecs", "encode"),
    ("pathlib", "PosixPath"), ("pathlib", "WindowsPath"), ("pathlib", "PurePosixPath"), ("pathlib", "PureWindowsPath")}


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in reading a file into a RecordingError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise RecordingError(f"There is no file {path}.") from error
    except (OSError, ValueError, EOFError, KeyError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, ModelError):
            raise RecordingError(f"{path}: {error}") from error
        raise RecordingError(f"{path} cannot be read ({type(error).__name__}: {error}); it is truncated, damaged or of another format. "
                             "Copy or export it again.") from error


def read_suite2p(folder: Path, all_rois: bool = False) -> Traces:
    """Traces of a suite2p folder: F.npy, and where they are there Fneu.npy, iscell.npy and ops.npy (its fs).

    folder: that of one plane, or the one above it, whose `combined` or only plane is taken
    all_rois: also those that iscell.npy says are no cells
    Raises RecordingError where files are missing, damaged, or do not belong together.
    """
    folder = find_plane(folder)
    with readable(folder / "F.npy"):
        values = np.load(folder / "F.npy", mmap_mode="r", allow_pickle=False)
    if values.ndim != 2:
        raise RecordingError(f"{folder / 'F.npy'} must be (ROIs, frames), but it has shape {values.shape}; run suite2p's extraction again.")
    neuropil, n_rois, keep = None, len(values), np.arange(len(values))
    if (folder / "Fneu.npy").is_file():
        with readable(folder / "Fneu.npy"):
            neuropil = np.load(folder / "Fneu.npy", mmap_mode="r", allow_pickle=False)
        if neuropil.shape != values.shape:
            raise RecordingError(f"F.npy and Fneu.npy in {folder} do not belong together: their shapes are {values.shape} and "
                                 f"{neuropil.shape}. Run suite2p's extraction again, or take Fneu.npy away.")
    if (folder / "iscell.npy").is_file() and not all_rois:
        with readable(folder / "iscell.npy"):
            is_cell = np.load(folder / "iscell.npy", allow_pickle=False)
            is_cell = is_cell.reshape(len(is_cell), -1)[:, 0]
        if len(is_cell) != len(values):
            raise RecordingError(f"iscell.npy in {folder} is of {len(is_cell)} ROIs, F.npy of {len(values)}. Run suite2p's classifier "
                                 "again, or take iscell.npy away.")
        keep = np.flatnonzero(is_cell)
    if len(keep) < len(values):
        values, neuropil = values[keep], None if neuropil is None else neuropil[keep]
    return Traces(values, suite2p_rate(folder / "ops.npy"), neuropil,
                  tuple(str(k) for k in keep), f"suite2p, {len(keep)} of {n_rois} ROIs")


def find_plane(folder: Path) -> Path:
    """The folder that holds F.npy."""
    if (folder / "F.npy").is_file():
        return folder
    above = folder / "suite2p" if (folder / "suite2p").is_dir() else folder
    planes = sorted(p.parent for p in above.glob("*/F.npy"))
    combined = [p for p in planes if p.name == "combined"]
    if len(combined or planes) == 1:
        return (combined or planes)[0]
    if planes:
        raise RecordingError(f"{above} holds several planes ({', '.join(p.name for p in planes)}); give the folder of one of them.")
    raise RecordingError(f"{folder} is no suite2p folder: it holds no F.npy, and none is one folder below.")


def suite2p_rate(path: Path) -> float | None:
    """fs of an ops.npy, None where there is none."""
    if not path.is_file():
        return None
    with readable(path), open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        reader(file)
        ops = DataUnpickler(file).load()
        ops = ops.item() if isinstance(ops, np.ndarray) else ops
        return float(ops["fs"]) if "fs" in ops else None


class DataUnpickler(pickle.Unpickler):
    """Reads a pickle that holds nothing but data: arrays, numbers, text, dates, paths. It runs no code that the file names."""

    def find_class(self, module: str, name: str) -> Any:
        of_numpy = module.partition(".")[0] == "numpy" and (name in CLASSES or (module == "numpy" and names_a_number(name)))
        if of_numpy or (module, name) in PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no plain data")


def names_a_number(name: str) -> bool:
    """Whether numpy.name is a type of numbers."""
    kind = getattr(np, name, None)
    return isinstance(kind, type) and issubclass(kind, np.generic)


def read_caiman(path: Path, key: str | None = None, all_rois: bool = False) -> Traces:
    """Traces of CaImAn's HDF5: estimates/F_dff where it was computed, otherwise C + YrA, otherwise C.

    key: another array of `estimates`; all_rois: also those that idx_components leaves out
    Raises RecordingError where the file is no result of CaImAn, or damaged.
    """
    h5py = require("h5py")
    with readable(path), h5py.File(path, "r") as file:
        if "estimates" not in file:
            raise RecordingError(f"{path} is no result of CaImAn: it holds {', '.join(file) or 'nothing'}, but no `estimates`.")
        estimates = file["estimates"]

        def array(name: str) -> np.ndarray | None:
            item = estimates.get(name)  # None is stored as text
            return item[()].astype(np.float64) if isinstance(item, h5py.Dataset) and item.ndim == 2 else None

        values = array(key) if key else array("F_dff")
        name = key or "F_dff"
        if values is None and key is None:
            values, residual, name = array("C"), array("YrA"), "C"
            if values is not None and residual is not None and residual.shape == values.shape:
                values, name = values + residual, "C + YrA"
        if values is None:
            there = [n for n in estimates if array(n) is not None]
            raise RecordingError(f"{path} has no traces estimates/{key or 'C'}; its arrays are {', '.join(there) or 'none'}. "
                                 "Name one as key.")
        fr = file.get("params/data/fr")
        fs = float(fr[()]) if isinstance(fr, h5py.Dataset) and fr.ndim == 0 and fr.dtype.kind in "iuf" else None
        good = estimates.get("idx_components")
        indexed = isinstance(good, h5py.Dataset) and good.ndim == 1 and not all_rois
        keep = good[()].astype(np.int64) if indexed else np.arange(len(values))
        if len(keep) and keep.max() >= len(values):
            raise RecordingError(f"idx_components of {path} names component {keep.max()}, but {name} has {len(values)}.")
        return Traces(values[keep], fs, None, tuple(str(k) for k in keep), f"CaImAn, {name}, {len(keep)} of {len(values)} components")


def read_nwb(path: Path, key: str | None = None) -> Traces:
    """Traces of an NWB file: a RoiResponseSeries, (frames, ROIs) there.

    key: name of the series; by default dF/F where there is one, otherwise the only one that is no neuropil
    Raises RecordingError where there is none, or several and no key.
    """
    pynwb = require("pynwb")
    with readable(path), pynwb.NWBHDF5IO(str(path), "r") as io:
        series = {item.object_id: item for item in io.read().objects.values() if isinstance(item, pynwb.ophys.RoiResponseSeries)}
        around = [s for s in series.values() if "neuropil" in f"{s.parent.name} {s.name}".lower()]
        chosen = choose_series([s for s in series.values() if s not in around], around, key, path)
        values = np.atleast_2d(np.asarray(chosen.data[()], dtype=np.float64).T)
        n_rois = len(chosen.rois.data) if chosen.rois is not None else len(values)
        if len(values) != n_rois:
            raise RecordingError(f"Series {chosen.name} of {path} is of {len(values)} traces, but names {n_rois} ROIs; an NWB series must "
                                 "be (frames, ROIs). Write it again.")
        others = [np.atleast_2d(np.asarray(s.data[()], dtype=np.float64).T) for s in around if s is not chosen]
        neuropil = others[0] if len(others) == 1 and others[0].shape == values.shape else None
        names = tuple(str(r) for r in chosen.rois.data[:]) if chosen.rois is not None else ()
        return Traces(values, nwb_rate(chosen), neuropil, names, f"NWB, {chosen.parent.name}/{chosen.name}")


def choose_series(series: list, around: list, key: str | None, path: Path) -> Any:
    """The series with a name, or the one that is meant."""
    known = ", ".join(f"{s.parent.name}/{s.name}" for s in series + around)
    if not series and not around:
        raise RecordingError(f"{path} holds no RoiResponseSeries, so no traces. Extract traces from the movie first.")
    if key is not None:
        named = [s for s in series + around if key in (s.name, f"{s.parent.name}/{s.name}")]
        if len(named) == 1:
            return named[0]
        raise RecordingError(f"{path} has {len(named)} series {key!r}; there are {known}. Name one of them.")
    relative = [s for s in series if s.parent.neurodata_type == "DfOverF"]
    for some in (relative, series):
        if len(some) == 1:
            return some[0]
    raise RecordingError(f"{path} holds several series of traces: {known}. Name one of them as key.")


def nwb_rate(series: Any) -> float | None:
    """Frames per second of a series, from its rate or its timestamps."""
    if series.rate is not None:
        return float(series.rate)
    times = None if series.timestamps is None else np.asarray(series.timestamps[()], dtype=np.float64)
    return None if times is None or len(times) < 2 else float(1 / np.median(np.diff(times)))
