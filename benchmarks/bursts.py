"""Whether spikes within bursts, which are smaller, are found, and whether their units stay whole.

    python -m benchmarks.bursts RECORDING DIR [--sorters sortcore,lupin]

A spike is in a burst if the spike before of the same unit came within 10 ms; a unit bursts if a tenth of its spikes do. Recall
is counted in the sorted unit that is matched to the true one, so a unit that comes apart shows.
"""

from __future__ import annotations

import numpy as np

from benchmarks.kept import asked_for
from benchmarks.matching import near
from benchmarks.report import markdown
from benchmarks.score import DELTA_MS, score
from benchmarks.trains import Trains, Truth

WITHIN_MS = 10.0
BURSTING = 0.1


def burst_recall(truth: Truth, found: Trains) -> np.ndarray:
    """(U, 4) of the bursting units: spikes first in a burst or alone, spikes within bursts, and recall of each."""
    fs, matched, rows = truth.trains.fs, score(truth, found).match, []
    sorted_trains = found.split()
    for u, train in enumerate(truth.trains.split()):
        inside = np.diff(train, prepend=-(10**9)) < WITHIN_MS * fs / 1000
        if len(train) < 20 or inside.mean() < BURSTING:
            continue
        hit = near(train, sorted_trains[matched[u]], int(DELTA_MS * fs / 1000)) if matched[u] >= 0 else np.zeros(len(train), bool)
        rows.append(((~inside).sum(), inside.sum(), hit[~inside].mean(), hit[inside].mean()))
    return np.array(rows, float).reshape(-1, 4)


def main(arguments: list[str] | None = None) -> None:
    kept = asked_for("bursts", __doc__, "sortcore,lupin,kilosort4,oracle", arguments)
    rows = [["sorter", "bursting units", "spikes in bursts", "recall in bursts", "recall of the rest", "whole"]]
    for name, found in kept.sorted_by.items():
        r = burst_recall(kept.truth, found)
        rest, inside = (float(np.average(r[:, 2 + i], weights=r[:, i])) if len(r) else float("nan") for i in (0, 1))
        whole = (r[:, 3] > r[:, 2] - 0.05).sum() if len(r) else 0
        rows.append([name, str(len(r)), str(int(r[:, 1].sum())), f"{inside:.3f}", f"{rest:.3f}", f"{whole} of {len(r)}"])
    print(markdown(rows))


if __name__ == "__main__":
    main()
