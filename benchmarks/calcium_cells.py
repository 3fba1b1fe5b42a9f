"""Cells for training the calcium network: every trace has an indicator, a cell, noise and a frame rate of its own.

`sortcore.optical.simulate` simulates cells that a user describes. Here thousands of cells are drawn at random, at the few
frames per second that the network sees, with what spoils recordings beside noise: neuropil-like waves, movements, coloured
and heavy-tailed noise.

    calcium: c += 1 at a spike, decays (with a slow part at times);  fluorescence: Hill(c), then a low-pass that is the rise
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from scipy.signal import lfilter

STEPS_PER_S = 150
LARGEST_RATE_HZ = 200.0
WARM_UP_S = 12.0
ON, OFF, SLACK = 2.5, 0.05, 0.3  # times the rate while a cell is on and off; how far past the crossing it goes on


@dataclass(frozen=True)
class Cell:
    """What is drawn of a cell; times in seconds, rates in spikes a second, `size` the dF/F of one spike.

    The rate follows a slow Gaussian process: as its exponential, or, where `switching` is not 0, on and off where it crosses that.
    """

    rate: float
    fluctuation: float
    fluctuation_s: float
    switching: float
    bursting: float
    interval: float
    refractory: float
    rise: float
    decay: float
    slow_share: float
    slow: float
    hill: float
    half: float
    resting: float
    size: float


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def draw_frame_rate(rng: np.random.Generator) -> float:
    kind = rng.random()
    return rng.uniform(15, 31) if kind < 0.7 else between(rng, 5, 15) if kind < 0.9 else between(rng, 2, 5)


def draw_cell(rng: np.random.Generator) -> Cell:
    """Two in three are principal cells; the others fire fast, smoothly and with small spikes."""
    if rng.random() < 0.65:
        rate, fluctuation = between(rng, 0.05, 12), rng.uniform(0, 2.2)
        bursting = rng.uniform(0, 0.75) if rng.random() < 0.5 else 0.0
        size_range, half_range = (0.01, 1.0), (1.5, 60.0)
    else:
        rate, fluctuation, bursting = between(rng, 1, 60), rng.uniform(0.2, 2.0), 0.0
        size_range, half_range = (0.0005, 0.15), (3.0, 300.0)
    switching = rng.uniform(0.1, 1.5) if rng.random() < 0.2 else 0.0
    decay = between(rng, 0.08, 5.0)
    rise = min(between(rng, 0.004, 0.6), 0.5 * decay)
    hill, half, resting, size = draw_response(rng, size_range, half_range)
    return Cell(rate * (1 - bursting), fluctuation, between(rng, 0.05, 8), switching, bursting, between(rng, 0.004, 0.03),
                between(rng, 0.002, 0.01), rise, decay, rng.uniform(0, 0.4) if rng.random() < 0.3 else 0.0,
                decay * between(rng, 3, 8), hill, half, resting, size)


def draw_response(rng: np.random.Generator, size_range: tuple[float, float],
                  half_range: tuple[float, float]) -> tuple[float, float, float, float]:
    """Hill exponent (0 for a linear indicator), half point and resting calcium in spikes, and the size of one spike."""
    if rng.random() < 0.3:
        return 0.0, 1.0, 0.0, between(rng, *size_range)
    while True:
        hill, half, resting, most = rng.uniform(1, 3), between(rng, *half_range), rng.uniform(0, 0.7), between(rng, 0.6, 12)
        size = most * (saturated(1 + resting, hill, half) - saturated(resting, hill, half))
        if size_range[0] < size < size_range[1]:
            return hill, half, resting, size


@numba.njit(cache=True)
def saturated(calcium: float, hill: float, half: float) -> float:
    power = calcium**hill
    return power / (power + half**hill)


@numba.njit(cache=True)
def fire(rng: np.random.Generator, n_frames: int, fs: float, cell: tuple,
         second_half: float) -> tuple[np.ndarray, np.ndarray]:
    """(T,) fluorescence and (T,) spike counts; in the second half the rate is `second_half` times as high."""
    rate, fluctuation, fluctuation_s, switching, bursting, interval, refractory, rise, decay = cell[:9]
    slow_share, slow, hill, half, resting, size = cell[9:]
    steps = max(1, int(np.ceil(STEPS_PER_S / fs)))
    dt = 1 / (fs * steps)
    keep_state, keep_fast, keep_slow, keep_rise = np.exp(-dt / fluctuation_s), np.exp(-dt / decay), np.exp(-dt / slow), np.exp(-dt / rise)
    rest = saturated(resting, hill, half) if hill else 0.0
    one_spike = saturated(1 + resting, hill, half) - rest if hill else 1.0
    light, counts = np.zeros(n_frames), np.zeros(n_frames)
    state, fast, lasting, risen, free_at, next_in_burst, now = rng.standard_normal(), 0.0, 0.0, 0.0, 0.0, -1.0, 0.0
    on = state > switching
    for frame in range(-int(WARM_UP_S * fs), n_frames):
        here = rate * (second_half if frame >= n_frames // 2 else 1.0)
        for _ in range(steps):
            now += dt
            state = keep_state * state + np.sqrt(1 - keep_state**2) * rng.standard_normal()
            if switching:
                on = state > switching + (-SLACK if on else SLACK)
                wanted = min(here * (ON if on else OFF), LARGEST_RATE_HZ)
            else:
                wanted = min(here * np.exp(fluctuation * state - 0.5 * fluctuation**2), LARGEST_RATE_HZ)
            spikes = 0
            if next_in_burst > 0 and now >= next_in_burst:
                spikes, next_in_burst = 1, -1.0
            if now >= free_at and rng.random() < wanted * dt:
                spikes += 1
            if spikes:
                free_at = now + refractory
                if rng.random() < bursting:
                    next_in_burst = now + interval * (0.5 + rng.random())
            fast = fast * keep_fast + spikes * (1 - slow_share)
            lasting = lasting * keep_slow + spikes * slow_share
            bound = (saturated(fast + lasting + resting, hill, half) - rest) / one_spike if hill else fast + lasting
            risen = keep_rise * risen + (1 - keep_rise) * bound
            if frame >= 0:
                light[frame] += size * risen / steps
                counts[frame] += spikes
    return light, counts


def wave(rng: np.random.Generator, n_frames: int, step: float) -> np.ndarray:
    """(T,) Ornstein-Uhlenbeck process of unit variance, correlated as exp(-step) from one frame to the next."""
    keep = np.exp(-step)
    white = rng.standard_normal(n_frames)
    white[1:] *= np.sqrt(1 - keep**2)
    return lfilter([1.0], [1.0, -keep], white)


def draw_baseline(rng: np.random.Generator, n_frames: int, fs: float, noise: float, size: float) -> np.ndarray:
    """(T,) drift, neuropil-like waves, bleaching, movements and an offset."""
    out = np.full(n_frames, rng.uniform(-0.05, 0.5))
    scale = max(noise, min(size, 0.3))
    if rng.random() < 0.7:
        out += wave(rng, n_frames, 1 / (fs * between(rng, 15, 150))) * scale * rng.uniform(0, 1.2)
    if rng.random() < 0.4:
        out += wave(rng, n_frames, 1 / (fs * between(rng, 0.1, 3))) * rng.uniform(0, 0.5) * (noise if rng.random() < 0.5 else scale)
    if rng.random() < 0.3:
        out += rng.uniform(-0.3, 0.8) * np.exp(-np.arange(n_frames) / (fs * between(rng, 10, 200)))
    if rng.random() < 0.3:
        for start in rng.integers(0, n_frames, rng.poisson(n_frames / fs / 30)):
            out[start : start + int(fs * between(rng, 0.05, 1)) + 1] -= rng.uniform(-0.3, 1) * 3 * scale
    return out


def draw_noise(rng: np.random.Generator, light: np.ndarray) -> np.ndarray:
    """(T,) noise of unit size where there is no light: white, coloured or heavy-tailed, with a share that grows with the light."""
    noise = rng.standard_normal(len(light))
    if rng.random() < 0.2:
        noise /= np.sqrt(rng.chisquare(4, len(light)) / 2)
    if rng.random() < 0.3:
        noise[1:] += rng.uniform(-0.15, 0.4) * noise[:-1]
    return noise * np.sqrt(np.clip(1 + rng.uniform(0, 1) * light, 0.3, None))


def draw_trace(rng: np.random.Generator, n_frames: int) -> tuple[np.ndarray, np.ndarray, float]:
    """(T,) dF/F of one cell, (T,) spike counts, and the frame rate."""
    fs, cell = draw_frame_rate(rng), draw_cell(rng)
    light, counts = fire(rng, n_frames, fs, tuple(vars(cell).values()), between(rng, 0.2, 5))
    level = between(rng, 0.2, 4) if rng.random() < 0.85 else between(rng, 2, 9)
    noise = min(level * np.sqrt(fs) / 95.4, 1.5 * max(cell.size, float(light.std()) / 2))
    return light + draw_baseline(rng, n_frames, fs, noise, cell.size) + noise * draw_noise(rng, light), counts, fs
