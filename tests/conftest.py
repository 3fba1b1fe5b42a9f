"""Fixtures that several tests share. Data are small: the whole suite has a few minutes on two cores."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# After what is installed: the installed package is what is tested, the checkout only adds what is not shipped (benchmarks).
sys.path.append(str(ROOT))

from helpers_resume import sort as sort_raw  # noqa: E402

from sortcore.probes import load_probe  # noqa: E402
from sortcore.simulate import Simulation, simulate  # noqa: E402
from sortcore.types import Probe, SortingResult  # noqa: E402

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device that there is."""
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def small_simulation() -> Simulation:
    """12 s of six clear units on 12 channels; not to be written to."""
    probe = load_probe("neuropixels1").select(np.arange(12))
    simulation = simulate(probe, 12.0, 6, snr=(9.0, 20.0), rate_hz=(5.0, 15.0), seed=5)
    simulation.data.setflags(write=False)
    return simulation


@pytest.fixture(scope="session")
def raw(small_simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a raw file; not to be written to."""
    path = tmp_path_factory.mktemp("raw") / "recording.bin"
    small_simulation.data.tofile(path)
    return path


@pytest.fixture(scope="session")
def probe(small_simulation: Simulation) -> Probe:
    return small_simulation.probe


@pytest.fixture(scope="session")
def plain(raw: Path, probe: Probe) -> SortingResult:
    """The raw file sorted without keeping anything."""
    return sort_raw(raw, probe, None)


@pytest.fixture(scope="session")
def groundtruth() -> Path:
    """The folder of ground-truth recordings, for the tests that want it."""
    folder = Path(os.environ.get("SORTCORE_GROUNDTRUTH", ROOT.parent / "shared" / "groundtruth"))
    if not folder.is_dir():
        pytest.skip(f"no ground-truth folder {folder}: set SORTCORE_GROUNDTRUTH to it")
    return folder
