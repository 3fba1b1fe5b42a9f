"""Where sortcore's time goes.

    python -m benchmarks.stages RESULT...

RESULT is a result folder of sortcore, or the results.jsonl of `python -m benchmarks`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.report import markdown, name_of, read_lines


def stage_seconds(folder: Path) -> dict[str, float]:
    """The seconds per stage in the result.json of a result folder; empty where it holds none."""
    file = folder / "result.json"
    stages = json.loads(file.read_text()).get("timings_s", {}) if file.is_file() else {}
    return {str(stage): float(seconds) for stage, seconds in stages.items()}


def collect(path: Path) -> dict[str, dict[str, float]]:
    """Seconds per stage of every run in a file or folder, by its name. Raises FileNotFoundError where there are none."""
    if path.suffix == ".jsonl":
        runs = {f"{line['recording']} {name_of(line)}": line["timings_s"] for line in read_lines(path) if line.get("timings_s")}
    else:
        runs = {path.name: stage_seconds(path)} if stage_seconds(path) else {}
    if not runs:
        raise FileNotFoundError(f"{path} holds no seconds per stage; give a result folder of sortcore or a results.jsonl with its runs.")
    return runs


def stage_table(runs: dict[str, dict[str, float]]) -> str:
    """A markdown table, a column a run: seconds and share of each stage."""
    stages = list(dict.fromkeys(stage for run in runs.values() for stage in run))
    rows = [["stage", *runs], *([stage, *(share_of(run, stage) for run in runs.values())] for stage in stages)]
    rows.append(["sum", *(f"{sum(run.values()):.2f}" for run in runs.values())])
    return markdown(rows)


def share_of(run: dict[str, float], stage: str) -> str:
    """Seconds of one stage, and its share of all; empty where the run has no such stage."""
    return f"{run[stage]:.2f} ({run[stage] / max(sum(run.values()), 1e-9):.0%})" if stage in run else ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description="Seconds per stage of sortcore's runs.")
    parser.add_argument("results", nargs="+", type=Path, help="result folders, or results.jsonl")
    runs: dict[str, dict[str, float]] = {}
    try:
        for path in parser.parse_args(arguments).results:
            runs.update(collect(path))
    except FileNotFoundError as error:
        parser.error(str(error))
    print(stage_table(runs))


if __name__ == "__main__":
    main()
