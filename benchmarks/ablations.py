"""What each idea is worth: the sorter with one of them switched off at a time.

    python -m benchmarks.ablations RECORDING... [--only NAME ...] [--jobs 2]

RECORDING is a folder with known spikes. Prints a table: mean accuracy over all true units, and in brackets the found units that
match no true one. An idea whose loss changes nothing anywhere has no place in the code.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.recordings import open_recording
from benchmarks.report import markdown
from benchmarks.score import DELTA_MS
from benchmarks.trains import load_truth


def no(*_: Any, **__: Any) -> bool:
    return False


def first(value: Any, *_: Any, **__: Any) -> Any:
    return value


def whole(group: Any, *_: Any) -> list[np.ndarray]:
    return [np.arange(len(group.samples))]


def none_gone(spikes: Any, used: Any, snr: np.ndarray, *_: Any) -> np.ndarray:
    return np.zeros(len(snr), bool)


def all_own(spikes: Any, *_: Any) -> np.ndarray:
    return np.ones(len(spikes), bool)


def none_left(spikes: Any, *_: Any) -> np.ndarray:
    return np.zeros(len(spikes), bool)


def plain(follower: Any, there: Any, channels: np.ndarray) -> np.ndarray:
    return follower.back_home(there.features, there.knots, channels)


def carried_only(follower: Any, group: Any, basis: np.ndarray) -> np.ndarray:
    waveform = np.zeros((follower.forth.shape[1], basis.shape[1]), np.float32)
    waveform[group.channels] = group.features.mean(axis=0) @ basis
    return follower.carried(waveform)


# what is switched off: a setting (section, name, value), or functions and constants (module, name, what stands in)
IDEAS: dict[str, tuple[str, str, Any] | list[tuple[str, str, Any]]] = {
    "nothing": [],
    "whitening in time": ("preprocess", "whiten_time", False),
    "amplitude prior": ("pursuit", "amplitude_prior", False),
    "sub-sample shifts": ("pursuit", "subsamples", 1),
    "second clustering (splits of cleaned waveforms)": [("sortcore.ephys.fit", "split", whole)],
    "second round": ("fit", "iterations", 1),
    "following drift": ("drift", "follow", False),
    "motion estimated twice": ("drift", "rounds", 1),
    "motion refined by the spikes": [("sortcore.follow.Follower", "refined", first)],
    "waveforms learned at each displacement": [("sortcore.follow.Follower", "learned", carried_only)],
    "comparing spikes of one displacement": [("sortcore.follow.Follower", "brought_back", plain)],
    "merge: no valley": [("sortcore.groups", "separation", lambda *_: 9.0)],
    "merge: never in each other's refractory period": [("sortcore.groups", "refractory", no)],
    "merge: the same shape, smaller within bursts": [("sortcore.groups", "bursting", no)],
    "merge: seldom at one displacement": [("sortcore.groups", "exclusive", no)],
    "groups compared at a lag": [("sortcore.groups", "MOST_LAG_MS", 0.0)],
    "no merge of independent trains": [("sortcore.groups", "independent", no)],
    "first clusters that are alike are one": [("sortcore.ephys.fit", "same_removed", first)],
    "clusters of collisions left out": [("sortcore.ephys.fit", "sums_removed", first)],
    "units centred on another extremum left out": [("sortcore.ephys.fit", "realigned", first)],
    "leftovers of larger units left out": [("sortcore.ephys.curate", "duplicates", none_gone)],
    "units that the others do without left out": [("sortcore.ephys.fit", "needed", first)],
    "background left out": ("curate", "min_probability", 0.0),
    "small spikes of bursts told from background": [("sortcore.background", "with_bursts", first)],
    "last waveforms learned without background": [("sortcore.ephys.fit", "background", SimpleNamespace(own=all_own))],
    "rests of larger spikes left out": [("sortcore.background", "leftover", none_left)],
    "evidence for a unit": ("curate", "min_evidence", 0.0),
}


def sorted_without(folder: Path, idea: str) -> tuple[float, int]:
    """Mean accuracy and extra units of a recording sorted without one idea."""
    import sortcore as sc
    from sortcore.metrics import compare
    from sorters.adapter import SpikeInterfaceRecording, probe_of

    warnings.simplefilter("ignore")
    off, opened = IDEAS[idea], open_recording(folder)
    config = sc.SortConfig()
    patches = []
    if isinstance(off, tuple):
        section, name, value = off
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})
    else:
        patches = [mock.patch.object(found(where), name, stand_in) for where, name, stand_in in off]
    for patch in patches:
        patch.start()
    try:
        result = sc.sort(SpikeInterfaceRecording(opened), probe_of(opened), config, progress=False)
    finally:
        mock.patch.stopall()
    kept = np.flatnonzero(result.units.label != "noise")
    c = compare(load_truth(folder).trains.split(), [result.spike_train(int(u)) for u in kept], int(DELTA_MS * result.fs / 1000))
    return float(np.mean(c.accuracy)), int(len(kept) - (np.asarray(c.match) >= 0).sum())


def found(where: str) -> Any:
    """A module, or a class of one, by its dotted name."""
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError:
        module, _, name = where.rpartition(".")
        return getattr(importlib.import_module(module), name)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(IDEAS), default=list(IDEAS), metavar="NAME", help=", ".join(IDEAS))
    parser.add_argument("--jobs", type=int, default=2, help="sortings at once")
    a = parser.parse_args(arguments)
    rows = [["without", *(folder.resolve().name for folder in a.recordings)]]
    with ProcessPoolExecutor(a.jobs, max_tasks_per_child=1) as pool:
        runs = {(idea, folder): pool.submit(sorted_without, folder, idea) for idea in a.only for folder in a.recordings}
        for idea in a.only:
            cells = [runs[idea, folder].result() for folder in a.recordings]
            rows.append([idea, *(f"{accuracy:.3f} ({extra})" for accuracy, extra in cells)])
            print(" | ".join(rows[-1]), flush=True)
    print(markdown(rows))


if __name__ == "__main__":
    main()
