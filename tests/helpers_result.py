"""A sorted recording without a sorter: spikes planted in noise, and the records measured from that very recording."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.signal import fftconvolve, firwin

from sortcore.ephys.config import SortConfig
from sortcore.types import FitLog, Model, Preprocessing, Priors, Probe, SortingResult, Spikes, Templates, Units

GAIN_UV = 0.5
RANK = 3


@dataclass(frozen=True)
class Planted:
    """data: (T, N) int16 recording; filtered_uv: (N, T) band-passed microvolts; result: what a perfect sorter would say of it."""

    data: np.ndarray
    filtered_uv: np.ndarray
    result: SortingResult


@lru_cache(maxsize=16)
def planted(n_units: int = 6, n_channels: int = 16, n_shanks: int = 1, seconds: tuple[float, ...] = (12.0,), fs: float = 15000.0,
            seed: int = 0) -> Planted:
    """Plant `n_units` in white noise of 6 uV and measure every record; nothing depends on anything but the arguments."""
    rng = np.random.default_rng(seed)
    probe = staggered_probe(n_channels, n_shanks)
    before, after = round(0.001 * fs), round(0.0018 * fs)
    lengths = tuple(int(s * fs) for s in seconds)
    waves, shapes = plant_waveforms(rng, probe, n_units, before, after, fs)
    spikes = plant_trains(rng, n_units, lengths, fs, after)
    data = rng.normal(0, 6, (n_channels, sum(lengths)))
    for sample, unit in zip(*spikes, strict=True):
        data[:, sample - before : sample + after] += rng.normal(1, 0.08) * waves[unit]
    stored = np.round(data.T / GAIN_UV).astype(np.int16)
    return measure(stored, probe, fs, lengths, *spikes, before, before + after, n_units, shapes)


def staggered_probe(n_channels: int, n_shanks: int) -> Probe:
    """Contacts 20 um apart in two columns a shank, shanks 250 um apart."""
    shank = np.arange(n_channels) * n_shanks // n_channels
    row = np.concatenate([np.arange((shank == s).sum()) for s in range(n_shanks)])
    return Probe(np.stack([250.0 * shank + 32.0 * (row % 2), 20.0 * row], axis=1), shank, "staggered")


def plant_waveforms(rng: np.random.Generator, probe: Probe, n_units: int, before: int, after: int,
                    fs: float) -> tuple[np.ndarray, np.ndarray]:
    """(K, N, D) microvolts that fall off with distance and arrive later further away, and the (K, N) channels they reach."""
    time_ms = (np.arange(-before, after) / fs * 1000)[None]
    waves = np.zeros((n_units, probe.n_channels, before + after))
    reach = np.zeros((n_units, probe.n_channels), bool)
    homes = np.linspace(0, probe.n_channels - 1, n_units).round().astype(int) if n_units else []
    for k, home in enumerate(homes):
        place = probe.positions_um[home] + rng.uniform(-8, 8, 2)
        distance = np.linalg.norm(probe.positions_um - place, axis=1)[:, None]
        width, late = rng.uniform(0.12, 0.28), time_ms - distance / 400
        shape = -np.exp(-((late / width) ** 2)) + rng.uniform(0.2, 0.5) * np.exp(-(((late - 3.2 * width) / (2.2 * width)) ** 2))
        reach[k] = (probe.shank == probe.shank[home]) & (distance[:, 0] < 90)
        waves[k] = reach[k][:, None] * rng.uniform(60, 260) * np.exp(-distance / 35) * shape * np.hanning(before + after) ** 0.2
    return waves, reach


def plant_trains(rng: np.random.Generator, n_units: int, lengths: tuple[int, ...], fs: float, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """Spike samples, in order, and their units: Poisson trains with a dead time of 2.5 ms, 3 to 25 Hz."""
    samples, units = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for unit, rate in enumerate(np.exp(rng.uniform(np.log(3), np.log(25), n_units))):
        first = 0
        for length in lengths:
            gaps = 0.0025 + rng.exponential(1 / rate - 0.0025, int(3 * rate * length / fs) + 20)
            train = first + np.round(np.cumsum(gaps) * fs).astype(np.int64)
            samples.append(train[(train > first + 2 * margin) & (train < first + length - 2 * margin)])
            units.append(np.full(len(samples[-1]), unit))
            first += length
    samples, units = np.concatenate(samples), np.concatenate(units)
    order = np.lexsort((units, samples))
    return samples[order], units[order]


def measure(stored: np.ndarray, probe: Probe, fs: float, lengths: tuple[int, ...], samples: np.ndarray, units: np.ndarray, trough: int,
            n_samples: int, n_units: int, reach: np.ndarray) -> Planted:
    """Every record of a result, measured on the recording at the planted times."""
    n_channels = stored.shape[1]
    taps = firwin(101, 300, pass_zero=False, fs=fs)
    filtered = fftconvolve(stored.T * GAIN_UV, taps[None], mode="same", axes=1)
    noise_sd = np.median(np.abs(filtered), axis=1) / 0.6745
    whitening = np.diag(1 / noise_sd)
    white = whitening @ filtered
    window = np.arange(n_samples) - trough
    footprints, profiles = np.zeros((n_units, n_channels, RANK)), np.zeros((n_units, RANK, n_samples))
    templates_uv = np.zeros((n_units, n_channels, n_samples))
    amplitudes = np.zeros(len(samples))
    for k in range(n_units):
        at = samples[units == k][:, None] + window
        templates_uv[k] = filtered[:, at].mean(axis=1) * reach[k][:, None]
        u, s, v = np.linalg.svd(white[:, at].mean(axis=1) * reach[k][:, None], full_matrices=False)
        rank = min(RANK, len(s))
        footprints[k, :, :rank], profiles[k, :rank] = u[:, :rank] * s[:rank] / np.linalg.norm(s[:rank]), v[:rank]
        amplitudes[units == k] = np.einsum("nsd,nd->s", white[:, at], footprints[k] @ profiles[k])
    duration = sum(lengths) / fs
    counts = np.bincount(units, minlength=n_units)
    mean = np.array([amplitudes[units == k].mean() for k in range(n_units)])
    priors = Priors(mean, np.array([amplitudes[units == k].std() for k in range(n_units)]), counts / duration)
    trough_uv = np.abs(templates_uv[:, :, trough]).max(axis=1) if n_units else np.zeros(0)
    shifts = np.random.default_rng(1).uniform(-0.5, 0.5, len(samples)).astype(np.float32)
    scores = amplitudes * mean[units] - mean[units] ** 2 / 2 - np.log(fs * duration / counts[units])
    spikes = Spikes(samples, shifts, units, amplitudes.astype(np.float32), scores.astype(np.float32))
    preprocessing = Preprocessing(np.arange(n_channels), n_channels, fs, np.full(n_channels, GAIN_UV), np.zeros(n_channels), probe,
                                  "none", taps, taps, whitening.astype(np.float32), 60 * noise_sd, {})
    model = Model(preprocessing, Templates(footprints.astype(np.float32), profiles.astype(np.float32), trough), priors, trough_uv / mean,
                  templates_uv.astype(np.float32))
    log = FitLog(np.array([-2.0e6, -1.5e6, -1.49e6]), np.array([n_units + 3, n_units + 1, n_units]), np.array([10, 20, len(samples)]),
                 ("three clusters split", "two units merged"))
    result = SortingResult(spikes, describe_units(spikes, model, lengths, fs), model, fs, lengths, SortConfig().to_dict(), 0,
                           {"sortcore": "0.1.0", "numpy": np.__version__}, {"preprocess": 0.5, "fit": 2.25}, log)
    return Planted(stored, filtered, result)


def describe_units(spikes: Spikes, model: Model, lengths: tuple[int, ...], fs: float) -> Units:
    """The unit table, from the spikes and the model."""
    n_units, duration = model.templates.n_units, sum(lengths) / fs
    peak_to_peak = np.ptp(model.templates_uv, axis=2) if n_units else np.zeros((0, model.preprocessing.probe.n_channels))
    channel = peak_to_peak.argmax(axis=1) if n_units else np.zeros(0, np.int64)
    weight = peak_to_peak**2 / np.maximum((peak_to_peak**2).sum(axis=1, keepdims=True), 1e-12)
    trains = [spikes.samples[spikes.units == k] for k in range(n_units)]
    counts = np.array([len(t) for t in trains], dtype=np.int64)
    violations = np.array([(np.diff(t) < 0.0015 * fs).sum() for t in trains], dtype=np.int64)
    tenths = [np.histogram(t, np.linspace(0, sum(lengths), 11))[0] for t in trains]
    expected = np.maximum(2 * 0.0015 * counts**2 / duration, 1e-9)
    label = np.array(["mua" if k % 5 == 3 else "noise" if k % 11 == 7 else "good" for k in range(n_units)], dtype="<U5")
    return Units(label, counts, counts / duration, model.preprocessing.channels[channel], weight @ model.preprocessing.probe.positions_um,
                 peak_to_peak.max(axis=1) if n_units else np.zeros(0), model.priors.amp_mean, np.clip(violations / expected, 0, 1),
                 np.clip((violations + 3) / expected, 0, 1), np.full(n_units, 0.02), violations,
                 np.array([(t > 0).mean() for t in tenths], dtype=np.float64),
                 np.bincount(spikes.units, weights=spikes.scores, minlength=n_units))
