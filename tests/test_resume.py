"""A sort that is stopped goes on where it was, and ends with the same bytes as one that was not."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_resume import LONG, Stages, contents, last_pass, opened, sort, sort_in_parts
from threadpoolctl import threadpool_info, threadpool_limits

import sortcore as sc
from sortcore.archive import thickened, thinned
from sortcore.errors import OutputError, RecordingError
from sortcore.export import save_model
from sortcore.probes import load_probe
from sortcore.recording import array_recording, binary_recording
from sortcore.simulate import Simulation, simulate
from sortcore.steps import Form, Steps, digest, fingerprint, kept_in_parts
from sortcore.types import Motion, Probe, SortingResult
from sortcore.workers import InOrder, one_thread_each, over_recording, spread_by, spread_now

STAGES = ("noise", "detect", "drift", "initialize", "fit", "deconvolve")
ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL and tmpfs are of Unix")
if os.name == "posix":  # processes that start with all modules loaded
    FORKS = multiprocessing.get_context("forkserver")
    FORKS.set_forkserver_preload(["sortcore"])


@pytest.fixture(scope="module")
def kept(raw: Path, probe: Probe, plain: SortingResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sort that kept its stages; not to be written to."""
    work = tmp_path_factory.mktemp("kept")
    assert contents(sort(raw, probe, work)) == contents(plain)
    return work


@pytest.fixture
def work(kept: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(kept, tmp_path / "work"))


def stages_in(work: Path) -> list[str]:
    """The stages that are kept, in order."""
    names = [p.name.rpartition("-")[0] for p in work.glob("*/*.npz")]
    return sorted(names, key=STAGES.index)


def killed(target: Callable, *arguments: object) -> None:
    """Run a function that kills its process."""
    process = FORKS.Process(target=target, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


# killed


def test_killed_after_every_stage_it_ends_with_the_same_bytes(raw: Path, probe: Probe, plain: SortingResult, tmp_path: Path) -> None:
    """One sort, killed from outside as soon as the next stage is kept, and started again."""
    for i, stage in enumerate(STAGES[:-1]):
        process = FORKS.Process(target=sort, args=(raw, probe, tmp_path))
        process.start()
        while not list(tmp_path.glob(f"*/{stage}-*.npz")) and process.is_alive():
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert stages_in(tmp_path)[: i + 1] == list(STAGES[: i + 1])
    stages = Stages()
    assert contents(sort(raw, probe, tmp_path, progress=stages)) == contents(plain)
    assert "detect" not in stages.seen, "what was kept is not done again"
    assert stages_in(tmp_path) == list(STAGES)


def test_killed_within_every_stage_that_shows_progress(raw: Path, probe: Probe, plain: SortingResult, tmp_path: Path) -> None:
    for stage, item in (("preprocess", 1), ("detect", 2), ("motion", 2), ("motion", 4), ("fit", 1), ("deconvolve", 3), ("deconvolve", 7)):
        killed(sort_in_parts, raw, probe, tmp_path, stage, item)
        if stage in ("motion", "deconvolve"):
            assert len(list(tmp_path.glob("parts-*/*/*.npz"))) >= item - 1, "what was done of it is kept"
    stages = Stages()
    assert contents(sort_in_parts(raw, probe, tmp_path, stages=stages)) == contents(plain)
    assert stages.seen == ["deconvolve"], "only the last stage was left to do"


def test_a_long_last_pass_goes_on_in_its_middle(raw: Path, plain: SortingResult, tmp_path: Path) -> None:
    model = save_model(plain.model, tmp_path / "model.npz")
    expected = last_pass(raw, model, tmp_path / "once")
    assert len(expected) > 300
    for item in (5, 11):
        killed(last_pass, raw, model, tmp_path / "often", item)
    parts = sorted((tmp_path / "often").glob("parts-*/*/*.npz"))
    assert len(parts) >= 10, "chunks before the kill are kept"
    parts[7].write_bytes(parts[7].read_bytes()[:-40])  # a disk that loses something
    spikes = last_pass(raw, model, tmp_path / "often")
    for name in vars(spikes):
        assert getattr(spikes, name).tobytes() == getattr(expected, name).tobytes()
    assert not list((tmp_path / "often").glob("parts-*")), "the whole takes the place of its parts"


def test_a_pass_is_kept_in_parts_and_the_next_pass_apart(tmp_path: Path) -> None:
    asked: list[int] = []

    def events(i: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(i)
        return np.arange(i % 3, dtype=np.float32), np.full(i % 3, i)

    def one_by_one(function: Callable, items: Sequence) -> Iterator:
        return map(function, items)

    def passes() -> InOrder:
        return kept_in_parts(tmp_path, lambda *arrays: arrays, one_by_one, 0.0)

    stopped = passes()(events, range(8))
    for _ in range(6):
        next(stopped)
    del stopped
    again = passes()
    first, second = list(again(events, range(8))), list(again(events, range(8)))
    assert asked == [0, 1, 2, 3, 4, 5, 5, 6, 7, *range(8)], "an item is kept when the next one is asked for"
    for found in (first, second, list(passes()(events, range(8)))):
        assert [tuple(map(len, arrays)) for arrays in found] == [(i % 3, i % 3) for i in range(8)]
        assert [(a.dtype, b.tolist()) for a, b in found] == [(np.float32, [i] * (i % 3)) for i in range(8)]
    assert len(asked) == 17


@pytest.mark.parametrize("cores", ["1", "2"])
def test_only_the_outer_pass_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: str) -> None:
    """With one core both are done by one thread; passes within a pass were once kept in its place, under numbers that shift."""
    monkeypatch.setenv("OMP_NUM_THREADS", cores)

    def outer(i: int) -> list[np.ndarray]:
        return [np.concatenate(list(over_recording(lambda j: np.full(1, 10 * i + j), range(3))))]

    with spread_by(kept_in_parts(tmp_path, lambda *arrays: arrays, spread_now(), 0.0)):
        found = list(over_recording(outer, range(4)))
    assert [a.tolist() for (a,) in found] == [[10 * i + j for j in range(3)] for i in range(4)]
    assert [p.name for p in tmp_path.iterdir()] == ["0-4"]


# settings and content


@pytest.mark.parametrize("settings, done", [
    ({"curate": {"min_snr": 9.0}}, []),
    ({"fit": {"sample_seconds": 4.0, "iterations": 1, "rank": 4}}, ["preprocess", "fit", "deconvolve"]),
    ({"detect": {"false_alarm_hz": 0.2}}, ["preprocess", "detect", "fit", "deconvolve"]),
])
def test_a_changed_setting_redoes_what_depends_on_it(raw: Path, probe: Probe, work: Path, settings: dict, done: list[str]) -> None:
    stages = Stages()
    again = sort(raw, probe, work, settings, progress=stages)
    assert [s for s in stages.seen if s != "motion"] == done
    assert contents(again) == contents(sort(raw, probe, None, settings))
    assert stages_in(work) == list(STAGES), "results of other settings are taken away"


def test_fresh_does_all_of_it_again(raw: Path, probe: Probe, work: Path, plain: SortingResult) -> None:
    stages = Stages()
    assert contents(sort(raw, probe, work, progress=stages, fresh=True)) == contents(plain)
    assert stages.seen[:2] == ["preprocess", "detect"]


def test_what_is_damaged_is_done_again(raw: Path, probe: Probe, work: Path, plain: SortingResult) -> None:
    fit = next(work.glob("*/fit-*.npz"))
    data = bytearray(fit.read_bytes())
    middle = slice(len(data) // 2, len(data) // 2 + 500)  # longer than a header within, whose times nobody reads
    data[middle] = bytes(255 ^ b for b in data[middle])
    fit.write_bytes(data)
    next(work.glob("*/deconvolve-*.npz")).write_bytes(b"")
    stages = Stages()
    assert contents(sort(raw, probe, work, progress=stages)) == contents(plain)
    assert stages.seen == ["preprocess", "fit", "deconvolve"]


def test_a_fingerprint_is_of_the_content(raw: Path, small_simulation: Simulation, tmp_path: Path) -> None:
    data = small_simulation.data
    same = [opened(raw), opened(Path(shutil.copy(raw, tmp_path / "elsewhere.bin"))), array_recording(data, 30000.0, 0.195)]
    assert len({fingerprint(r) for r in same}) == 1
    changed = data.copy()
    changed[-1, 3] += 1
    others = [array_recording(changed, 30000.0, 0.195), array_recording(data, 20000.0, 0.195), array_recording(data, 30000.0, 0.2),
              array_recording(data[:-1], 30000.0, 0.195), array_recording(data.astype(np.int32), 30000.0, 0.195)]
    assert len({fingerprint(r) for r in [same[0], *others]}) == 6


def test_a_digest_tells_apart_what_looks_alike() -> None:
    things = [(1, 23), (12, 3), ("1", 23), ([1, 23],), (1.0, 23), (np.arange(2),), (np.arange(2.0),), (np.zeros((2, 1)),),
              (np.zeros((1, 2)),), ({"a": 1},), ({"a": 2},), ()]
    assert len({digest(*t) for t in things}) == len(things)
    assert digest(Probe.independent(3)) == digest(Probe.independent(3)) != digest(Probe.independent(4))


def test_what_is_kept_is_small(kept: Path, raw: Path) -> None:
    size = sum(p.stat().st_size for p in kept.rglob("*") if p.is_file())
    assert size < 0.05 * raw.stat().st_size, f"{size / raw.stat().st_size:.1%}, even of a short recording of few channels"


# disks and files


FULL = """
import pickle, subprocess, sys
from pathlib import Path
from helpers_resume import LONG, Stages, contents, sort
from sortcore.errors import OutputError
raw, work, probe, told = Path(sys.argv[1]), Path(sys.argv[2]), pickle.loads(Path(sys.argv[3]).read_bytes()), Path(sys.argv[4])
try:
    sort(raw, probe, work)
except OutputError as error:
    kept = sorted(p.name for p in work.glob("*/*"))
    subprocess.run(["mount", "-o", "remount,size=20m", str(work)], check=True)
    again = Stages()
    told.write_bytes(pickle.dumps((str(error), kept, contents(sort(raw, probe, work, progress=again)), again.seen)))
"""


def test_a_full_disk_says_so_and_loses_nothing(raw: Path, probe: Probe, kept: Path, plain: SortingResult, tmp_path: Path) -> None:
    """On a file system that has room for a part of what is kept, and is then made larger."""
    work, told, pickled = tmp_path / "work", tmp_path / "told", tmp_path / "probe"
    work.mkdir()
    pickled.write_bytes(pickle.dumps(probe))
    (tmp_path / "script.py").write_text(FULL)
    mount = f"mount -t tmpfs -o size={int(0.6 * sum(p.stat().st_size for p in kept.glob('*/*')))} tmpfs {work}"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no file system of one's own can be mounted here")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" "$@"', sys.executable, tmp_path / "script.py", raw, work,
                           pickled, told], capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    assert done.returncode == 0 and not done.stderr, done.stderr
    words, there, found, stages = pickle.loads(told.read_bytes())
    assert "disk is full" in words and str(work) in words and "Make room" in words
    assert any(n.startswith("detect-") for n in there) and not [n for n in there if n.startswith(".")], "no half-written file"
    assert found == contents(plain) and "detect" not in stages


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        Steps(tmp_path / "file" / "work", "").keep("noise", Form(Motion), lambda: Motion(np.zeros(1), np.zeros(1), np.zeros((1, 1))))


@pytest.mark.parametrize("harm, words", [
    (lambda path: path.unlink(), "cannot be read any more"), (lambda path: os.truncate(path, 6_000_000), "ended early"),
])
def test_an_input_that_vanishes_says_so_and_loses_nothing(raw: Path, probe: Probe, plain: SortingResult, tmp_path: Path, harm: Callable,
                                                           words: str) -> None:
    """In the middle of the last pass."""
    path = Path(shutil.copy(raw, tmp_path / "recording.bin"))

    def track(items: Iterable, stage: str, total: int) -> Iterator:
        for i, thing in enumerate(items):
            if stage == "deconvolve" and i == 1:
                harm(path)
            yield thing

    with pytest.raises(RecordingError, match=words):
        sort(path, probe, tmp_path / "work", progress=track)
    stages = Stages()
    shutil.copy(raw, path)
    assert contents(sort(path, probe, tmp_path / "work", progress=stages)) == contents(plain)
    assert stages.seen == ["deconvolve"]


def test_a_binary_recording_reads_what_is_in_the_file(tmp_path: Path) -> None:
    data = np.arange(60, dtype=np.int16).reshape(20, 3)
    path = tmp_path / "raw.bin"
    path.write_bytes(b"head!" + data.tobytes())
    recording = binary_recording(path, 3, 30000.0, skip_bytes=5)
    assert recording.segment_lengths == (20,)
    for start, stop in ((0, 20), (3, 4), (7, 7), (19, 20)):
        np.testing.assert_array_equal(recording.read(start, stop), data[start:stop])


def test_rows_of_zeros_take_no_room_and_come_back() -> None:
    sparse = np.zeros((3, 50, 7), np.float32)
    sparse[1, 3], sparse[2, 4, 0], sparse[0, 0, 2] = np.arange(7), np.nan, -0.0
    arrays = {"sparse": sparse, "dense": np.ones((4, 5)), "text": np.array([["a", ""], ["", ""]]), "flat": np.zeros(9),
              "none": np.zeros((0, 3))}
    thin = thinned(arrays)
    assert sum(a.nbytes for a in thin.values()) < 0.2 * sum(a.nbytes for a in arrays.values())
    back = thickened(thin)
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape and back[name].tobytes() == array.tobytes(), name


# threads


def blas_threads() -> dict[str, int]:
    """How many threads each library of matrix products uses; some that other tests load know but one."""
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_the_number_of_threads_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """With enough channels that libraries would cut their products among threads, which rounds differently."""
    made = simulate(load_probe("neuronexus-a1x32-poly3"), 6.0, 10, snr=(9.0, 20.0), rate_hz=(5.0, 15.0), seed=1)
    config = sc.SortConfig.from_dict({"fit": {"sample_seconds": 4.0}})
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 4):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))  # ours
        torch.set_num_threads(threads)  # torch's
        with threadpool_limits(threads):  # those of matrix products
            given = blas_threads()
            assert threads in given.values()
            found.append(contents(sc.sort(made.recording(), made.probe, config, device="cpu", progress=False)))
            assert blas_threads() == given, "left as they were"
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_run_to_run_the_bytes_are_the_same(raw: Path, probe: Probe, device: str) -> None:
    """On every device that there is."""
    config = sc.SortConfig.from_dict(LONG)
    first, second = (contents(sc.sort(opened(raw), probe, config, device=device, progress=False)) for _ in range(2))
    assert first == second


def test_threads_stay_limited_until_the_last_sort_of_a_process_ends() -> None:
    with threadpool_limits(2):
        given = blas_threads()
        first, second = one_thread_each(), one_thread_each()
        first.__enter__()
        second.__enter__()
        assert set(blas_threads().values()) == {1}
        first.__exit__(None, None, None)
        assert set(blas_threads().values()) == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == given and 2 in given.values()
