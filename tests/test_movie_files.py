"""A sorted movie is saved, read back to the bit, and opened by those who read NWB, suite2p, SpikeInterface and pynapple."""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pynapple
import pynwb
import pytest
from helpers_movie import planted_result
from scipy import sparse

from sortcore.archive import writing
from sortcore.errors import OutputError
from sortcore.metrics import compare, score_spikes
from sortcore.optical.nwb_movie import save_movie_nwb
from sortcore.optical.plots_movie import fit_in_dff, plot_movie, plot_movie_traces, plot_shifts, save_movie_pictures
from sortcore.optical.reading import read_traces
from sortcore.optical.records import MovieResult
from sortcore.optical.register import Registration
from sortcore.optical.saving_movie import load_movie, movie_to_pynapple, save_movie, shifts_table
from sortcore.optical.suite2p import NEUROPIL, background_at_cells, save_suite2p


@pytest.fixture(scope="module")
def result() -> MovieResult:
    return planted_result(5)


def same(a: object, b: object) -> bool:
    """Whether two records are equal, to the bit."""
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))  # type: ignore[arg-type]
    if sparse.issparse(a):
        return a.shape == b.shape and all(same(getattr(a, n), getattr(b, n)) for n in ("data", "indices", "indptr"))  # type: ignore[attr-defined]
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()  # type: ignore[attr-defined]
    return a == b


@pytest.mark.parametrize("n_cells", [5, 1, 0])
def test_a_result_is_read_back_to_the_bit(n_cells: int, tmp_path: Path) -> None:
    result = planted_result(n_cells)
    again = load_movie(save_movie(result, tmp_path / "sorted"))
    assert same(again, result) and again.activity is again.demixed.activity
    apart = replace(result, activity=result.activity + 1)
    drifting = replace(apart, demixed=replace(apart.demixed, baseline=np.ones(apart.demixed.traces.shape, np.float32)))
    assert same(load_movie(save_movie(drifting, tmp_path / "drifting")), drifting)


def test_the_same_result_gives_the_same_bytes(result: MovieResult, tmp_path: Path) -> None:
    one, two = save_movie(result, tmp_path / "one"), save_movie(result, tmp_path / "two")
    assert {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in two.iterdir()}
    told = (one / "README.txt").read_text()
    assert all(f.name in told for f in one.iterdir() if f.name != "README.txt")


def test_files_are_read_with_numpy_and_scipy_alone(result: MovieResult, tmp_path: Path) -> None:
    folder = save_movie(result, tmp_path / "sorted")
    footprints = sparse.load_npz(folder / "footprints.npz").toarray().reshape(-1, *result.demixed.shape)
    np.testing.assert_array_equal(footprints, result.demixed.images())
    np.testing.assert_array_equal(np.load(folder / "traces.npy"), result.demixed.traces)
    with np.load(folder / "spikes.npz") as spikes:
        np.testing.assert_allclose(spikes["times_s"], (result.spikes.samples + 0.25) / result.fs)
    with open(folder / "cells.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    for k, row in enumerate(rows):
        assert int(row["cell"]) == k and int(row["n_spikes"]) == (result.spikes.units == k).sum()
        assert float(row["snr"]) == pytest.approx(result.quality.snr[k], abs=1e-3)
        assert float(row["row_px"]) == pytest.approx(result.quality.centre[k, 0], abs=0.01)
        assert float(row["baseline"]) == pytest.approx(result.demixed.baseline[k], rel=1e-4)
        assert float(row["tau_decay_s"]) == 0.6 and float(row["noise"]) == 1.0


def test_what_is_in_the_way_damaged_or_not_there_is_said(result: MovieResult, tmp_path: Path) -> None:
    folder = save_movie(result, tmp_path / "sorted")
    with pytest.raises(OutputError, match="new folder"):
        save_movie(result, folder)
    save_movie(result, folder, overwrite=True)
    (folder / "traces.npy").write_bytes((folder / "traces.npy").read_bytes()[:500])
    with pytest.raises(OutputError, match="damaged"):
        load_movie(folder)
    (folder / "movie.json").unlink()
    with pytest.raises(OutputError, match=r"no movie\.json"):
        load_movie(folder)
    with pytest.raises(OutputError, match="no folder"):
        load_movie(tmp_path / "absent")


@pytest.mark.skipif(os.name != "posix", reason="there is no disk like /dev/full elsewhere")
@pytest.mark.parametrize("what", ["folder", "nwb", "suite2p", "pictures"])
def test_what_cannot_be_written_is_said(result: MovieResult, tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_text("in the way")
    writers = {"folder": save_movie, "suite2p": save_suite2p, "pictures": save_movie_pictures,
               "nwb": lambda r, path: save_movie_nwb(r, path / "cells.nwb")}
    with pytest.raises(OutputError, match="file"):
        writers[what](result, tmp_path / "file")


def test_a_full_disk_leaves_nothing_behind(result: MovieResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="The disk is full"):
        save_movie(result, tmp_path / "sorted")
    assert not (tmp_path / "sorted").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk like /dev/full here")
def test_a_full_disk_is_known_by_what_numpy_says_of_it() -> None:
    with pytest.raises(OutputError, match="The disk is full"), writing(Path("/dev/full")), open("/dev/full", "wb") as file:
        np.save(file, np.zeros(100_000))


def test_a_disk_with_too_little_room_is_told_before_nwb_is_written(result: MovieResult, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match=r"The disk is full: .*cells\.nwb takes about"):
        save_movie_nwb(result, tmp_path / "new" / "cells.nwb")
    assert not list(tmp_path.iterdir())


def test_nwb_holds_cells_traces_and_spikes_as_pynwb_reads_them(result: MovieResult, tmp_path: Path) -> None:
    path = save_movie_nwb(result, tmp_path / "cells.nwb", start_s=2.0)
    assert not pynwb.validate(path=str(path))
    with pynwb.NWBHDF5IO(str(path), "r") as io:
        file = io.read()
        module = file.processing["ophys"]
        cells = module["ImageSegmentation"]["PlaneSegmentation"]
        for k in range(5):
            picture = np.zeros(result.demixed.shape)
            for x, y, weight in cells["pixel_mask"][k]:
                picture[int(y), int(x)] = weight
            np.testing.assert_allclose(picture, result.demixed.images()[k], atol=1e-6)
        np.testing.assert_allclose(cells["snr"][:], result.quality.snr)
        for container, name, values in (("Fluorescence", "RoiResponseSeries", result.demixed.traces), ("DfOverF", "DfOverF", result.dff),
                                        ("Fluorescence", "Denoised", result.demixed.denoised),
                                        ("Fluorescence", "Deconvolved", result.activity)):
            series = module[container][name]
            np.testing.assert_array_equal(series.data[:].T, values)
            assert series.rate == result.fs and series.starting_time == 2.0 and len(series.rois) == 5
        np.testing.assert_allclose(module["SummaryImages"]["mean"].data[:], result.demixed.mean_image)
        for k, train in enumerate(result.trains()):
            np.testing.assert_allclose(file.units["spike_times"][k], 2.0 + train)
            np.testing.assert_allclose(file.units["spike_amplitudes"][k], result.spikes.amplitudes[result.spikes.units == k])
    traces = read_traces(path)
    assert traces.fs == result.fs
    np.testing.assert_allclose(traces.values, result.dff, rtol=1e-6)


@pytest.mark.parametrize("n_cells", [0, 1])
def test_nwb_of_no_cells_or_no_spikes_is_valid(n_cells: int, tmp_path: Path) -> None:
    result = planted_result(n_cells)
    silent = replace(result, spikes=result.spikes.select(np.zeros(0, np.int64)))
    assert not pynwb.validate(path=str(save_movie_nwb(silent, tmp_path / "cells.nwb")))


def test_suite2p_files_are_read_by_our_reader(result: MovieResult, tmp_path: Path) -> None:
    plane = save_suite2p(result, tmp_path)
    assert plane == tmp_path / "suite2p" / "plane0"
    traces = read_traces(tmp_path / "suite2p")
    assert traces.fs == result.fs and len(traces) == 5 and traces.neuropil is not None
    np.testing.assert_allclose(traces.values - NEUROPIL * traces.neuropil, result.demixed.traces, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(traces.neuropil, background_at_cells(result), rtol=1e-5)
    np.testing.assert_allclose(traces.neuropil[0], 100 + np.sin(np.arange(result.demixed.n_frames) / 9), rtol=1e-5)
    stat, ops = np.load(plane / "stat.npy", allow_pickle=True), np.load(plane / "ops.npy", allow_pickle=True).item()
    assert (ops["Ly"], ops["Lx"]) == result.demixed.shape and ops["nframes"] == result.demixed.n_frames
    for k, cell in enumerate(stat):
        picture = np.zeros(result.demixed.shape, np.float32)
        picture[cell["ypix"], cell["xpix"]] = cell["lam"]
        np.testing.assert_array_equal(picture, result.demixed.images()[k])
        others = np.delete(result.demixed.images(), k, axis=0).max(axis=0) > 0
        np.testing.assert_array_equal(cell["overlap"], others[cell["ypix"], cell["xpix"]])
        assert 1 <= cell["aspect_ratio"] < 1.5 and cell["npix"] == len(cell["lam"])
    np.testing.assert_array_equal(np.load(plane / "spks.npy"), result.activity)
    assert np.load(plane / "iscell.npy").shape == (5, 2)


def test_no_cells_make_suite2p_files_too(tmp_path: Path) -> None:
    plane = save_suite2p(planted_result(0), tmp_path)
    assert np.load(plane / "F.npy").shape == (0, 400) and len(np.load(plane / "stat.npy", allow_pickle=True)) == 0


def test_spikes_become_a_pynapple_group(result: MovieResult) -> None:
    group = movie_to_pynapple(result, start_s=1.0)
    assert isinstance(group, pynapple.TsGroup) and len(group) == 5
    for k, train in enumerate(result.trains()):
        np.testing.assert_allclose(group[k].index, 1.0 + train)
    np.testing.assert_allclose(group["snr"], result.quality.snr)
    np.testing.assert_allclose(group["row_px"], result.quality.centre[:, 0])
    assert group.time_support.tot_length() == pytest.approx(result.duration_s)


def test_spikes_become_a_spikeinterface_sorting_that_is_scored_like_any(result: MovieResult) -> None:
    from spikeinterface.comparison import compare_sorter_to_ground_truth

    from sorters.movie import to_spikeinterface

    sorting = to_spikeinterface(result)
    assert sorting.get_sampling_frequency() == result.fs and list(sorting.unit_ids) == list(range(5))
    for k in range(5):
        np.testing.assert_array_equal(sorting.get_unit_spike_train(k), result.spike_train(k))
    np.testing.assert_allclose(sorting.get_property("snr"), result.quality.snr)
    perfect = compare_sorter_to_ground_truth(sorting, sorting, exhaustive_gt=True, delta_time=100)
    assert (perfect.get_performance()["accuracy"] == 1).all()
    empty = to_spikeinterface(planted_result(0))
    assert len(empty.unit_ids) == 0


def test_spikes_are_scored_by_the_metrics_of_a_probe(result: MovieResult) -> None:
    trains = result.trains()
    assert score_spikes(trains[0], trains[0], 0.05).f1 == 1
    np.testing.assert_array_equal(compare(trains, trains[::-1], 0.05).accuracy, 1)


def test_pictures_are_drawn_of_some_cells_and_of_none(result: MovieResult, tmp_path: Path) -> None:
    T = result.demixed.n_frames
    motion = Registration(np.zeros((T, 2)), np.ones(T), np.arange(T) == 7, result.demixed.mean_image)
    files = save_movie_pictures(result, tmp_path, motion)
    assert [f.name for f in files] == ["summary.png", "traces.png", "motion.png"] and all(f.stat().st_size > 5000 for f in files)
    assert [f.name for f in save_movie_pictures(planted_result(0), tmp_path)] == ["summary.png", "traces.png"]
    assert not (tmp_path / "motion.png").exists()
    drawn = plot_movie(result).axes[0]
    assert {text.get_text() for text in drawn.texts} == {str(k) for k in range(5)}
    assert len(plot_movie_traces(result, np.array([3, 1])).axes) == 2 and len(plot_shifts(motion, 20.0).axes) == 2


def test_the_fit_is_drawn_on_the_scale_of_its_trace(result: MovieResult) -> None:
    base = result.demixed.baseline[:, None] + np.sin(np.arange(result.demixed.n_frames) / 50)  # one that drifts
    f0 = 2 * result.demixed.baseline[:, None]
    drifting = replace(result, demixed=replace(result.demixed, baseline=base), dff=((result.demixed.traces - base) / f0).astype(np.float32))
    for k in range(5):
        np.testing.assert_allclose(fit_in_dff(drifting, k), ((result.demixed.denoised - base) / f0)[k], rtol=1e-3, atol=1e-6)


def test_shifts_are_a_table(result: MovieResult) -> None:
    found = Registration(np.array([[0.5, -1.0], [0, 2]]), np.array([0.9, 0.8]), np.array([False, True]), np.zeros((2, 2)))
    rows = list(csv.DictReader(shifts_table(found).splitlines()))
    assert [float(r["rows_px"]) for r in rows] == [0.5, 0] and [int(r["lost"]) for r in rows] == [0, 1]
