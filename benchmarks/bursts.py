"""Whether spikes within bursts, which are smaller, are found, and whether their units stay whole.

    python -m benchmarks.bursts RECORDING DIR [--sorters sortcore,lupin]

A spike is in a burst if the spike before of the same unit came within 10 ms; a unit bursts if a tenth of its spikes do. Recall
is counted in the sorted unit that is matched to the true one, so a unit that comes apart shows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.report import markdown
from benchmarks.score import DELTA_MS, score
from benchmarks.trains import Trains, Truth, load_sorted, load_truth

WITHIN_MS = 10.0
BURSTING = 0.1


def hits(train: np.ndarray, found: np.ndarray, near: int) -> np.ndarray:
    """(S,) whether a found spike lies near each true one."""
    return np.searchsorted(found, train + near, "right") > np.searchsorted(found, train - near, "left")


def burst_recall(truth: Truth, found: Trains) -> np.ndarray:
    """(U, 4) of the bursting units: spikes first in a burst or alone, spikes within bursts, and recall of each."""
    fs, matched, rows = truth.trains.fs, score(truth, found).match, []
    sorted_trains = found.split()
    for u, train in enumerate(truth.trains.split()):
        inside = np.diff(train, prepend=-(10**9)) < WITHIN_MS * fs / 1000
        if len(train) < 20 or inside.mean() < BURSTING:
            continue
        hit = hits(train, sorted_trains[matched[u]], int(DELTA_MS * fs / 1000)) if matched[u] >= 0 else np.zeros(len(train), bool)
        rows.append(((~inside).sum(), inside.sum(), hit[~inside].mean(), hit[inside].mean()))
    return np.array(rows, float).reshape(-1, 4)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bursts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sorters", default="sortcore,lupin,kilosort4,oracle")
    a = parser.parse_args(arguments)
    truth = load_truth(a.recording)
    rows = [["sorter", "bursting units", "spikes in bursts", "recall in bursts", "recall of the rest", "whole"]]
    for name in a.sorters.split(","):
        file = a.out / a.recording.resolve().name / name / "sorting.npz"
        if file.is_file():
            r = burst_recall(truth, load_sorted(file, truth.trains.fs))
            rest, inside = (float(np.average(r[:, 2 + i], weights=r[:, i])) if len(r) else float("nan") for i in (0, 1))
            whole = (r[:, 3] > r[:, 2] - 0.05).sum() if len(r) else 0
            rows.append([name, str(len(r)), str(int(r[:, 1].sum())), f"{inside:.3f}", f"{rest:.3f}", f"{whole} of {len(r)}"])
    print(markdown(rows))


if __name__ == "__main__":
    main()
