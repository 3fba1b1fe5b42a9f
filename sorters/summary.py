"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sortcore.types import LABELS, Probe, SortingResult

MAX_ROWS = 60


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Plain text in columns, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[c]) for row in cells) for c in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def result_summary(result: SortingResult, files: Sequence[tuple[str, Path]] = ()) -> str:
    """What was found: totals, one row a unit, the seconds of each stage, and where the files are."""
    units = result.units
    counts = ", ".join(f"{np.sum(units.label == label)} {label}" for label in LABELS)
    lines = ["", f"{result.n_units} units ({counts}), {len(result.spikes)} spikes in {result.duration_s:.1f} s."]
    left_out = result.model.preprocessing.bad_channels
    if left_out:
        lines.append("Left out: " + "; ".join(f"channel {c} ({why})" for c, why in sorted(left_out.items())) + ".")
    if result.n_units:
        lines += ["", unit_table(result)]
    else:
        lines.append("No unit was found: no cluster of events stood out of the noise.")
    return "\n".join([*lines, *ending(result.timings_s, result.duration_s, files)])


def ending(timings_s: dict[str, float], duration_s: float, files: Sequence[tuple[str, Path]]) -> list[str]:
    """The seconds of each stage, and where the files are."""
    lines = []
    if timings_s:
        total = sum(timings_s.values())
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in timings_s.items())
        speed = f", {duration_s / total:.1f} x real time" if total > 0 else ""
        lines = ["", f"{stages}; in all {total:.1f} s{speed}."]
    return lines + [f"{what:<8} {path}" for what, path in files]


def unit_table(result: SortingResult) -> str:
    """One row a unit, the first 60 of them."""
    units = result.units
    header = ["unit", "label", "spikes", "rate Hz", "channel", "uV", "SNR", "contam.", "missed"]
    rows = [[k, units.label[k], int(units.n_spikes[k]), f"{units.firing_rate_hz[k]:.2f}", int(units.channel[k]),
             f"{units.amplitude_uv[k]:.0f}", f"{units.snr[k]:.1f}", f"{units.contamination[k]:.3f}", f"{units.missed[k]:.3f}"]
            for k in range(min(len(units), MAX_ROWS))]
    more = f"\n... and {len(units) - MAX_ROWS} more, in units.tsv" if len(units) > MAX_ROWS else ""
    return table(header, rows) + more


def score_summary(score: dict[str, Any]) -> str:
    """One row a true unit, and the means; `score` comes from `sorters.scoring.as_dict`."""
    figures = ("accuracy", "precision", "recall")
    rows = [[unit["unit"], unit["n_spikes"], unit["match"] or "-", *(f"{unit[name]:.3f}" for name in figures)] for unit in score["units"]]
    if rows:
        rows.append(["mean", "", "", *(f"{score['mean'][name]:.3f}" for name in figures)])
    above = ", ".join(f"{score['above'][level]} at {level}" for level in score["above"])
    return (table(["true unit", "spikes", "found as", *figures], rows)
            + f"\nOf {score['n_true']} true units {above} or more in accuracy; "
            f"{len(score['extra'])} of {score['n_found']} found units match no true one.")


def probe_table(probes: Sequence[Probe]) -> str:
    """One row a probe: name, contacts, shanks, and how wide and high it is."""
    rows = [[p.name, p.n_channels, len(np.unique(p.shank)), *(f"{size:g}" for size in np.ptp(p.positions_um, axis=0))] for p in probes]
    return table(["probe", "contacts", "shanks", "width um", "height um"], rows)
