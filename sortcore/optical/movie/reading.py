"""Movies of any size, read in pieces: movie[a:b] gives frames (b - a, H, W), and nothing else is ever in memory.

A movie is an array, a `.npy` file, TIFF stacks, HDF5, Zarr or NWB. Time comes first; where a file has it last and its shape tells so it
is turned, where the shape does not tell it must be said.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sortcore.errors import ConfigError, RecordingError
from sortcore.optical.movie.stores import Found, open_h5, open_npy, open_nwb, open_zarr
from sortcore.optical.movie.tiff import SUFFIXES as TIFF_SUFFIXES
from sortcore.optical.movie.tiff import numbered, open_tiff

SPACE_LETTERS = {"Y": "H", "X": "W", "F": "T"}  # other names for the same axes
LONG = 4.0  # a picture is seldom longer than so many times its width
COLOURS = (3, 4)  # values of a pixel of a colour picture
LOOKED_AT = 16  # frames that are read before work begins

KINDS = "an array, .npy, .tif (one stack, or a folder or list of them), .h5, .hdf5, .zarr and .nwb"


class Source(Protocol):
    """An array of any number of axes that may lie in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True)
class Movie:
    """A movie whose frames are read when they are asked for.

    source: what holds the values; order: its axes of time, rows and columns; fixed: (axis, index) of all its others
    fs: frames per second, None where the file does not say
    name: what was opened, in words
    """

    source: Source
    order: tuple[int, int, int]
    fixed: tuple[tuple[int, int], ...] = ()
    fs: float | None = None
    name: str = "array"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        t, h, w = (int(self.source.shape[axis]) for axis in self.order)
        return t, h, w

    @property
    def dtype(self) -> np.dtype:
        """Of the values, in this machine's byte order."""
        return np.dtype(self.source.dtype).newbyteorder("=")

    @property
    def ndim(self) -> int:
        return 3

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, frames: int | slice) -> np.ndarray:
        """Frames (n, H, W) of a slice, or one frame (H, W), as stored. Raises RecordingError where the file ends early."""
        if not isinstance(frames, slice):
            if not (isinstance(frames, (int, np.integer)) and 0 <= frames < len(self)):
                raise IndexError(f"Frames of a movie are asked for as movie[start:stop] or by a number from 0 to {len(self) - 1}, not as "
                                 f"{frames!r}.")
            return self[int(frames) : int(frames) + 1][0]
        index: list[Any] = [slice(None)] * len(self.source.shape)
        for axis, at in self.fixed:
            index[axis] = slice(at, at + 1)
        index[self.order[0]] = slice(*frames.indices(len(self)))
        values = np.asarray(self.source[tuple(index)])
        expected = len(range(*frames.indices(len(self))))
        if values.shape[self.order[0]] != expected:
            raise RecordingError(f"{self.name} ended early: {expected} frames were asked for, {values.shape[self.order[0]]} came. Was its "
                                 "file cut short meanwhile?")
        values = values.transpose(*self.order, *(axis for axis, _ in self.fixed)).reshape(expected, *self.shape[1:])
        return np.ascontiguousarray(values, dtype=self.dtype)


def open_movie(source: Any, fs: float | None = None, *, axes: str | None = None, key: str | None = None,
               channel: int | None = None) -> Movie:
    """A movie that is read in pieces.

    source: an array or anything that is sliced like one (memory map, h5py or Zarr array); or the path of a .npy, TIFF, HDF5, Zarr or NWB
        file, of a folder of numbered TIFF files, or a list of TIFF files in their order. TIFF needs tifffile, HDF5 and NWB h5py,
        Zarr zarr.
    fs: frames per second, in place of what the file says
    axes: the order of the axes, such as "THW" (time, height, width) or "HWT"; axes that have another letter must be of length 1. By
        default what the file says, or else what the shape tells: time is first, or last where only that can be a movie.
    key: which array of an HDF5, Zarr or NWB file, by its name
    channel: which one, from 0, of a TIFF stack that has several
    Raises RecordingError where there is no movie, ConfigError where something must be said, MissingPackageError where a package is
    missing.
    """
    if fs is not None and not (np.isfinite(fs) and fs > 0):
        raise ConfigError(f"fs is the number of frames per second and must be above 0, but it is {fs}.")
    if isinstance(source, Movie):
        return Movie(source.source, source.order, source.fixed, source.fs if fs is None else float(fs), source.name)
    found = find(source, key, channel)
    order, fixed = layout(found, axes)
    if found.fs is not None and not (np.isfinite(found.fs) and found.fs > 0) and fs is None:
        raise ConfigError(f"{found.name} says that its frame rate is {found.fs}, which cannot be; give fs.")
    movie = Movie(found.source, order, fixed, found.fs if fs is None else float(fs), found.name)
    check(movie)
    return movie


def require_movie_rate(movie: Movie) -> float:
    """Frames per second of a movie. Raises ConfigError where they are not known."""
    if movie.fs is None:
        raise ConfigError(f"The frame rate is not known: {movie.name} does not say it. Give it as fs (command line: --fs), in frames per "
                          "second.")
    return movie.fs


def find(source: Any, key: str | None, channel: int | None) -> Found:
    """What holds the values, by its kind."""
    if isinstance(source, (list, tuple)) and source and all(isinstance(s, (str, Path)) for s in source):
        return open_tiff([Path(s) for s in source], channel)
    if not isinstance(source, (str, Path)):
        if not all(hasattr(source, name) for name in ("shape", "dtype", "__getitem__")):
            raise RecordingError(f"A movie is {KINDS}, but this is a {type(source).__name__}.")
        return Found(source, "the array", getattr(source, "fs", None))
    path = Path(source)
    if not path.exists():
        raise RecordingError(f"There is no file or folder {path}.")
    kind = path.suffix.lower()
    if kind == ".zarr" or any((path / name).exists() for name in (".zarray", ".zgroup", "zarr.json")):
        return open_zarr(path, key)
    if path.is_dir():
        return open_tiff(numbered(path), channel, str(path))
    if kind in TIFF_SUFFIXES:
        return open_tiff([path], channel)
    if kind == ".npy":
        return open_npy(path)
    if kind in (".h5", ".hdf5"):
        return open_h5(path, key)
    if kind == ".nwb":
        return open_nwb(path, key)
    raise RecordingError(f"{path} has no known ending. A movie is {KINDS}.")


def layout(found: Found, axes: str | None) -> tuple[tuple[int, int, int], tuple[tuple[int, int], ...]]:
    """The axes of time, rows and columns, and the index along all others, which have length 1."""
    shape = tuple(int(n) for n in found.source.shape)
    if np.dtype(found.source.dtype).kind not in "iufb":
        raise RecordingError(f"{found.name} holds {found.source.dtype}; a movie holds integers or floats.")
    given = axes or found.axes
    if given is not None:
        order = order_of(given, shape, found.name, told=axes is not None)
    else:
        long = [axis for axis, n in enumerate(shape) if n != 1 or len(shape) == 3]
        if len(long) != 3:
            raise RecordingError(f"{found.name} has shape {shape}, which is no movie: {what_it_is(shape)}. A movie is (frames, height, "
                                 "width).")
        t, h, w = order_by_shape((shape[long[0]], shape[long[1]], shape[long[2]]), found.name)
        order = long[t], long[h], long[w]
    return order, tuple((axis, 0) for axis in range(len(shape)) if axis not in order)


def order_of(axes: str, shape: tuple[int, ...], name: str, told: bool) -> tuple[int, int, int]:
    """The axes of time, rows and columns in a word such as "THW"."""
    letters = "".join(SPACE_LETTERS.get(letter, letter) for letter in axes.upper())
    if len(letters) != len(shape) or any(letters.count(letter) != 1 for letter in "THW"):
        hint = f'axes="{axes}"' if told else f"The axes {axes!r} that it says it has"
        raise ConfigError(f"{name} has shape {shape}, which {hint} does not fit: there must be one letter for each axis, T (time), H "
                          '(height) and W (width) once each, e.g. axes="THW".')
    for letter, n in zip(letters, shape, strict=True):
        if letter not in "THW" and n != 1:
            raise ConfigError(f"Axis {letter} of {name} has length {n}; only time, height and width may be longer than 1. Take one part of "
                              "it, and write that to a file of its own.")
    return letters.index("T"), letters.index("H"), letters.index("W")


def order_by_shape(shape: tuple[int, int, int], name: str) -> tuple[int, int, int]:
    """Which axis is time, where the shape tells. A picture is square more often than not, and seldom long and thin.

    Raises ConfigError where either could be, RecordingError for colours.
    """
    first, middle, last = shape
    if last in COLOURS and min(first, middle) > last:
        raise RecordingError(f"{name} has shape {shape}, which looks like one picture in colour, or a movie of {last} frames with time "
                             'last. A movie has one value a pixel; if it is a movie, say axes, e.g. "HWT".')
    first_is_time, last_is_time = elongation(middle, last), elongation(first, middle)
    if middle == last or (first != middle and (first_is_time <= LONG or last_is_time > 2 * first_is_time)):
        return 0, 1, 2
    if last > first if first == middle else last_is_time <= LONG:
        warnings.warn(f"{name} has shape {shape}: time is taken to be its last axis. Say axes to have it otherwise.", stacklevel=4)
        return 2, 0, 1
    raise ConfigError(f"{name} has shape {shape}, and which axis is time cannot be told from that. Give axes (command line: --axes): "
                      '"THW" where time is first, "HWT" where it is last.')


def elongation(height: int, width: int) -> float:
    """How many times its width a picture is long."""
    return max(height, width) / max(min(height, width), 1)


def what_it_is(shape: tuple[int, ...]) -> str:
    """A guess at what an array is that is no movie, in words."""
    long = [n for n in shape if n != 1]
    if len(long) == 2:
        return "it is one picture, or traces"
    if len(long) == 4 and long[-1] in COLOURS:
        return "its pixels have colours; take one of them, or their mean"
    if len(long) > 3:
        return 'it has too many axes; take one plane and one channel of it, or say which axes are of length 1, e.g. axes="THWC"'
    return "it has too few axes"


def check(movie: Movie) -> None:
    """Raise RecordingError where there is too little of a movie."""
    T, H, W = movie.shape
    if 0 in movie.shape:
        raise RecordingError(f"{movie.name} holds no pixels: its shape is {movie.shape}. Was it written to the end?")
    if T == 1:
        raise RecordingError(f"{movie.name} has a single frame of {H} x {W} pixels; cells are told by how they change, so it takes a movie "
                             "of many.")
    if min(H, W) == 1 and T < H * W:
        raise RecordingError(f"{movie.name} has frames of {H} x {W} pixels, which is no picture. If its axes are in another order, say "
                             'axes, e.g. "HWT".')


@dataclass(frozen=True)
class Look:
    """What a few frames of a movie show: smallest and largest value, and shares of pixels that are NaN and that never change."""

    low: float
    high: float
    missing: float
    constant: float


def look(movie: Movie, n_frames: int = LOOKED_AT) -> Look:
    """Read some frames, from the first to the last, so that what is wrong is found before work begins.

    Raises RecordingError where none of them has a value, or where the file ends early.
    """
    at = np.unique(np.linspace(0, len(movie) - 1, n_frames).astype(int))
    frames = np.stack([movie[int(t)] for t in at])
    seen = np.isfinite(frames) if frames.dtype.kind == "f" else np.ones(frames.shape, bool)
    if not seen.any():
        raise RecordingError(f"{movie.name} holds no values: in each of the {len(at)} frames looked at all pixels are NaN. Was it exported "
                             "as it should be?")
    low = np.where(seen, frames, np.array(np.inf)).min(axis=0)
    high = np.where(seen, frames, np.array(-np.inf)).max(axis=0)
    return Look(float(low.min()), float(high.max()), float(1 - seen.mean()), float((low >= high).mean()))


def pieces(n_frames: int, shape: tuple[int, int], max_bytes: int = 2**26) -> Sequence[slice]:
    """Slices of frames, end to end, of which each takes at most `max_bytes` as float32."""
    size = max(1, max_bytes // max(1, 4 * shape[0] * shape[1]))
    return [slice(start, min(start + size, n_frames)) for start in range(0, n_frames, size)]
