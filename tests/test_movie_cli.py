"""`sortcore movie`: a movie with planted cells in, cells with the planted spikes out, an error in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner, Result

from sortcore.metrics import correlation
from sortcore.optical.demix import DemixConfig
from sortcore.optical.saving_movie import load_movie
from sortcore.optical.simulate_movie import MovieSimulation, Scene, simulate_movie
from sortcore.optical.sort_movie import sort_movie
from sorters.cli import app

FS = 20.0
SCENE = Scene(radius_px=3.0, distance_px=6.0, brightness=150.0)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["movie", *map(str, arguments)])


def paired(made: MovieSimulation, images: np.ndarray) -> np.ndarray:
    """(K,) the found cell whose footprint is most like each true one, -1 where none correlates above 0.6."""
    true, found = made.footprints.reshape(len(made.footprints), -1), images.reshape(len(images), -1)
    r = np.corrcoef(true, found)[: len(true), len(true) :]
    return np.where(r.max(axis=1) > 0.6, r.argmax(axis=1), -1)


@pytest.fixture(scope="module")
def made() -> MovieSimulation:
    return simulate_movie(10, 60.0, FS, (56, 64), scene=SCENE, seed=3)


@pytest.fixture(scope="module")
def sorted_once(made: MovieSimulation, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("movie")
    np.save(folder / "movie.npy", made.movie)
    return run(folder / "movie.npy", "--fs", FS, "--out", folder / "out"), folder / "out"


def test_planted_cells_are_found_with_their_spikes(made: MovieSimulation, sorted_once: tuple[Result, Path]) -> None:
    done, out = sorted_once
    assert done.exit_code == 0, done.output
    result = load_movie(out)
    match = paired(made, result.demixed.images())
    found = match >= 0
    assert found.sum() >= 9 and np.isin(np.flatnonzero(result.quality.snr > 8), match).all()  # what seems good is true
    traces = [np.corrcoef(result.demixed.denoised[j], made.dff[k])[0, 1] for k, j in enumerate(match) if j >= 0]
    assert np.median(traces) > 0.9
    assert np.median(correlation(result.activity[match[found]], made.counts[found], FS)) > 0.8


def test_every_file_is_there_and_the_table_is_said(sorted_once: tuple[Result, Path]) -> None:
    done, out = sorted_once
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    wanted = {"movie.json", "README.txt", "footprints.npz", "traces.npy", "denoised.npy", "dff.npy", "activity.npy", "spikes.npz",
              "demixed.npz", "cells.csv", "cells.nwb", "summary.png", "traces.png"}
    assert names == wanted | {f"suite2p/plane0/{n}.npy" for n in ("F", "Fneu", "spks", "iscell", "stat", "ops")}
    assert "1,200 frames of 56 x 64 pixels, uint16, 60.0 s at 20 frames per second" in done.output
    assert "overlap" in done.output and "x real time" in done.output and str(out / "cells.nwb") in done.output
    again = CliRunner().invoke(app, ["info", str(out)])
    assert again.exit_code == 0 and "overlap" in again.output


def test_the_command_does_what_the_function_does(made: MovieSimulation, sorted_once: tuple[Result, Path]) -> None:
    result, alone = load_movie(sorted_once[1]), sort_movie(made.movie, FS)
    np.testing.assert_array_equal(result.demixed.traces, alone.demixed.traces)
    np.testing.assert_array_equal(result.spikes.samples, alone.spikes.samples)
    assert json.loads((sorted_once[1] / "movie.json").read_text())["config"]["demix"]["decay_s"] == DemixConfig().decay_s


def test_a_sorted_movie_is_scored_like_a_sorted_recording(made: MovieSimulation, sorted_once: tuple[Result, Path], tmp_path: Path) -> None:
    frames = [np.round(train * FS).astype(np.int64) for train in made.spike_times_s]
    samples, units = np.concatenate(frames), np.repeat(np.arange(len(frames)), [len(f) for f in frames])
    np.savez(tmp_path / "truth.npz", spike_samples=samples, spike_units=units, fs=FS)
    done = CliRunner().invoke(app, ["score", str(sorted_once[1]), str(tmp_path / "truth.npz"), "--tolerance-ms", "150", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["n_true"] == 10 and told["n_found"] == load_movie(sorted_once[1]).n_cells


def test_motion_is_taken_away_first_where_that_is_asked_for(tmp_path: Path) -> None:
    made = simulate_movie(10, 60.0, FS, (56, 64), scene=replace(SCENE, motion_px=1.5), seed=3)
    tifffile.imwrite(tmp_path / "movie.tif", made.movie, imagej=True, metadata={"axes": "TYX", "finterval": 1 / FS})
    done = run(tmp_path / "movie.tif", "--out", tmp_path / "out", "--register", "--quiet", "--no-nwb", "--no-suite2p", "--decay", "0.6")
    assert done.exit_code == 0, done.output
    shifts = np.genfromtxt(tmp_path / "out" / "shifts.csv", delimiter=",", names=True)
    off = np.stack([shifts["rows_px"], shifts["columns_px"]], axis=1) - made.shifts
    assert np.abs(off - np.median(off, axis=0)).mean() < 0.06
    assert (tmp_path / "out" / "motion.png").is_file()
    assert not (tmp_path / "out" / "cells.nwb").exists() and not (tmp_path / "out" / "suite2p").exists()
    result = load_movie(tmp_path / "out")
    assert (paired(made, result.demixed.images()) >= 0).sum() >= 8
    assert result.config["demix"]["decay_s"] == 0.6


def test_what_is_wrong_is_said_before_work_and_leaves_nothing(made: MovieSimulation, tmp_path: Path) -> None:
    np.save(tmp_path / "movie.npy", made.movie[:50])
    np.save(tmp_path / "one.npy", made.movie[:1])
    np.save(tmp_path / "nan.npy", np.full((20, 16, 16), np.nan, np.float32))
    out = tmp_path / "out"
    for name, options, code, match in (("movie.npy", (), 2, "--fs"), ("none.npy", ("--fs", 20), 1, "no file or folder"),
                                       ("one.npy", ("--fs", 20), 1, "single frame"), ("nan.npy", ("--fs", 20), 1, "NaN"),
                                       ("movie.npy", ("--fs", -1), 2, "above 0"), ("movie.npy", ("--fs", 20, "--axes", "TH"), 2, "axes"),
                                       ("movie.npy", ("--fs", 20, "--decay", -1), 2, "decay_s")):
        done = run(tmp_path / name, "--out", out, *options)
        assert done.exit_code == code and match in done.output and "Traceback" not in done.output, done.output
        assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    done = run(tmp_path / "movie.npy", "--fs", 20, "--out", out)
    assert done.exit_code == 1 and "--overwrite" in done.output and [p.name for p in out.iterdir()] == ["mine.txt"]


def test_a_movie_without_cells_is_sorted_to_none(tmp_path: Path) -> None:
    np.save(tmp_path / "movie.npy", np.random.default_rng(0).poisson(100, (200, 24, 24)).astype(np.uint16))
    done = run(tmp_path / "movie.npy", "--fs", 20, "--out", tmp_path / "out", "--quiet")
    assert done.exit_code == 0, done.output
    assert load_movie(tmp_path / "out").n_cells == 0 and "No cell was found" in done.output


def test_a_constant_movie_cannot_be_registered_and_leaves_no_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "movie.npy", np.full((50, 24, 24), 9, np.uint8))
    done = run(tmp_path / "movie.npy", "--fs", 20, "--out", tmp_path / "out", "--register")
    assert done.exit_code == 1 and "cannot be registered" in done.output and not (tmp_path / "out").exists()
