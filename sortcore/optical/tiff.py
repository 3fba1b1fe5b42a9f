"""TIFF stacks: one file of many pages, or numbered files that follow each other, in pieces. Needs tifffile.

Pages that are stored plainly are read by their place in the file, all others are decoded by tifffile.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from sortcore.errors import ConfigError, MissingPackageError, RecordingError
from sortcore.optical.foreign import readable
from sortcore.optical.stores import Found
from sortcore.optional import require

SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
BROKEN = ("invalid page offset", "corrupted", "truncated", "invalid value offset")  # words of tifffile for a file that is cut short
SECONDS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "µs": 1e-6, "min": 60.0}


@dataclass(frozen=True)
class Pages:
    """The pages of one file that are frames, in order.

    places: (n,) byte where each begins if they are stored plainly, otherwise its number in the file
    """

    path: Path
    plain: bool
    places: np.ndarray
    shape: tuple[int, int]
    dtype: np.dtype
    fs: float | None

    def read(self, wanted: np.ndarray) -> np.ndarray:
        """(n, H, W) some of the frames, by their index here."""
        if not self.plain:
            with readable(self.path), complaints(self.path), decoding(self.path), require("tifffile").TiffFile(self.path) as file:
                return file.asarray(key=self.places[wanted].tolist(), maxworkers=1).reshape(len(wanted), *self.shape)
        out = np.empty((len(wanted), *self.shape), self.dtype)
        with readable(self.path), open(self.path, "rb") as file:
            for i, place in enumerate(self.places[wanted]):
                file.seek(place)
                if file.readinto(memoryview(out[i]).cast("B")) != out[i].nbytes:
                    raise RecordingError(f"{self.path} ended early, in a frame. Was it cut short meanwhile?")
        return out


@dataclass(frozen=True)
class TiffStack:
    """Frames of one or more files, end to end: (T, H, W)."""

    files: tuple[Pages, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (sum(len(file.places) for file in self.files), *self.files[0].shape)

    @property
    def dtype(self) -> np.dtype:
        return self.files[0].dtype

    def __getitem__(self, index: tuple) -> np.ndarray:
        ends = np.cumsum([len(file.places) for file in self.files])
        frames = np.arange(ends[-1])[index[0]]
        owner = np.searchsorted(ends, frames, side="right")
        parts = [np.zeros((0, *self.shape[1:]), self.dtype)]
        for i in np.unique(owner):
            parts.append(self.files[i].read(frames[owner == i] - (ends[i - 1] if i else 0)))
        return (parts[1] if len(parts) == 2 else np.concatenate(parts))[(slice(None), *index[1:])]


def numbered(folder: Path) -> list[Path]:
    """The TIFF files of a folder in the order of their numbers: 2 before 10."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not found:
        raise RecordingError(f"The folder {folder} holds no TIFF files and is no Zarr store, so no movie.")
    return sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)])


def open_tiff(paths: Sequence[Path], channel: int | None = None, name: str | None = None) -> Found:
    """One movie of TIFF files that follow each other. Raises RecordingError where they are no movie or do not fit together."""
    if channel is not None and channel < 0:
        raise ConfigError(f"channel is counted from 0, but it is {channel}.")
    files = [read_pages(path, channel) for path in paths]
    for file in files:
        if (file.shape, file.dtype) != (files[0].shape, files[0].dtype):
            raise RecordingError(f"{file.path} has frames of {size_of(file)}, but {files[0].path} of {size_of(files[0])}; they are no "
                                 "one movie.")
    told = name or str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    return Found(TiffStack(tuple(files)), told, next((file.fs for file in files if file.fs is not None), None), "THW")


def size_of(file: Pages) -> str:
    return f"{file.shape[0]} x {file.shape[1]} {file.dtype}"


def read_pages(path: Path, channel: int | None) -> Pages:
    """Where the frames of a file are."""
    tifffile = require("tifffile")
    if not path.is_file():
        raise RecordingError(f"There is no file {path}.")
    with readable(path), complaints(path), open_alone(tifffile, path) as file:
        series = max(file.series, key=lambda s: s.size)
        lead = frame_axes(path, series)
        chosen = pick(path, lead, channel)
        fs = tiff_rate(file)
        dtype = np.dtype(series.dtype).newbyteorder(file.byteorder)
        shape = series.shape[-2], series.shape[-1]
        bytes_each = int(np.prod(shape)) * dtype.itemsize
        if series.dataoffset is not None:
            places, plain = series.dataoffset + bytes_each * np.arange(chosen.size_all), True
            end = int(places[-1]) + bytes_each
        else:
            pages = list(series.pages)
            if len(pages) != chosen.size_all or any(page is None for page in pages):
                raise RecordingError(f"{path} has {len(pages)} pages where its description tells of {chosen.size_all}; it is cut short or "
                                     "one of several files. Give all of them as a list, or export it again.")
            plain = bool(pages[0].is_contiguous) and pages[0].compression == 1 and dtype.itemsize * 8 == pages[0].bitspersample
            places = np.array([page.dataoffsets[0] if plain else page.index for page in pages], dtype=np.int64)
            end = max(max(p.dataoffsets[i] + p.databytecounts[i] for i in range(len(p.dataoffsets))) for p in pages)
        if end > path.stat().st_size:
            raise RecordingError(f"{path} is cut short: its frames take {end} bytes, but it has {path.stat().st_size}. Copy or export it "
                                 "again.")
    return Pages(path, plain, places[chosen.wanted], shape, dtype, fs)


@contextmanager
def open_alone(tifffile: Any, path: Path) -> Iterator[Any]:
    """The open file, and where it is one of several of an OME data set, without the others: these are given as files of their own."""
    with tifffile.TiffFile(path) as file:
        if not any(series.is_multifile for series in file.series):
            yield file
            return
    with tifffile.TiffFile(path, is_ome=False) as file:
        yield file


@dataclass(frozen=True)
class Chosen:
    """Which of the pages of a file are wanted."""

    wanted: np.ndarray
    size_all: int


def frame_axes(path: Path, series: Any) -> list[tuple[str, int]]:
    """The axes of a series before height and width, with their lengths, those of length 1 left out."""
    axes, shape = series.axes, series.shape
    if axes.endswith("S") and shape[-1] > 1:
        raise RecordingError(f"{path} is in colour: its shape is {shape}. A movie has one value a pixel; take one colour, or their mean.")
    if len(shape) < 2 or shape[-1] == 1 or axes.endswith("S"):
        raise RecordingError(f"{path} has shape {shape}, with axes {axes}, which is no stack of pictures.")
    return [(letter, n) for letter, n in zip(axes[:-2], shape[:-2], strict=True) if n > 1]


def pick(path: Path, lead: list[tuple[str, int]], channel: int | None) -> Chosen:
    """The pages of one channel, all others being moments of time."""
    n = int(np.prod([n for _, n in lead])) if lead else 1
    numbers: np.ndarray = np.arange(n).reshape([n for _, n in lead])
    letters = [letter for letter, _ in lead]
    if "C" in letters:
        n_channels = dict(lead)["C"]
        if channel is None:
            raise ConfigError(f"{path} has {n_channels} channels; say which one is the calcium indicator: channel (command line: "
                              f"--channel), 0 to {n_channels - 1}.")
        if channel >= n_channels:
            raise ConfigError(f"{path} has channels 0 to {n_channels - 1}, but channel {channel} is asked for.")
        numbers = numbers.take(channel, axis=letters.index("C"))
        letters.remove("C")
    if len(letters) > 1:
        told = ", ".join(f"{letter} ({n})" for letter, n in lead)
        raise RecordingError(f"{path} has the axes {told} beside height and width. A movie is of one plane; write each plane to a file of "
                             "its own.")
    return Chosen(numbers.ravel(), n)


@contextmanager
def complaints(path: Path) -> Iterator[None]:
    """Make an error of what tifffile only logs: that the file ends before it should."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        yield
    except (ValueError, RuntimeError, IndexError) as error:
        raise RecordingError(f"{path} cannot be read as TIFF ({'; '.join(heard) or error}); it is cut short, damaged or no TIFF. Copy or "
                             "export it again.") from error
    finally:
        logger.removeHandler(handler)
    broken = [text for text in heard if any(word in text for word in BROKEN)]
    if broken:
        raise RecordingError(f"{path} is cut short or damaged ({broken[0]}). Copy or export it again.")


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Name the package that a compression asks for."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if "imagecodecs" in str(error):
            raise MissingPackageError(f"{path} is compressed in a way that needs a package: pip install imagecodecs.") from error
        raise


def tiff_rate(file: Any) -> float | None:
    """Frames per second, where ImageJ, ScanImage or OME say them."""
    told = file.imagej_metadata or {}
    if told.get("finterval"):
        return 1.0 / (float(told["finterval"]) * SECONDS.get(str(told.get("tunit", "s")), 1.0))
    if told.get("fps"):
        return float(told["fps"])
    scan = (file.scanimage_metadata or {}).get("FrameData", {}) if file.is_scanimage else {}
    if scan.get("SI.hRoiManager.scanFrameRate"):
        return float(scan["SI.hRoiManager.scanFrameRate"])
    return ome_rate(file.ome_metadata) if file.is_ome and file.ome_metadata else None


def ome_rate(text: str) -> float | None:
    """Frames per second of OME's XML."""
    pixels = next((element for element in ElementTree.fromstring(text).iter() if element.tag.endswith("}Pixels")), None)
    step = None if pixels is None else pixels.get("TimeIncrement")
    if pixels is None or not step or float(step) <= 0:
        return None
    return 1.0 / (float(step) * SECONDS.get(pixels.get("TimeIncrementUnit", "s"), 1.0))
