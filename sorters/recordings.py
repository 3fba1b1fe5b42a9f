"""Finding out what an input is, and opening it as a recording of the engine.

Raw binary and .npy files and folders with recording.bin and info.json are read directly; everything else by SpikeInterface,
whose reader is told by the path or by its name (`--format`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sortcore import Probe, Recording, array_recording, binary_recording
from sortcore.errors import ConfigError, RecordingError, SortcoreError
from sorters.adapter import SpikeInterfaceRecording, probe_of

RAW = (".bin", ".dat", ".raw")
SAVED = ("si_folder.json", "binary.json", "cached.json", "provenance.json")

# suffix of a file -> SpikeInterface's name of the format
BY_SUFFIX = {
    ".nwb": "nwb", ".rhd": "intan", ".rhs": "intan", ".ns5": "blackrock", ".ns6": "blackrock", ".plx": "plexon", ".pl2": "plexon2",
    ".smr": "ced", ".smrx": "ced", ".rec": "spikegadgets", ".edf": "edf", ".brw": "biocam", ".raw.h5": "maxwell", ".abf": "axon",
    ".nix": "nix",
}

# a file somewhere in a folder -> SpikeInterface's name of the format
BY_CONTENT = {
    "*.meta": "spikeglx", "structure.oebin": "openephysbinary", "*.continuous": "openephyslegacy", "*.ncs": "neuralynx", "*.tbk": "tdt",
    "*.cbin": "compressedbinaryibl", "*.mpx": "alphaomega", "raw.mda": "mda",
}

# streams that hold no spikes
OTHER_STREAM = re.compile(r"lf|nidq|nidaq|adc|aux|sync|digital|memory|event|dc ", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """What the user says about an input; None leaves it to the input.

    format: "binary", "npy", "folder", "saved" or SpikeInterface's name of a recording format
    dtype, channels, fs: of raw binary (fs also of .npy)
    gain_uv: microvolts per stored unit
    stream: name of the stream, where a format holds several
    """

    format: str | None = None
    dtype: str | None = None
    channels: int | None = None
    fs: float | None = None
    gain_uv: float | None = None
    stream: str | None = None

    def __post_init__(self) -> None:
        for name in ("fs", "gain_uv"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and (value > 0 or (name == "gain_uv" and value != 0))):
                raise ConfigError(f"{option(name)} must be {'positive' if name == 'fs' else 'finite and not zero'}, but it is {value}.")
        if self.channels is not None and self.channels < 1:
            raise ConfigError(f"--channels must be at least 1, but it is {self.channels}.")


@dataclass(frozen=True)
class RawFile:
    """Where the stored values lie in time-major files, one a segment, which phy can show."""

    paths: tuple[Path, ...]
    n_channels: int
    dtype: str
    skip_bytes: int = 0


@dataclass(frozen=True)
class Input:
    """An opened recording, the probe that came with it (or None), its format in words, and its raw file if it is one."""

    recording: Recording
    probe: Probe | None
    format: str
    raw: RawFile | None = None


def open_input(path: str | Path, reading: Reading, n_contacts: int | None = None) -> Input:
    """Open a recording. n_contacts is the number of channels of a raw file that comes without --channels.

    Raises RecordingError where it is missing or unreadable, ConfigError where an option is missing or does not belong.
    """
    path = Path(path)
    if not path.exists():
        raise RecordingError(f"There is no file or folder {path}.")
    kind = reading.format.lower() if reading.format else guess_format(path, reading)
    direct: dict[str, Callable[[], Input]] = {
        "binary": lambda: open_binary(path, reading, n_contacts),
        "npy": lambda: open_npy(path, reading),
        "folder": lambda: open_folder(path, reading),
    }
    return direct[kind]() if kind in direct else open_with_spikeinterface(path, kind, reading)


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def refuse(reading: Reading, kind: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError for options about what the format itself tells."""
    given = [f.name for f in fields(reading) if f.name in known and getattr(reading, f.name) is not None]
    if given:
        raise ConfigError(f"{', '.join(map(option, given))} cannot be given for format {kind}, which says it itself; "
                          "if the file is raw binary, give --format binary.")


def guess_format(path: Path, reading: Reading) -> str:
    """The format of a file or folder, from its name and what is in it."""
    if path.is_dir():
        if (path / "recording.bin").is_file() and (path / "info.json").is_file():
            return "folder"
        if path.suffix == ".zarr" or any((path / name).is_file() for name in SAVED):
            return "saved"
        found = {kind for pattern, kind in BY_CONTENT.items() if next(path.rglob(pattern), None) is not None}
        if "compressedbinaryibl" in found:
            found -= {"spikeglx"}  # a compressed SpikeGLX file keeps its .meta
        if len(found) == 1:
            return found.pop()
        seen = f"looks like {' and '.join(sorted(found))}" if found else "holds no recording that is recognised"
        raise RecordingError(f"The folder {path} {seen}; name its format with --format, e.g. --format openephysbinary.")
    name = path.name.lower()
    if reading.channels is None and path.with_suffix(".meta").is_file():
        return "spikeglx"
    if name.endswith(".npy"):
        return "npy"
    for suffix, kind in BY_SUFFIX.items():
        if name.endswith(suffix):
            return kind
    if name.endswith(RAW) or reading.channels is not None:
        return "binary"
    if name.endswith(".json"):
        return "saved"
    raise RecordingError(f"The format of {path} is not known from its name; give --format, or --channels and --fs if it is raw binary.")


def open_binary(path: Path, reading: Reading, n_contacts: int | None) -> Input:
    channels = reading.channels or n_contacts
    missing = [option(name) for name, value in (("channels", channels), ("fs", reading.fs)) if value is None]
    if missing:
        raise ConfigError(f"{path.name} is raw binary; give {' and '.join(missing)} (and --dtype, if it is not int16).")
    dtype = reading.dtype or "int16"
    recording = binary_recording(path, channels, reading.fs, dtype, 1.0 if reading.gain_uv is None else reading.gain_uv)  # type: ignore[arg-type]
    return Input(recording, None, f"raw binary, {dtype}", RawFile((path,), recording.n_channels, dtype))


def open_npy(path: Path, reading: Reading) -> Input:
    refuse(reading, "npy", ("dtype", "channels"))
    if reading.fs is None:
        raise ConfigError(f"{path.name} does not say its sampling rate; give --fs.")
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RecordingError(f"{path} could not be read as a numpy array: {error}.") from error
    if data.ndim == 2 and data.shape[0] < data.shape[1]:
        raise RecordingError(f"{path} is an array of {data.shape}; expected (samples, channels). Save its transpose.")
    gain_uv = 1.0 if reading.gain_uv is None else reading.gain_uv
    recording: Recording = array_recording(data, reading.fs, gain_uv)
    if isinstance(data, np.memmap) and data.flags.c_contiguous:  # read as a file: see BinaryRecording
        recording = binary_recording(path, data.shape[1], reading.fs, data.dtype.str, gain_uv, skip_bytes=data.offset)
    return Input(recording, None, f"numpy array, {data.dtype}")


def open_folder(path: Path, reading: Reading) -> Input:
    """A folder with recording.bin, info.json (fs, n_channels, dtype, gain_uv) and perhaps probe.json."""
    from sortcore.probes import load_probe

    refuse(reading, "folder", ("dtype", "channels", "fs"))
    try:
        info = json.loads((path / "info.json").read_text(encoding="utf8"))
        fs, channels, dtype = float(info["fs"]), int(info["n_channels"]), str(info.get("dtype", "int16"))
        gain_uv = float(info.get("gain_uv", 1.0) if reading.gain_uv is None else reading.gain_uv)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordingError(f"{path / 'info.json'} must tell fs, n_channels, dtype, gain_uv ({type(error).__name__} {error}).") from error
    recording = binary_recording(path / "recording.bin", channels, fs, dtype, gain_uv)
    probe = load_probe(path / "probe.json") if (path / "probe.json").is_file() else None
    return Input(recording, probe, f"folder with recording.bin, {dtype}", RawFile((path / "recording.bin",), channels, dtype))


def open_with_spikeinterface(path: Path, kind: str, reading: Reading) -> Input:
    """Whatever SpikeInterface reads."""
    refuse(reading, kind, ("dtype", "channels", "fs"))
    try:
        recording = load_saved(path) if kind == "saved" else read_format(path, kind, reading.stream)
    except SortcoreError:
        raise
    except ImportError as error:
        raise RecordingError(f"To read {kind} another package is needed: {first_line(error)}.") from error
    except Exception as error:  # SpikeInterface and its readers raise anything at all
        raise RecordingError(f"{path} could not be read as {kind}: {first_line(error)}") from error
    if reading.gain_uv is not None:
        recording.set_channel_gains(reading.gain_uv)
    probe = probe_of(recording) if recording.has_probe() else None
    return Input(SpikeInterfaceRecording(recording), probe, f"{kind}, {recording.get_dtype()}", raw_file(recording))


def load_saved(path: Path) -> Any:
    """A recording that SpikeInterface saved: folder, zarr or JSON."""
    import spikeinterface

    found = spikeinterface.load(path, **({"base_folder": True} if path.is_file() else {}))
    if not isinstance(found, spikeinterface.BaseRecording):
        raise RecordingError(f"{path} holds a {type(found).__name__}, which is no recording.")
    return found


def read_format(path: Path, kind: str, stream: str | None) -> Any:
    """A recording by SpikeInterface's reader of that name."""
    from spikeinterface.extractors.extractor_classes import recording_extractor_full_dict as readers
    from spikeinterface.extractors.neoextractors import neo_recording_class_dict

    if kind not in readers:
        names = ["binary", "npy", "folder", "saved", *sorted(set(readers) - {"binary", "numpy"})]
        raise ConfigError(f"There is no format {kind!r}; there are {', '.join(names)}.")
    if kind == "spikeglx" and path.is_file():
        stream = stream or ".".join(path.name.split(".")[-3:-1])  # name_g0_t0.imec0.ap.bin holds the stream imec0.ap
        path = path.parent
    if kind in neo_recording_class_dict:
        chosen = choose_stream(neo_recording_class_dict[kind].get_streams(path), kind, stream)
        return neo_recording_class_dict[kind](path, stream_name=chosen)
    if stream is not None:
        raise ConfigError(f"Format {kind} has no streams to choose from; leave --stream out.")
    return readers[kind](path)


def choose_stream(streams: tuple[list[str], list[str]], kind: str, asked: str | None) -> str | None:
    """The name of the stream that is asked for, or of the only one that can hold spikes."""
    names = [str(name) for name in streams[0]]
    if asked is not None:
        for name, identity in zip(names, map(str, streams[1]), strict=True):
            if asked in (name, identity):
                return name
        raise ConfigError(f"There is no stream {asked!r}; there are {', '.join(names)}.")
    likely = names if len(names) == 1 else [name for name in names if not OTHER_STREAM.search(name)]
    if len(likely) != 1:
        raise ConfigError(f"The {kind} recording has several streams; choose one with --stream: {', '.join(names)}.")
    return likely[0]


def raw_file(recording: Any) -> RawFile | None:
    """The time-major files behind a SpikeInterface recording, if it is stored so."""
    if not recording.is_binary_compatible():
        return None
    told = recording.get_binary_description()
    if told["time_axis"] != 0 or told["num_channels"] != recording.get_num_channels():
        return None
    return RawFile(tuple(map(Path, told["file_paths"])), told["num_channels"], np.dtype(told["dtype"]).name, int(told["file_offset"]))


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") + "." if lines else type(error).__name__
