"""Which true units are found, by their rate and their signal-to-noise ratio.

    python -m benchmarks.rates DIR/results.jsonl... [--sorters sortcore,lupin] [--above 0.8]

Reads the results that `python -m benchmarks` kept, all recordings together. A cell says how many of the true units of that rate
and size were found, that is sorted with an accuracy above 0.8. `sortcore-rates:` makes recordings for it, of units that fire
at 0.1 to 60 Hz.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import markdown, read_lines

RATES_HZ = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, np.inf)
FEW = (1, 10, 30, 100)  # spikes in all
SNRS = (0.0, 3.0, 5.0, 8.0, np.inf)


def collect(lines: list[dict[str, Any]]) -> np.ndarray:
    """(U, 4) rate, signal-to-noise ratio, number of spikes and accuracy of every true unit with spikes."""
    columns = ("rate_hz", "snr", "n_spikes", "accuracy")
    rows = [np.column_stack([np.array(line["units"][c], float) for c in columns]) for line in lines if "units" in line]
    units = np.concatenate(rows) if rows else np.zeros((0, len(columns)))
    return units[(units[:, 2] > 0) & np.isfinite(units[:, 1])]


def found_table(units: np.ndarray, above: float) -> str:
    """A markdown table of the units (U, 4) of `collect`: rates down, sizes across, found of all in each cell."""
    rows = [["rate", *(f"SNR {span(low, high)}" for low, high in pairwise(SNRS))]]
    for slowest, fastest in pairwise(RATES_HZ):
        row = units[(units[:, 0] >= slowest) & (units[:, 0] < fastest)]
        if len(row):
            rows.append([f"{span(slowest, fastest)} Hz", *cells(row, above)])
    for fewest, most in pairwise(FEW):
        row = units[(units[:, 2] >= fewest) & (units[:, 2] < most)]
        if len(row):
            rows.append([f"{fewest} to {most - 1} spikes", *cells(row, above)])
    return markdown(rows)


def cells(units: np.ndarray, above: float) -> list[str]:
    """One cell for each range of sizes."""
    return [share(units[(units[:, 1] >= a) & (units[:, 1] < b)], above) for a, b in pairwise(SNRS)]


def span(low: float, high: float) -> str:
    return f"above {low:g}" if np.isinf(high) else f"below {high:g}" if low == 0 else f"{low:g} to {high:g}"


def share(units: np.ndarray, above: float) -> str:
    """How many of some units were found; empty where there are none."""
    return f"{(units[:, 3] > above).sum()} of {len(units)}" if len(units) else ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rates", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--sorters", default="sortcore")
    parser.add_argument("--recordings", default="", help="names, comma between; all by default")
    parser.add_argument("--above", type=float, default=0.8, help="accuracy from which a unit counts as found")
    a = parser.parse_args(arguments)
    lines = [line for file in a.results for line in read_lines(file) if not a.recordings or line["recording"] in a.recordings.split(",")]
    for sorter in a.sorters.split(","):
        units = collect([line for line in lines if line["sorter"] == sorter and not line.get("parameters")])
        if not len(units):
            parser.error(f"No result of {sorter} in {', '.join(map(str, a.results))}; run python -m benchmarks first.")
        print(f"{sorter}\n\n{found_table(units, a.above)}\n")


if __name__ == "__main__":
    main()
