"""Saving a sorted recording, and reading it back.

A result folder holds

    result.json   what the numbers need to be understood: sampling rate, segments, config, seed, versions, timings; written last
    spikes.npz    one row a spike
    units.npz     one row a unit, lossless
    units.tsv     the same for people, units in the header
    model.npz     everything learned: all that `deconvolve` needs beside the data
    fit.npz       the course of the fit
    log.txt       what happened, in words
    README.txt    every file and array, with shapes and units

Files are written beside their place and moved there when all are complete, so that an interruption or
a full disk leaves either the old result or none: a folder without result.json is not a result.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from sortcore.archive import (
    FORMAT,
    check_format,
    explained,
    pack,
    read_record,
    save_record,
    staging,
    to_json,
    write_npz,
    write_text,
    writing,
)
from sortcore.errors import OutputError
from sortcore.types import FitLog, Model, Motion, SortingResult, Spikes, Units

SEAL = "result.json"
MOTION = "motion.npz"

UNIT_COLUMNS = {  # field of Units: (header of units.tsv, decimals)
    "label": ("label", None), "n_spikes": ("n_spikes", None), "firing_rate_hz": ("firing_rate (Hz)", 3),
    "channel": ("channel (recorded)", None), "position_um": ("x (um)\ty (um)", 1), "amplitude_uv": ("amplitude (uV, trough to peak)", 1),
    "snr": ("snr (noise sd)", 2), "contamination": ("contamination (share)", 4),
    "contamination_upper": ("contamination_upper (share, 95 %)", 4), "missed": ("missed (share)", 4),
    "refractory_violations": ("refractory_violations", None), "presence": ("presence (share)", 2),
    "evidence": ("evidence (log joint)", 1),
}

README = """A sorting by sortcore. K units, S spikes, N used channels, D samples of a template, R rank.
Read it with sortcore.load_result(folder), or with numpy and json alone: nothing is pickled.

spikes.npz
  samples (S,)        trough of the spike, in samples of the recording, its segments end to end; in order
  shifts (S,)         sub-sample shift, to be added to samples
  times_s (S,)        (samples + shifts) / sampling rate, in seconds
  units (S,)          unit of the spike, 0 to K - 1
  amplitudes (S,)     amplitude, in noise standard deviations
  amplitudes_uv (S,)  amplitude at the trough of the unit's channel, in microvolts, band-passed
  scores (S,)         what the spike adds to the log joint, in nats
units.tsv, units.npz  one row a unit; the units of measurement stand in the header of units.tsv
model.npz             what was learned, all that `deconvolve` needs beside the data
  templates_uv (K, N, D)                                   mean band-passed waveform, in microvolts
  templates.footprints (K, N, R), templates.profiles (K, R, D)  whitened waveform of norm one: np.einsum("knr,krd->knd", ...)
  scale_uv (K,)                                            microvolts at the trough for an amplitude of one
  priors.*                                                 mean and spread of each unit's amplitude, and its rate
  preprocessing.*                                          channels used, filter, whitening, probe
  moving.*                                                 where the tissue moved: waveforms at Q displacements, as large as they are
                                                           there: np.einsum("qknr,qkrd->qknd", ...)
motion.npz            where the tissue moved: displacement_um (B, V), towards larger depth, at times_s (B,) and depths_um (V,)
  meta                                                     what is not an array, as JSON
fit.npz               log joint, units and spikes, one row an iteration of the fit
log.txt               what happened, in words
result.json           sampling rate, segment lengths (samples), config, seed, versions, timings (s)
work/                 where the command made it: what each stage has finished, used when the recording is sorted again; may be deleted
"""


def save_result(result: SortingResult, folder: str | Path, overwrite: bool = False) -> Path:
    """Save a result to a folder of its own, and return that folder.

    overwrite: write into a folder that is not empty; only files with the names above are replaced. The same result
    gives the same bytes.
    Raises OutputError where the folder is not empty and `overwrite` is false, cannot be written, or the disk is full.
    """
    folder = Path(folder)
    check_free(folder, overwrite)
    with staging(folder, SEAL) as stage:
        write_npz(stage / "model.npz", *pack(result.model, "model"), compress=True)
        outside = {"amplitudes_uv": result.amplitudes_uv, "times_s": times_s(result)}
        write_npz(stage / "spikes.npz", pack(result.spikes, "spikes")[0] | outside)
        write_npz(stage / "units.npz", pack(result.units, "units")[0])
        write_npz(stage / "fit.npz", pack(result.log, "fit")[0])
        if result.motion is not None:
            write_npz(stage / MOTION, pack(result.motion, "motion")[0])
        write_text(stage / "units.tsv", units_table(result.units))
        write_text(stage / "log.txt", describe(result))
        write_text(stage / "README.txt", README)
        write_text(stage / SEAL, to_json(header(result)))
    return folder


def load_result(folder: str | Path) -> SortingResult:
    """Read a result back: the inverse of `save_result`, to the bit.

    Raises OutputError where the folder is no result, is damaged, or comes from a later sortcore.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OutputError(f"There is no folder {folder}.")
    if not (folder / SEAL).is_file():
        raise OutputError(f"{folder} is no sorting by sortcore: it holds no {SEAL}. If saving it was interrupted, sort again.")
    with explained(folder / SEAL):
        meta = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        check_format(meta, "result", folder / SEAL)
    spikes = read_record(Spikes, folder / "spikes.npz")
    units = read_record(Units, folder / "units.npz")
    log = read_record(FitLog, folder / "fit.npz", {"steps": meta.get("steps", [])})
    model = load_model(folder / "model.npz")
    motion = read_record(Motion, folder / MOTION) if meta.get("moving") else None
    with explained(folder / SEAL):
        sizes = (len(spikes), len(units), model.templates.n_units)
        if sizes != (meta["n_spikes"], meta["n_units"], meta["n_units"]):
            seen = f"{sizes[0]} spikes, {sizes[1]} units in the table, {sizes[2]} templates"
            raise OutputError(f"{folder} holds files of different sortings ({seen}, but {SEAL} says {meta['n_spikes']} spikes and "
                              f"{meta['n_units']} units). Sort again into a new folder.")
        records: dict[str, Any] = {"spikes": spikes, "units": units, "model": model, "log": log, "motion": motion}
        kept = {f.name: meta[f.name] for f in dataclasses.fields(SortingResult) if f.name not in records}
        return SortingResult(**records, **kept | {"segment_lengths": tuple(kept["segment_lengths"])})


def save_model(model: Model, path: str | Path) -> Path:
    """Save what was learned to one .npz file, for `deconvolve` on other recordings. Raises OutputError where that fails."""
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file, such as {path / 'model.npz'}.")
    return save_record(model, path, "model")


def load_model(path: str | Path) -> Model:
    """Read a model from its file, or from the result folder that holds it. Raises OutputError where it is none."""
    path = Path(path)
    if path.is_dir():
        path = path / "model.npz"
    return read_record(Model, path, kind="model")


def is_result(folder: str | Path) -> bool:
    """Whether a folder holds a complete result."""
    try:
        return json.loads((Path(folder) / SEAL).read_text(encoding="utf-8")).get("sortcore") == "result"
    except (OSError, ValueError, AttributeError):
        return False


def times_s(result: SortingResult) -> np.ndarray:
    """(S,) spike times in seconds of the recording, segments end to end, sub-sample shift added."""
    return (result.spikes.samples + result.spikes.shifts.astype(np.float64)) / result.fs


def header(result: SortingResult) -> dict[str, Any]:
    """The contents of result.json."""
    apart = {"motion"} | {f.name for f in dataclasses.fields(result) if dataclasses.is_dataclass(getattr(result, f.name))}
    plain = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name not in apart}
    sizes = {"n_units": result.n_units, "n_spikes": len(result.spikes), "duration_s": result.duration_s, "steps": result.log.steps,
             "moving": result.motion is not None}
    return {"sortcore": "result", "format": FORMAT} | plain | sizes


def units_table(units: Units) -> str:
    """The unit table as tab-separated text, one row a unit."""
    names = [f.name for f in dataclasses.fields(units)]
    lines = ["\t".join(["unit"] + [UNIT_COLUMNS.get(n, (n, None))[0] for n in names])]
    for k in range(len(units)):
        cells = [str(k)]
        for name in names:
            decimals = UNIT_COLUMNS.get(name, (name, None))[1]
            values = np.atleast_1d(getattr(units, name)[k])
            cells += [str(v) if decimals is None else f"{v:.{decimals}f}" for v in values]
        lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"


def describe(result: SortingResult) -> str:
    """What happened, in words."""
    labels = ", ".join(f"{(result.units.label == name).sum()} {name}" for name in ("good", "mua", "noise"))
    preprocessing, log = result.model.preprocessing, result.log
    lines = [f"{result.n_units} units ({labels}), {len(result.spikes)} spikes in {result.duration_s:.1f} s"]
    lines += [f"{len(preprocessing.channels)} of {preprocessing.n_recorded} channels used"]
    if result.motion is not None:
        lines += [f"the tissue moved by {np.ptp(result.motion.displacement_um):.0f} um"]
    lines += [f"channel {c} left out: {why}" for c, why in sorted(preprocessing.bad_channels.items())]
    for i in range(len(log.log_joint)):
        lines += [f"iteration {i + 1}: log joint {log.log_joint[i]:.6g}, {log.n_units[i]:.0f} units, {log.n_spikes[i]:.0f} spikes"]
    lines += list(log.steps)
    lines += [f"{stage}: {seconds:.2f} s" for stage, seconds in result.timings_s.items()]
    lines += [f"seed {result.seed}; " + ", ".join(f"{name} {version}" for name, version in result.versions.items())]
    return "\n".join(lines) + "\n"


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise OutputError where something is in the way."""
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file, not a folder. Choose another name.")
        names = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    if not names or overwrite:
        return
    held = "a sorting already" if is_result(folder) else "other files: " + ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")
    raise OutputError(f"{folder} holds {held}. Choose a new folder, or overwrite it on purpose (overwrite=True).")
