"""What demixing a calcium movie gives, and the whole chain from a movie to spikes.

    movie(t, p) = sum_k footprint_k(p) trace_k(t) + background(t, p) + noise,    footprint_k >= 0

Letters for sizes: K cells, T frames, H x W pixels, P = H W of them in rows (C order), R components of the background.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from sortcore.errors import ModelError
from sortcore.types import Spikes

MOST_DENSE = 2**30  # bytes of footprints that may be asked for as dense pictures at once


@dataclass(frozen=True)
class Background:
    """What of a movie is no cell's, of low rank: the sum over r of fields_r(p) courses_r(t).

    fields: (R, H, W) float32; courses: (R, T) float32, in the movie's units for fields without one
    """

    fields: np.ndarray
    courses: np.ndarray

    def __post_init__(self) -> None:
        if np.ndim(self.fields) != 3 or np.ndim(self.courses) != 2 or len(self.fields) != len(self.courses):
            raise ModelError(f"A background is fields (R, H, W) and courses (R, T), but they are {np.shape(self.fields)} and "
                             f"{np.shape(self.courses)}.")

    @classmethod
    def none(cls, shape: tuple[int, int], n_frames: int) -> Background:
        """A background without components."""
        return cls(np.zeros((0, *shape), np.float32), np.zeros((0, n_frames), np.float32))

    def frames(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, H, W) of the background."""
        return np.tensordot(self.courses[:, start:stop].T, self.fields, 1)


@dataclass(frozen=True)
class Demixed:
    """Cells of a movie, each a footprint times a trace.

    footprints: (K, P) sparse rows, float32, 0 or more, each with a peak of 1; `images` gives them as pictures
    shape: (H, W)
    traces: (K, T) float32 fluorescence of each cell alone, in the movie's units at the footprint's peak: overlapping cells and
        the background taken off, noise kept; bleaching, by which the whole movie grows darker, is divided out
    denoised: (K, T) what the indicator's kernel explains of the trace, same units, its baseline included
    activity: (K, T) height that the spikes of each frame add to the trace, same units, 0 or more; not counts
    baseline: (K,) or, where it drifts, (K, T) fluorescence of each cell at rest, same units
    noise: (K,) standard deviation of a frame of the trace
    mean_image: (H, W) mean of the movie over time
    background: what is no cell's
    fs: frames per second
    tau_rise_s, tau_decay_s: (K,) seconds, of each cell's kernel; NaN where not known
    footprint_fit: (K,) correlation, over the pixels of the footprint and near it, of the footprint with the picture that the movie,
        less all else that was found, shows of the cell's trace; NaN where not known
    Raises ModelError on construction where shapes do not fit together, a footprint is negative, not finite or empty, or has no peak of
    1.
    """

    footprints: sparse.csr_array
    shape: tuple[int, int]
    traces: np.ndarray
    denoised: np.ndarray
    activity: np.ndarray
    baseline: np.ndarray
    noise: np.ndarray
    mean_image: np.ndarray
    background: Background
    fs: float
    tau_rise_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    tau_decay_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    footprint_fit: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        footprints = sparse.csr_array(self.footprints).astype(np.float32)
        footprints.sum_duplicates()
        object.__setattr__(self, "footprints", footprints)
        object.__setattr__(self, "shape", (int(self.shape[0]), int(self.shape[1])))
        if not (np.isfinite(self.fs) and self.fs > 0):
            raise ModelError(f"fs is the number of frames per second and must be above 0, but it is {self.fs}.")
        self._check_footprints()
        if np.ndim(self.traces) != 2:
            raise ModelError(f"Traces must be (cells, frames), but they have shape {np.shape(self.traces)}.")
        K, T = self.n_cells, self.n_frames
        for name in ("traces", "denoised", "activity"):
            expect(name, getattr(self, name), (K, T))
        for name in ("tau_rise_s", "tau_decay_s", "footprint_fit"):
            if K and not np.size(getattr(self, name)):
                object.__setattr__(self, name, np.full(K, np.nan))
            expect(name, getattr(self, name), (K,))
        expect("noise", self.noise, (K,))
        expect("baseline", self.baseline, (K, T) if np.ndim(self.baseline) == 2 else (K,))
        expect("mean_image", self.mean_image, self.shape)
        expect("background.fields", self.background.fields, (len(self.background.fields), *self.shape))
        expect("background.courses", self.background.courses, (len(self.background.courses), T))

    def _check_footprints(self) -> None:
        expect("footprints", self.footprints, (self.footprints.shape[0], self.shape[0] * self.shape[1]))
        values = self.footprints.data
        if not np.isfinite(values).all() or (values < 0).any():
            raise ModelError("Footprints must be finite and 0 or more in every pixel; some are not.")
        if self.n_cells:
            peaks = self.footprints.max(axis=1).toarray().ravel()
            if np.abs(peaks - 1).max() > 1e-3:
                worst = int(np.argmax(np.abs(peaks - 1)))
                raise ModelError(f"The peak of a footprint must be 1, but that of cell {worst} is {peaks[worst]:g}; divide it by its peak "
                                 "and multiply the trace.")

    def __len__(self) -> int:
        return self.n_cells

    @property
    def n_cells(self) -> int:
        return int(self.footprints.shape[0])

    @property
    def n_frames(self) -> int:
        return int(self.traces.shape[1])

    def images(self, cells: np.ndarray | None = None) -> np.ndarray:
        """(K, H, W) float32 footprints of some or all cells as pictures. Raises ModelError where that would fill the memory."""
        rows = self.footprints if cells is None else self.footprints[np.asarray(cells, dtype=np.int64)]
        if 4 * rows.shape[0] * rows.shape[1] > MOST_DENSE:
            raise ModelError(f"{rows.shape[0]} pictures of {self.shape[0]} x {self.shape[1]} pixels take more than a gigabyte; ask for "
                             "fewer cells at a time.")
        return rows.toarray().reshape(rows.shape[0], *self.shape)


@dataclass(frozen=True)
class CellQuality:
    """What tells good cells from doubtful ones: one row a cell, every field (K,) but centre.

    snr: largest peak of what the kernel explains above the baseline, in standard deviations of the trace's noise
    footprint_fit: as in `Demixed`
    overlap: largest cosine of the footprint with that of another cell, 0 to 1
    centre: (K, 2) row and column of the footprint's centre of mass, in pixels from the centre of the first
    size_px: pixels where the footprint is above a fifth of its peak
    n_spikes, rate_hz: found spikes, and per second
    """

    snr: np.ndarray
    footprint_fit: np.ndarray
    overlap: np.ndarray
    centre: np.ndarray
    size_px: np.ndarray
    n_spikes: np.ndarray
    rate_hz: np.ndarray

    def __len__(self) -> int:
        return len(self.snr)


@dataclass(frozen=True)
class MovieResult:
    """A movie sorted: cells, their spikes and their quality.

    demixed: footprints, traces, background
    dff: (K, T) float32 (trace - baseline) / F0 as a fraction, F0 being the cell's baseline and the light around it
    activity: (K, T) float32 spiking activity in which the spikes were found, as the last step of the chain gives it
    spikes: samples are frames, shifts parts of a frame, amplitudes in standard deviations of the trace's noise, scores as far above 0 as
        the spike is above its threshold
    quality: one row a cell
    config: the settings that made it, as a nested dictionary
    timings_s: seconds of each stage
    """

    demixed: Demixed
    dff: np.ndarray
    activity: np.ndarray
    spikes: Spikes
    quality: CellQuality
    config: dict = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expect("dff", self.dff, self.demixed.traces.shape)
        expect("activity", self.activity, self.demixed.traces.shape)
        expect("quality.snr", self.quality.snr, (self.n_cells,))
        expect("quality.centre", self.quality.centre, (self.n_cells, 2))
        spikes, T = self.spikes, self.demixed.n_frames
        if len(spikes) and not (spikes.units.min() >= 0 and spikes.units.max() < self.n_cells):
            raise ModelError(f"Spikes name units {spikes.units.min()} to {spikes.units.max()}, but there are {self.n_cells} cells.")
        if len(spikes) and not (spikes.samples.min() >= 0 and spikes.samples.max() < T):
            raise ModelError(f"Spikes lie in frames {spikes.samples.min()} to {spikes.samples.max()}, but there are {T} frames.")

    @property
    def n_cells(self) -> int:
        return self.demixed.n_cells

    @property
    def fs(self) -> float:
        return self.demixed.fs

    @property
    def duration_s(self) -> float:
        return self.demixed.n_frames / self.fs

    def spike_train(self, cell: int, seconds: bool = False) -> np.ndarray:
        """Spike times of one cell, in frames (int64) or in seconds with the shift within the frame."""
        mine = self.spikes.units == cell
        if seconds:
            return (self.spikes.samples[mine] + self.spikes.shifts[mine].astype(np.float64)) / self.fs
        return self.spikes.samples[mine]

    def trains(self) -> list[np.ndarray]:
        """K arrays of increasing times in seconds, as `sortcore.metrics` takes them."""
        return [self.spike_train(k, seconds=True) for k in range(self.n_cells)]


def expect(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise ModelError unless an array has that shape."""
    if tuple(array.shape) != tuple(shape):
        raise ModelError(f"{name} must have the shape {tuple(shape)}, but it has {tuple(array.shape)}.")
