"""The sorter, one line a stage."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from sortcore import matching
from sortcore.ephys import deconvolve as pursuit
from sortcore.ephys import detect, preprocess
from sortcore.ephys.conclude import conclude, versions
from sortcore.ephys.config import SortConfig
from sortcore.ephys.drift import find_motion
from sortcore.ephys.fit import fit
from sortcore.ephys.initialize import initialize
from sortcore.ephys.kept import CLUSTERS, DETECTED, FIT, MOTION, NOISE, SPIKES, Detected
from sortcore.errors import ProbeError, RecordingError
from sortcore.follow import Follower, make_follower
from sortcore.matching import Matcher
from sortcore.moving import MovingMatcher, moving_matcher
from sortcore.numerics import pick_device
from sortcore.progress import Track, bars, silent
from sortcore.recording import Chunk, Recording, Thinned, array_recording
from sortcore.sample import Sample, stretches, take_sample
from sortcore.steps import Steps, open_steps
from sortcore.types import Detections, Model, Motion, Preprocessing, Probe, SortingResult, Spikes
from sortcore.workers import InOrder, one_thread_each, spread_by, spread_now, threads_here


@one_thread_each()
def sort(recording: Recording | np.ndarray, probe: Probe | None = None, config: SortConfig | None = None, *, fs: float | None = None,
         gain_uv: float = 1.0, device: str = "auto", seed: int = 0, progress: bool | Track = True, work: str | Path | None = None,
         fresh: bool = False, spread: InOrder | None = None) -> SortingResult:
    """Sort a recording.

    recording: a `Recording`, or an array (samples, channels) with its sampling rate `fs` and microvolts per unit `gain_uv`
    probe: where the contacts are; without one every channel is taken as independent
    progress: True for a bar a stage, False for none, or a function (items, stage, total) -> items
    work: folder in which each stage keeps its result, so that the same call goes on where an earlier one was stopped, and one with
        other settings does again only what depends on them; fresh: do all of it again
    spread: how work on pieces of the recording is done; by threads here if not given, `sortcore.remote.cluster_of(client)` on Dask

    The same recording, settings and seed give the same bytes, whatever the number of threads or workers, and however often stopped.
    Raises RecordingError, ProbeError or ConfigError before any work where the input cannot be used, RecordingError where it can be
    read no more, and OutputError where `work` cannot be written.
    """
    config, track, torch_device = config or SortConfig(), tracker(progress), pick_device(device)
    recording = opened(recording, fs, gain_uv)
    probe = fitting(probe, recording)
    steps = open_steps(work, recording, fresh, probe, torch_device.type, versions())
    with spread_by(spread):
        result = run(steps, recording, probe, config, torch_device, seed, track)
    steps.finish()
    return result


def run(steps: Steps, recording: Recording, probe: Probe, config: SortConfig, device: torch.device, seed: int,
        track: Track) -> SortingResult:
    """The stages one after another, each kept with the settings that it depends on."""
    clock, spread = Clock(), spread_now()
    learned = steps.keep("noise", NOISE, lambda: preprocess.learn(recording, probe, config.preprocess), config.preprocess)
    whitener, thinned, fs = preprocess.Whitener(learned, device), Thinned(recording.segment_lengths, learned.every), learned.whitened_fs
    lengths = thinned.segment_lengths
    clock.lap("learn noise")

    def whitened(chunk: Chunk) -> torch.Tensor:
        return whitener(recording, chunk)

    @cache
    def sample() -> Sample:  # made when it is first asked for: what is kept may do without it
        with spread_by(spread):  # no part of the stage that asks
            made = take_sample(whitened, len(learned.channels), lengths, fs, config, track)
        clock.lap("preprocess")
        return made

    detected = steps.keep("detect", DETECTED, lambda: detector(sample(), learned, config, seed, track),
                          config.fit.sample_seconds, config.pursuit.chunk_seconds, config.detect, seed)
    look = looking(detected, learned, config)
    clock.lap("detect")
    moved = steps.keep("drift", MOTION, lambda: find_motion(whitened, lengths, learned, sample(), detected.events, look, config.drift,
                                                            track), config.drift, parts=lambda *arrays: arrays)
    before, after = template_window(fs, config)
    clock.lap("drift")

    @cache
    def follower() -> Follower | None:
        return make_follower(moved, learned, sample().times_s) if isinstance(moved, Motion) else moved

    def clusters(x: torch.Tensor, events: Detections | None = None) -> tuple[np.ndarray, np.ndarray]:
        where = follower()
        x = x if where is None else where.registered(x)
        events = events if where is None and events is not None else look(x)
        return initialize(x.numpy(), events, learned.probe, before, after, config.initialize)

    first = steps.keep("initialize", CLUSTERS, lambda: clusters(sample().x, detected.events), config.initialize, before, after)
    clock.lap("initialize")
    matcher, priors, log = steps.keep("fit", FIT, lambda: fit(sample().x, *first, learned.probe, fs, config.fit, config.pursuit, before,
                                                              config.initialize.min_spikes, clusters, follower(), track, device),
                                      config.fit, config.pursuit)
    clock.lap("fit")
    in_memory = stretches(len(learned.channels), lengths, fs, config).whole

    def all_spikes() -> Spikes:
        source = sample().source(whitened, device) if in_memory else whitened
        with spread_by(threads_here if in_memory else None):  # what is in memory here need not travel
            return pursuit.deconvolve(source, lengths, matcher, before, fs, config.pursuit, track)

    spikes = steps.keep("deconvolve", SPIKES, all_spikes, parts=Spikes)
    clock.lap("deconvolve")
    result = conclude(recording, learned, matcher, priors, recorded(spikes, thinned), log, config, seed, before)
    clock.lap("curate")
    return replace(result, timings_s=dict(clock.laps))


@one_thread_each()
def deconvolve(recording: Recording | np.ndarray, model: Model, config: SortConfig | None = None, *, fs: float | None = None,
               motion: Motion | None = None, device: str = "auto", progress: bool | Track = True, spread: InOrder | None = None) -> Spikes:
    """Find the spikes of units that are known already, in the same or another recording of the same probe.

    motion: of the tissue in this recording, from where it was in the model's median place (`SortingResult.motion` for its own)
    spread: as in `sort`
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
    thinned = Thinned(recording.segment_lengths, p.every)
    with spread_by(spread):
        spikes = pursuit.deconvolve(lambda c: whitener(recording, c), thinned.segment_lengths, matcher, model.templates.trough,
                                    p.whitened_fs, config.pursuit, track)
    return recorded(spikes, thinned)


def recorded(spikes: Spikes, thinned: Thinned) -> Spikes:
    """Spikes at samples of the recording, from those at samples of the thinned one."""
    samples, shifts = thinned.recorded_samples(spikes.samples, spikes.shifts)
    return replace(spikes, samples=samples, shifts=shifts)


def model_matcher(model: Model, motion: Motion | None, config: SortConfig) -> Matcher | MovingMatcher:
    """The templates of a model made ready for matching, moving where the tissue does."""
    fs, how = model.preprocessing.whitened_fs, (config.pursuit.subsamples, config.pursuit.amplitude_prior)
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


def detector(sample: Sample, learned: Preprocessing, config: SortConfig, seed: int, track: Track) -> Detected:
    """A detector made from the sample's largest events, and what it finds in the sample."""
    fs, positions = learned.whitened_fs, learned.probe.positions_um
    some = sample.x[:, : int(10 * fs)].float().numpy()
    prototypes, trough = detect.learn_prototypes(some, int(0.0006 * fs), int(0.001 * fs), seed)
    bank = detect.make_bank(prototypes, trough, learned.probe, config.detect.radius_um)
    threshold = detect.false_alarm_threshold(bank, config.detect, fs, positions, seed)
    return Detected(bank, threshold, detect.detect_all(sample.x, bank, threshold, config.detect, fs, positions, track))


def looking(found: Detected, learned: Preprocessing, config: SortConfig) -> Callable[[torch.Tensor], Detections]:
    """A function that finds the events of x (N, T) whitened."""
    how = (found.bank, found.threshold, config.detect, learned.whitened_fs, learned.probe.positions_um)
    return lambda x: detect.detect_all(x, *how)
