"""From activity to spikes: a threshold, and the peaks above it.

Activity is what deconvolution gives, (K, T) in any unit, larger where spikes are likelier or more. Where a rate of false
positives is asked for, the sizes that peaks have without spikes must be known. They are taken from traces without spikes
where such are given (the same traces upside down, deconvolved alike, are near to that); otherwise from the activity itself.
Activity that is often negative is taken to have noise alike on both sides, and the peaks of the negative side count. Of
activity that is not, most peaks are noise: the tail of a law fitted to its small peaks tells (`sortcore.optical.tails`). Where
hardly any noise is left and most peaks are spikes, that cannot be; another kind of threshold is then the better one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import find_peaks

from sortcore.errors import ConfigError, ModelError
from sortcore.optical.tails import heavy_tails, light_tail
from sortcore.settings import Checked, setting

THRESHOLDS = ("absolute", "fraction", "percentile", "sigma", "false_positives")
MIRRORED = 0.05  # activity of which a larger share is negative tells of its noise by its negative side
SMOOTH = 0.6  # activity of which a larger share is above zero is of a solver that leaves no frame empty


@dataclass(frozen=True)
class Threshold(Checked):
    """What activity must exceed.

    absolute          value, in the activity's unit
    fraction          value times the cell's largest activity
    percentile        so many percent of the cell's frames lie below
    sigma             mean + value standard deviations of the cell's frames
    false_positives   exceeded by noise alone `value` times per second (Hz)
    """

    kind: str = setting("false_positives", "how the threshold is found", choices=THRESHOLDS)
    value: float = setting(0.01, "see kind", "", 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "fraction" and self.value > 1:
            raise ConfigError(f"A fraction of the maximum lies between 0 and 1, but it is {self.value}.")
        if self.kind == "percentile" and self.value > 100:
            raise ConfigError(f"A percentile lies between 0 and 100, but it is {self.value}.")
        if self.kind == "false_positives" and self.value == 0:
            raise ConfigError("No threshold keeps out noise altogether: a rate of false positives must be above 0 Hz.")


THRESHOLD = Threshold()


@dataclass(frozen=True)
class Events:
    """Spikes or bursts of K cells, in order of time.

    frames: (S,) int64 frame of the peak
    times_s: (S,) its instant, start_s + frame / fs
    cells: (S,) int64, 0 to K - 1
    sizes: (S,) activity at the peak
    thresholds: (K,) what each cell's peaks exceed
    """

    frames: np.ndarray
    times_s: np.ndarray
    cells: np.ndarray
    sizes: np.ndarray
    thresholds: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def n_cells(self) -> int:
        return len(self.thresholds)

    def trains(self) -> list[np.ndarray]:
        """K arrays of increasing times in seconds, as `sortcore.metrics` takes them."""
        return [self.times_s[self.cells == k] for k in range(self.n_cells)]


def find_events(activity: np.ndarray, fs: float, threshold: Threshold = THRESHOLD, *, min_distance_s: float = 0.0,
                start_s: float = 0.0, null: np.ndarray | None = None) -> Events:
    """Peaks of activity (K, T) or (T,) above each cell's threshold.

    fs: frames per second; start_s: instant of the first frame
    min_distance_s: of peaks nearer than this the larger stays
    null: (K, T') activity of traces without spikes, for kind false_positives
    NaN frames hold no peak. Raises ConfigError for settings out of range, ModelError for arrays that are no activity.
    """
    activity = as_rows(activity)
    distance = frames_apart(fs, min_distance_s)
    levels = thresholds(activity, fs, threshold, min_distance_s=min_distance_s, null=null)
    found = [peaks(row, level, distance) for row, level in zip(activity, levels, strict=True)]
    frames = np.concatenate([np.zeros(0, np.int64), *found])
    cells = np.repeat(np.arange(len(activity)), [len(f) for f in found])
    order = np.lexsort((cells, frames))
    frames, cells = frames[order], cells[order]
    return Events(frames, start_s + frames / fs, cells, activity[cells, frames], levels)


def thresholds(activity: np.ndarray, fs: float, threshold: Threshold, *, min_distance_s: float = 0.0,
               null: np.ndarray | None = None) -> np.ndarray:
    """(K,) threshold of each cell's activity (K, T); infinite for a cell without activity. As `find_events`."""
    activity = as_rows(activity)
    distance = frames_apart(fs, min_distance_s)
    if null is not None:
        null = as_rows(null)
        if len(null) != len(activity):
            raise ModelError(f"There are {len(activity)} cells, but {len(null)} rows of activity without spikes; give one each.")
    out = np.full(len(activity), np.inf)
    own: dict[int, np.ndarray] = {}  # peaks of the cells of which nothing but the activity tells the noise
    for k, row in enumerate(activity):
        seen = row[np.isfinite(row)]
        if not seen.any():
            continue
        if threshold.kind == "false_positives":
            mirrored = -row if (seen < 0).mean() > MIRRORED else None
            source = null[k] if null is not None else mirrored
            if source is None:
                own[k] = row[peaks(row, 0.0, distance)]
            else:
                out[k] = tail_of_null(source[peaks(source, 0.0, distance)], threshold.value * np.isfinite(source).sum() / fs)
        elif threshold.kind == "absolute":
            out[k] = threshold.value
        elif threshold.kind == "fraction":
            out[k] = threshold.value * seen.max()
        elif threshold.kind == "percentile":
            out[k] = np.percentile(seen, threshold.value)
        else:
            out[k] = seen.mean() + threshold.value * seen.std()
    allowed = [threshold.value * np.isfinite(activity[k]).sum() / fs for k in own]
    filled = np.median([(activity[k] > 0).sum() / max(np.isfinite(activity[k]).sum(), 1) for k in own]) if own else 0.0
    out[list(own)] = (heavy_tails(list(own.values()), allowed) if filled > SMOOTH else
                      [light_tail(sizes, n) for sizes, n in zip(own.values(), allowed, strict=True)])
    return out


def peaks(row: np.ndarray, level: float, distance: int = 1) -> np.ndarray:
    """Frames of the local maxima of a row (T,) above a level; of those less than `distance` frames apart the larger."""
    padded = np.concatenate([[-np.inf], np.where(np.isnan(row), -np.inf, row), [-np.inf]])
    found, _ = find_peaks(padded, height=np.nextafter(level, np.inf), distance=distance)
    return found.astype(np.int64) - 1


def tail_of_null(sizes: np.ndarray, allowed: float) -> float:
    """Level that only so many of the peaks (P,) of activity without spikes exceed; below one, their law is drawn on."""
    if allowed >= 1:
        return float(np.sort(sizes)[-1 - int(allowed)]) if int(allowed) < len(sizes) else 0.0
    return light_tail(sizes, allowed)


def as_rows(activity: np.ndarray) -> np.ndarray:
    """Activity as (K, T) float64."""
    rows = np.atleast_2d(np.asarray(activity, dtype=np.float64))
    if rows.ndim != 2:
        raise ModelError(f"Activity must be (cells, frames), or (frames,) of one cell, but it has shape {np.shape(activity)}.")
    if np.isinf(rows).any():
        raise ModelError("Activity has infinite frames; make them NaN where they are missing.")
    return rows


def frames_apart(fs: float, min_distance_s: float) -> int:
    """Least distance of two peaks in frames, 1 or more."""
    if not (np.isfinite(fs) and fs > 0):
        raise ConfigError(f"fs is the number of frames per second and must be above 0, but it is {fs}.")
    if not (np.isfinite(min_distance_s) and min_distance_s >= 0):
        raise ConfigError(f"min_distance_s must be 0 or more seconds, but it is {min_distance_s}.")
    return max(1, int(np.ceil(min_distance_s * fs - 1e-9)))
