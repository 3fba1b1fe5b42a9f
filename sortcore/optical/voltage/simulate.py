"""Voltage imaging traces whose spikes are known.

    y_t = F (1 - bleaching_t) + v_t + sum_i a_i w(t - t_i) + artefacts + noise

in units of one spike's height: the largest mean over a frame of a spike that comes as the frame begins. Neurons fire at a rate that
wanders, in bursts, and on plateaus, where spikes shrink; light is gathered over the whole frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter

from sortcore.errors import ConfigError
from sortcore.settings import Checked, setting

POINTS = 12  # of the fine grid, a frame
LASTS_S = 0.04  # a spike's waveform
WARM_S = 0.2


@dataclass(frozen=True)
class SpikeShape(Checked):
    """w: a fast rise, an exponential decay and an after-hyperpolarisation."""

    rise_s: float = setting(0.0004, "rise time", "s", 1e-5, 0.01)
    decay_s: float = setting(0.0013, "decay time", "s", 1e-4, 0.02)
    after_depth: float = setting(0.1, "depth of the after-hyperpolarisation, of a spike", "", 0.0, 1.0)
    after_s: float = setting(0.006, "time of its deepest point", "s", 1e-3, 0.05)

    def at(self, t: np.ndarray) -> np.ndarray:
        """w at times in seconds from the spike's onset, its largest value about 1."""
        u = np.maximum(t, 0.0)
        peak = self.rise_s * np.log1p(self.decay_s / self.rise_s)
        height = np.exp(-peak / self.decay_s) * -np.expm1(-peak / self.rise_s)
        fast = np.exp(-u / self.decay_s) * -np.expm1(-u / self.rise_s) / height
        return np.where(t >= 0, fast - self.after_depth * (u / self.after_s) * np.exp(1 - u / self.after_s), 0.0)


@dataclass(frozen=True)
class VoltageFiring(Checked):
    """When a neuron fires."""

    rate_hz: float = setting(5.0, "mean rate of single spikes and bursts", "Hz", 0.0, 200.0)
    fluctuation: float = setting(0.6, "standard deviation of the rate's logarithm", "", 0.0, 3.0)
    fluctuation_s: float = setting(0.7, "time over which the rate wanders", "s", 0.01)
    bursting: float = setting(0.1, "chance that a spike is followed by another at the burst's interval, again and again", "", 0.0, 0.9)
    burst_interval_s: float = setting(0.008, "mean interval in bursts", "s", 0.001, 0.1)
    refractory_s: float = setting(0.003, "no two spikes are nearer", "s", 0.0, 0.1)
    spread: float = setting(0.0, "standard deviation of spike heights", "", 0.0, 1.0)
    plateau_hz: float = setting(0.0, "rate of plateaus, on which spikes come one after the other and shrink", "Hz", 0.0, 10.0)
    shrinking: float = setting(0.85, "height of each spike on a plateau, of the one before", "", 0.1, 1.0)


@dataclass(frozen=True)
class VoltageNoise(Checked):
    """All in a trace that is no spike; sizes in heights of a spike."""

    snr: float = setting(5.0, "height of a spike over the white noise's standard deviation", "", 0.1)
    subthreshold: float = setting(0.3, "standard deviation of the subthreshold potential", "", 0.0)
    subthreshold_s: float = setting(0.02, "its correlation time", "s", 0.001)
    slow: float = setting(0.0, "standard deviation of a second, slower potential", "", 0.0)
    slow_s: float = setting(0.15, "its correlation time", "s", 0.01)
    level: float = setting(8.0, "fluorescence at the start", "", 0.0)
    bleaching: float = setting(0.2, "share of it that bleaches", "", 0.0, 1.0)
    bleaching_s: float = setting(40.0, "time constant of bleaching", "s", 0.1)
    artefact_hz: float = setting(0.0, "rate of sudden steps, as motion makes them", "Hz", 0.0, 10.0)
    artefact_size: float = setting(2.0, "their standard deviation", "", 0.0)


@dataclass(frozen=True)
class VoltageSimulation:
    """Traces of N cells over T frames.

    traces: (N, T) float32; subthreshold: (N, T) float32, without baseline
    spike_times_s: N increasing arrays, onsets in seconds from the start of frame 0
    heights: N arrays, of each spike
    """

    traces: np.ndarray
    subthreshold: np.ndarray
    spike_times_s: tuple[np.ndarray, ...]
    heights: tuple[np.ndarray, ...]
    fs: float


def simulate_voltage(n_cells: int, seconds: float, fs: float, *, shape: SpikeShape | None = None, firing: VoltageFiring | None = None,
                     noise: VoltageNoise | None = None, seed: int = 0) -> VoltageSimulation:
    """Traces whose spikes are known. Raises ConfigError for fewer than no cells, or no time."""
    if n_cells < 0 or not (np.isfinite(seconds * fs) and seconds > 0 and fs > 0):
        raise ConfigError(f"Cells must not be fewer than 0, seconds and fs must be above 0, but they are {n_cells}, {seconds} and {fs}.")
    rng = np.random.default_rng(seed)
    cells = [one_cell(rng, round(seconds * fs), fs, shape or SpikeShape(), firing or VoltageFiring(), noise or VoltageNoise())
             for _ in range(n_cells)]
    T = round(seconds * fs)
    traces = np.array([cell[0] for cell in cells], np.float32).reshape(n_cells, T)
    below = np.array([cell[1] for cell in cells], np.float32).reshape(n_cells, T)
    return VoltageSimulation(traces, below, tuple(cell[2] for cell in cells), tuple(cell[3] for cell in cells), float(fs))


def one_cell(rng: np.random.Generator, T: int, fs: float, shape: SpikeShape, firing: VoltageFiring,
             noise: VoltageNoise) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Trace, subthreshold potential, spike times and heights."""
    times, heights, plateau = spike_train(rng, T / fs, fs, T, firing)
    t = np.arange(T) / fs
    below = noise.subthreshold * ornstein(rng, T, fs, noise.subthreshold_s) + noise.slow * ornstein(rng, T, fs, noise.slow_s) + plateau
    y = noise.level * (1 - noise.bleaching * -np.expm1(-t / noise.bleaching_s)) + below + rng.standard_normal(T) / noise.snr
    y += spikes_seen(times, heights, T, fs, shape)
    for start in rng.uniform(0, T / fs, rng.poisson(noise.artefact_hz * T / fs)):
        y[(t >= start) & (t < start + rng.uniform(0.02, 0.15))] += noise.artefact_size * rng.standard_normal()
    return y, below, times, heights


def spike_train(rng: np.random.Generator, seconds: float, fs: float, T: int,
                firing: VoltageFiring) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times and heights of spikes, and the plateaus (T,)."""
    step = 0.01
    log_rate = firing.fluctuation * ornstein(rng, int(seconds / step) + 1, 1 / step, firing.fluctuation_s)
    rate = firing.rate_hz * np.exp(log_rate - firing.fluctuation**2 / 2)
    starts = np.flatnonzero(rng.random(len(rate)) < rate * step) * step
    spikes = []
    for start in starts + step * rng.random(len(starts)):
        spikes.append((start, 1.0))
        while rng.random() < firing.bursting:
            start += firing.burst_interval_s * rng.lognormal(0, 0.25)
            spikes.append((start, 1.0))
    plateau = np.zeros(T)
    for start in rng.uniform(0, seconds, rng.poisson(firing.plateau_hz * seconds)):
        length, n, interval = rng.uniform(0.03, 0.15), rng.integers(2, 8), rng.uniform(0.006, 0.013)
        plateau[int(start * fs) : int((start + length) * fs)] += rng.uniform(0.3, 1.0)
        spikes += [(start + rng.uniform(0, 0.003) + (j + 0.1) * interval, firing.shrinking ** (j + 1)) for j in range(n)]
    kept: list[tuple[float, float]] = []
    for time, height in sorted(spikes):
        if 0 <= time < seconds and (not kept or time - kept[-1][0] >= firing.refractory_s):
            kept.append((time, height))
    times, heights = np.array(kept).reshape(-1, 2).T
    return times, heights * np.maximum(1 + firing.spread * rng.standard_normal(len(heights)), 0.1), gaussian_filter1d(plateau, 0.004 * fs)


def spikes_seen(times: np.ndarray, heights: np.ndarray, T: int, fs: float, shape: SpikeShape) -> np.ndarray:
    """(T,) what frames see of spikes at some times (S,)."""
    n = int(np.ceil(LASTS_S * fs)) + 1
    within = (np.arange(n * POINTS) + 0.5) / (POINTS * fs)
    unit = shape.at(within).reshape(n, POINTS).mean(1).max()
    out = np.zeros(T + n)
    frames = np.floor(times * fs).astype(np.int64)
    for time, height, frame in zip(times, heights, frames, strict=True):
        out[frame : frame + n] += height / unit * shape.at(within - (time - frame / fs)).reshape(n, POINTS).mean(1)
    return out[:T]


def ornstein(rng: np.random.Generator, n: int, fs: float, seconds: float) -> np.ndarray:
    """(n,) an Ornstein-Uhlenbeck process of variance 1 and a correlation time."""
    g = np.exp(-1 / (seconds * fs))
    warm = int(min(WARM_S, 10 * seconds) * fs) + 1
    start = rng.standard_normal()
    return lfilter([np.sqrt(1 - g * g)], [1, -g], rng.standard_normal(n + warm), zi=[g * start])[0][warm:]
