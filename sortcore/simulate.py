"""Recordings whose spikes are known.

`simulate` makes whole recordings, `demo_simulation` the one of `sortcore demo`, `planted` puts given waveforms into white
noise for tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from sortcore.cells import SUBSAMPLES, Neuron, Waveform, draw_neuron, template_size
from sortcore.errors import ConfigError
from sortcore.probes import load_probe
from sortcore.recording import ArrayRecording, array_recording
from sortcore.types import Motion, Probe

REFRACTORY_S = 0.0022
MAX_RATE_HZ = 200.0
BURST_DECAY = 0.82  # each spike of a burst is this much of the one before
AMPLITUDE_SD = 0.05
MAX_COSINE = 0.85  # two units' waveforms are not more alike than this,
MAX_PEAK = 0.6  # and no positive peak is larger than this share of the trough,
TRIES = 30  # if that can be had in so many draws
NOISE_POLE, NOISE_SHARED, NOISE_UM = 0.75, 0.6, 80.0  # low-pass, share of the power that neighbours see too, its reach


@dataclass(frozen=True)
class Simulation:
    """A recording and its truth.

    data: (T, N) int16 stored values
    fs: samples per second
    gain_uv: microvolts per stored unit
    probe: of the N channels
    spike_samples: (S,) int64 trough samples, in order of time
    spike_shifts: (S,) float32 sub-sample shift to be added, -0.5 to 0.5
    spike_units: (S,) int64 unit, 0 to K - 1
    spike_amplitudes: (S,) float32, 1 = the unit's template
    templates_uv: (K, N, D) float32 waveforms in microvolts
    trough: sample of a template that a spike's time refers to
    snr: (K,) depth of the trough over the noise's standard deviation, on the best channel, unfiltered
    noise_uv: standard deviation of the noise
    motion: how the tissue moved, None where it stayed; templates_uv are of tissue that has not moved
    """

    data: np.ndarray
    fs: float
    gain_uv: float
    probe: Probe
    spike_samples: np.ndarray
    spike_shifts: np.ndarray
    spike_units: np.ndarray
    spike_amplitudes: np.ndarray
    templates_uv: np.ndarray
    trough: int
    snr: np.ndarray
    noise_uv: float
    motion: Motion | None = None

    @property
    def n_units(self) -> int:
        return len(self.templates_uv)

    @property
    def best_channels(self) -> np.ndarray:
        """(K,) channel on which each unit is largest."""
        return self.templates_uv.min(axis=2).argmin(axis=1)

    def recording(self) -> ArrayRecording:
        return array_recording(self.data, self.fs, self.gain_uv)

    def spike_train(self, unit: int) -> np.ndarray:
        """Trough samples of one unit's spikes."""
        return self.spike_samples[self.spike_units == unit]


def simulate(probe: Probe, seconds: float, n_units: int, *, fs: float = 30000.0, noise_uv: float = 8.0,
             snr: tuple[float, float] = (5.0, 20.0), rate_hz: tuple[float, float] = (1.0, 12.0), bursting: float = 0.25,
             gain_uv: float = 0.195, motion: Motion | None = None, seed: int = 0) -> Simulation:
    """A recording of `n_units` cells near the probe.

    noise_uv: standard deviation of the noise in microvolts; coloured, and shared by neighbouring contacts
    snr: range of the units' troughs on their best channels, in standard deviations of the noise; evenly spread in log
    rate_hz: range of the mean firing rates, evenly spread in log
    bursting: share of the units that fire in bursts, within which amplitudes fall
    gain_uv: microvolts per stored unit
    motion: of the tissue with its cells, such as `drifting` makes

    The same arguments give the same bytes. Raises ConfigError for arguments out of range.
    """
    check(seconds, n_units, fs, noise_uv, snr, rate_hz, bursting, gain_uv)
    cells, trains, noise = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    n_samples = round(seconds * fs)
    depth_uv = noise_uv * log_spread(cells, snr, n_units)
    neurons = draw_units(cells, probe, n_units, fs)
    waves = [neuron.waveform(probe, fs).scaled(size) for neuron, size in zip(neurons, depth_uv, strict=True)]
    trough, length = template_size(fs)
    rates = log_spread(trains, rate_hz, n_units)
    bursts = trains.permutation(n_units) < round(bursting * n_units)
    samples, subs, units, amplitudes = draw_spikes(trains, rates, bursts, n_samples, fs, trough, length - trough)
    voltage = coloured_noise(noise, probe, n_samples, noise_uv)
    for k, wave in enumerate(waves):
        mine = units == k
        if motion is None:
            add_unit(voltage, wave, samples[mine] - trough, subs[mine], amplitudes[mine])
            continue
        moved = np.round(motion.over(samples[mine] / fs, float(neurons[k].soma[1])))
        for um in np.unique(moved):
            then = np.flatnonzero(mine)[moved == um]
            there = neurons[k].waveform(probe, fs, um).scaled(depth_uv[k])
            add_unit(voltage, there, samples[then] - trough, subs[then], amplitudes[then])
    voltage /= np.float32(gain_uv)
    data = np.clip(np.rint(voltage, out=voltage), -32768, 32767, out=voltage).astype(np.int16)
    shifts = (subs / SUBSAMPLES - 0.5).astype(np.float32)
    templates = np.zeros((n_units, probe.n_channels, length), np.float32)
    for k, wave in enumerate(waves):
        templates[k] = wave.template(probe.n_channels)
    return Simulation(data, float(fs), gain_uv, probe, samples, shifts, units, amplitudes, templates, trough,
                      depth_uv / noise_uv if noise_uv else np.full(n_units, np.inf), noise_uv, motion)


def drifting(probe: Probe, seconds: float, drift_um: float = 20.0, period_s: float = 60.0, jump_um: float = 0.0,
             rigid: float = 1.0) -> Motion:
    """Motion of tissue: a zigzag of `drift_um` from end to end, and a jump at half time.

    rigid: share of the motion of the contacts of least depth_um that those of largest take part in
    """
    times = np.arange(0.05, seconds, 0.1)
    zigzag = 0.5 * drift_um * (4 * np.abs((times / period_s + 0.25) % 1 - 0.5) - 1) + jump_um * (times > seconds / 2)
    zigzag -= np.median(zigzag)
    low, high = probe.positions_um[:, 1].min(), probe.positions_um[:, 1].max()
    return Motion(times, np.array([low, high]), zigzag[:, None] * np.array([1.0, rigid]))


def demo_simulation(seed: int = 0) -> Simulation:
    """The recording of `sortcore demo`: one minute of twelve cells on 32 contacts of a Neuropixels probe."""
    probe = load_probe("neuropixels1").select(np.arange(32))
    return simulate(Probe(probe.positions_um, probe.shank, "demo"), 60.0, 12, snr=(8.0, 20.0), rate_hz=(3.0, 12.0), seed=seed)


def planted(templates: np.ndarray, samples: np.ndarray, units: np.ndarray, n_samples: int, *, trough: int,
            amplitudes: np.ndarray | None = None, shifts: np.ndarray | None = None, noise_std: float = 1.0, seed: int = 0) -> np.ndarray:
    """(N, T) float32 white noise with templates (K, N, D) planted so that sample `trough` of each falls on its time.

    samples, units: (S,) when and which; amplitudes: (S,) factors, 1 by default; shifts: (S,) later by so many samples.
    What would lie before the start or after the end is cut off.
    """
    n_channels, length = templates.shape[1:]
    data = np.random.default_rng(seed).standard_normal((n_channels, n_samples)).astype(np.float32) * np.float32(noise_std)
    for i, (sample, unit) in enumerate(zip(samples, units, strict=True)):
        wave = templates[unit] if shifts is None else delay(templates[unit], float(shifts[i]))
        start = int(sample) - trough
        low, high = max(start, 0), min(start + length, n_samples)
        if low < high:
            data[:, low:high] += (1.0 if amplitudes is None else amplitudes[i]) * wave[:, low - start : high - start]
    return data


def delay(waves: np.ndarray, shift: float) -> np.ndarray:
    """(..., D) waveforms later by a fraction of a sample, band-limited; zero outside. They should end near zero."""
    length = waves.shape[-1]
    spectrum = np.fft.rfft(waves, 2 * length)
    return np.fft.irfft(spectrum * np.exp(-2j * np.pi * np.fft.rfftfreq(2 * length) * shift), 2 * length)[..., :length].astype(waves.dtype)


def check(seconds: float, n_units: int, fs: float, noise_uv: float, snr: tuple, rate_hz: tuple, bursting: float, gain_uv: float) -> None:
    """Raise ConfigError for arguments that make no recording."""
    rules = ((seconds * fs >= 1, f"A recording needs at least a sample, but seconds is {seconds} and fs {fs}."),
             (n_units >= 0, f"n_units must be 0 or more, but it is {n_units}."),
             (noise_uv >= 0 and gain_uv > 0, f"noise_uv must be 0 or more and gain_uv above 0, but they are {noise_uv} and {gain_uv}."),
             (0 < snr[0] <= snr[1], f"snr must be a range above 0, (low, high), but it is {snr}."),
             (0 < rate_hz[0] <= rate_hz[1] <= MAX_RATE_HZ, f"rate_hz must be a range in 0 to {MAX_RATE_HZ} Hz, but it is {rate_hz}."),
             (0 <= bursting <= 1, f"bursting is a share of the units, 0 to 1, but it is {bursting}."))
    for good, message in rules:
        if not good:
            raise ConfigError(message)


def log_spread(rng: np.random.Generator, span: tuple[float, float], n: int) -> np.ndarray:
    """(n,) values spread evenly in log over the range, in random order."""
    return np.exp(np.log(span[0]) + np.log(span[1] / span[0]) * (rng.permutation(n) + rng.uniform(size=n)) / max(n, 1))


def draw_units(rng: np.random.Generator, probe: Probe, n_units: int, fs: float) -> list[Neuron]:
    """Cells all over the probe, with waveforms unlike each other."""
    neurons: list[Neuron] = []
    homes = np.resize(rng.permutation(probe.n_channels), n_units)
    known = None
    for k, home in enumerate(homes.tolist()):
        draws = []
        for _ in range(TRIES):
            neuron = draw_neuron(rng, probe, home)
            wave = neuron.waveform(probe, fs)
            flat = wave.template(probe.n_channels).ravel()
            flat /= np.linalg.norm(flat)
            known = np.zeros((len(homes), len(flat)), np.float32) if known is None else known
            # A cell whose positive peak rivals its trough has no clear time: it comes behind all others.
            draws.append((float((known[:k] @ flat).max(initial=-1.0)) + (wave.stack.max() > MAX_PEAK), neuron, flat))
            if draws[-1][0] < MAX_COSINE:
                break
        _, neuron, known[k] = min(draws, key=lambda draw: draw[0])  # type: ignore[index]
        neurons.append(neuron)
    return neurons


def draw_spikes(rng: np.random.Generator, rates: np.ndarray, bursts: np.ndarray, n_samples: int, fs: float, before: int,
                after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Samples, sub-sample shift numbers, units and amplitudes of all spikes whose templates lie inside, in order of time."""
    parts = []
    for k, (rate, burst) in enumerate(zip(rates, bursts, strict=True)):
        times, place = draw_train(rng, rate, bool(burst), n_samples / fs)
        steps = np.round(times * fs * SUBSAMPLES).astype(np.int64) + SUBSAMPLES // 2
        samples, subs = steps // SUBSAMPLES, steps % SUBSAMPLES
        amplitudes = (BURST_DECAY**place * np.exp(rng.normal(0, AMPLITUDE_SD, len(times)))).astype(np.float32)
        inside = (samples >= before) & (samples + after <= n_samples)
        parts.append((samples[inside], subs[inside], np.full(inside.sum(), k, np.int64), amplitudes[inside]))
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    samples, subs, units, amplitudes = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((units, samples))
    return samples[order], subs[order], units[order], amplitudes[order]


def draw_train(rng: np.random.Generator, rate: float, burst: bool, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Spike times in seconds and each spike's place in its burst: a renewal process with a refractory period.

    Intervals are the refractory period and a gamma variate (of shape 1, a Poisson process, to 2); a bursting cell fires
    2 to 5 spikes 3 to 8 ms apart at about half of its events.
    """
    sizes_mean = 0.5 + 0.5 * 3.5 if burst else 1.0
    n_events = int(rate * seconds / sizes_mean * 1.5 + 50)
    sizes = np.where(rng.random(n_events) < 0.5, rng.integers(2, 6, n_events), 1) if burst else np.ones(n_events, np.int64)
    in_burst = (sizes_mean - 1) * 0.0055
    free = max(sizes_mean / rate - in_burst - REFRACTORY_S, 1e-4)
    shape = rng.uniform(1.0, 2.0)
    first = np.cumsum(sizes) - sizes
    place = np.arange(sizes.sum()) - np.repeat(first, sizes)
    intervals = rng.uniform(0.003, 0.008, len(place))
    intervals[first] = REFRACTORY_S + rng.gamma(shape, free / shape, n_events)
    times = np.cumsum(intervals) - intervals[0] * rng.random()
    inside = times < seconds
    return times[inside], place[inside]


def add_unit(voltage: np.ndarray, wave: Waveform, starts: np.ndarray, subs: np.ndarray, amplitudes: np.ndarray) -> None:
    """Add a unit's spikes to voltage (T, N), on the channels that its waveform touches."""
    length = wave.stack.shape[1]
    for start, sub, amplitude in zip(starts.tolist(), subs.tolist(), amplitudes, strict=True):
        voltage[start : start + length, wave.channels] += amplitude * wave.stack[sub]


def coloured_noise(rng: np.random.Generator, probe: Probe, n_samples: int, noise_uv: float) -> np.ndarray:
    """(T, N) float32 noise: a low-passed part that neighbours on a shank share, and a white part of each channel."""
    n = probe.n_channels
    distance = np.linalg.norm(probe.positions_um[:, None] - probe.positions_um[None], axis=2)
    distance[probe.shank[:, None] != probe.shank[None]] = np.inf
    shared = 0.7 * np.exp(-distance / NOISE_UM) + 0.3 * np.eye(n)
    mixing = (np.linalg.cholesky(shared) * np.sqrt(NOISE_SHARED) * noise_uv).T.astype(np.float32)
    own = np.float32(np.sqrt(1 - NOISE_SHARED) * noise_uv)
    gain, pole = np.array([np.sqrt(1 - NOISE_POLE**2)], np.float32), np.array([1, -NOISE_POLE], np.float32)
    voltage = np.empty((n_samples, n), np.float32)
    state = rng.standard_normal((1, n), dtype=np.float32) * np.float32(NOISE_POLE)  # as if it had been running for ever
    for start in range(0, n_samples, 30_000):
        part = voltage[start : start + 30_000]
        slow, state = lfilter(gain, pole, rng.standard_normal(part.shape, dtype=np.float32), axis=0, zi=state)
        np.matmul(slow, mixing, out=part)
        part += own * rng.standard_normal(part.shape, dtype=np.float32)
    return voltage
