"""From a calcium movie to spikes, one line a step: demixing, dF/F, activity, spikes, quality."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter1d

from sortcore.optical.combined import combine
from sortcore.optical.movie.demix import DemixConfig, demix
from sortcore.optical.movie.quality import cell_quality
from sortcore.optical.movie.records import Demixed, MovieResult
from sortcore.optical.network import infer_network
from sortcore.optical.spikes import Events, Threshold, find_events
from sortcore.progress import Track, silent
from sortcore.settings import Checked, setting
from sortcore.types import Spikes

AROUND = 3  # frames over which the height of a spike is summed up


@dataclass(frozen=True)
class MovieConfig(Checked):
    network: bool = setting(True, "add what the network says of a trace to its deconvolution")
    demix: DemixConfig = field(default_factory=DemixConfig)
    threshold: Threshold = field(default_factory=Threshold)


CONFIG = MovieConfig()


def sort_movie(movie: Any, fs: float | None = None, config: MovieConfig = CONFIG, *, track: Track = silent) -> MovieResult:
    """Cells, activity and spikes of a calcium movie.

    movie: frames (T, H, W), motion-corrected; an array, a memory map, a path, or what `sortcore.optical.movie.reading.open_movie` gives
    fs: frames per second, where the movie does not say
    Raises RecordingError for what is no movie or holds nothing, ConfigError for settings and an fs out of range.
    """
    timings: dict[str, float] = {}
    with timed(timings, "demix"):
        demixed = demix(movie, fs, config.demix, track=track)
    with timed(timings, "activity"):
        dff = relative(demixed)
        activity = spiking(demixed, dff, config.network, track)
    with timed(timings, "spikes"):
        events = find_events(activity, demixed.fs, config.threshold)
        spikes = as_spikes(events, demixed)
        quality = cell_quality(demixed, spikes)
    return MovieResult(demixed, dff, activity, spikes, quality, dataclasses.asdict(config), timings)


@contextmanager
def timed(into: dict[str, float], name: str) -> Iterator[None]:
    """Note how long something took."""
    start = time.perf_counter()
    yield
    into[name] = time.perf_counter() - start


def relative(demixed: Demixed) -> np.ndarray:
    """(K, T) float32 dF/F: the trace less its baseline, over what shines at the footprint at rest, the cell and the light around it."""
    if not len(demixed):
        return np.zeros(demixed.traces.shape, np.float32)
    background = demixed.background
    light = np.tensordot(np.nanmean(background.courses, axis=1), background.fields, 1).ravel()
    around = demixed.footprints @ light / demixed.footprints.sum(axis=1)
    baseline = demixed.baseline if demixed.baseline.ndim == 2 else demixed.baseline[:, None]
    rest = np.nanmean(baseline, axis=1) + np.maximum(around, 0)
    least = np.maximum(demixed.noise, np.finfo(np.float32).tiny)  # a cell in the dark has no dF/F: it is given in sd of its noise
    return ((demixed.traces - baseline) / np.maximum(rest, least)[:, None]).astype(np.float32)


def spiking(demixed: Demixed, dff: np.ndarray, network: bool, track: Track) -> np.ndarray:
    """(K, T) float32 activity: the deconvolution's, with the network's where that is wanted."""
    if not (network and len(demixed)):
        return demixed.activity
    expected = infer_network(dff, demixed.fs, track=track).expected
    return np.array([combine(*rows) for rows in zip(expected, demixed.activity, strict=True)], dtype=np.float32)


def as_spikes(events: Events, demixed: Demixed) -> Spikes:
    """The same records as a probe's: amplitudes in sd of the trace's noise, scores as the share by which the threshold is exceeded."""
    if not len(events):
        return Spikes.empty()
    height = uniform_filter1d(np.nan_to_num(demixed.activity), AROUND, axis=1, mode="constant") * AROUND
    noise = np.maximum(demixed.noise, np.finfo(np.float32).tiny)
    amplitudes = height[events.cells, events.frames] / noise[events.cells]
    scores = events.sizes / np.maximum(events.thresholds[events.cells], np.finfo(np.float32).tiny) - 1
    return Spikes(events.frames, np.zeros(len(events), np.float32), events.cells, amplitudes.astype(np.float32), scores.astype(np.float32))
