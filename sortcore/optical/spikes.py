"""From activity to spikes: a threshold, and the peaks above it.

Activity is what deconvolution gives, (K, T) in any unit, larger where spikes are likelier or more. Where a rate of false
positives is asked for, the sizes that peaks have without spikes must be known. They are taken from traces without spikes
where such are given (the same traces upside down, deconvolved alike, are near to that); otherwise from the activity itself.
Activity that is often negative is taken to have noise alike on both sides, and the peaks of the negative side count. Of
activity that is not, most peaks are noise, and the small ones are so almost surely. The law

    p(x) ~ exp(-a x - b x^2),  x > 0,  b >= 0        b = 0: exponential, otherwise what a Gaussian has above 0

is fitted by maximum likelihood to the peaks below a cut, as truncated there, and the cut put where that law leaves
`TAIL` above it, until both agree. Peaks of the cell's own spikes lie above the cut and do not count. The threshold is what
the law exceeds at the rate asked for. Measured on noise, deconvolved or not, the rate is within a factor of three of the one
asked for: it is the tail of a law fitted to its body.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.signal import find_peaks
from scipy.stats import norm

from sortcore.errors import ConfigError, ModelError
from sortcore.settings import Checked, setting

THRESHOLDS = ("absolute", "fraction", "percentile", "sigma", "false_positives")
TAIL = 0.1  # share of the noise's peaks that lies above the cut
MIRRORED = 0.05  # activity of which a larger share is negative tells of its noise by its negative side
ROUNDS = 12
FEWEST_PEAKS = 40  # to fit the law to; of fewer only the median is used, as of an exponential
NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)
NODES = (NODES + 1) / 2


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
    for k, row in enumerate(activity):
        seen = row[np.isfinite(row)]
        if not seen.any():
            continue
        if threshold.kind == "false_positives":
            mirrored = -row if (seen < 0).mean() > MIRRORED else None
            source = null[k] if null is not None else mirrored
            law, source = (tail_of_noise, row) if source is None else (tail_of_null, source)
            out[k] = law(source[peaks(source, 0.0, distance)], np.isfinite(source).sum() / fs, threshold.value)
        elif threshold.kind == "absolute":
            out[k] = threshold.value
        elif threshold.kind == "fraction":
            out[k] = threshold.value * seen.max()
        elif threshold.kind == "percentile":
            out[k] = np.percentile(seen, threshold.value)
        else:
            out[k] = seen.mean() + threshold.value * seen.std()
    return out


def peaks(row: np.ndarray, level: float, distance: int = 1) -> np.ndarray:
    """Frames of the local maxima of a row (T,) above a level; of those less than `distance` frames apart the larger."""
    padded = np.concatenate([[-np.inf], np.where(np.isnan(row), -np.inf, row), [-np.inf]])
    found, _ = find_peaks(padded, height=np.nextafter(level, np.inf), distance=distance)
    return found.astype(np.int64) - 1


def tail_of_null(sizes: np.ndarray, seconds: float, rate_hz: float) -> float:
    """Level that the peaks (P,) of activity without spikes exceed at a rate; beyond the largest, their law is drawn on."""
    allowed = rate_hz * seconds
    if not 1 <= allowed < len(sizes):
        return 0.0 if allowed >= len(sizes) else tail_of_noise(sizes, seconds, rate_hz)
    return float(np.sort(sizes)[::-1][int(allowed)])


def tail_of_noise(sizes: np.ndarray, seconds: float, rate_hz: float) -> float:
    """Level that noise alone exceeds at a rate, from peaks (P,) of which most are noise."""
    sizes = np.sort(sizes[sizes > 0])
    if not len(sizes):
        return 0.0
    cut = median = float(sizes[len(sizes) // 2])
    law, n = (np.log(2) / median, 0.0), float(len(sizes))
    for _ in range(ROUNDS if len(sizes) >= FEWEST_PEAKS else 0):
        below = sizes[sizes <= cut]
        law = fit_law(below, cut)
        n = min(len(below) / max(1 - beyond(cut, law), 0.05), float(len(sizes)))
        last, cut = cut, float(np.clip(level_beyond(TAIL, law), median, sizes[-1]))
        if abs(cut - last) < 1e-3 * last:
            break
    share = rate_hz * seconds / n
    return level_beyond(share, law) if share < 1 else 0.0


def fit_law(sizes: np.ndarray, cut: float) -> tuple[float, float]:
    """(a, b) of p(x) ~ exp(-a x - b x^2) of sizes (P,), all in 0 to `cut`: maximum likelihood, which matches the means of x and x^2.

    Newton's method on a concave likelihood; where it would have b below 0 b is 0, and only the mean of x is matched.
    """
    x = NODES  # of 0 to 1, where cut is 1
    seen = np.array([(sizes / cut).mean(), ((sizes / cut) ** 2).mean()])
    for free in (2, 1):
        p = np.array([1.0, 0.5])[:free]
        powers = np.stack([x, x**2])[:free]
        for _ in range(40):
            density = WEIGHTS * np.exp(-p @ powers - (-p @ powers).max())
            density /= density.sum()
            mean = powers @ density
            spread = (powers * density) @ powers.T - np.outer(mean, mean)
            step = np.linalg.solve(spread + 1e-12 * np.eye(free), mean - seen[:free])
            p = p + step * min(1.0, 10 / np.abs(step).max(initial=1e-9))
            if np.abs(step).max() < 1e-8:
                break
        a, b = float(p[0]), float(p[1]) if free == 2 else 0.0
        if b > 1e-3:
            return a / cut, b / cut**2
    return max(a, 0.1) / cut, 0.0


def beyond(level: float, law: tuple[float, float]) -> float:
    """Share of the law that lies above a level."""
    a, b = law
    if b == 0:
        return float(np.exp(-a * level))
    mean, sd = -a / (2 * b), (2 * b) ** -0.5
    return float(np.exp(norm.logsf((level - mean) / sd) - norm.logsf(-mean / sd)))


def level_beyond(share: float, law: tuple[float, float]) -> float:
    """Level above which a share of the law lies: the inverse of `beyond`."""
    if law[1] == 0:
        return float(-np.log(share) / law[0])
    high = (2 * law[1]) ** -0.5
    while beyond(high, law) > share:
        high *= 2
    return float(brentq(lambda level: np.log(beyond(level, law) / share), 0.0, high, xtol=1e-9 * high))


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
