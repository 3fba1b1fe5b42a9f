"""Recall of spikes that collide, against the lag of the collision and how alike the two units' waveforms are.

    python -m benchmarks.collisions RECORDING DIR [--sorters sortcore,lupin]

RECORDING is a folder with known spikes, DIR what `python -m benchmarks` wrote about it. Counted by SpikeInterface's
CollisionGTComparison, pooled over the pairs of units that every drawn sorter finds (accuracy above .5). Prints a table and
draws DIR/RECORDING/collisions.png.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from benchmarks.kept import asked_for
from benchmarks.recordings import open_recording
from benchmarks.report import markdown
from benchmarks.score import DELTA_MS, score
from benchmarks.trains import Trains, load_truth, to_spikeinterface

LAG_MS, BINS = 1.5, 15
ALIKE = (0.0, 0.3, 0.6, 1.01)  # edges of the classes of pairs, by the cosine of their mean waveforms
APART = 0.05  # pairs less alike share no channel to speak of
FOUND = 0.5
MOST_SPIKES = 200


def cosines(folder: Path, trains: Trains) -> np.ndarray:
    """(K, K) cosines of the true units' mean waveforms, band-passed, both at their troughs."""
    from spikeinterface.core import estimate_templates
    from spikeinterface.preprocessing import bandpass_filter

    truth, recording = to_spikeinterface(trains), bandpass_filter(open_recording(folder), 300, 6000, dtype="float32")
    some = np.concatenate([np.flatnonzero(trains.units == u)[:: 1 + n // MOST_SPIKES] for u, n in enumerate(trains.counts())])
    vector = truth.to_spike_vector()[np.sort(some)]
    half = int(0.001 * trains.fs)
    flat = estimate_templates(recording, vector, truth.unit_ids, half, half, return_in_uV=False).reshape(trains.n_units, -1)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
    return flat @ flat.T


def counts(truth: Trains, found: Trains) -> tuple[np.ndarray, np.ndarray]:
    """(K, K, BINS) spikes of one unit that collide with another's at each lag: found, and all."""
    from spikeinterface.comparison import CollisionGTComparison

    c = CollisionGTComparison(to_spikeinterface(truth), to_spikeinterface(found), collision_lag=LAG_MS, nbins=BINS, progress_bar=False,
                              delta_time=DELTA_MS, exhaustive_gt=True)
    return c.all_tp, c.all_tp + c.all_fn


def recalls(folder: Path, sorted_by: dict[str, Trains]) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Centres of the lag bins in ms, recall (classes, BINS) by sorter, and the collisions counted (classes, BINS)."""
    truth = load_truth(folder)
    alike = cosines(folder, truth.trains)
    usable = np.all([score(truth, found).accuracy > FOUND for found in sorted_by.values()], axis=0)
    pairs = usable[:, None] & usable[None] & ~np.eye(len(usable), dtype=bool) & (alike > APART)
    out, n = {}, np.zeros((len(ALIKE) - 1, BINS))
    for name, found in sorted_by.items():
        hit, every = counts(truth.trains, found)
        rows = [pairs & (alike >= low) & (alike < high) for low, high in itertools.pairwise(ALIKE)]
        n = np.array([every[mine].sum(axis=0) for mine in rows])
        out[name] = np.array([hit[mine].sum(axis=0) for mine in rows]) / np.maximum(n, 1)
        out[name][n == 0] = np.nan
    edges = np.linspace(-LAG_MS, LAG_MS, BINS + 1)
    return 0.5 * (edges[1:] + edges[:-1]), out, n


def draw(file: Path, title: str, lags: np.ndarray, recall: dict[str, np.ndarray]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(ALIKE) - 1, figsize=(4 * (len(ALIKE) - 1), 3.6), sharey=True, constrained_layout=True)
    for i, axis in enumerate(axes):
        for name, values in recall.items():
            axis.plot(lags, values[i], marker="o", markersize=3, label=name)
        axis.set_title(f"cosine {ALIKE[i]:g} to {min(ALIKE[i + 1], 1):g}", fontsize=10)
        axis.set_xlabel("lag (ms)")
    axes[0].set_ylabel("recall of colliding spikes")
    axes[-1].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    kept = asked_for("collisions", __doc__, "sortcore,lupin,kilosort4", arguments)
    lags, recall, n = recalls(kept.recording, kept.sorted_by)
    rows = [["cosine", "sorter", "collisions", "recall", "lowest in a lag bin", "at lag (ms)"]]
    for i in range(len(ALIKE) - 1):
        for name, values in recall.items():
            if n[i].sum() == 0:
                continue
            enough = np.where(n[i] >= 20, values[i], np.nan)
            low = int(np.nanargmin(enough)) if np.isfinite(enough).any() else 0
            mean = float(np.nansum(values[i] * n[i]) / n[i].sum())
            rows.append([f"{ALIKE[i]:g} to {min(ALIKE[i + 1], 1):g}", name, str(int(n[i].sum())), f"{mean:.3f}", f"{enough[low]:.3f}",
                         f"{lags[low]:+.1f}"])
    print(markdown(rows))
    draw(kept.place / "collisions.png", kept.place.name, lags, recall)


if __name__ == "__main__":
    main()
