"""Tables of the kept results, and one table of true units a recording."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

COLUMNS = {
    "sorter": "sorter", "accuracy": "accuracy", "accuracy_1ms": "at 1 ms", "precision": "precision", "recall": "recall", "n80": "> .8",
    "n95": "> .95", "n_true": "true", "n_sorted": "sorted", "extra": "extra", "extra_good": "extra good",
    "good_right": "good right", "seconds": "seconds",
    "x_real_time": "x real time", "peak_mb": "peak MB",
}
RATIOS = ("accuracy", "accuracy_1ms", "precision", "recall", "good_right")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The results kept so far; the last of each recording, sorter and parameters counts."""
    if not file.is_file():
        return []
    lines = [json.loads(text) for text in file.read_text().splitlines() if text.strip()]
    return list({key(line): line for line in lines}.values())


def key(line: dict[str, Any]) -> tuple[str, str, str]:
    """What makes a run a run of its own."""
    return line["recording"], line["sorter"], json.dumps(line.get("parameters", {}), sort_keys=True)


def name_of(line: dict[str, Any]) -> str:
    """The sorter, with the parameters that are not its defaults."""
    given = line.get("parameters")
    return line["sorter"] + (f" {json.dumps(given)}" if given else "")


def cell(line: dict[str, Any], column: str) -> str:
    """One value as text; empty where it is unknown."""
    value = name_of(line) if column == "sorter" else line.get(column)
    if value is None:
        return ""
    if column in RATIOS:
        return f"{value:.3f}"
    if isinstance(value, float):
        return f"{value:.1f}" if value >= 1 else f"{value:.2f}"
    return str(value)


def table(lines: list[dict[str, Any]]) -> str:
    """A markdown table a recording, best first; sorters that failed come last with their error."""
    parts = []
    for recording in dict.fromkeys(line["recording"] for line in lines):
        mine = [line for line in lines if line["recording"] == recording]
        done = sorted((line for line in mine if "error" not in line), key=lambda line: -line["accuracy"])
        first = mine[0]
        rows = [list(COLUMNS.values())] + [[cell(line, c) for c in COLUMNS] for line in done]
        rows += [[name_of(line), f"failed: {line['error']}"] + [""] * (len(COLUMNS) - 2) for line in mine if "error" in line]
        about = [f"{first[name]} {word}" for name, word in (("channels", "channels"), ("n_true", "units")) if first.get(name) is not None]
        about.append(f"{first['duration_s']:g} s")
        parts.append(f"### {recording}\n{', '.join(about)}\n\n{markdown(rows)}")
    return "\n\n".join(parts)


def markdown(rows: list[list[str]]) -> str:
    """Rows of text as an aligned markdown table; the first row is the head."""
    width = [max(len(row[i]) for row in rows if not (i == 1 and row[i].startswith("failed"))) for i in range(len(rows[0]))]
    body = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, width, strict=True)) + " |" for row in rows]
    return "\n".join([body[0], "|" + "|".join("-" * (w + 2) for w in width) + "|", *body[1:]])


def write_units(file: Path, lines: list[dict[str, Any]]) -> None:
    """One row a true unit: its size and rate, then accuracy, precision, recall and the reason by each sorter."""
    done = [line for line in lines if "units" in line]
    if not done:
        return
    measures = ("accuracy", "precision", "recall", "reason")
    head = ["unit", "n_spikes", "rate_hz", "snr"] + [f"{name_of(line)} {what}" for line in done for what in measures]
    with file.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(head)
        for i, unit in enumerate(done[0]["units"]["unit"]):
            about = [unit] + [done[0]["units"][name][i] for name in ("n_spikes", "rate_hz", "snr")]
            writer.writerow(about + [line["units"][what][i] for line in done for what in measures])
