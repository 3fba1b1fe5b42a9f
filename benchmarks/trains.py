"""Spike trains, true or sorted, as flat arrays, and the ways in which they are stored."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_KEYS = ("spike_samples", "samples")
UNIT_KEYS = ("spike_units", "units")


@dataclass(frozen=True)
class Trains:
    """Spikes in order of time.

    samples: (S,) int64
    units: (S,) index of the unit, 0 to K - 1
    ids: (K,) the unit's own name
    fs: samples per second
    amplitudes: (S,) in any unit, or None
    labels: {id: "good", "mua", ...} as far as the sorter says
    """

    samples: np.ndarray
    units: np.ndarray
    ids: np.ndarray
    fs: float
    amplitudes: np.ndarray | None = None
    labels: dict[int, str] = field(default_factory=dict)

    @property
    def n_units(self) -> int:
        return len(self.ids)

    def counts(self) -> np.ndarray:
        """(K,) spikes of each unit."""
        return np.bincount(self.units, minlength=self.n_units)

    def split(self) -> list[np.ndarray]:
        """The samples of each unit, K arrays."""
        order = np.argsort(self.units, kind="stable")
        return np.split(self.samples[order], np.cumsum(self.counts())[:-1]) if self.n_units else []


@dataclass(frozen=True)
class Truth:
    """What is known of a recording.

    trains: the true spikes
    n_samples: length of the recording
    snr: (K,) NaN where unknown
    best_channel: (K,) or None
    positions_um: (N, 2) or None
    """

    name: str
    trains: Trains
    n_samples: int
    snr: np.ndarray
    best_channel: np.ndarray | None = None
    positions_um: np.ndarray | None = None

    @property
    def seconds(self) -> float:
        return self.n_samples / self.trains.fs


def make_trains(samples: np.ndarray, units: np.ndarray, fs: float, ids: np.ndarray | None = None, amplitudes: np.ndarray | None = None,
                labels: dict[int, str] | None = None) -> Trains:
    """Sort spikes in time and number their units from 0; `ids` names units that may have no spike."""
    samples, units = np.asarray(samples, np.int64).ravel(), np.asarray(units).ravel()
    if samples.shape != units.shape:
        raise ValueError(f"There are {len(samples)} spike times but {len(units)} unit numbers; expected one each.")
    ids = np.unique(units if ids is None else ids)
    order = np.argsort(samples, kind="stable")
    amplitudes = None if amplitudes is None else np.asarray(amplitudes)[order]
    return Trains(samples[order], np.searchsorted(ids, units[order]), ids, float(fs), amplitudes, labels or {})


def load_truth(folder: str | Path) -> Truth:
    """The truth.npz and info.json of a recording folder."""
    folder = Path(folder)
    if not (folder / "truth.npz").is_file():
        raise FileNotFoundError(f"{folder} holds no truth.npz; give a folder with recording.bin, probe.json, info.json and truth.npz.")
    with np.load(folder / "truth.npz") as z:
        stored = {k: z[k] for k in z.files}
    info = json.loads((folder / "info.json").read_text())
    snr = np.asarray(stored["snr"], float)
    trains = make_trains(stored["spike_samples"], stored["spike_units"], info["fs"], np.arange(len(snr)), stored.get("spike_amplitudes"))
    return Truth(folder.resolve().name, trains, int(info["n_samples"]), snr, stored.get("best_channel"), stored.get("positions_um"))


def load_sorted(path: str | Path, fs: float, keep_noise: bool = False) -> Trains:
    """A sorting from an .npz (spike_samples, spike_units or samples, units), a folder that holds one as spikes.npz or
    sorting.npz (sortcore's result is one), a phy folder, or the folder of a SpikeInterface sorter.

    Units labelled noise are left out, as `run_sorter` leaves them out, unless `keep_noise`.
    """
    trains = _load_any(Path(path), fs)
    noise = [k for k, label in trains.labels.items() if label == "noise"]
    return trains if keep_noise or not noise else without(trains, noise)


def without(trains: Trains, ids: list[int]) -> Trains:
    """The trains without some units."""
    kept = trains.ids[~np.isin(trains.ids, ids)]
    mine = np.isin(trains.ids[trains.units], kept)
    amplitudes = None if trains.amplitudes is None else trains.amplitudes[mine]
    return make_trains(trains.samples[mine], trains.ids[trains.units[mine]], trains.fs, kept, amplitudes,
                       {k: v for k, v in trains.labels.items() if k not in ids})


def _load_any(path: Path, fs: float) -> Trains:
    inside = ("spikes.npz", "sorting.npz", "result/spikes.npz", "sorter_output/result/spikes.npz")
    candidates = [path] if path.suffix == ".npz" else [path / name for name in inside]
    for file in candidates:
        if file.is_file():
            return _load_npz(file, fs)
    if (path / "spike_times.npy").is_file():
        clusters = path / "spike_clusters.npy"
        return make_trains(np.load(path / "spike_times.npy"), np.load(clusters if clusters.is_file() else path / "spike_templates.npy"), fs,
                           labels=read_labels(path))
    if (path / "spikeinterface_log.json").is_file():
        return from_spikeinterface(_read_sorter_folder(path))
    raise FileNotFoundError(f"There is no sorting in {path}; expected an .npz with samples and units, or the folder of a sorter or of phy.")


def _load_npz(file: Path, fs: float) -> Trains:
    with np.load(file) as z:
        samples = next((z[k] for k in SAMPLE_KEYS if k in z.files), None)
        units = next((z[k] for k in UNIT_KEYS if k in z.files), None)
        if samples is None or units is None:
            raise KeyError(f"{file} holds {', '.join(z.files)}; expected spike_samples and spike_units, or samples and units.")
        amplitudes = z["amplitudes"] if "amplitudes" in z.files else None
        labels = dict(zip(z["label_ids"].tolist(), z["labels"].tolist(), strict=True)) if "label_ids" in z.files else {}
        ids = z["unit_ids"] if "unit_ids" in z.files else None
    if file.name == "spikes.npz" and (file.parent / "units.npz").is_file():  # a result folder of sortcore
        with np.load(file.parent / "units.npz") as table:
            labels = dict(enumerate(table["label"].astype(str).tolist()))
        ids = np.arange(len(labels))
    return make_trains(samples, units, fs, ids, amplitudes, labels)


def read_labels(folder: Path) -> dict[int, str]:
    """Labels of a phy folder's cluster tables; empty where there are none."""
    for name, column in (("cluster_group.tsv", "group"), ("cluster_KSLabel.tsv", "KSLabel")):
        if (folder / name).is_file():
            with (folder / name).open(newline="") as f:
                return {int(row["cluster_id"]): row[column] for row in csv.DictReader(f, delimiter="\t")}
    return {}


def _read_sorter_folder(path: Path) -> Any:
    import importlib.util

    if importlib.util.find_spec("sorters"):
        import sorters

        sorters.register()
    from spikeinterface.sorters import read_sorter_folder

    return read_sorter_folder(path, register_recording=False)


def from_spikeinterface(sorting: Any) -> Trains:
    """Trains of a one-segment SpikeInterface sorting; its units are numbered where their names are no integers."""
    spikes = sorting.to_spike_vector()
    ids = np.asarray(sorting.unit_ids)
    numbers = ids.astype(np.int64) if np.char.isdigit(ids.astype(str)).all() and len(ids) else np.arange(len(ids))
    keys = [k for k in ("label", "KSLabel") if k in sorting.get_property_keys()]
    labels = {int(n): str(v) for n, v in zip(numbers, sorting.get_property(keys[0]), strict=True)} if keys else {}
    return make_trains(spikes["sample_index"], numbers[spikes["unit_index"]], sorting.sampling_frequency, numbers, labels=labels)


def to_spikeinterface(trains: Trains) -> Any:
    """The same as a SpikeInterface sorting, with the same ids."""
    from spikeinterface.core import NumpySorting

    return NumpySorting.from_samples_and_labels([trains.samples], [trains.ids[trains.units]], trains.fs, unit_ids=trains.ids)


def save_trains(file: str | Path, trains: Trains) -> None:
    """Write an .npz that `load_sorted` reads."""
    more: dict[str, Any] = {} if trains.amplitudes is None else {"amplitudes": trains.amplitudes}
    if trains.labels:
        more |= {"label_ids": np.array(list(trains.labels), np.int64), "labels": np.array(list(trains.labels.values()), str)}
    np.savez_compressed(file, spike_samples=trains.samples, spike_units=trains.ids[trains.units], unit_ids=trains.ids, **more)
