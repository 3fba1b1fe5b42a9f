"""Rigid motion of the tissue in a movie: found frame by frame against a template, and taken away.

    frame_t(p) = template(p - shift_t) + noise

A frame's shift is where its cross-correlation with the template is largest, which for white noise is the likeliest one. scikit-image's
`phase_cross_correlation` finds it to a fraction of a pixel by a Fourier transform that is upsampled around the peak (Guizar-Sicairos et
al., Opt Lett 2008); its weights are left as they are, since equal weights for all frequencies ("phase") would weigh noise like picture.
Both pictures are high-passed first: what is broader than a few pixels is neuropil, which changes, and says little of where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import fft, ndimage

from sortcore.errors import ModelError, RecordingError
from sortcore.optical.movies import Movie, pieces
from sortcore.optional import require
from sortcore.progress import Track, silent
from sortcore.settings import Checked, setting
from sortcore.workers import in_order, one_thread_each

PIECE_BYTES = 2**25  # of frames, as float32, that a worker holds
SAMPLE_BYTES, FEWEST = 2**28, 30  # of frames for the template, of which there are fewer where they are large, but not fewer than these
ALIKE = 0.1  # share of the sample that is averaged for the first template
MOSTLY = 0.9  # share of the frames in which a row or column must be seen to be kept
SPLINE_PAD = 12  # pixels over which a spline forgets what is beyond them
CLOSE_PX = 0.02  # a template is good when the sample's shifts change no more


@dataclass(frozen=True)
class RegisterConfig(Checked):
    """How motion is estimated."""

    highpass_px: float = setting(5.0, "what is broader is left out of the comparison", "px", 0.5)
    max_shift: float = setting(0.2, "a frame that seems shifted by more is not believed; share of the shorter side", "", 0.0, 0.5)
    edge_px: int = setting(8, "the picture fades out over so many pixels at its edges", "px", 1)
    upsample: int = setting(20, "shifts are found to one part in so many of a pixel", "", 1, 1000)
    sample: int = setting(300, "frames that the template is made of", "", 2)
    rounds: int = setting(6, "how often the template is made anew, at most", "", 1)


@dataclass(frozen=True)
class Registration:
    """How the tissue moved in a movie of T frames of H x W pixels.

    shifts: (T, 2) rows and columns by which the tissue is displaced in each frame, from where it is in the median
    correlation: (T,) of the frame, high-passed and put back in place, with the template
    lost: (T,) frames whose own shift could not be believed and is that of their neighbours
    template: (H, W) mean of the sample in place
    """

    shifts: np.ndarray
    correlation: np.ndarray
    lost: np.ndarray
    template: np.ndarray

    def __post_init__(self) -> None:
        T = len(self.shifts)
        if self.shifts.shape != (T, 2) or self.correlation.shape != (T,) or self.lost.shape != (T,) or self.template.ndim != 2:
            raise ModelError(f"A registration has shifts (T, 2), correlation (T,) and lost (T,), but they are {self.shifts.shape}, "
                             f"{self.correlation.shape} and {self.lost.shape}.")


class Comparer:
    """Compares frames with one template."""

    def __init__(self, template: np.ndarray, config: RegisterConfig) -> None:
        self.config = config
        self.template = template
        self.search: Any = require("skimage.registration").phase_cross_correlation
        self.spectrum = self.transform(template)
        self.power = float(np.linalg.norm(self.spectrum))

    @cached_property
    def window(self) -> np.ndarray:
        """(H, W) weights that fade out at the edges, so that the picture's rim is no feature of it."""
        H, W = self.template.shape
        return np.multiply.outer(fading(H, self.config.edge_px), fading(W, self.config.edge_px)).astype(np.float32)

    @cached_property
    def highpass(self) -> np.ndarray:
        """(H, W) response to each frequency: 1 less a Gaussian's."""
        H, W = self.template.shape
        squared = np.add.outer(fft.fftfreq(H) ** 2, fft.fftfreq(W) ** 2)
        return (1 - np.exp(-2 * (np.pi * self.config.highpass_px) ** 2 * squared)).astype(np.float32)

    def transform(self, frame: np.ndarray) -> np.ndarray:
        """(H, W) spectrum of a frame that is compared: faded out, high-passed."""
        return fft.fft2(self.window * (frame - frame.mean())) * self.highpass

    def shift(self, frame: np.ndarray) -> tuple[float, float, float]:
        """Rows and columns that a frame (H, W) is displaced by, and its correlation in place; NaN for a frame that shows nothing."""
        seen = np.isfinite(frame)
        if not seen.all():
            frame = np.where(seen, frame, self.template)
        spectrum = self.transform(frame)
        power = float(np.linalg.norm(spectrum))
        if power <= 1e-6 * self.power or seen.mean() < 0.5:
            return np.nan, np.nan, np.nan
        back = self.search(self.spectrum, spectrum, upsample_factor=self.config.upsample, space="fourier", normalization=None)[0]
        rows, columns = (np.exp(-2j * np.pi * by * fft.fftfreq(n)) for by, n in zip(back, frame.shape, strict=True))
        alike = np.vdot(self.spectrum, spectrum * np.multiply.outer(rows, columns)).real / (power * self.power)
        return -float(back[0]), -float(back[1]), float(alike)


@one_thread_each()
def estimate_motion(movie: Movie, config: RegisterConfig | None = None, *, track: Track = silent) -> Registration:
    """The rigid motion of a movie, read in pieces.

    Raises MissingPackageError without scikit-image, RecordingError for a movie in which nothing can be compared.
    """
    config = config or RegisterConfig()
    comparer = Comparer(make_template(movie, config, track), config)
    cut = pieces(len(movie), movie.shape[1:], PIECE_BYTES)

    def one(part: slice) -> list[tuple[float, float, float]]:
        return [comparer.shift(frame) for frame in np.asarray(movie[part], np.float32)]

    found = np.concatenate([np.array(some) for some in track(in_order(one, cut), "motion", len(cut))])
    shifts, lost = believed(found[:, :2], config.max_shift * min(movie.shape[1:]))
    return Registration(shifts, np.nan_to_num(found[:, 2]), lost, comparer.template)


def make_template(movie: Movie, config: RegisterConfig, track: Track = silent) -> np.ndarray:
    """(H, W) mean of a sample of frames put in place, from frames that are alike to one in which all are."""
    _, H, W = movie.shape
    n = min(config.sample, max(FEWEST, SAMPLE_BYTES // (4 * H * W)))
    at = np.unique(np.linspace(0, len(movie) - 1, n).round().astype(int))
    sample = np.empty((len(at), H, W), np.float32)
    for i, t in enumerate(at):
        sample[i] = movie[int(t)]
    shown = np.array([np.isfinite(frame).mean() > 0.5 and bool(np.nanstd(frame)) for frame in sample])
    sample = sample if shown.all() else sample[shown]
    if not len(sample):
        raise RecordingError(f"{movie.name} cannot be registered: no frame shows anything, all pixels are alike or NaN.")
    if not np.isfinite(sample.sum()):
        sample = np.where(np.isfinite(sample), sample, np.nan_to_num(seen_mean(sample)))
    template, before = alike(sample, config), np.full((len(sample), 2), np.inf)
    for _ in track(range(config.rounds), "template", config.rounds):
        comparer = Comparer(template, config)
        found = np.array([shift[:2] for shift in in_order(comparer.shift, list(sample))])
        shifts, _ = believed(found, config.max_shift * min(movie.shape[1:]))
        total = sum((in_place(*pair) for pair in zip(sample, shifts, strict=True)), np.zeros((H, W)))
        template = total / len(sample)
        if np.abs(shifts - before).mean() < CLOSE_PX:
            break
        before = shifts
    return template


def alike(sample: np.ndarray, config: RegisterConfig) -> np.ndarray:
    """(H, W) mean of those frames (S, H, W) that are most like one of them, without any put in place."""
    n = max(2, min(len(sample), round(ALIKE * len(sample))))
    rows = np.empty((len(sample), sample[0].size), np.float32)
    for row, frame in zip(rows, sample, strict=True):
        detail = ndimage.gaussian_filter(frame, 1.0) - ndimage.gaussian_filter(frame, config.highpass_px)
        row[:] = detail.ravel() / max(float(np.linalg.norm(detail)), 1e-12)
    correlation = rows @ rows.T
    nearest = np.sort(correlation, axis=1)[:, -n:].mean(axis=1)
    return sample[np.argsort(correlation[np.argmax(nearest)])[-n:]].mean(axis=0)


def believed(shifts: np.ndarray, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """Shifts (T, 2) about their median, those too far away or unknown taken from their neighbours, and which (T,) these are."""
    if not np.isfinite(shifts).all(axis=1).any():
        return np.zeros_like(shifts), np.ones(len(shifts), bool)
    centred = shifts - np.nanmedian(shifts, axis=0)
    lost = ~(np.abs(centred).max(axis=1) <= largest)
    if lost.all():
        return np.zeros_like(shifts), lost
    t = np.arange(len(shifts))
    return np.stack([np.interp(t, t[~lost], column[~lost]) for column in centred.T], axis=1), lost


def fading(n: int, edge: int) -> np.ndarray:
    """(n,) weights, 1 in the middle, falling as a cosine over `edge` pixels at both ends."""
    edge = max(1, min(edge, n // 3))
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / edge)
    return np.concatenate([ramp, np.ones(n - 2 * edge), ramp[::-1]])


def seen_mean(frames: np.ndarray) -> np.ndarray:
    """(H, W) mean over the frames (T, H, W) in which a pixel is seen; NaN where it never is."""
    seen = np.isfinite(frames)
    return np.where(seen, frames, 0).sum(axis=0) / np.where(seen.any(axis=0), seen.sum(axis=0), np.nan)


def in_place(frame: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """A frame (H, W) whose tissue is displaced by `shift`, put back: cubic splines between pixels, the edge repeated beyond it.

    As `scipy.ndimage.shift`, which finds the weights of every pixel anew, where all pixels of a shifted picture have the same.
    """
    if not np.any(shift):
        return frame
    seen = np.isfinite(frame)
    if not seen.all():
        moved = in_place(np.where(seen, frame, frame[seen].mean() if seen.any() else 0.0), shift)
        known = ndimage.shift(seen.astype(np.float32), -np.asarray(shift), order=1, mode="nearest") > 0.5
        return np.where(known, moved, np.nan)
    pad = int(np.ceil(np.abs(shift).max())) + SPLINE_PAD
    spline = ndimage.spline_filter(np.pad(frame, pad, mode="edge"), order=3, output=np.float32)
    for axis, by in enumerate(shift):
        whole, n = int(np.floor(by)), frame.shape[axis]
        starts = [pad + whole + i for i in (-1, 0, 1, 2)]
        parts = [spline[at : at + n] if axis == 0 else spline[:, at : at + n] for at in starts]
        spline = sum((weight * part for weight, part in zip(cubic(by - whole), parts, strict=True)), np.zeros((), np.float32))
    return spline


def cubic(t: float) -> np.ndarray:
    """(4,) float32 cubic B-spline around the four knots nearest to a place that is t beyond the second of them."""
    u = 1 - t
    return np.array([u**3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * u**2 + 3 * u**3, t**3], np.float32) / np.float32(6)


@dataclass(frozen=True)
class InPlace:
    """A movie whose frames are put in place as they are read: float32, NaN beyond the picture that was taken.

    Rows and columns that are beyond it too often are NaN in all frames: what comes and goes with motion passes for a cell.
    """

    movie: Movie
    shifts: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.movie.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    @cached_property
    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """(H,) rows and (W,) columns that are seen in nearly all frames."""
        seen = [[np.mean(taken(at + self.shifts[:, axis], n)) for at in range(n)] for axis, n in enumerate(self.shape[1:])]
        return np.array(seen[0]) >= MOSTLY, np.array(seen[1]) >= MOSTLY

    def __getitem__(self, index: Any) -> np.ndarray:
        part = index[0] if isinstance(index, tuple) else index
        frames = np.array(self.movie[part], np.float32)
        for frame, shift in zip(frames, self.shifts[part], strict=True):
            if shift.any():
                frame[:] = in_place(frame, shift)
            rows, columns = (kept & taken(np.arange(len(kept)) + by, len(kept)) for kept, by in zip(self.kept, shift, strict=True))
            frame[~rows] = np.nan
            frame[:, ~columns] = np.nan
        return frames[(slice(None), *index[1:])] if isinstance(index, tuple) else frames


def taken(at: np.ndarray, n: int) -> np.ndarray:
    """Whether places lie within n pixels side by side."""
    return (at >= -0.5) & (at <= n - 0.5)


def registered(movie: Movie, registration: Registration) -> Movie:
    """The movie with every frame in place, which is done whenever a frame is read."""
    if len(registration.shifts) != len(movie):
        raise ModelError(f"The registration is of {len(registration.shifts)} frames, the movie has {len(movie)}.")
    return Movie(InPlace(movie, registration.shifts), (0, 1, 2), (), movie.fs, f"{movie.name}, registered")
