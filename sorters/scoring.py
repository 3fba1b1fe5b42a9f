"""Reading spike trains from wherever they are, and scoring a sorting against the truth."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sortcore.errors import ConfigError, OutputError, SortcoreError
from sortcore.export import load_result
from sortcore.metrics import Comparison, compare, spike_trains
from sortcore.optical.records import MovieResult
from sortcore.optical.saving_movie import load_movie
from sortcore.simulate import Simulation
from sortcore.types import SortingResult

TOLERANCE_MS = 0.4
RESULT = "result"
LEVELS = (0.5, 0.8, 0.9)


@dataclass(frozen=True)
class Trains:
    """Spike trains of K units: their names, their times in samples (one increasing array each), and the sampling rate or None."""

    ids: list[str]
    samples: list[np.ndarray]
    fs: float | None


def read_trains(path: str | Path) -> Trains:
    """The units of a result folder, a phy folder, an .npz with spike_samples and spike_units, or what SpikeInterface loads.

    Units labelled noise are left out. Raises OutputError where there are none to read.
    """
    path = Path(path)
    if not path.exists():
        raise OutputError(f"There is no file or folder {path}.")
    try:
        if path.is_file() and path.suffix == ".npz":
            return read_npz(path)
        if (path / "truth.npz").is_file():
            return read_npz(path / "truth.npz")
        for folder in (path, path / "sorter_output" / RESULT):
            if (folder / "result.json").is_file():
                return result_trains(load_result(folder))
        if (path / "movie.json").is_file():
            return movie_trains(load_movie(path))
        if (path / "spike_times.npy").is_file():
            return read_phy(path)
        return read_with_spikeinterface(path)
    except SortcoreError:
        raise
    except Exception as error:  # a file of someone else's making may be wrong in any way
        raise OutputError(f"{path} could not be read as a sorting: {type(error).__name__} {error}".rstrip(".") + ".") from error


def read_npz(path: Path) -> Trains:
    """An .npz with spike_samples and spike_units (S,), and perhaps fs."""
    with np.load(path, allow_pickle=False) as file:
        missing = [name for name in ("spike_samples", "spike_units") if name not in file.files]
        if missing:
            raise OutputError(f"{path} must hold spike_samples and spike_units, but it holds {', '.join(file.files)}.")
        fs = float(file["fs"]) if "fs" in file.files else None
        return group(file["spike_samples"], file["spike_units"], None, fs)


def truth_trains(simulation: Simulation) -> Trains:
    """The true spikes of a simulated recording."""
    return group(simulation.spike_samples, simulation.spike_units, np.arange(len(simulation.templates_uv)), simulation.fs)


def result_trains(result: SortingResult) -> Trains:
    """The units of a result that are not labelled noise."""
    return group(result.spikes.samples, result.spikes.units, np.flatnonzero(result.units.label != "noise"), result.fs)


def movie_trains(result: MovieResult) -> Trains:
    """The cells of a sorted movie, in frames."""
    return group(result.spikes.samples, result.spikes.units, np.arange(result.n_cells), result.fs)


def read_phy(folder: Path) -> Trains:
    """A phy folder; clusters whose group is noise are left out."""
    samples = np.load(folder / "spike_times.npy").ravel()
    name = "spike_clusters.npy" if (folder / "spike_clusters.npy").is_file() else "spike_templates.npy"
    clusters = np.load(folder / name).ravel()
    noise, table = set(), folder / "cluster_group.tsv"
    if table.is_file():
        rows = [line.split("\t") for line in table.read_text(encoding="utf8").splitlines()[1:] if line.strip()]
        noise = {int(row[0]) for row in rows if row[1].strip() == "noise"}
    fs = None
    if (folder / "params.py").is_file():
        lines = dict(line.split("=", 1) for line in (folder / "params.py").read_text(encoding="utf8").splitlines() if "=" in line)
        fs = next((float(ast.literal_eval(value.strip())) for key, value in lines.items() if key.strip() == "sample_rate"), None)
    return group(samples, clusters, np.array(sorted(set(clusters.tolist()) - noise)), fs)


def read_with_spikeinterface(path: Path) -> Trains:
    import spikeinterface

    import sorters  # noqa: F401  a sorter folder may be ours

    found: Any = spikeinterface.load(path)
    found = found.sorting if hasattr(found, "sorting") else found
    if not isinstance(found, spikeinterface.BaseSorting):
        raise OutputError(f"{path} holds a {type(found).__name__}, which is no sorting.")
    if found.get_num_segments() != 1:
        raise OutputError(f"The sorting {path} has {found.get_num_segments()} segments; score them one by one (sorting.select_segments).")
    trains = [np.asarray(found.get_unit_spike_train(unit, segment_index=0)) for unit in found.unit_ids]
    return Trains([str(unit) for unit in found.unit_ids], trains, float(found.get_sampling_frequency()))


def group(samples: np.ndarray, units: np.ndarray, ids: np.ndarray | None, fs: float | None) -> Trains:
    """Spikes of all units together, taken apart; ids names the units wanted, by default those that have spikes."""
    samples, units = np.asarray(samples).ravel(), np.asarray(units).ravel()
    if samples.shape != units.shape:
        raise OutputError(f"There are {len(samples)} spike times but {len(units)} unit numbers; expected one each.")
    ids = np.unique(units) if ids is None else ids
    wanted = np.isin(units, ids)
    return Trains([str(i) for i in ids], spike_trains(samples[wanted].astype(np.int64), np.searchsorted(ids, units[wanted]), len(ids)), fs)


def score(found: Trains, truth: Trains, fs: float | None = None, tolerance_ms: float = TOLERANCE_MS) -> Comparison:
    """Compare with the truth. Raises ConfigError where the sampling rate is not known, or the two differ in it."""
    if not tolerance_ms >= 0:
        raise ConfigError(f"The tolerance must be 0 ms or more, but it is {tolerance_ms}.")
    rates = [rate for rate in (found.fs, truth.fs) if rate is not None]
    if len(rates) == 2 and abs(rates[0] - rates[1]) > 0.1:
        raise ConfigError(f"The sorting is at {rates[0]:g} samples per second, the truth at {rates[1]:g}; they are not of one recording.")
    if fs is None and not rates:
        raise ConfigError("Neither the sorting nor the truth says its sampling rate; give --fs.")
    return compare(truth.samples, found.samples, int(tolerance_ms / 1000 * (rates[0] if rates else fs)))  # type: ignore[operator]


def as_dict(comparison: Comparison, found: Trains, truth: Trains) -> dict[str, Any]:
    """The comparison as plain data, for JSON."""
    units = [{"unit": name, "match": found.ids[match] if match >= 0 else None, "n_spikes": int(n), "accuracy": round(float(a), 4),
              "precision": round(float(p), 4), "recall": round(float(r), 4)}
             for name, match, n, a, p, r in zip(truth.ids, comparison.match, comparison.n_true, comparison.accuracy, comparison.precision,
                                                comparison.recall, strict=True)]
    mean = {name: round(float(np.mean(getattr(comparison, name))), 4) if units else None for name in ("accuracy", "precision", "recall")}
    above = {str(level): comparison.n_well_detected(level) for level in LEVELS}
    return {"mean": mean, "n_true": len(units), "n_found": len(found.ids), "above": above,
            "extra": [found.ids[k] for k in comparison.extra], "units": units}
