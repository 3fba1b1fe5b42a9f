"""One recording over a Dask cluster of two processes: the same bytes as here, also when workers die."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_resume import LONG, Stages, contents, opened, sort
from typer.testing import CliRunner

import sortcore as sc
from sortcore.errors import ClusterError, ConfigError, RecordingError
from sortcore.export import load_result
from sortcore.remote import cluster_of
from sortcore.simulate import Simulation
from sortcore.types import Probe, SortingResult
from sorters.cli import app
from sorters.cluster import check_cluster
from sorters.settings import to_toml

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL is of Unix")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as made:
        yield made


@pytest.fixture(scope="module")
def client(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster) as made:
        yield made


class Killing:
    """Progress that kills the first `count` workers at the third item of a stage."""

    def __init__(self, client: Any, stage: str, count: int) -> None:
        self.stage, self.victims = stage, list(client.run(os.getpid).values())[:count]
        self.killed = False

    def __call__(self, items: Iterable, stage: str, total: int) -> Iterator:
        for i, thing in enumerate(items):
            if stage == self.stage and i == 2:
                for process in self.victims:
                    os.kill(process, signal.SIGKILL)
                self.killed = True
            yield thing


def test_the_cluster_gives_the_same_bytes(client: Any, raw: Path, probe: Probe, plain: SortingResult) -> None:
    with distributed.get_task_stream(client) as stream:
        assert contents(sort(raw, probe, None, spread=cluster_of(client))) == contents(plain)
    assert {task["worker"] for task in stream.data} == set(client.nthreads()), "both have worked"


@pytest.mark.parametrize("stage, count", [("detect", 1), ("deconvolve", 2)])
def test_workers_that_die_are_made_up_for(client: Any, raw: Path, probe: Probe, plain: SortingResult, stage: str, count: int) -> None:
    """One of the two, and both at once, by SIGKILL; others take their place."""
    track = Killing(client, stage, count)
    assert contents(sort(raw, probe, None, progress=track, spread=cluster_of(client))) == contents(plain)
    assert track.killed and len(track.victims) == count
    client.wait_for_workers(2, timeout=120)  # Dask starts others in its own time
    assert not set(track.victims) & set(client.run(os.getpid).values())


def test_what_is_wrong_with_the_recording_is_said_as_here(client: Any, raw: Path, probe: Probe, plain: SortingResult,
                                                           tmp_path: Path) -> None:
    path = Path(shutil.copy(raw, tmp_path / "recording.bin"))

    def track(items: Iterable, stage: str, total: int) -> Iterator:
        for i, thing in enumerate(items):
            if stage == "deconvolve" and i == 0:
                path.unlink()
            yield thing

    with pytest.raises(RecordingError, match="cannot be read any more"):
        sort(path, probe, tmp_path / "work", progress=track, spread=cluster_of(client))
    shutil.copy(raw, path)
    stages = Stages()
    assert contents(sort(path, probe, tmp_path / "work", progress=stages)) == contents(plain), "begun there, ended here"
    assert stages.seen == ["deconvolve"]


def test_a_model_finds_its_spikes_on_the_cluster(client: Any, raw: Path, plain: SortingResult) -> None:
    here = sc.deconvolve(opened(raw), plain.model, device="cpu", progress=False)
    there = sc.deconvolve(opened(raw), plain.model, device="cpu", progress=False, spread=cluster_of(client))
    for name in vars(here):
        assert getattr(here, name).tobytes() == getattr(there, name).tobytes()


def wait_for(client: Any, name: str, there: bool, timeout_s: float = 120.0) -> None:
    """Until a worker of that name is there, or is gone."""
    deadline = time.monotonic() + timeout_s
    while (name in {worker["name"] for worker in client.scheduler_info()["workers"].values()}) != there:
        assert time.monotonic() < deadline, f"The worker {name} did not {'come' if there else 'go'}."
        time.sleep(0.05)


def test_a_worker_with_another_sortcore_is_named(cluster: Any, client: Any, tmp_path: Path) -> None:
    """Started as one would on another machine, with a copy of this one's code that is not quite the same."""
    shutil.copytree(Path(sc.__file__).parent, tmp_path / "sortcore", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "sortcore" / "version.py", "a") as file:
        file.write("# changed\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--no-nanny", "--no-dashboard",
               "--name", "foreign"]
    worker = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_for(client, "foreign", True)
        with pytest.raises(ClusterError, match="another version of sortcore"):
            cluster_of(client)
    finally:
        worker.kill()
        worker.wait()
    wait_for(client, "foreign", False)
    assert cluster_of(client) is not None


def test_the_command_uses_a_cluster(cluster: Any, raw: Path, probe: Probe, plain: SortingResult, tmp_path: Path,
                                    small_simulation: Simulation) -> None:
    from test_cli import probe_json

    (tmp_path / "settings.toml").write_text(to_toml(sc.SortConfig.from_dict(LONG)))
    layout = probe_json(tmp_path / "probe.json", small_simulation.probe.positions_um)
    command = ["sort", raw, "--fs", 30000, "--gain-uv", 0.195, "--probe", layout, "--config", tmp_path / "settings.toml", "--device", "cpu",
               "--out", tmp_path / "out", "--no-phy", "--no-report", "--quiet", "--scheduler", cluster.scheduler_address]
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 0, done.output
    assert contents(load_result(tmp_path / "out"))["samples"] == contents(plain)["samples"]


@pytest.mark.parametrize("workers, scheduler, words", [(2, "tcp://here:1", "either --workers"), (0, None, "at least 1")])
def test_wrong_clusters_are_refused(workers: int, scheduler: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_cluster(workers, scheduler)


def test_a_scheduler_that_is_not_there_is_named(raw: Path, tmp_path: Path, small_simulation: Simulation) -> None:
    from test_cli import probe_json

    (tmp_path / "scheduler.json").write_text("nothing")
    layout = probe_json(tmp_path / "probe.json", small_simulation.probe.positions_um)
    done = CliRunner().invoke(app, ["sort", str(raw), "--fs", "30000", "--probe", str(layout), "--out", str(tmp_path / "out"), "--quiet",
                                    "--scheduler", str(tmp_path / "scheduler.json")])
    assert done.exit_code == 2 and "no Dask scheduler" in done.output and not (tmp_path / "out").exists()
