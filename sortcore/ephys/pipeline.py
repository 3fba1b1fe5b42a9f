"""The sorter, one line a stage."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from sortcore import matching
from sortcore.ephys import deconvolve as pursuit
from sortcore.ephys import detect, preprocess
from sortcore.ephys.conclude import conclude
from sortcore.ephys.config import SortConfig
from sortcore.ephys.drift import find_motion
from sortcore.ephys.fit import fit
from sortcore.ephys.initialize import initialize
from sortcore.errors import ProbeError, RecordingError
from sortcore.matching import Matcher
from sortcore.moving import MovingMatcher, moving_matcher
from sortcore.numerics import pick_device
from sortcore.progress import Track, bars, silent
from sortcore.recording import Chunk, Recording, array_recording
from sortcore.sample import Sample, take_sample
from sortcore.types import Detections, Model, Motion, Preprocessing, Probe, SortingResult, Spikes


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
    lengths = recording.segment_lengths

    def whitened(chunk: Chunk) -> torch.Tensor:
        return whitener(recording, chunk)

    sample = take_sample(whitened, len(learned.channels), lengths, recording.fs, config, track)
    clock.lap("preprocess")
    look = detector(sample, learned, config, seed)
    events = look(sample.x, track)
    clock.lap("detect")
    follower = find_motion(whitened, lengths, learned, sample, events, look, config.drift, track)
    before, after = template_window(recording.fs, config)
    clock.lap("drift")

    def clusters(x: torch.Tensor, events: Detections | None = None) -> tuple[np.ndarray, np.ndarray]:
        x = x if follower is None else follower.registered(x)
        events = events if follower is None and events is not None else look(x)
        return initialize(x.numpy(), events, learned.probe, before, after, config.initialize)

    first = clusters(sample.x, events)
    clock.lap("initialize")
    matcher, priors, log = fit(sample.x, *first, learned.probe, recording.fs, config.fit, config.pursuit, before,
                               config.initialize.min_spikes, clusters, follower, track)
    clock.lap("fit")
    source = sample.source(whitened, torch_device)
    spikes = pursuit.deconvolve(source, lengths, matcher, before, recording.fs, config.pursuit, track)
    clock.lap("deconvolve")
    result = conclude(recording, learned, matcher, priors, spikes, log, config, seed, before, after)
    clock.lap("curate")
    return replace(result, timings_s=dict(clock.laps))


def deconvolve(recording: Recording | np.ndarray, model: Model, config: SortConfig | None = None, *, fs: float | None = None,
               motion: Motion | None = None, device: str = "auto", progress: bool | Track = True) -> Spikes:
    """Find the spikes of units that are known already, in the same or another recording of the same probe.

    motion: of the tissue in this recording, from where it was in the model's median place (`SortingResult.motion` for its own)
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
    matcher = model_matcher(model, motion, config)
    return pursuit.deconvolve(lambda c: whitener(recording, c), recording.segment_lengths, matcher, model.templates.trough, p.fs,
                              config.pursuit, track)


def model_matcher(model: Model, motion: Motion | None, config: SortConfig) -> Matcher | MovingMatcher:
    """The templates of a model made ready for matching, moving where the tissue does."""
    fs, how = model.preprocessing.fs, (config.pursuit.subsamples, config.pursuit.amplitude_prior)
    if motion is None or model.moving is None:
        return matching.prepare(model.templates.dense(), model.priors, fs, *how)
    m = model.moving
    return moving_matcher(model.templates.dense(), m.dense(), m.knots_um, model.priors, motion, m.depths_um, fs, *how)


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


def template_window(fs: float, config: SortConfig) -> tuple[int, int]:
    return round(config.fit.before_ms * fs / 1000), round(config.fit.after_ms * fs / 1000)


def detector(sample: Sample, learned: Preprocessing, config: SortConfig, seed: int) -> Callable[..., Detections]:
    """A function that finds the events of x (N, T) whitened, made from the sample's largest."""
    fs, positions = learned.fs, learned.probe.positions_um
    some = sample.x[:, : int(10 * fs)].float().numpy()
    prototypes, trough = detect.learn_prototypes(some, int(0.0006 * fs), int(0.001 * fs), seed)
    bank = detect.make_bank(prototypes, trough, learned.probe, config.detect.radius_um)
    threshold = detect.false_alarm_threshold(bank, config.detect, fs, positions, seed)
    return lambda x, track=silent: detect.detect_all(x, bank, threshold, config.detect, fs, positions, track)
