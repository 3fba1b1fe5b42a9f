"""The records that the stages hand to each other.

Inside the engine an array is (channels, samples) float32, a time is a sample and an amplitude is in units of the
whitened noise (sigma = 1). Outside, times are seconds, positions micrometres and amplitudes microvolts.

Letters for sizes: N channels, T samples, K units, R rank, D samples of a template, S spikes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sortcore.errors import ModelError, ProbeError

LABELS = ("good", "mua", "noise")


@dataclass(frozen=True)
class Probe:
    """Where the contacts are.

    positions_um: (N, 2) contact positions in micrometres, in the order of the recording's channels
    shank: (N,) integer shank (or tetrode) of each contact; a template never spans two
    name: for people
    """

    positions_um: np.ndarray
    shank: np.ndarray
    name: str = "probe"

    def __post_init__(self) -> None:
        positions = np.asarray(self.positions_um, dtype=np.float64)
        if positions.ndim != 2 or positions.shape[1] != 2:
            raise ProbeError(f"Contact positions must be (channels, 2) in micrometres, but they are {positions.shape}.")
        if not np.isfinite(positions).all():
            raise ProbeError("Some contact positions are NaN or infinite; every contact needs a position.")
        shank = np.asarray(self.shank, dtype=np.int64)
        if shank.shape != (len(positions),):
            raise ProbeError(f"There are {len(positions)} contacts but {shank.shape} shank numbers; expected one each.")
        object.__setattr__(self, "positions_um", positions)
        object.__setattr__(self, "shank", shank)

    @property
    def n_channels(self) -> int:
        return len(self.positions_um)

    @classmethod
    def independent(cls, n_channels: int) -> Probe:
        """A stand-in where geometry is unknown: every channel is a shank of its own."""
        positions = np.stack([np.zeros(n_channels), 1000.0 * np.arange(n_channels)], axis=1)
        return cls(positions, np.arange(n_channels), "independent channels")

    def select(self, channels: np.ndarray) -> Probe:
        """The probe of some of the channels, in that order."""
        return Probe(self.positions_um[channels], self.shank[channels], self.name)


@dataclass(frozen=True)
class Preprocessing:
    """What was learned of the recording's noise: all that is needed to whiten any stretch of it.

    channels: (N,) recorded channels that are used, N of n_recorded
    n_recorded: channels of the recording
    fs: samples per second
    gain_uv: (N,) microvolts per stored unit
    offset: (N,) stored units that stand for zero volts
    probe: of the used channels
    reference: "median", "local" or "none"
    taps: (L,) zero-phase filter, band-pass and whitening in time, L odd
    bandpass_taps: (L,) the band-pass alone, for waveforms in microvolts
    whitening: (N, N) whitening in space, zero beyond each channel's neighbourhood
    artifact_sd: (N,) a whitened sample beyond this many standard deviations is an artefact
    bad_channels: {recorded channel: reason} for those left out
    every: of the filtered samples every so-manyth is kept; all that follows works at `whitened_fs`, and times are turned back at the end
    """

    channels: np.ndarray
    n_recorded: int
    fs: float
    gain_uv: np.ndarray
    offset: np.ndarray
    probe: Probe
    reference: str
    taps: np.ndarray
    bandpass_taps: np.ndarray
    whitening: np.ndarray
    artifact_sd: np.ndarray
    bad_channels: dict[int, str] = field(default_factory=dict)
    every: int = 1

    @property
    def whitened_fs(self) -> float:
        """Whitened samples per second."""
        return self.fs / self.every

    @property
    def margin(self) -> int:
        """Recorded samples on either side that a whitened sample depends on."""
        return len(self.taps) // 2


AT_ONCE_S = 0.01  # a movement within this time is a jump


@dataclass(frozen=True)
class Motion:
    """How far the tissue has moved along the probe, towards larger depth, from where it was in the median.

    times_s: (B,) increasing; depths_um: (V,) increasing; displacement_um: (B, V) at those times and depths, linear between
    them and constant beyond
    """

    times_s: np.ndarray
    depths_um: np.ndarray
    displacement_um: np.ndarray

    def at(self, time_s: float, depths_um: np.ndarray) -> np.ndarray:
        """Displacement at one time, at depths of any shape."""
        now = np.array([np.interp(time_s, self.times_s, window) for window in self.displacement_um.T])
        return np.interp(depths_um, self.depths_um, now)

    def over(self, times_s: np.ndarray, depth_um: float) -> np.ndarray:
        """(S,) displacement of one depth at times (S,)."""
        here = [np.interp(depth_um, self.depths_um, now) for now in self.displacement_um]
        return np.interp(times_s, self.times_s, here)

    def each(self, times_s: np.ndarray, depths_um: np.ndarray) -> np.ndarray:
        """(S,) displacement at times (S,), each at a depth of its own (S,)."""
        now = np.array([np.interp(times_s, self.times_s, window) for window in self.displacement_um.T])
        above, below, share = self.beside(depths_um)
        return (1 - share) * np.take_along_axis(now, above[None], 0)[0] + share * np.take_along_axis(now, below[None], 0)[0]

    def beside(self, depths_um: float | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The two of `depths_um` that each depth (of any shape) lies between, and the share of the second in its displacement."""
        at = np.asarray(np.interp(depths_um, self.depths_um, np.arange(len(self.depths_um))))
        first = at.astype(int)
        return first, np.minimum(first + 1, len(self.depths_um) - 1), at % 1

    @property
    def jumps_s(self) -> np.ndarray:
        """(J,) times at which the tissue jumps: two of `times_s` lie at either side of it, `AT_ONCE_S` apart at most."""
        at = np.flatnonzero(np.diff(self.times_s) <= AT_ONCE_S)
        return 0.5 * (self.times_s[at] + self.times_s[at + 1])


@dataclass(frozen=True)
class Detections:
    """Events found by the matched-filter detector.

    samples: (S,) trough sample, increasing
    channels: (S,) channel (of the used ones) where the event is largest
    scores: (S,) matched-filter score, in noise standard deviations
    """

    samples: np.ndarray
    channels: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Templates:
    """Unit-norm waveforms W_k = footprints_k' profiles_k of the convolutive semi-NMF, in whitened space.

    footprints: (K, N, R) spatial factor, zero on the channels a unit does not touch
    profiles: (K, R, D) temporal factor
    trough: sample of a template that a spike's time refers to
    """

    footprints: np.ndarray
    profiles: np.ndarray
    trough: int

    @property
    def n_units(self) -> int:
        return len(self.footprints)

    def dense(self) -> np.ndarray:
        """(K, N, D) waveforms, ||W_k||_F = 1."""
        return np.einsum("knr,krd->knd", self.footprints, self.profiles)


@dataclass(frozen=True)
class Priors:
    """What is known of a unit's amplitudes and rate.

    amp_mean, amp_std: (K,) Gaussian prior of the amplitude, in noise standard deviations
    rate_hz: (K,) spikes per second
    """

    amp_mean: np.ndarray
    amp_std: np.ndarray
    rate_hz: np.ndarray


@dataclass(frozen=True)
class MovingTemplates:
    """Waveforms at each displacement of the tissue; footprints_k' profiles_k has the mean amplitude there for its norm.

    knots_um: (Q,) displacements, evenly spaced; depths_um: (K,) where a unit is on the probe when nothing has moved
    footprints: (Q, K, N, R), profiles: (Q, K, R, D)
    """

    knots_um: np.ndarray
    depths_um: np.ndarray
    footprints: np.ndarray
    profiles: np.ndarray

    def dense(self) -> np.ndarray:
        """(Q, K, N, D) waveforms."""
        return np.einsum("qknr,qkrd->qknd", self.footprints, self.profiles)


@dataclass(frozen=True)
class Model:
    """Everything learned from a recording, and all that `deconvolve` needs beside the data.

    templates: of the tissue in its median place; moving: at other displacements, where it moved
    scale_uv: (K,) microvolts at the trough of the largest channel for an amplitude of one
    templates_uv: (K, N, D') mean band-passed waveforms in microvolts at the recording's sampling rate, on the used channels
    """

    preprocessing: Preprocessing
    templates: Templates
    priors: Priors
    scale_uv: np.ndarray
    templates_uv: np.ndarray
    moving: MovingTemplates | None = None

    @property
    def trough_uv(self) -> int:
        """Sample of `templates_uv`, which is at the recording's rate, that a spike's time refers to."""
        return self.templates.trough * self.preprocessing.every


@dataclass(frozen=True)
class Spikes:
    """Spikes in order of time.

    samples: (S,) int64 trough sample in the recording (segments end to end)
    shifts: (S,) float32 sub-sample shift to be added to `samples`
    units: (S,) int64 index of the unit, 0 to K - 1
    amplitudes: (S,) float32 amplitude in noise standard deviations
    scores: (S,) float32 what the spike adds to the log joint (log odds in nats; above 0 for every spike kept)
    """

    samples: np.ndarray
    shifts: np.ndarray
    units: np.ndarray
    amplitudes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)

    @classmethod
    def empty(cls) -> Spikes:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32),
                   np.zeros(0, np.float32))

    def select(self, index: np.ndarray) -> Spikes:
        return Spikes(self.samples[index], self.shifts[index], self.units[index], self.amplitudes[index], self.scores[index])

    def by_unit(self, n_units: int) -> list[np.ndarray]:
        """The indices of each unit's spikes, in order."""
        order = np.argsort(self.units, kind="stable")
        return np.split(order, np.searchsorted(self.units[order], np.arange(1, n_units))) if n_units else []

    @classmethod
    def concatenate(cls, parts: list[Spikes]) -> Spikes:
        if not parts:
            return cls.empty()
        names = ("samples", "shifts", "units", "amplitudes", "scores")
        return cls(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


@dataclass(frozen=True)
class Units:
    """One row a unit; every field is an array of length K.

    label: "good", "mua" or "noise"
    n_spikes, firing_rate_hz
    channel: recorded channel with the largest waveform
    position_um: (K, 2) centre of mass of the waveform
    amplitude_uv: trough-to-peak of the mean waveform on its channel
    snr: norm of the mean whitened waveform, in noise standard deviations
    contamination: estimated share of spikes from other cells, from refractory violations
    contamination_upper: its 95 % upper bound: zero violations of few spikes is not zero contamination
    missed: estimated share of spikes below threshold, from the amplitude prior
    refractory_violations: intervals below the refractory period
    presence: share of the recording's tenths in which the unit fires
    evidence: what its spikes add to the log joint, less what its waveform's parameters cost (Bayesian information criterion)
    """

    label: np.ndarray
    n_spikes: np.ndarray
    firing_rate_hz: np.ndarray
    channel: np.ndarray
    position_um: np.ndarray
    amplitude_uv: np.ndarray
    snr: np.ndarray
    contamination: np.ndarray
    contamination_upper: np.ndarray
    missed: np.ndarray
    refractory_violations: np.ndarray
    presence: np.ndarray
    evidence: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class FitLog:
    """One row an iteration of the coordinate ascent: (I,) arrays, and the steps taken in words."""

    log_joint: np.ndarray
    n_units: np.ndarray
    n_spikes: np.ndarray
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class SortingResult:
    """A sorted recording.

    config: the SortConfig that made it, as a nested dictionary
    motion: how the tissue moved; None where it was not seen to
    """

    spikes: Spikes
    units: Units
    model: Model
    fs: float
    segment_lengths: tuple[int, ...]
    config: dict
    seed: int
    versions: dict[str, str]
    timings_s: dict[str, float]
    log: FitLog
    motion: Motion | None = None

    @property
    def n_units(self) -> int:
        return len(self.units)

    @property
    def duration_s(self) -> float:
        return sum(self.segment_lengths) / self.fs

    def spike_train(self, unit: int, seconds: bool = False) -> np.ndarray:
        """Spike times of one unit, in samples (int64) or in seconds with the sub-sample shift."""
        mine = self.spikes.units == unit
        if seconds:
            return (self.spikes.samples[mine] + self.spikes.shifts[mine].astype(np.float64)) / self.fs
        return self.spikes.samples[mine]

    @property
    def amplitudes_uv(self) -> np.ndarray:
        """(S,) amplitude of each spike at the trough of its unit's channel, in microvolts."""
        if not len(self.spikes):
            return np.zeros(0, np.float32)
        return self.spikes.amplitudes * self.model.scale_uv[self.spikes.units]


@dataclass(frozen=True)
class Traces:
    """Fluorescence of K cells over T frames, as a file held it.

    values: (K, T) real numbers as they were stored, NaN where frames are missing; raw fluorescence or dF/F; may be a memory map
    fs: frames per second, None where the file does not say
    neuropil: (K, T) fluorescence around each cell, None where there is none
    names: K, of the cells
    source: what was read, in words
    """

    values: np.ndarray
    fs: float | None = None
    neuropil: np.ndarray | None = None
    names: tuple[str, ...] = ()
    source: str = "array"

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ModelError(f"Traces must be (cells, frames), but they have shape {self.values.shape}.")
        if self.neuropil is not None and self.neuropil.shape != self.values.shape:
            raise ModelError(f"Neuropil must have the shape of the traces, {self.values.shape}, but it has {self.neuropil.shape}.")
        if not self.names:
            object.__setattr__(self, "names", tuple(str(k) for k in range(len(self.values))))
        if len(self.names) != len(self.values):
            raise ModelError(f"There are {len(self.values)} traces, but {len(self.names)} names.")

    def __len__(self) -> int:
        return len(self.values)
