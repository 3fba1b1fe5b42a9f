"""Recordings with known spikes: folders that are there, and generators and MEArec's files, which become such folders.

A folder holds recording.bin (int16, time-major), probe.json (probeinterface), info.json (fs, n_channels, n_samples, gain_uv)
and truth.npz (spike_samples, spike_units, snr). A generator is named KIND:key=value,..., for example

    si-still:channels=32,units=40,seconds=60,seed=1

or `sortcore:probe=utah-10x10,units=30`, on a probe of `probes/` or one of `single`, `planar-1024` (32 x 32 contacts, 30 um apart);
with KIND one of
    si-still, si-drift   SpikeInterface's generate_drifting_recording, before and after a zigzag drift of 40 um
    si-tetrode           SpikeInterface's generate_ground_truth_recording on a tetrode
    sortcore             this project's own simulator
    sortcore-drift       the same with non-rigid drift: a zigzag of 30 um and a jump of 10 um at one end, a third of it at the other
    sortcore-rates       the same, still, with units that fire at 0.1 to 60 Hz and have an SNR of 4 to 20
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import butter, sosfiltfilt

from benchmarks.trains import Truth, load_truth
from sortcore.types import Probe as SortProbe

GAIN_UV = 0.195
FS = 30000.0


@dataclass(frozen=True)
class Spec:
    """What a generator is asked for; channels: of the probe's lowest contacts, 0 for all; probe: for the kinds of sortcore."""

    kind: str
    channels: int = 32
    units: int = 20
    seconds: float = 60.0
    seed: int = 0
    probe: str = "neuropixels1"

    @property
    def name(self) -> str:
        kind = self.kind if self.probe == "neuropixels1" else f"{self.kind}-{self.probe}"
        return f"{kind}-{self.channels}ch-{self.units}units-{self.seconds:g}s-seed{self.seed}"


def parse_spec(text: str) -> Spec:
    """KIND:key=value,... as a Spec. Raises ValueError naming what is known."""
    kind, _, rest = text.partition(":")
    if kind not in GENERATORS:
        raise ValueError(f"{text!r} is neither a folder nor a generator; the generators are {', '.join(GENERATORS)}.")
    types: dict[str, Any] = {"channels": int, "units": int, "seconds": float, "seed": int, "probe": str}
    values: dict[str, Any] = {"channels": 4, "units": 8} if kind == "si-tetrode" else {"channels": 0} if "probe=" in rest else {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in types:
            raise ValueError(f"{key!r} in {text!r} is unknown; use {', '.join(types)}, as in si-still:channels=32,units=40.")
        values[key] = types[key](value)
    return Spec(kind, **values)


def resolve(text: str, out: Path) -> Path:
    """The folder of a recording; a generated one is written under `out` once."""
    if (Path(text) / "truth.npz").is_file():
        return Path(text)
    if Path(text).is_dir():
        raise ValueError(f"{text} holds no truth.npz; a recording folder has recording.bin, probe.json, info.json and truth.npz.")
    spec = None if Path(text).suffix == ".h5" and Path(text).is_file() else parse_spec(text)
    folder = out / "recordings" / (Path(text).stem if spec is None else spec.name)
    if not (folder / "truth.npz").is_file():
        write_folder(folder, from_mearec(Path(text)) if spec is None else GENERATORS[spec.kind](spec))
    return folder


@dataclass(frozen=True)
class Generated:
    """What a generator made.

    recording: a SpikeInterface recording in microvolts
    samples, units: (S,) true spikes
    amplitudes: (S,) size of each spike against its unit's template, or None where unknown
    """

    recording: Any
    samples: np.ndarray
    units: np.ndarray
    n_units: int
    amplitudes: np.ndarray | None = None


def write_folder(folder: Path, made: Generated) -> None:
    """Store a generated recording as a recording folder; truth.npz, which makes it one, comes last."""
    from probeinterface import write_probeinterface

    folder.mkdir(parents=True, exist_ok=True)
    recording, fs = made.recording, made.recording.get_sampling_frequency()
    write_probeinterface(folder / "probe.json", recording.get_probegroup())
    n_samples, step = recording.get_num_samples(), int(fs)
    with (folder / "recording.bin").open("wb") as f:
        for start in range(0, n_samples, step):
            stored = np.round(recording.get_traces(start_frame=start, end_frame=min(start + step, n_samples)) / GAIN_UV)
            np.clip(stored, -32768, 32767).astype("<i2").tofile(f)
    info = {"fs": fs, "n_channels": recording.get_num_channels(), "n_samples": n_samples, "seconds": n_samples / fs, "dtype": "int16",
            "gain_uv": GAIN_UV}
    (folder / "info.json").write_text(json.dumps(info, indent=1))
    snr, channel = measure_snr(folder, made.samples, made.units, made.n_units)
    more: dict[str, Any] = {} if made.amplitudes is None else {"spike_amplitudes": made.amplitudes}
    np.savez_compressed(folder / "truth.npz", spike_samples=made.samples, spike_units=made.units, snr=snr, best_channel=channel, fs=fs,
                        positions_um=recording.get_channel_locations(), **more)


def measure_snr(folder: Path, samples: np.ndarray, units: np.ndarray, n_units: int, n_spikes: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """(U,) half the peak-to-peak of each unit's mean waveform over the noise of that channel (MAD of the first ten seconds,
    300 to 6000 Hz), and (U,) the channel. NaN and 0 for a unit without spikes."""
    info = json.loads((folder / "info.json").read_text())
    fs, n = float(info["fs"]), int(info["n_samples"])
    data = np.memmap(folder / "recording.bin", dtype=info.get("dtype", "int16"), mode="r", shape=(n, int(info["n_channels"])))
    sos = butter(3, [300, min(6000, 0.45 * fs)], "bandpass", fs=fs, output="sos")
    part = sosfiltfilt(sos, np.asarray(data[: int(10 * fs)], np.float32), axis=0)
    noise = np.median(np.abs(part - np.median(part, axis=0)), axis=0) / 0.6745
    half, margin = int(0.0015 * fs), int(0.01 * fs)
    snr, channel = np.full(n_units, np.nan), np.zeros(n_units, np.int64)
    for u in range(n_units):
        train = samples[(units == u) & (samples > half + margin) & (samples < n - half - margin)]
        train = train[np.linspace(0, len(train) - 1, min(len(train), n_spikes)).astype(int)] if len(train) else train
        if not len(train):
            continue
        mean = np.mean([data[t - half - margin : t + half + margin].astype(np.float32) for t in train], axis=0)
        size = np.ptp(sosfiltfilt(sos, mean, axis=0)[margin:-margin], axis=0)
        ratio = size / 2 / np.maximum(noise, 1e-9)
        channel[u] = size.argmax()
        snr[u] = ratio[channel[u]]
    return snr, channel


def known_truth(folder: Path, cache: Path) -> Truth:
    """The truth of a folder, with the signal-to-noise ratio measured (once, kept in `cache`) where it does not say."""
    truth = load_truth(folder)
    if not np.isnan(truth.snr).all() or not truth.trains.n_units:
        return truth
    file = cache / "snr.npz"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        snr, channel = measure_snr(folder, truth.trains.samples, truth.trains.units, truth.trains.n_units)
        np.savez(file, snr=snr, best_channel=channel)
    with np.load(file) as z:
        return Truth(truth.name, truth.trains, truth.n_samples, z["snr"], z["best_channel"], truth.positions_um)


def open_recording(folder: Path) -> Any:
    """The SpikeInterface recording of a folder, with its probe."""
    from probeinterface import read_probeinterface
    from spikeinterface.core import read_binary

    info = json.loads((folder / "info.json").read_text())
    recording = read_binary(folder / "recording.bin", sampling_frequency=info["fs"], dtype=info.get("dtype", "int16"),
                            num_channels=info["n_channels"], gain_to_uV=info["gain_uv"], offset_to_uV=0.0)
    return recording.set_probegroup(read_probeinterface(folder / "probe.json")) or recording


def from_spikeinterface_truth(recording: Any, sorting: Any) -> Generated:
    """A SpikeInterface recording and its true sorting."""
    spikes = sorting.to_spike_vector()
    return Generated(recording, spikes["sample_index"], spikes["unit_index"], len(sorting.unit_ids))


def from_mearec(file: Path) -> Generated:
    """A recording of MEArec. Its spikes are at the peak within the cell; they are brought to the trough of the largest contact."""
    from spikeinterface.extractors import read_mearec

    recording, sorting = read_mearec(file)
    made, n = from_spikeinterface_truth(recording, sorting), recording.get_num_samples()
    samples, reach = made.samples.copy(), int(0.002 * recording.get_sampling_frequency())
    for unit in range(made.n_units):
        train = made.samples[(made.units == unit) & (made.samples >= reach) & (made.samples < n - reach)]
        some = train[np.linspace(0, len(train) - 1, min(len(train), 200)).astype(int)] if len(train) else train
        if len(some):
            mean = np.mean([recording.get_traces(start_frame=t - reach, end_frame=t + reach) for t in some], axis=0)
            samples[made.units == unit] += mean[:, np.ptp(mean, axis=0).argmax()].argmin() - reach
    return Generated(recording, samples, made.units, made.n_units)


def generate_probe_recording(spec: Spec, moving: bool) -> Generated:
    """Two columns of contacts, staggered; drift is a zigzag of 40 um from a fifth of the recording on."""
    from spikeinterface.generation import generate_drifting_recording

    zigzag = {"drift_mode": "zigzag", "non_rigid_gradient": None, "t_start_drift": spec.seconds / 5, "t_end_drift": None,
              "period_s": spec.seconds / 2}
    still, drifting, sorting = generate_drifting_recording(
        num_units=spec.units, duration=spec.seconds, sampling_frequency=FS, probe_name=None, seed=spec.seed, amplitude_std=0.05,
        generate_probe_kwargs={"num_columns": 2, "num_contact_per_column": [spec.channels // 2] * 2, "xpitch": 16, "ypitch": 20,
                               "y_shift_per_column": [0, 10], "contact_shapes": "square", "contact_shape_params": {"width": 12}},
        generate_displacement_vector_kwargs={"displacement_sampling_frequency": 5.0, "drift_start_um": [0, 20], "drift_stop_um": [0, -20],
                                             "drift_step_um": 1, "motion_list": [zigzag]},
        generate_sorting_kwargs={"firing_rates": (1.0, 12.0), "refractory_period_ms": 3.0})
    return from_spikeinterface_truth(drifting if moving else still, sorting)


def generate_tetrode_recording(spec: Spec) -> Generated:
    """A tetrode, whatever number of channels is asked for."""
    from probeinterface import generate_tetrode
    from spikeinterface.generation import generate_ground_truth_recording

    probe = generate_tetrode()
    probe.set_device_channel_indices(np.arange(4))
    return from_spikeinterface_truth(*generate_ground_truth_recording(
        durations=[spec.seconds], sampling_frequency=FS, num_channels=4, num_units=spec.units, probe=probe, seed=spec.seed,
        noise_kwargs={"noise_levels": 8.0, "strategy": "on_the_fly"},
        generate_sorting_kwargs={"firing_rates": (2.0, 15.0), "refractory_period_ms": 3.0}))


def contacts_of(spec: Spec) -> SortProbe:
    """The probe of a recording that this project simulates: the lowest contacts, as many of each shank."""
    from sortcore.probes import load_probe

    if spec.probe == "single":
        return SortProbe(np.zeros((1, 2)), np.zeros(1, int), "single")
    if spec.probe == "planar-1024":
        x, y = np.meshgrid(30.0 * np.arange(32), 30.0 * np.arange(32))
        return SortProbe(np.column_stack([x.ravel(), y.ravel()]), np.zeros(1024, int), "planar-1024")
    probe = load_probe(spec.probe)
    if not spec.channels:
        return probe
    shanks = np.unique(probe.shank)
    each = spec.channels // len(shanks)
    return probe.select(np.sort(np.concatenate([np.flatnonzero(probe.shank == s)[:each] for s in shanks])))


def generate_sortcore_recording(spec: Spec, moving: bool = False, rate_hz: tuple[float, float] = (1.0, 12.0),
                                snr: tuple[float, float] = (5.0, 20.0)) -> Generated:
    """This project's simulator, on the contacts that are asked for."""
    import probeinterface
    from spikeinterface.core import NumpyRecording

    from sortcore.simulate import drifting, simulate

    probe = contacts_of(spec)
    motion = drifting(probe, spec.seconds, 30.0, spec.seconds / 2, 10.0, rigid=1 / 3) if moving else None
    made = simulate(probe, spec.seconds, spec.units, fs=FS, rate_hz=rate_hz, snr=snr, motion=motion, seed=spec.seed)
    contacts = probeinterface.Probe(ndim=2, si_units="um")
    contacts.set_contacts(probe.positions_um, shapes="square", shape_params={"width": 12}, shank_ids=probe.shank.astype(str))
    contacts.set_device_channel_indices(np.arange(probe.n_channels))
    recording = NumpyRecording([made.data.astype(np.float32) * np.float32(made.gain_uv)], made.fs)
    probed = recording.set_probe(contacts) or recording
    return Generated(probed, made.spike_samples, made.spike_units, spec.units, made.spike_amplitudes)


GENERATORS: dict[str, Callable[[Spec], Generated]] = {
    "si-still": lambda spec: generate_probe_recording(spec, moving=False),
    "si-drift": lambda spec: generate_probe_recording(spec, moving=True),
    "si-tetrode": generate_tetrode_recording,
    "sortcore": generate_sortcore_recording,
    "sortcore-drift": lambda spec: generate_sortcore_recording(spec, moving=True),
    "sortcore-rates": lambda spec: generate_sortcore_recording(spec, rate_hz=(0.1, 60.0), snr=(4.0, 20.0)),
}
