"""Reading recordings in pieces.

The engine sees any recording through the small `Recording` protocol: the SpikeInterface plug-in, a numpy array and a
raw binary file all fit it. Stored values are turned into (channels, samples) here and nowhere else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from sortcore.errors import RecordingError


@runtime_checkable
class Recording(Protocol):
    """What the engine asks of a recording.

    fs: samples per second
    n_channels: N
    segment_lengths: samples of each segment; sample numbers run on from one segment to the next
    gain_uv, offset: (N,) microvolts = gain_uv * (stored - offset)
    """

    @property
    def fs(self) -> float: ...

    @property
    def n_channels(self) -> int: ...

    @property
    def segment_lengths(self) -> tuple[int, ...]: ...

    @property
    def gain_uv(self) -> np.ndarray: ...

    @property
    def offset(self) -> np.ndarray: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, N) stored values, any real dtype; start and stop lie in one segment."""
        ...


def checked(record: ArrayRecording | BinaryRecording, dtype: np.dtype) -> None:
    """Raise RecordingError unless dtype, sampling rate and gains can be used; give every channel its gain and offset."""
    if dtype.kind not in "iuf":
        raise RecordingError(f"A recording must hold integers or floats, but its dtype is {dtype}.")
    if not np.isfinite(record.fs) or record.fs <= 0:
        raise RecordingError(f"The sampling rate must be positive, but it is {record.fs}.")
    for name in ("gain_uv", "offset"):
        value = np.broadcast_to(np.asarray(getattr(record, name), dtype=np.float64), (record.n_channels,))
        object.__setattr__(record, name, value)
    if not np.isfinite(record.gain_uv).all() or (record.gain_uv == 0).any():
        raise RecordingError("Some gains are zero or not finite; give --gain-uv, the microvolts of one stored unit.")


@dataclass(frozen=True)
class ArrayRecording:
    """A recording that is an array (or memory map) of shape (samples, channels)."""

    data: np.ndarray
    fs: float
    gain_uv: np.ndarray
    offset: np.ndarray

    def __post_init__(self) -> None:
        if self.data.ndim != 2 or 0 in self.data.shape:
            raise RecordingError(f"A recording must be (samples, channels) and not empty, but its shape is {self.data.shape}.")
        checked(self, self.data.dtype)

    @property
    def n_channels(self) -> int:
        return self.data.shape[1]

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        return (self.data.shape[0],)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self.data[start:stop])


@dataclass(frozen=True)
class BinaryRecording:
    """A raw binary file, time-major. It is opened for every read: a file that is cut short or taken away is an error then, where
    a memory map would end the process; and another process that is given the record reads the file itself."""

    path: Path
    dtype: str
    n_channels: int
    n_samples: int
    fs: float
    gain_uv: np.ndarray
    offset: np.ndarray
    skip_bytes: int = 0

    def __post_init__(self) -> None:
        checked(self, np.dtype(self.dtype))

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        return (self.n_samples,)

    def read(self, start: int, stop: int) -> np.ndarray:
        kind = np.dtype(self.dtype)
        begin = self.skip_bytes + start * self.n_channels * kind.itemsize
        try:
            values = np.fromfile(self.path, kind, (stop - start) * self.n_channels, offset=begin)
        except OSError as error:
            raise RecordingError(f"{self.path} cannot be read any more ({error.strerror or error}). Is it still there?") from error
        return values[: len(values) // self.n_channels * self.n_channels].reshape(-1, self.n_channels)


def array_recording(data: np.ndarray, fs: float, gain_uv: float | np.ndarray = 1.0,
                    offset: float | np.ndarray | None = None) -> ArrayRecording:
    """A recording from an array (samples, channels).

    offset defaults to the middle of the range for unsigned integers, and to zero otherwise; a constant offset left
    over is removed by the band-pass filter in any case.
    """
    offset = middle(data.dtype) if offset is None else offset
    return ArrayRecording(data, float(fs), gain_uv, offset)  # type: ignore[arg-type]


def middle(dtype: np.dtype) -> float:
    """The stored value that is taken for zero volts."""
    return 2.0 ** (8 * dtype.itemsize - 1) if dtype.kind == "u" else 0.0


def binary_recording(path: str | Path, n_channels: int, fs: float, dtype: str = "int16", gain_uv: float | np.ndarray = 1.0,
                     offset: float | np.ndarray | None = None, skip_bytes: int = 0) -> BinaryRecording:
    """A raw binary file, time-major: all channels of the first sample, then of the second.

    Raises RecordingError where the file is missing, empty, or no multiple of the channels.
    """
    path = Path(path)
    if not path.is_file():
        raise RecordingError(f"There is no file {path}.")
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise RecordingError(f"{dtype!r} is no numpy dtype; use int16, uint16, int32, float32 and the like.") from error
    if n_channels < 1:
        raise RecordingError(f"A recording needs at least one channel, but --channels is {n_channels}.")
    size = path.stat().st_size - skip_bytes
    row = kind.itemsize * n_channels
    if size < row:
        raise RecordingError(f"{path} holds {size} bytes, less than one sample of {n_channels} channels of {kind}.")
    if size % row:
        raise RecordingError(
            f"{path} holds {size} bytes, which is no multiple of {n_channels} channels of {kind} ({row} bytes a sample). "
            "Check --channels and --dtype; if the file was cut short, remove the incomplete last sample."
        )
    offset = middle(kind) if offset is None else offset
    return BinaryRecording(path.absolute(), kind.str, n_channels, size // row, float(fs), gain_uv, offset, skip_bytes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Chunk:
    """Samples start to stop of a recording, and the segment (first to last) that they lie in."""

    start: int
    stop: int
    first: int
    last: int


def chunks(segment_lengths: tuple[int, ...], size: int) -> Iterator[Chunk]:
    """Cut every segment into chunks of `size` samples; the last of a segment may be shorter."""
    first = 0
    for length in segment_lengths:
        last = first + length
        for start in range(first, last, size):
            yield Chunk(start, min(start + size, last), first, last)
        first = last


def cut(pieces: Iterable[Chunk], at: np.ndarray) -> Iterator[Chunk]:
    """Chunks, cut in two wherever one of the samples `at` (J,) lies within."""
    for piece in pieces:
        inside = at[(at > piece.start) & (at < piece.stop)]
        edges = [piece.start, *np.unique(inside).tolist(), piece.stop]
        yield from (Chunk(start, stop, piece.first, piece.last) for start, stop in itertools.pairwise(edges))


@dataclass(frozen=True)
class Thinned:
    """The samples that are left of a recording when every so-manyth of each segment is kept; what a segment has over is dropped.

    recorded: samples of each segment
    """

    recorded: tuple[int, ...]
    every: int

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        return tuple(length // self.every for length in self.recorded)

    def recorded_chunk(self, chunk: Chunk) -> Chunk:
        """The recorded samples that a chunk of those kept is made of; it may reach beyond its segment."""
        segment = int(np.searchsorted(np.cumsum(self.segment_lengths), chunk.first, side="right"))
        first = sum(self.recorded[:segment])
        start, stop = (first + self.every * (t - chunk.first) for t in (chunk.start, chunk.stop))
        return Chunk(start, stop, first, first + self.recorded[segment])

    def recorded_samples(self, samples: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(S,) recorded samples, and what they are short of the moment in [-1/2, 1/2], of kept samples (S,) and their shifts (S,)."""
        if self.every == 1:
            return samples, shifts
        ends = np.cumsum(self.segment_lengths)
        segment = np.minimum(np.searchsorted(ends, samples, side="right"), len(ends) - 1)
        first = np.r_[0, np.cumsum(self.recorded)[:-1]][segment]
        within = self.every * (samples - np.r_[0, ends[:-1]][segment] + shifts.astype(np.float64))
        whole = np.clip(np.rint(within), 0, np.asarray(self.recorded)[segment] - 1)
        return first + whole.astype(np.int64), (within - whole).astype(np.float32)


def read_padded(recording: Recording, chunk: Chunk, margin: int) -> np.ndarray:
    """(T + 2 margin, N) stored values around a chunk; beyond the segment the edge sample is repeated."""
    low, high = max(chunk.start - margin, chunk.first), min(chunk.stop + margin, chunk.last)
    data = recording.read(low, high)
    if len(data) != high - low:
        raise RecordingError(
            f"The recording ended early: samples {low} to {high} were asked for, {len(data)} came. Was its file cut short meanwhile?"
        )
    before, after = low - (chunk.start - margin), chunk.stop + margin - high
    return np.pad(data, ((before, after), (0, 0)), mode="edge") if before or after else data
