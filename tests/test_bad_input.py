"""What is wrong with recordings and folders in practice: a clear sentence, or a valid (perhaps empty) result. One row a case."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import sortcore as sc
from sortcore.export import load_result
from sortcore.simulate import Simulation
from sortcore.types import LABELS
from sorters.cli import app

FS = 30000
SECONDS = 4
QUICK = sc.SortConfig.from_dict({"fit": {"iterations": 1}})


@pytest.fixture(scope="module")
def clean(small_simulation: Simulation) -> np.ndarray:
    """(T, 6) int16, a few seconds of six channels with clear units."""
    return small_simulation.data[: SECONDS * FS, :6].copy()


@dataclass(frozen=True)
class Case:
    """A change of the clean recording, and what the sort of it must give.

    error: what the sentence says, or None for a valid result
    left_out: channels that the result says it left out
    max_good: so many good units at most; min_units: so many units at least
    """

    name: str
    change: Callable[[np.ndarray], np.ndarray]
    error: str | None = None
    left_out: tuple[int, ...] = ()
    max_good: int | None = None
    min_units: int = 0


def with_channel(value: float, channel: int = 2) -> Callable[[np.ndarray], np.ndarray]:
    def change(data: np.ndarray) -> np.ndarray:
        data = data.astype("float32") if not np.isfinite(value) else data
        data[:, channel] = value
        return data

    return change


def with_gap(data: np.ndarray) -> np.ndarray:
    data = data.astype("float32")
    data[40000:40300] = np.nan
    return data


def noise(data: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 40, data.shape).astype("int16")


CASES = (
    Case("a NaN channel", with_channel(np.nan), left_out=(2,), min_units=1),
    Case("an infinite channel", with_channel(np.inf), left_out=(2,), min_units=1),
    Case("a constant channel", with_channel(1234), left_out=(2,), min_units=1),
    Case("a gap of NaN on all channels", with_gap),
    Case("all zeros", np.zeros_like, error="None of the 6 channels can be sorted"),
    Case("all NaN", lambda data: np.full(data.shape, np.nan, "float32"), error="None of the 6 channels can be sorted"),
    Case("float microvolts", lambda data: (data * 0.195).astype("float32"), min_units=1),
    Case("float volts", lambda data: data * 0.195e-6, min_units=1),
    Case("double precision", lambda data: data.astype("float64"), min_units=1),
    Case("int32", lambda data: data.astype("int32"), min_units=1),
    Case("unsigned, centred", lambda data: (data.astype("int32") + 32768).astype("uint16"), min_units=1),
    Case("unsigned, with an offset of 12 bits", lambda data: (data.astype("int32") + 2048).clip(0).astype("uint16"), min_units=1),
    Case("signed, with an offset", lambda data: data + np.int16(2056), min_units=1),
    Case("two equal channels", lambda data: np.concatenate([data, data[:, 3:4]], axis=1), min_units=1),
    Case("0.1 s", lambda data: data[: FS // 10], max_good=2),
    Case("one sample", lambda data: data[:1], error=r"at least 0\.05 s|expected \(samples, channels\)"),
    Case("one channel", lambda data: data[:, 3:4], max_good=6),
    Case("no spike at all", noise, max_good=0),
    Case("complex numbers", lambda data: data.astype("complex64"), error="integers or floats"),
)


def check(case: Case, result: sc.SortingResult) -> None:
    """A result that is whole, whatever it holds."""
    lengths, spikes = result.segment_lengths, result.spikes
    assert (np.diff(spikes.samples) >= 0).all() and ((spikes.samples >= 0) & (spikes.samples < sum(lengths))).all()
    assert np.isfinite(spikes.amplitudes).all() and np.isfinite(result.amplitudes_uv).all() and np.isfinite(result.model.templates_uv).all()
    assert set(result.units.label) <= set(LABELS) and len(result.units.label) == result.model.templates.n_units
    np.testing.assert_array_equal(np.bincount(spikes.units, minlength=result.n_units), result.units.n_spikes)
    assert set(case.left_out) == set(result.model.preprocessing.bad_channels) or not case.left_out
    assert result.n_units >= case.min_units
    assert case.max_good is None or (result.units.label == "good").sum() <= case.max_good


def column(n_channels: int) -> sc.Probe:
    return sc.Probe(np.stack([np.zeros(n_channels), 20.0 * np.arange(n_channels)], axis=1), np.zeros(n_channels, int), "column")


def probe_file(path: Path, positions_um: list[list[float]]) -> Path:
    contacts = {"ndim": 2, "si_units": "um", "contact_positions": positions_um, "device_channel_indices": list(range(len(positions_um)))}
    path.write_text(json.dumps({"specification": "probeinterface", "version": "0.2.24", "probes": [contacts]}))
    return path


def command(*arguments: object) -> tuple[int, str]:
    """Exit code and words of `sortcore sort`; never a traceback, and at most one error."""
    done = CliRunner().invoke(app, ["sort", *map(str, arguments)])
    assert "Traceback" not in done.output and len(re.findall("^Error:", done.output, re.M)) == (done.exit_code != 0), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


# the engine sees every case below; the command those in which it has something to say, or nothing to write
SAID = [case for case in CASES if case.error or case.left_out or case.max_good is not None]


@pytest.mark.parametrize("case", SAID, ids=lambda case: case.name)
def test_the_command_gives_a_sentence_or_a_valid_result(case: Case, clean: np.ndarray, tmp_path: Path) -> None:
    data = case.change(clean.copy())
    np.save(tmp_path / "data.npy", data)
    probe = probe_file(tmp_path / "probe.json", column(data.shape[1]).positions_um.tolist())
    code, words = command(tmp_path / "data.npy", "--fs", FS, "--probe", probe, "--out", tmp_path / "out", "--device", "cpu", "--no-report")
    if code:
        assert code == 1 and case.error is not None and re.search(case.error, words), words
        assert not (tmp_path / "out").exists()
    else:
        assert case.error is None, f"expected an error that says {case.error}"
        check(case, load_result(tmp_path / "out"))
        assert all(f"channel {c}" in words for c in case.left_out)
        assert (tmp_path / "out" / "phy" / "params.py").is_file()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_engine_gives_an_error_of_its_own_or_a_valid_result(case: Case, clean: np.ndarray) -> None:
    data = case.change(clean.copy())
    try:
        result = sc.sort(data, column(data.shape[1]), QUICK, fs=FS, device="cpu", progress=False)
    except sc.SortcoreError as error:
        assert case.error is not None and re.search(case.error, str(error)), error
    else:
        assert case.error is None, f"expected an error that says {case.error}"
        check(case, result)


def test_unsigned_values_give_the_same_spikes_as_signed_ones(clean: np.ndarray) -> None:
    signed = sc.sort(clean, column(6), QUICK, fs=FS, device="cpu", progress=False)
    unsigned = sc.sort((clean.astype("int32") + 32768).astype("uint16"), column(6), QUICK, fs=FS, device="cpu", progress=False)
    assert len(signed.spikes) > 0
    np.testing.assert_array_equal(signed.spikes.samples, unsigned.spikes.samples)
    np.testing.assert_array_equal(signed.spikes.units, unsigned.spikes.units)


# what is wrong with files, probes and folders


@dataclass(frozen=True)
class Place:
    """Where a bad call finds its files: a good raw file, a good probe, a folder for more."""

    raw: Path
    probe: Path
    folder: Path


def truncated(place: Place) -> list[object]:
    path = place.folder / "short.bin"
    path.write_bytes(place.raw.read_bytes()[:-3])
    return [path, "--channels", 6, "--fs", FS, "--out", place.folder / "out"]


def empty(place: Place) -> list[object]:
    (place.folder / "empty.bin").touch()
    return [place.folder / "empty.bin", "--channels", 6, "--fs", FS, "--out", place.folder / "out"]


def stacked_contacts(place: Place) -> list[object]:
    probe = probe_file(place.folder / "p.json", [[0, 0], [0, 20], [0, 20], [0, 40], [0, 60], [0, 80]])
    return [place.raw, "--fs", FS, "--probe", probe, "--out", place.folder / "out"]


def full_folder(place: Place) -> list[object]:
    (place.folder / "out").mkdir()
    (place.folder / "out" / "notes.txt").write_text("mine")
    return [place.raw, "--fs", FS, "--probe", place.probe, "--out", place.folder / "out"]


def below_a_file(place: Place) -> list[object]:
    (place.folder / "file").write_text("no folder")
    return [place.raw, "--fs", FS, "--probe", place.probe, "--out", place.folder / "file" / "out"]


def is_a_file(place: Place) -> list[object]:
    (place.folder / "file").write_text("no folder")
    return [place.raw, "--fs", FS, "--probe", place.probe, "--out", place.folder / "file"]


def good(place: Place, *more: object) -> list[object]:
    return [place.raw, "--channels", 6, "--fs", FS, "--out", place.folder / "out", *more]


BAD_CALLS: tuple[tuple[str, Callable[[Place], list[object]], str, int], ...] = (
    ("length no multiple of the channels", truncated, "no multiple of 6 channels", 1),
    ("empty file", empty, "less than one sample", 1),
    ("missing file", lambda p: [p.folder / "gone.bin", "--channels", 6, "--fs", FS, "--out", p.folder / "out"], "no file or folder", 1),
    ("a folder that holds nothing", lambda p: [p.folder, "--out", p.folder / "out"], "holds no recording", 1),
    ("wrong channel count against the probe", lambda p: good(p, "--probe", "tetrode"), "4 wired contacts, but the recording has 6", 1),
    ("two contacts in one place", stacked_contacts, "Channels 1, 2 lie at the same place", 1),
    ("no such dtype", lambda p: good(p, "--dtype", "int17"), "no numpy dtype", 1),
    ("a sampling rate of zero", lambda p: [p.raw, "--channels", 6, "--fs", 0, "--out", p.folder / "out"], "--fs must be positive", 2),
    ("no sampling rate", lambda p: [p.raw, "--channels", 6, "--out", p.folder / "out"], "give --fs", 2),
    ("no channels", lambda p: [p.raw, "--fs", FS, "--out", p.folder / "out"], "give --channels", 2),
    ("negative channels", lambda p: [p.raw, "--channels", -6, "--fs", FS, "--out", p.folder / "out"], "at least 1", 2),
    ("a gain of zero", lambda p: good(p, "--gain-uv", 0), "--gain-uv must be", 2),
    ("no such probe file", lambda p: good(p, "--probe", p.folder / "gone.json"), "no probe file", 1),
    ("a probe that is none", lambda p: good(p, "--probe", p.raw), "cannot be read as JSON", 1),
    ("output folder exists", full_folder, "holds other files: notes.txt.*--overwrite", 1),
    ("output is a file", is_a_file, "is a file, not a folder", 1),
    ("output cannot be written", below_a_file, "cannot be written", 1),
)


@pytest.mark.parametrize("make, words, code", [row[1:] for row in BAD_CALLS], ids=[row[0] for row in BAD_CALLS])
def test_a_bad_call_is_refused_in_one_sentence_before_work(make: Callable[[Place], list[object]], words: str, code: int, clean: np.ndarray,
                                                           tmp_path: Path) -> None:
    place = Place(tmp_path / "raw.bin", tmp_path / "probe.json", tmp_path / "more")
    place.folder.mkdir()
    clean[:3000].tofile(place.raw)
    probe_file(place.probe, column(6).positions_um.tolist())
    arguments = make(place)
    before = sorted(path.name for path in place.folder.rglob("*"))
    got, said = command(*arguments)
    assert got == code and re.search(words, said), said
    assert "Sorting" not in said
    assert sorted(path.name for path in place.folder.rglob("*")) == before


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to the whole console")
def test_an_interrupted_run_says_so_and_what_it_leaves(small_simulation: Simulation, tmp_path: Path) -> None:
    data = small_simulation.data
    with open(tmp_path / "long.bin", "wb") as file:
        for _ in range(15):
            data.tofile(file)
    arguments = ["sort", tmp_path / "long.bin", "--channels", data.shape[1], "--fs", FS, "--out", tmp_path / "made" / "out"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONUNBUFFERED": "1"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what runs in the background ignore it
    try:
        process = subprocess.Popen([sys.executable, "-m", "sorters", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("Device"):
            assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Interrupted" in errors and "Traceback" not in errors, errors
    left = [path for path in (tmp_path / "made").rglob("*") if path.is_file() and path.name != ".unfinished"]
    assert all("work" in path.parts for path in left), "no part of a result"
    assert bool(left) == ("What was finished is kept" in errors) == (tmp_path / "made").exists(), errors
