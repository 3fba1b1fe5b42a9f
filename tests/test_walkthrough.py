"""The walk through calcium deconvolution runs as it stands, and what it prints and writes is what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "calcium_walkthrough.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the walk through prints, and the folder that it writes."""
    folder = tmp_path_factory.mktemp("walkthrough")
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False, cwd=SCRIPT.parents[1])
    assert done.returncode == 0, done.stderr
    return done.stdout, folder


def number(text: str, before: str) -> float:
    found = re.search(re.escape(before) + r"\s*(-?[\d.]+(?:e-?\d+)?)", text)
    assert found, f"{before!r} is not in {text}"
    return float(found[1])


def test_it_shows_what_it_says(run: tuple[str, Path]) -> None:
    text, _ = run
    assert number(text, "recursion differ by") < 1e-9
    assert number(text, "non-negative deconvolution: r =") > number(text, "of the raw trace: r =") + 0.05
    assert number(text, "all estimated: r =") > 0.85
    assert number(text, "times given: r =") > 0.85
    assert number(text, "found within") < 0.3 * number(text, "moves by")
    assert number(text, "0.02: precision") > 0.8


def test_it_writes_what_it_says(run: tuple[str, Path]) -> None:
    _, folder = run
    assert sorted(path.name for path in folder.iterdir()) == ["calcium.png", "spikes.npz", "spikes.nwb", "traces.npz"]
