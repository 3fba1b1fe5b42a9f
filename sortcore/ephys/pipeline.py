"""The sorter, one line a stage."""

from __future__ import annotations

import platform
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from sortcore import matching
from sortcore.ephys import curate, detect, preprocess
from sortcore.ephys import deconvolve as pursuit
from sortcore.ephys.config import SortConfig
from sortcore.ephys.fit import fit
from sortcore.ephys.initialize import initialize
from sortcore.ephys.waveforms import mean_waveforms
from sortcore.errors import ProbeError, RecordingError
from sortcore.matching import Matcher
from sortcore.numerics import pick_device
from sortcore.progress import Track, bars, silent
from sortcore.recording import Chunk, Recording, array_recording, chunks
from sortcore.types import Detections, FitLog, Model, Preprocessing, Priors, Probe, SortingResult, Spikes, Templates
from sortcore.version import __version__
from sortcore.workers import in_order

STRETCH_SECONDS = 5.0  # of the sample, without a break
PEAK_OVER_TROUGH = 1.3
MOST_VALUES = 700_000_000  # of whitened sample held in memory at once: 1.4 GB, and as much for its residual


def sort(recording: Recording | np.ndarray, probe: Probe | None = None, config: SortConfig | None = None, *, fs: float | None = None,
         gain_uv: float = 1.0, device: str = "auto", seed: int = 0, progress: bool | Track = True) -> SortingResult:
    """Sort a recording.

    recording: a `Recording`, or an array (samples, channels) with its sampling rate `fs` and microvolts per unit `gain_uv`
    probe: where the contacts are; without one every channel is taken as independent
    progress: True for a bar a stage, False for none, or a function (items, stage, total) -> items

    Raises RecordingError, ProbeError or ConfigError before any work where the input cannot be used.
    """
    config, track, torch_device = config or SortConfig(), tracker(progress), pick_device(device)
    recording = opened(recording, fs, gain_uv)
    probe = fitting(probe, recording)
    clock = Clock()
    learned = preprocess.learn(recording, probe, config.preprocess)
    whitener = preprocess.Whitener(learned, torch_device)
    clock.lap("learn noise")
    sample = take_sample(recording, whitener, config, track)
    clock.lap("preprocess")
    events, find_new = detect_events(sample, learned, config, seed, track)
    clock.lap("detect")
    before, after = template_window(recording.fs, config)
    first = initialize(sample.x.numpy(), events, learned.probe, before, after, config.initialize)
    clock.lap("initialize")
    waveforms, priors, log = fit(sample.x, *first, learned.probe, recording.fs, config.fit, config.pursuit, before,
                                 config.initialize.min_spikes, find_new, track)
    clock.lap("fit")
    matcher = matching.prepare(waveforms, priors, recording.fs, config.pursuit.subsamples, config.pursuit.amplitude_prior)
    spikes = pursuit.deconvolve(sample.source(recording, whitener), recording.segment_lengths, matcher, before, recording.fs,
                                config.pursuit, track)
    clock.lap("deconvolve")
    return finish(recording, learned, matcher, priors, spikes, log, config, seed, clock, before, after)


def deconvolve(recording: Recording | np.ndarray, model: Model, config: SortConfig | None = None, *, fs: float | None = None,
               device: str = "auto", progress: bool | Track = True) -> Spikes:
    """Find the spikes of units that are known already, in the same or another recording of the same probe.

    Raises RecordingError where the recording's channels or sampling rate are not those of the model.
    """
    config, track, torch_device = config or SortConfig(), tracker(progress), pick_device(device)
    p = model.preprocessing
    recording = opened(recording, fs or p.fs, float(p.gain_uv[0]))
    if recording.n_channels != p.n_recorded or abs(recording.fs - p.fs) > 1e-3 * p.fs:
        raise RecordingError(
            f"The model was learned on {p.n_recorded} channels at {p.fs:g} Hz, "
            f"but the recording has {recording.n_channels} at {recording.fs:g} Hz."
        )
    whitener = preprocess.Whitener(p, torch_device)
    matcher = matching.prepare(model.templates.dense(), model.priors, p.fs, config.pursuit.subsamples, config.pursuit.amplitude_prior)
    return pursuit.deconvolve(lambda c: whitener(recording, c), recording.segment_lengths, matcher, model.templates.trough, p.fs,
                              config.pursuit, track)


def opened(recording: Recording | np.ndarray, fs: float | None, gain_uv: float) -> Recording:
    """The input as a Recording that is long enough to sort."""
    if isinstance(recording, np.ndarray):
        if fs is None:
            raise RecordingError("An array needs its sampling rate: sort(array, probe, fs=30000).")
        recording = array_recording(recording, fs, gain_uv)
    if sum(recording.segment_lengths) < 0.05 * recording.fs:
        raise RecordingError(f"The recording is {sum(recording.segment_lengths) / recording.fs:.3f} s long; at least 0.05 s are needed.")
    return recording


def fitting(probe: Probe | None, recording: Recording) -> Probe:
    """The probe, or independent channels where there is none."""
    if probe is None:
        if recording.n_channels > 1:
            warnings.warn("No probe was given: every channel is sorted by itself. Give --probe to use the geometry.", stacklevel=3)
        return Probe.independent(recording.n_channels)
    if probe.n_channels != recording.n_channels:
        raise ProbeError(f"The probe {probe.name} has {probe.n_channels} contacts, but the recording has {recording.n_channels} channels.")
    return probe


def tracker(progress: bool | Track) -> Track:
    return progress if callable(progress) else bars if progress else silent


class Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = now - self.last
        self.last = now


@dataclass(frozen=True)
class Sample:
    """The whitened stretches on which templates are learned, end to end: x (N, T), and whether they are the whole recording."""

    x: torch.Tensor
    whole: bool

    def source(self, recording: Recording, whitener: preprocess.Whitener) -> Callable[[Chunk], torch.Tensor]:
        """A function that gives the whitened samples of any chunk, from memory where they are there."""
        if self.whole:
            return lambda c: self.x[:, c.start : c.stop].to(whitener.device, torch.float32)
        return lambda c: whitener(recording, c)


def take_sample(recording: Recording, whitener: preprocess.Whitener, config: SortConfig, track: Track) -> Sample:
    """Whiten stretches spread evenly over the recording, as many as are asked for and fit in memory."""
    n = len(whitener.preprocessing.channels)
    size = config.pursuit.chunk_samples(recording.fs, n)
    pieces = list(chunks(recording.segment_lengths, size))
    wanted = int(min(config.fit.sample_seconds * recording.fs, MOST_VALUES / n) // size)
    if len(pieces) > max(1, wanted):
        block = max(1, int(STRETCH_SECONDS * recording.fs / size))  # so that few templates are cut at their ends
        starts = np.linspace(0, len(pieces) - block, max(1, wanted // block)).astype(int)
        chosen = [pieces[i] for i in np.unique((starts[:, None] + np.arange(block)).ravel())]
    else:
        chosen = pieces
    places = np.r_[0, np.cumsum([c.stop - c.start for c in chosen])].tolist()
    x = torch.empty((n, places[-1]), dtype=torch.float16)  # noise is 1, so half precision is plenty

    def whiten(i: int) -> None:
        x[:, places[i] : places[i + 1]] = whitener(recording, chosen[i])

    deque(track(in_order(whiten, range(len(chosen))), "preprocess", len(chosen)), maxlen=0)
    return Sample(x, len(chosen) == len(pieces))


def template_window(fs: float, config: SortConfig) -> tuple[int, int]:
    return round(config.fit.before_ms * fs / 1000), round(config.fit.after_ms * fs / 1000)


def detect_events(sample: Sample, learned: Preprocessing, config: SortConfig, seed: int, track: Track) -> tuple[Detections, Callable]:
    """Events of the sample, and a function that clusters those of a residual into further waveforms."""
    fs, probe = learned.fs, learned.probe
    some = sample.x[:, : int(10 * fs)].float().numpy()
    prototypes, trough = detect.learn_prototypes(some, int(0.0006 * fs), int(0.001 * fs), seed)
    bank = detect.make_bank(prototypes, trough, probe, config.detect.radius_um)
    threshold = detect.false_alarm_threshold(bank, config.detect, fs, probe.positions_um, seed)
    before, after = template_window(fs, config)

    def events(x: torch.Tensor, follow: Track) -> Detections:
        return detect.detect_all(x, bank, threshold, config.detect, fs, probe.positions_um, follow)

    def find_new(residual: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        return initialize(residual.numpy(), events(residual, silent), probe, before, after, config.initialize)

    return events(sample.x, track), find_new


def finish(recording: Recording, learned: Preprocessing, matcher: Matcher, priors: Priors, spikes: Spikes, log: FitLog, config: SortConfig,
           seed: int, clock: Clock, before: int, after: int) -> SortingResult:
    """Waveforms in microvolts, the unit table and the model, from the spikes that were found."""
    n_samples = sum(recording.segment_lengths)
    k = len(priors.amp_mean)
    waveforms = matcher.waveforms()
    slack = int(0.0006 * recording.fs)
    averages = mean_waveforms(recording, learned, spikes, k, before + slack, after + slack)
    spikes, waveforms, templates_uv = at_trough(spikes, waveforms, averages, before, after, slack, recording.segment_lengths)
    keep = ~curate.duplicates(spikes, (matcher.coefficients != 0).any(axis=2), priors.amp_mean, recording.fs)
    order = np.flatnonzero(keep)
    order = order[np.argsort(depth(templates_uv[order], learned.probe), kind="stable")]
    spikes = renumbered(spikes, order, k)
    priors = Priors(*(getattr(priors, f)[order] for f in ("amp_mean", "amp_std", "rate_hz")))
    waveforms, templates_uv = waveforms[order], templates_uv[order]
    units = curate.measure(spikes, templates_uv, priors, matcher.threshold[order], matcher.parameters()[order], learned, n_samples,
                           config.curate)
    scale = np.abs(templates_uv[:, :, before]).max(axis=1, initial=0) / np.maximum(priors.amp_mean, 1e-9)
    footprints, profiles = low_rank(waveforms, config.fit.rank)
    model = Model(learned, Templates(footprints, profiles, before), priors, scale.astype(np.float32), templates_uv)
    clock.lap("curate")
    return SortingResult(spikes, units, model, float(recording.fs), tuple(recording.segment_lengths), config.to_dict(), seed, versions(),
                         dict(clock.laps), log)


def at_trough(spikes: Spikes, waveforms: np.ndarray, averages: np.ndarray, before: int, after: int, slack: int,
              segment_lengths: tuple[int, ...]) -> tuple[Spikes, np.ndarray, np.ndarray]:
    """Move each unit's times to the trough of its mean waveform (K, N, before + after + 1 + 2 slack) in microvolts.

    No spike is moved out of its segment.
    """
    k = len(waveforms)
    shifts = np.zeros(k, np.int64)
    moved, templates = np.zeros_like(waveforms), np.zeros((k, averages.shape[1], before + after + 1), np.float32)
    for u in range(k):
        best = np.ptp(averages[u], axis=1).argmax()
        around = averages[u, best, before : before + 2 * slack + 1]
        # spikes are negative as a rule: a peak counts only where it clearly outdoes the trough
        shifts[u] = (around.argmax() if around.max() > PEAK_OVER_TROUGH * -around.min() else around.argmin()) - slack
        templates[u] = averages[u, :, slack + shifts[u] : slack + shifts[u] + before + after + 1]
        moved[u] = np.roll(waveforms[u], -shifts[u], axis=1)
        if shifts[u] > 0:
            moved[u, :, -shifts[u] :] = 0
        elif shifts[u] < 0:
            moved[u, :, : -shifts[u]] = 0
    edges = np.r_[0, np.cumsum(segment_lengths)]
    segment = np.searchsorted(edges, spikes.samples, side="right") - 1
    samples = np.clip(spikes.samples + shifts[spikes.units], edges[segment], edges[segment + 1] - 1)
    spikes = replace(spikes, samples=samples)
    return spikes.select(np.lexsort((spikes.units, samples))), moved, templates


def depth(templates_uv: np.ndarray, probe: Probe) -> np.ndarray:
    """(K,) order of units along the probe, shank by shank."""
    if not len(templates_uv):
        return np.zeros(0)
    best = np.ptp(templates_uv, axis=2).argmax(axis=1)
    return probe.shank[best] * 1e7 + probe.positions_um[best, 1]


def renumbered(spikes: Spikes, order: np.ndarray, n_units: int) -> Spikes:
    """Spikes of the units in `order`, which become 0, 1, ..."""
    new = np.full(n_units, -1, np.int64)
    new[order] = np.arange(len(order))
    spikes = replace(spikes, units=new[spikes.units])
    spikes = spikes.select(spikes.units >= 0)
    return spikes.select(np.lexsort((spikes.units, spikes.samples)))


def low_rank(waveforms: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Footprints (K, N, R) and profiles (K, R, D) of waveforms (K, N, D)."""
    u, s, v = np.linalg.svd(waveforms, full_matrices=False)
    r = min(rank, s.shape[1]) if len(s) else rank
    touched = (waveforms != 0).any(axis=2)[:, :, None]  # no rounding on the channels a unit does not touch
    return (u[:, :, :r] * s[:, None, :r] * touched).astype(np.float32), v[:, :r].astype(np.float32)


def versions() -> dict[str, str]:
    import numba
    import scipy

    return {"sortcore": __version__, "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
            "scipy": scipy.__version__, "numba": numba.__version__}
