"""What one reading of a movie tells: its mean, the noise of each pixel, its bleaching, and a shorter movie of binned frames.

The noise of a pixel is half the mean square of the difference of successive frames: activity is slow beside it. Bins last about as
long as an indicator rises, and longer where the binned movie would not fit into the memory given: cells are looked for in it, and
only their traces are read off the movie itself.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from sortcore.errors import RecordingError
from sortcore.optical.movie.reading import Movie
from sortcore.progress import Track, silent
from sortcore.settings import Checked, setting
from sortcore.workers import in_order

PIECE_BYTES = 2**25  # of the movie as float32 that one worker holds at once
SAMPLES, SAMPLE_FRAMES = 20, 24  # stretches read beforehand, and their frames
BLEACH_TIMES = tuple(np.geomspace(0.1, 4.0, 12))  # time constants that are tried, as shares of the recording
BLEACH_ROUNDS, BLEACH_PIXELS = 10, 4096
LEAST_BINS = 20  # with fewer there is no telling bleaching from anything else
Read = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class SurveyConfig(Checked):
    bin_s: float = setting(0.2, "frames are averaged over this time before cells are looked for", "s", 0.0, 10.0)
    most_bytes: float = setting(1.2e9, "memory of the binned movie: more frames than fit are averaged over longer", "bytes", 1e6)


CONFIG = SurveyConfig()


@dataclass(frozen=True)
class Survey:
    """A movie in short.

    shape: (H, W); n_frames: T; fs: frames per second
    mean: (P,) float32 over time, P = H W; noise: (P,) float32 sd of a frame, 0 in pixels that cannot be used
    bleaching: (T,) float32, by which the whole movie is brighter or darker, of mean 1
    seen: (T,) bool, frames of which most pixels are finite
    bin_frames: frames of a bin; the last frames that fill none are in no bin
    binned: (P, B) float32, or float16 where it is large: means over bins without bleaching, less their mean over time, in sd of the
        noise of such a mean
    """

    shape: tuple[int, int]
    n_frames: int
    fs: float
    mean: np.ndarray
    noise: np.ndarray
    bleaching: np.ndarray
    seen: np.ndarray
    bin_frames: int
    binned: np.ndarray


def reader(movie: Movie) -> Read:
    """A function of start and stop that gives these frames as (frames, P) float32, one thread at a time.

    A memory map that lies as it is in its file is read rather than mapped: pages once mapped would count as memory in use.
    """
    lock, n_pixels, mapped = threading.Lock(), int(np.prod(movie.shape[1:])), plain_map(movie)

    def read(start: int, stop: int) -> np.ndarray:
        if mapped is not None:
            at = mapped.offset + start * n_pixels * mapped.dtype.itemsize
            piece = np.fromfile(mapped.filename, mapped.dtype, (stop - start) * n_pixels, offset=at)
        else:
            with lock:
                piece = np.asarray(movie[start:stop])
        return piece.reshape(stop - start, n_pixels).astype(np.float32)

    return read


def plain_map(movie: Movie) -> Any:
    """The memory map of a whole file that a movie is, frame after frame; None where it is something else."""
    source: Any = movie.source
    under: Any = getattr(source, "base", None)  # a part of a map has the map under it, a whole one its file
    whole = isinstance(source, np.memmap) and type(under) is mmap.mmap and source.flags.c_contiguous
    return source if whole and source.filename is not None and source.ndim == 3 and movie.order == (0, 1, 2) else None


def piece_frames(n_pixels: int, multiple: int = 1) -> int:
    """Frames of a piece: as many as PIECE_BYTES hold, in whole multiples."""
    return max(1, PIECE_BYTES // (4 * n_pixels * multiple)) * multiple


def survey(movie: Movie, fs: float, config: SurveyConfig = CONFIG, *, track: Track = silent) -> Survey:
    """Read a movie (T, H, W) once, and a few hundred of its frames beforehand.

    fs: frames per second. Pixels that are not finite do not count; a frame of which most are so is not seen.
    Raises RecordingError where no frame is seen.
    """
    (T, H, W), P = movie.shape, movie.shape[1] * movie.shape[2]
    read = reader(movie)
    reference, noise = sample(read, T, P)
    size = bin_size(T, P, fs, config)
    B = T // size
    big = config.most_bytes < 4.0 * B * P
    binned = np.zeros((P, B), np.float16 if big else np.float32)
    step, seen = piece_frames(P, size), np.zeros(T, dtype=bool)

    def one(start: int) -> tuple[int, np.ndarray]:
        piece = read(start, min(start + step, T))
        bins = np.empty((len(piece) // size, P), np.float32)
        missing = bin_frames(piece, size, reference, noise, bins)
        binned[:, start // size : start // size + len(bins)] = bins.T
        return start, missing

    starts = range(0, T, step)
    for start, missing in track(in_order(one, starts), "survey", len(starts)):
        seen[start : start + len(missing)] = missing <= 0.5
    if not seen.any():
        raise RecordingError("No frame of the movie has finite values in most of its pixels. Was it exported as it should be?")
    curve = bleaching(binned, reference, noise, size)
    mean = reference.copy()
    without_bleaching(binned, mean, noise / np.float32(np.sqrt(size)), curve)
    centres = (np.arange(B) + 0.5) * size - 0.5
    bleach = np.interp(np.arange(T), centres, curve).astype(np.float32) if B else np.ones(T, np.float32)
    return Survey((H, W), T, float(fs), mean, noise, bleach, seen, size, binned)


def bin_size(n_frames: int, n_pixels: int, fs: float, config: SurveyConfig) -> int:
    """Frames of a bin."""
    most = max(LEAST_BINS, int(config.most_bytes / (2.0 * n_pixels)))
    return int(np.clip(max(round(config.bin_s * fs), -(-n_frames // most)), 1, n_frames))


def sample(read: Read, n_frames: int, n_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (P,) and noise sd (P,) float32 from stretches spread over the movie; a noise of 0 for a pixel that cannot be used."""
    starts = sorted(set(np.linspace(0, max(n_frames - SAMPLE_FRAMES, 0), SAMPLES).astype(int).tolist()))
    sums = np.zeros((4, n_pixels))
    for start in starts:
        sample_piece(read(start, min(start + SAMPLE_FRAMES, n_frames)), sums)
    total, count, squares, pairs = sums
    mean = np.divide(total, count, out=np.zeros(n_pixels), where=count > 0)
    noise = np.sqrt(np.divide(squares, 2 * pairs, out=np.zeros(n_pixels), where=pairs > 0))
    noise[noise <= 1e-6 * np.abs(mean)] = 0
    return mean.astype(np.float32), noise.astype(np.float32)


@numba.njit(nogil=True, cache=True)
def sample_piece(piece: np.ndarray, sums: np.ndarray) -> None:
    """Add to (4, P): sum, count, sum of squared differences, their count, over finite pixels of a piece (T, P)."""
    T, P = piece.shape
    for t in range(T):
        for p in range(P):
            y = piece[t, p]
            if np.isfinite(y):
                sums[0, p] += y
                sums[1, p] += 1
                if t > 0 and np.isfinite(piece[t - 1, p]):
                    sums[2, p] += (y - piece[t - 1, p]) ** 2
                    sums[3, p] += 1


@numba.njit(nogil=True, cache=True)
def bin_frames(piece: np.ndarray, size: int, reference: np.ndarray, noise: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Fill bins (B, P) with means over `size` frames less the reference, in their noise; (T,) share of pixels missing in each frame.

    Of pixels that can be used, or of all where none can.
    """
    T, P = piece.shape
    missing, usable = np.zeros(T), (noise > 0).any()
    n_pixels = (noise > 0).sum() if usable else P
    total, count = np.zeros(P, dtype=np.float32), np.zeros(P, dtype=np.float32)
    root = np.float32(np.sqrt(size))
    for t in range(T):
        for p in range(P):
            y = piece[t, p]
            if np.isfinite(y):
                total[p] += y - reference[p]
                count[p] += np.float32(1)
            elif noise[p] > 0 or not usable:
                missing[t] += 1 / n_pixels
        if t % size == size - 1:
            for p in range(P):
                bins[t // size, p] = total[p] * root / (noise[p] * count[p]) if noise[p] > 0 and count[p] > 0 else np.float32(0)
                total[p] = 0
                count[p] = 0
    return missing


def bleaching(binned: np.ndarray, reference: np.ndarray, noise: np.ndarray, size: int) -> np.ndarray:
    """(B,) brightness of the whole over time: a constant and an exponential, robustly fitted to the median of the pixels' courses."""
    B = binned.shape[1]
    bright = np.flatnonzero((noise > 0) & (reference > noise / np.sqrt(size)))
    if B < LEAST_BINS or not len(bright):
        return np.ones(B)
    chosen = bright[:: -(-len(bright) // BLEACH_PIXELS)]
    contrast = (noise[chosen] / (np.sqrt(size) * reference[chosen])).astype(np.float32)
    y = 1 + np.median(binned[chosen] * contrast[:, None], axis=0).astype(np.float64)
    t = np.arange(B) / B
    fits = [robust_line(np.column_stack([np.ones(B), np.exp(-t / tau)]), y) for tau in BLEACH_TIMES]
    curve = min(fits, key=lambda fit: float(np.abs(y - fit).sum()))
    return curve / curve.mean() if curve.min() > 0.1 * curve.mean() else np.ones(B)


def robust_line(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(B,) fit of y (B,) on X (B, 2) with the least absolute deviation."""
    w = np.ones(len(y))
    for _ in range(BLEACH_ROUNDS):
        fit = X @ np.linalg.lstsq(X * w[:, None], y * w, rcond=None)[0]
        w = 1 / np.sqrt(np.maximum(np.abs(y - fit), 1e-2 * np.abs(y - fit).mean() + 1e-12))
    return fit


def without_bleaching(binned: np.ndarray, mean: np.ndarray, noise: np.ndarray, curve: np.ndarray) -> None:
    """Divide bleaching out of the binned movie in place and take its mean off, which is added to `mean` (P,)."""
    P, B = binned.shape
    if B == 0:
        return
    rows, inverse = max(1, PIECE_BYTES // (4 * B)), (1 / curve).astype(np.float32)

    def one(start: int) -> None:
        part = slice(start, min(start + rows, P))
        level = np.divide(mean[part], noise[part], out=np.zeros(part.stop - start, np.float32), where=noise[part] > 0)
        z = binned[part].astype(np.float32)
        z += level[:, None]
        z *= inverse
        z -= level[:, None]
        shift = z.mean(axis=1)
        z -= shift[:, None]
        z[noise[part] == 0] = 0
        binned[part] = z
        mean[part] += shift * noise[part]

    list(in_order(one, range(0, P, rows)))
