"""Whether two sortings of the same cells, at different times, have the same waveforms.

    python -m benchmarks.repeat SORTED SORTED [--least 0.9]

Both are result folders of sortcore. Units are paired one to one by the cosine of their mean waveforms in microvolts, at the lag
that suits them best; units labelled noise are left out. Where nothing is known of the true spikes, this and the refractory
violations are what there is to go by.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks.report import markdown
from sortcore.errors import SortcoreError
from sortcore.export import load_result
from sortcore.types import SortingResult

LAG_MS = 0.5


def alike(a: np.ndarray, b: np.ndarray, lag: int) -> np.ndarray:
    """(K, L) largest cosine within `lag` samples of waveforms (K, N, D) and (L, N, D)."""
    padded = np.pad(b, ((0, 0), (0, 0), (lag, lag)))
    d, best = a.shape[2], np.full((len(a), len(b)), -1.0)
    for shift in range(2 * lag + 1):
        moved = padded[:, :, shift : shift + d].reshape(len(b), -1)
        size = np.linalg.norm(a, axis=(1, 2))[:, None] * np.linalg.norm(b, axis=(1, 2))
        best = np.maximum(best, a.reshape(len(a), -1) @ moved.T / np.maximum(size, 1e-12))
    return best


def kept(result: SortingResult) -> np.ndarray:
    """Units that are not labelled noise."""
    return np.flatnonzero(result.units.label != "noise")


def pairs(a: SortingResult, b: SortingResult) -> list[tuple[int, int, float]]:
    """Units of both, one to one, and the cosine of their waveforms, the most alike first."""
    ours, theirs = kept(a), kept(b)
    cosine = alike(a.model.templates_uv[ours], b.model.templates_uv[theirs], round(LAG_MS * a.fs / 1000))
    found = [(int(ours[i]), int(theirs[j]), float(cosine[i, j])) for i, j in zip(*linear_sum_assignment(-cosine), strict=True)]
    return sorted(found, key=lambda pair: -pair[2])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repeat", description="Pair the waveforms of two sortings.")
    parser.add_argument("sorted", nargs=2, type=Path, help="result folders of sortcore")
    parser.add_argument("--least", type=float, default=0.9, help="cosine from which two waveforms are the same")
    given = parser.parse_args(arguments)
    try:
        a, b = (load_result(path) for path in given.sorted)
    except SortcoreError as error:
        parser.error(str(error))
    found = pairs(a, b)
    rows = [["unit", "unit", "cosine", "spikes", "spikes", "refractory violations", "refractory violations"]]
    for i, j, cosine in found:
        counts = [int(r.units.n_spikes[u]) for r, u in ((a, i), (b, j))]
        rows.append([str(i), str(j), f"{cosine:.3f}", *map(str, counts),
                     *(str(int(r.units.refractory_violations[u])) for r, u in ((a, i), (b, j)))])
    print(markdown(rows))
    print(f"{len(kept(a))} and {len(kept(b))} units; {sum(c > given.least for _, _, c in found)} pairs above {given.least:g}.")


if __name__ == "__main__":
    main()
