"""Sort recordings whose spikes are known, by sortcore and its peers, and say how good and how fast each was.

    python -m benchmarks RECORDING... [--sorters sortcore,lupin,...] [--out benchmarks/results]

RECORDING is a folder (recording.bin, probe.json, info.json, truth.npz), a recording of MEArec (.h5), or a generator such as
si-still:channels=32,units=20,seconds=60,seed=0 (also si-drift, si-tetrode, sortcore). Each sorter runs in a process of its
own. A finished run is kept in results.jsonl at once and not repeated unless --fresh is given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.causes import Diagnosis, diagnose
from benchmarks.diagnose import summarise
from benchmarks.measure import run_measured
from benchmarks.recordings import known_truth, resolve
from benchmarks.report import key, read_lines, table, write_units
from benchmarks.score import score
from benchmarks.trains import Trains, Truth, load_sorted

SORTERS = "sortcore,lupin,spykingcircus2,tridesclous2,mountainsort5,spikesift,oracle"
CHECKOUT = Path(__file__).resolve().parents[1]
WIDE_MS = 1.0  # a sorter may take a spike's time at another point of the waveform than the truth does


def run_folder(out: Path, recording: str, sorter: str, parameters: dict[str, Any]) -> Path:
    """Where one run's sorting, log, diagnosis and picture lie."""
    given = "".join(c if c.isalnum() or c in "._-" else "_" for c in json.dumps(parameters, sort_keys=True)) if parameters else ""
    return out / recording / (sorter + given[:80])


def score_line(truth: Truth, found: Trains, folder: Path, below: float) -> dict[str, Any]:
    """Score a sorting; leave its diagnosis and confusion picture in `folder`."""
    from benchmarks.figures import draw_confusion

    result, units, extras = diagnose(truth, found)
    (folder / "diagnosis.txt").write_text(summarise(truth, result, units, extras, below) + "\n")
    title = f"{truth.name}: {folder.name}, accuracy {np.mean(result.accuracy):.3f}"
    draw_confusion(folder / "confusion.png", title, result, truth.trains.ids, found.ids)
    line: dict[str, Any] = result.summary()
    line["accuracy_1ms"] = score(truth, found, WIDE_MS).summary()["accuracy"]
    line["units"] = unit_columns(units)
    return line


def unit_columns(units: list[Diagnosis]) -> dict[str, list[Any]]:
    """The true units as columns that JSON can hold."""
    columns: dict[str, list[Any]] = {name: [getattr(d, name) for d in units] for name in ("unit", "n_spikes", "reason")}
    for name in ("rate_hz", "snr", "accuracy", "precision", "recall"):
        columns[name] = [round(getattr(d, name), 4) if np.isfinite(getattr(d, name)) else None for d in units]
    return columns


def benchmark(folder: Path, sorter: str, parameters: dict[str, Any], a: argparse.Namespace) -> dict[str, Any]:
    """Run one sorter on one recording in its own process, and score what it found."""
    truth = known_truth(folder, a.out / folder.resolve().name)
    info = json.loads((folder / "info.json").read_text())
    place = run_folder(a.out, truth.name, sorter, parameters)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    line: dict[str, Any] = {"recording": truth.name, "sorter": sorter, "parameters": parameters, "duration_s": round(truth.seconds, 3),
                            "channels": info["n_channels"], "n_true": truth.trains.n_units, "jobs": a.jobs, "cores": os.cpu_count(),
                            "machine": platform.machine()}
    command = [sys.executable, "-m", "benchmarks.runners", str(folder.resolve()), sorter, str(place.resolve()),
               "--parameters", json.dumps(parameters), "--jobs", str(a.jobs)]
    measured = run_measured(command, place / "log.txt", a.limit_s, CHECKOUT)
    line["peak_mb"] = round(measured.peak_mb)
    if (place / "run.json").is_file():
        line.update(json.loads((place / "run.json").read_text()))
    elif measured.timed_out:
        line["error"] = f"stopped after {a.limit_s:g} s"
    else:
        line["error"] = f"the process ended with status {measured.code}; see {place / 'log.txt'}"
    if "error" not in line:
        line["x_real_time"] = round(truth.seconds / line["seconds"], 2)
        line.update(score_line(truth, load_sorted(place / "sorting.npz", truth.trains.fs), place, a.below))
    return line


def write_report(out: Path, recordings: list[str]) -> str:
    """Tables, per-unit tables and pictures of everything kept on these recordings; returns the printed table."""
    from benchmarks.figures import draw_units

    lines = [line for line in read_lines(out / "results.jsonl") if line["recording"] in recordings]
    for recording in recordings:
        mine = [line for line in lines if line["recording"] == recording]
        (out / recording).mkdir(parents=True, exist_ok=True)
        write_units(out / recording / "units.csv", mine)
        draw_units(out / recording / "units.png", recording, mine)
    text = table(lines)
    (out / "table.md").write_text(text + "\n")
    return text


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+", help="folders, generators, MEArec recordings")
    parser.add_argument("--sorters", default=SORTERS, help=f"any SpikeInterface sorter, spikesift, oracle (default {SORTERS})")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "benchmarks" / "results", help="default benchmarks/results")
    parser.add_argument("--parameters", type=json.loads, default={}, help='JSON, {"sorter": {"name": value}}')
    parser.add_argument("--fresh", action="store_true", help="run again what has been run")
    parser.add_argument("--jobs", type=int, default=2, help="processes that SpikeInterface may use")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="a sorter that takes longer is stopped")
    parser.add_argument("--below", type=float, default=0.8, help="explain true units under this accuracy")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 if a sorter failed, else 0."""
    a = parse(arguments)
    a.out.mkdir(parents=True, exist_ok=True)
    try:
        folders = [resolve(text, a.out) for text in a.recordings]
    except ValueError as error:
        sys.exit(str(error))
    results = a.out / "results.jsonl"
    for folder in folders:
        for sorter in filter(None, a.sorters.split(",")):
            parameters = a.parameters.get(sorter, {})
            mine = key({"recording": folder.resolve().name, "sorter": sorter, "parameters": parameters})
            if not a.fresh and any(key(line) == mine and "error" not in line for line in read_lines(results)):
                continue
            print(f"{folder.resolve().name}: {sorter} ...", file=sys.stderr, flush=True)
            line = benchmark(folder, sorter, parameters, a)
            with results.open("a") as f:
                f.write(json.dumps(line) + "\n")
            said = line.get("error") or f"accuracy {line['accuracy']:.3f}, {line['extra']} extra, {line['seconds']:.1f} s"
            print(f"{folder.resolve().name}: {sorter}: {said}", file=sys.stderr, flush=True)
    names = list(dict.fromkeys(folder.resolve().name for folder in folders))
    print(write_report(a.out, names))
    return int(any("error" in line for line in read_lines(results) if line["recording"] in names))


if __name__ == "__main__":
    sys.exit(main())
