"""Movies in .npy, HDF5, Zarr and NWB files: which array it is, and what the file says of it.

h5py and zarr are imported when a file asks for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sortcore.errors import RecordingError
from sortcore.optical.foreign import readable
from sortcore.optional import require

RATE_NAMES = ("fs", "fr", "frame_rate", "framerate", "fps", "rate", "sampling_rate")  # attributes of an array or its file
SERIES = ("TwoPhotonSeries", "OnePhotonSeries", "ImageSeries")  # NWB's kinds of movies


@dataclass(frozen=True)
class Found:
    """An array that may be a movie: what holds it, its name in words, frames per second and axes where the file says them."""

    source: Any
    name: str
    fs: float | None = None
    axes: str | None = None


@dataclass(frozen=True)
class NpyFile:
    """An array in C order in a .npy file, read without a memory map: what is read does not stay in memory, and a file that is cut
    short is an error, where a map would end the process."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    skip_bytes: int

    def __getitem__(self, index: tuple) -> np.ndarray:
        first = range(*index[0].indices(self.shape[0]))
        if len(first) == self.shape[0] or first.step != 1:  # along another axis: all of the file is touched, some of it is wanted
            with readable(self.path):
                return np.load(self.path, mmap_mode="r", allow_pickle=False)[index]
        row = int(np.prod(self.shape[1:]))
        with readable(self.path):
            values = np.fromfile(self.path, self.dtype, len(first) * row, offset=self.skip_bytes + first.start * row * self.dtype.itemsize)
        whole = len(values) // max(row, 1)
        return values[: whole * row].reshape(whole, *self.shape[1:])[(slice(None), *index[1:])]


@dataclass(frozen=True)
class H5Array:
    """An array of an HDF5 file, which is opened for every read, so that none stays open."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index: tuple) -> np.ndarray:
        with readable(self.path), require("h5py").File(self.path, "r") as file:
            return file[self.key][index]


def open_npy(path: Path) -> Found:
    """The array of a .npy file. Raises RecordingError where it is none, is cut short, or holds Python objects."""
    with readable(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.memmap):
        raise RecordingError(f"{path} is no .npy file of one array.")
    if not array.flags.c_contiguous or array.ndim < 2:
        return Found(array, str(path))
    return Found(NpyFile(path, array.shape, array.dtype, array.offset), str(path))


def open_h5(path: Path, key: str | None) -> Found:
    """The one array of an HDF5 file that may be a movie, or that with the name `key`."""
    h5py = require("h5py")
    arrays: dict[str, Any] = {}
    with readable(path), h5py.File(path, "r") as file:
        file.visititems(lambda name, item: arrays.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        if key is None and sum(kind_of(item) for item in arrays.values()) != 1:
            series = nwb_series(h5py, file)
            if series:
                return series_of(path, file, choose(path, series, None))
        chosen = choose(path, {name: item.shape for name, item in arrays.items() if key is not None or kind_of(item)}, key)
        item = arrays[chosen]
        fs = rate_in(*(place.attrs for place in (item, item.parent, file)))
        return Found(H5Array(path, chosen, item.shape, item.dtype), f"{path}, {chosen}", fs)


def kind_of(item: Any) -> bool:
    """Whether an array may be a movie: numbers, with three axes or more."""
    return item.dtype.kind in "iufb" and len(item.shape) >= 3


def rate_in(*attributes: Any) -> float | None:
    """Frames per second in the first attribute that has a usual name."""
    for attrs in attributes:
        for name in RATE_NAMES:
            value = attrs.get(name)
            if value is not None and np.size(value) == 1 and np.asarray(value).dtype.kind in "iuf":
                return float(np.asarray(value).ravel()[0])
    return None


def choose(path: Path, there: dict[str, Any] | Iterable[str], key: str | None) -> str:
    """The name that is meant: the given one, or the only one. `there`: names, with shapes."""
    shapes = there if isinstance(there, dict) else dict.fromkeys(there)
    told = ", ".join(f"{name} {tuple(shape) if shape is not None else ''}".strip() for name, shape in shapes.items())
    if key is not None:
        named = [name for name in shapes if name.strip("/") == key.strip("/")] or [n for n in shapes if n.rpartition("/")[2] == key]
        if len(named) == 1:
            return named[0]
        raise RecordingError(f"{path} has {'no' if not named else 'several'} {key!r}; its arrays are {told or 'none'}. Name one of them as "
                             "key (command line: --key).")
    if not shapes:
        raise RecordingError(f"{path} holds no array of three axes, so no movie. A movie is (frames, height, width).")
    if len(shapes) > 1:
        raise RecordingError(f"{path} holds several arrays that may be the movie: {told}. Name one as key (command line: --key).")
    return next(iter(shapes))


def open_nwb(path: Path, key: str | None) -> Found:
    """The movie of an NWB file: the data of a TwoPhotonSeries, or of another series of pictures. As h5py reads it."""
    h5py = require("h5py")
    with readable(path), h5py.File(path, "r") as file:
        return series_of(path, file, choose(path, nwb_series(h5py, file), key))


def nwb_series(h5py: Any, file: Any) -> dict[str, Any]:
    """Name and shape of each series of pictures in an NWB file."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        kind = item.attrs.get("neurodata_type")
        kind = kind.decode() if isinstance(kind, bytes) else kind
        if isinstance(item, h5py.Group) and kind in SERIES and "data" in item:
            found[name] = item["data"].shape

    file.visititems(visit)
    return found


def series_of(path: Path, file: Any, name: str) -> Found:
    """A series of pictures of an NWB file, with the rate of its clock."""
    group = file[name]
    data, fs = group["data"], None
    if "external_file" in group and 0 in data.shape:
        files = ", ".join(str(f.decode() if isinstance(f, bytes) else f) for f in group["external_file"][()].ravel())
        raise RecordingError(f"The frames of {name} of {path} are not in it but in {files}; give that.")
    if "starting_time" in group:
        fs = float(group["starting_time"].attrs["rate"])
    elif "timestamps" in group and len(group["timestamps"]) > 1:
        fs = float(1 / np.median(np.diff(group["timestamps"][()])))
    return Found(H5Array(path, f"{name}/data", data.shape, data.dtype), f"{path}, {name}", fs)


def open_zarr(path: Path, key: str | None) -> Found:
    """The one array of a Zarr store that may be a movie, or that with the name `key`; format 2, and 3 with zarr 3."""
    zarr = require("zarr")
    try:
        root = zarr.open(str(path), mode="r")
    except Exception as error:  # zarr has errors of its own, other ones in each version
        raise RecordingError(f"{path} cannot be read as Zarr ({type(error).__name__}: {error}); it is damaged, or of a format that zarr "
                             f"{zarr.__version__} does not know.") from error
    if hasattr(root, "shape"):
        return Found(root, str(path), rate_in(dict(root.attrs)))
    arrays = zarr_arrays(root)
    chosen = choose(path, {name: item.shape for name, item in arrays.items() if key is not None or kind_of(item)}, key)
    item = arrays[chosen]
    return Found(item, f"{path}, {chosen}", rate_in(dict(item.attrs), dict(root.attrs)))


def zarr_arrays(group: Any, prefix: str = "") -> dict[str, Any]:
    """All arrays of a Zarr group and of the groups in it, by name."""
    found = {prefix + name: item for name, item in group.arrays()}
    for name, inner in group.groups():
        found |= zarr_arrays(inner, f"{prefix}{name}/")
    return found
