"""Calcium traces whose spikes are known.

    y_t = b_t + c_t + noise,    c the indicator's answer to the spikes (`sortcore.optical.indicator`)

Cells fire at a rate that wanders, alone or in bursts. The fluorescence F = F0 (1 + c + drift) bleaches, carries shot noise,
whose variance grows with F, and Gaussian noise, and comes out as dF/F relative to F0 at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.signal import lfilter

from sortcore.errors import ConfigError
from sortcore.optical.indicator import Indicator, decay_per_frame, spike_counts
from sortcore.settings import Checked, setting

RATE_STEP_S = 0.01  # the rate is constant for so long
MEDIAN_DIFFERENCE = 0.95387  # median |e_t - e_{t-1}| of white Gaussian noise of standard deviation 1
WARM_UP = 5.0  # decay times that cells have been firing for when the first frame is taken


@dataclass(frozen=True)
class Firing(Checked):
    """How a cell fires: events at a rate that wanders, each one spike or a burst."""

    rate_hz: float = setting(0.5, "mean firing rate", "Hz", 0.0, 500.0)
    fluctuation: float = setting(0.0, "standard deviation of the logarithm of the rate", "", 0.0, 4.0)
    fluctuation_s: float = setting(2.0, "time over which the rate wanders", "s", 0.01)
    bursting: float = setting(0.0, "share of the events that are bursts", "", 0.0, 1.0)
    burst_spikes: float = setting(3.0, "mean spikes of a burst, two of them certain", "", 2.0, 100.0)
    burst_interval_s: float = setting(0.008, "mean interval within a burst", "s", 0.0, 1.0)
    refractory_s: float = setting(0.002, "no two spikes are nearer; the later one waits", "s", 0.0, 0.1)


@dataclass(frozen=True)
class Noise(Checked):
    """Standard deviations in dF/F of one frame; of shot noise that of the resting cell before bleaching."""

    gaussian: float = setting(0.05, "noise that does not know the signal", "", 0.0)
    shot: float = setting(0.0, "noise of counting photons: its variance grows with the fluorescence", "", 0.0)

    @classmethod
    def at_level(cls, level: float, fs: float, shot_share: float = 0.5) -> Noise:
        """Noise of a standardised level: that which `standardised_noise` finds in a trace without signal.

        shot_share: share of the variance that is shot noise
        """
        if not 0 <= shot_share <= 1:
            raise ConfigError(f"shot_share is a share of the variance, 0 to 1, but it is {shot_share}.")
        sd = level * np.sqrt(fs) / (100 * MEDIAN_DIFFERENCE)
        return cls(float(sd * np.sqrt(1 - shot_share)), float(sd * np.sqrt(shot_share)))


@dataclass(frozen=True)
class Baseline(Checked):
    """How the baseline moves: F0 bleaches by a share with a time constant, and drifts as an Ornstein-Uhlenbeck process."""

    bleaching: float = setting(0.0, "share of the fluorescence that is lost in the end", "", 0.0, 1.0)
    bleaching_s: float = setting(300.0, "time constant of bleaching", "s", 1e-3)
    drift: float = setting(0.0, "standard deviation of the drift in dF/F", "", 0.0)
    drift_s: float = setting(30.0, "time constant of the drift", "s", 1e-3)
    offset: float = setting(0.0, "constant added to the trace, in dF/F")


@dataclass(frozen=True)
class CalciumSimulation:
    """Traces and their truth: K cells, T frames, traces = baseline + calcium + noise.

    traces: (K, T) dF/F
    fs: frames per second
    spike_times_s: K arrays of increasing times, 0 being the instant of the first frame
    counts: (K, T) int64 spikes of each frame, which holds the half frame before its instant and the half after
    calcium: (K, T) noiseless answer to the spikes, bleaching included
    baseline: (K, T) what the trace would be without spikes and noise
    noise_std: (K,) standard deviation of the noise of the resting cell, before bleaching
    indicators: K, of each cell
    """

    traces: np.ndarray
    fs: float
    spike_times_s: tuple[np.ndarray, ...]
    counts: np.ndarray
    calcium: np.ndarray
    baseline: np.ndarray
    noise_std: np.ndarray
    indicators: tuple[Indicator, ...]

    @property
    def times_s(self) -> np.ndarray:
        """(T,) instants of the frames."""
        return np.arange(self.traces.shape[1]) / self.fs


Item = TypeVar("Item")
INDICATOR, FIRING, NOISE, BASELINE = Indicator(), Firing(), Noise(), Baseline()


def simulate_calcium(n_cells: int, seconds: float, fs: float, *, indicator: Indicator | Sequence[Indicator] = INDICATOR,
                     firing: Firing | Sequence[Firing] = FIRING, noise: Noise | Sequence[Noise] = NOISE,
                     baseline: Baseline | Sequence[Baseline] = BASELINE, seed: int = 0) -> CalciumSimulation:
    """Traces of K cells of so many seconds.

    indicator, firing, noise, baseline: one for all cells, or K of them; `INDICATORS` has indicators by name

    Each cell has random numbers of its own: it is the same whatever the others are. The same arguments give the same bytes.
    Raises ConfigError for arguments out of range.
    """
    n_frames = frames_of(n_cells, seconds, fs)
    settings = zip(each(indicator, n_cells, "indicator"), each(firing, n_cells, "firing"), each(noise, n_cells, "noise"),
                   each(baseline, n_cells, "baseline"), strict=True)
    seeds = np.random.SeedSequence(seed).spawn(n_cells)
    traces, calcium, bases = (np.zeros((n_cells, n_frames)) for _ in range(3))
    counts = np.zeros((n_cells, n_frames), np.int64)
    trains, noise_std, indicators = [], np.zeros(n_cells), []
    for k, (one, fires, noisy, base) in enumerate(settings):
        spiking, letting, moving, measuring = (np.random.default_rng(s) for s in seeds[k].spawn(4))
        before = WARM_UP * one.tau_decay_s
        times = draw_spikes(spiking, fires, (n_frames - 0.5) / fs + before) - before
        weights = np.exp(letting.normal(0, one.spread, len(times)) - 0.5 * one.spread**2) if one.spread else None
        bleached, drifted = draw_baseline(moving, base, n_frames, fs)
        calcium[k] = bleached * settled(one, times, n_frames, fs, weights)
        bases[k] = bleached * (1 + drifted) - 1 + base.offset
        traces[k] = bases[k] + calcium[k] + draw_noise(measuring, noisy, 1 + bases[k] - base.offset + calcium[k])
        trains.append(times[times >= -0.5 / fs])
        counts[k] = spike_counts(trains[-1], n_frames, fs)
        noise_std[k] = np.hypot(noisy.gaussian, noisy.shot)
        indicators.append(one)
    return CalciumSimulation(traces, float(fs), tuple(trains), counts, calcium, bases, noise_std, tuple(indicators))


def settled(indicator: Indicator, times_s: np.ndarray, n_frames: int, fs: float, weights: np.ndarray | None) -> np.ndarray:
    """(T,) the indicator's answer where spikes from before the first frame still show."""
    early = int(np.ceil(max(0.0, -times_s.min(initial=0.0)) * fs))
    return indicator.response(times_s + early / fs, n_frames + early, fs, weights)[early:]


def draw_spikes(rng: np.random.Generator, firing: Firing, seconds: float) -> np.ndarray:
    """Increasing spike times in 0 to `seconds`.

    Events are a Poisson process of rate r exp(s x(t) - s^2 / 2), x an Ornstein-Uhlenbeck process of unit variance.
    """
    per_event = 1 + firing.bursting * (firing.burst_spikes - 1)
    n_steps = max(1, int(np.ceil(seconds / RATE_STEP_S)))
    rate = np.full(n_steps, firing.rate_hz / per_event)
    if firing.fluctuation:
        wander = ornstein_uhlenbeck(rng, n_steps, RATE_STEP_S / firing.fluctuation_s)
        rate *= np.exp(firing.fluctuation * wander - 0.5 * firing.fluctuation**2)
    step = np.repeat(np.arange(n_steps), rng.poisson(rate * RATE_STEP_S))
    events = np.sort((step + rng.random(len(step))) * RATE_STEP_S)
    sizes = np.ones(len(events), np.int64)
    bursts = rng.random(len(events)) < firing.bursting
    sizes[bursts] = 2 + rng.poisson(firing.burst_spikes - 2, bursts.sum())
    intervals = rng.exponential(firing.burst_interval_s, sizes.sum())
    first = np.cumsum(sizes) - sizes
    intervals[first] = 0
    elapsed = np.cumsum(intervals)
    times = np.sort(np.repeat(events - elapsed[first], sizes) + elapsed)
    wait = firing.refractory_s * np.arange(len(times))
    times = np.maximum.accumulate(times - wait) + wait
    return times[times < seconds]


def draw_baseline(rng: np.random.Generator, baseline: Baseline, n_frames: int, fs: float) -> tuple[np.ndarray, np.ndarray]:
    """(T,) share of the fluorescence that bleaching leaves, and (T,) drift in dF/F."""
    bleached = 1 - baseline.bleaching * -np.expm1(-np.arange(n_frames) / (fs * baseline.bleaching_s))
    return bleached, baseline.drift * ornstein_uhlenbeck(rng, n_frames, 1 / (fs * baseline.drift_s))


def draw_noise(rng: np.random.Generator, noise: Noise, fluorescence: np.ndarray) -> np.ndarray:
    """Noise of fluorescence (T,), 1 at rest: photons are counted, shot^-2 of them at rest."""
    out = noise.gaussian * rng.standard_normal(len(fluorescence))
    if noise.shot:
        expected = np.maximum(fluorescence, 0)
        out += rng.poisson(expected / noise.shot**2) * noise.shot**2 - expected
    return out


def ornstein_uhlenbeck(rng: np.random.Generator, n: int, step: float) -> np.ndarray:
    """(n,) stationary process of unit variance, correlated as exp(-step) from one value to the next."""
    rho = decay_per_frame(1.0, 1 / step)
    white = rng.standard_normal(n)
    white[1:] *= np.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], white)


def standardised_noise(traces: np.ndarray, fs: float) -> np.ndarray:
    """(...,) noise level nu = 100 median_t |y_t - y_{t-1}| / sqrt(fs) of dF/F (..., T), in % per square root of Hz.

    Traces at different frame rates, of the same cell and laser power, have the same (Rupprecht et al., Nat Neurosci 2021).
    NaN frames are left out.
    """
    return 100 * np.nanmedian(np.abs(np.diff(traces, axis=-1)), axis=-1) / np.sqrt(fs)


def frames_of(n_cells: int, seconds: float, fs: float) -> int:
    """Frames of a simulation. Raises ConfigError where its size is none."""
    if not (np.isfinite(fs) and fs > 0):
        raise ConfigError(f"fs is the number of frames per second and must be above 0, but it is {fs}.")
    if not (np.isfinite(seconds) and round(seconds * fs) >= 1):
        raise ConfigError(f"A trace needs at least a frame, but seconds is {seconds} and fs {fs}.")
    if n_cells < 0:
        raise ConfigError(f"n_cells must be 0 or more, but it is {n_cells}.")
    return round(seconds * fs)


def each(value: Item | Sequence[Item], n_cells: int, name: str) -> list[Item]:
    """One setting for all cells, or one of each."""
    if not isinstance(value, Sequence):
        return [value] * n_cells
    if len(value) != n_cells:
        raise ConfigError(f"There are {n_cells} cells, but {len(value)} settings for {name}; give one for all, or one of each.")
    return list(value)
