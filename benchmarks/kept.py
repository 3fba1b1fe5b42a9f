"""Sortings that `python -m benchmarks` kept of one recording, for the commands that look at them again."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trains import Trains, Truth, load_sorted, load_truth


@dataclass(frozen=True)
class Kept:
    """A recording's folder, its truth, the folder of its results, and its sortings by sorter."""

    recording: Path
    truth: Truth
    place: Path
    sorted_by: dict[str, Trains]


def asked_for(name: str, about: str | None, sorters: str, arguments: list[str] | None) -> Kept:
    """Read the command line of `python -m benchmarks.NAME RECORDING DIR [--sorters ...]`; exits where nothing was kept."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sorters", default=sorters)
    a = parser.parse_args(arguments)
    truth, place = load_truth(a.recording), a.out / a.recording.resolve().name
    files = {sorter: place / sorter / "sorting.npz" for sorter in a.sorters.split(",")}
    sorted_by = {sorter: load_sorted(file, truth.trains.fs) for sorter, file in files.items() if file.is_file()}
    if not sorted_by:
        parser.exit(1, f"{place} holds no sorting of {a.sorters}; run python -m benchmarks {a.recording} --out {a.out} first.\n")
    return Kept(a.recording, truth, place, sorted_by)
