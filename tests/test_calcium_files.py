"""Traces are read from real files of every format, spikes saved and read back, and what is wrong with a file is said."""

import os
import pickle
import subprocess
import sys
from datetime import datetime, timezone

import h5py
import numpy as np
import pynapple
import pynwb
import pytest
from pynwb.ophys import DfOverF, Fluorescence, ImageSegmentation, OpticalChannel

from sortcore.errors import ConfigError, MissingPackageError, ModelError, OutputError, RecordingError
from sortcore.optical.reading import read_traces, require_rate
from sortcore.optical.saving import activity_to_pynapple, load_events, save_events, save_nwb, to_pynapple
from sortcore.optical.spikes import Threshold, find_events
from sortcore.optional import require

F = np.random.default_rng(0).random((5, 40))


def test_npy_of_either_order_and_of_one_cell(tmp_path):
    for name, array in (("cells", F), ("frames", F.T), ("one", F[0]), ("whole", np.round(9 * F).astype(np.int16))):
        np.save(tmp_path / f"{name}.npy", array)
    np.testing.assert_array_equal(read_traces(tmp_path / "cells.npy", 30).values, F)
    turned = read_traces(tmp_path / "frames.npy", 30.0)
    np.testing.assert_array_equal(turned.values, F)
    assert turned.fs == 30.0 and turned.names == ("0", "1", "2", "3", "4") and len(turned) == 5
    np.testing.assert_array_equal(read_traces(tmp_path / "one.npy").values, F[:1])
    whole = read_traces(tmp_path / "whole.npy").values
    assert whole.dtype == np.int16 and isinstance(whole, np.memmap)
    np.testing.assert_array_equal(read_traces(tmp_path / "cells.npy", time_axis=0).values, F.T)


def test_an_order_that_cannot_be_told_is_asked_for(tmp_path):
    np.save(tmp_path / "square.npy", F[:, :6])
    with pytest.raises(ConfigError, match="time_axis"):
        read_traces(tmp_path / "square.npy")
    np.testing.assert_array_equal(read_traces(tmp_path / "square.npy", time_axis=1).values, F[:, :6])


def test_npz_with_its_rate_and_neuropil(tmp_path):
    np.savez(tmp_path / "a.npz", dff=F.T, fs=12.5, neuropil=2 * F.T)
    traces = read_traces(tmp_path / "a.npz")
    np.testing.assert_array_equal(traces.values, F)
    np.testing.assert_array_equal(traces.neuropil, 2 * F)
    assert traces.fs == 12.5 and require_rate(traces) == 12.5
    np.savez(tmp_path / "b.npz", mine=F, other=2 * F)
    with pytest.raises(RecordingError, match="mine, other"):
        read_traces(tmp_path / "b.npz")
    np.testing.assert_array_equal(read_traces(tmp_path / "b.npz", key="other").values, 2 * F)


def test_tables_with_and_without_a_head(tmp_path):
    np.savetxt(tmp_path / "plain.csv", F, delimiter=",", fmt="%.17g")
    np.testing.assert_array_equal(read_traces(tmp_path / "plain.csv").values, F)
    rows = np.column_stack([np.arange(40) / 8.0, F.T])
    np.savetxt(tmp_path / "head.csv", rows, delimiter=";", fmt="%.17g", header="time;a;b;c;d;e", comments="")
    traces = read_traces(tmp_path / "head.csv")
    np.testing.assert_array_equal(traces.values, F)
    assert traces.fs == 8.0 and traces.names == ("a", "b", "c", "d", "e")
    (tmp_path / "holes.csv").write_text("a,b\n1,2\n,3\n4,5\n6,7\n")
    np.testing.assert_array_equal(read_traces(tmp_path / "holes.csv").values, [[1, np.nan, 4, 6], [2, 3, 5, 7]])


@pytest.fixture
def suite2p(tmp_path):
    """A folder as suite2p writes it."""
    plane = tmp_path / "suite2p" / "plane0"
    plane.mkdir(parents=True)
    np.save(plane / "F.npy", F.astype(np.float32))
    np.save(plane / "Fneu.npy", (0.5 * F).astype(np.float32))
    np.save(plane / "iscell.npy", np.array([[1, 0.9], [0, 0.1], [1, 0.8], [1, 0.7], [0, 0.2]]))
    np.save(plane / "ops.npy", {"fs": 15.5, "Ly": 512, "meanImg": np.zeros((4, 4), np.float32), "tau": np.float64(1.0),
                                "date_proc": datetime(2024, 1, 2), "save_path": tmp_path})
    return plane


def test_suite2p_takes_what_are_cells(suite2p):
    for folder in (suite2p, suite2p.parent, suite2p.parent.parent, suite2p / "F.npy"):
        traces = read_traces(folder)
        np.testing.assert_array_equal(traces.values, F[[0, 2, 3]].astype(np.float32))
        np.testing.assert_array_equal(traces.neuropil, (0.5 * F)[[0, 2, 3]].astype(np.float32))
        assert traces.fs == 15.5 and traces.names == ("0", "2", "3")
    assert len(read_traces(suite2p, all_rois=True)) == 5
    for name in ("Fneu.npy", "iscell.npy", "ops.npy"):
        (suite2p / name).unlink()
    bare = read_traces(suite2p)
    assert bare.neuropil is None and bare.fs is None and len(bare) == 5
    with pytest.raises(ConfigError, match="frame rate is not known"):
        require_rate(bare)


def test_suite2p_files_that_do_not_belong_together(suite2p, tmp_path):
    np.save(suite2p / "Fneu.npy", F[:, :30])
    with pytest.raises(RecordingError, match="do not belong together"):
        read_traces(suite2p)
    np.save(suite2p / "Fneu.npy", F)
    np.save(suite2p / "iscell.npy", np.ones((3, 2)))
    with pytest.raises(RecordingError, match="3 ROIs"):
        read_traces(suite2p)
    (suite2p.parent / "plane1").mkdir()
    np.save(suite2p.parent / "plane1" / "F.npy", F)
    with pytest.raises(RecordingError, match="plane0, plane1"):
        read_traces(suite2p.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordingError, match=r"no F\.npy"):
        read_traces(tmp_path / "empty")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made_by_evil",)


def test_settings_of_suite2p_run_no_code(suite2p, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(suite2p / "ops.npy", {"fs": Evil()})
    with pytest.raises(RecordingError, match="no plain data"):
        read_traces(suite2p)
    assert not (tmp_path / "made_by_evil").exists()
    assert pickle.loads(pickle.dumps({"fs": 1})) == {"fs": 1}


def test_caiman_takes_dff_or_signal_and_residual_of_accepted_components(tmp_path):
    path = tmp_path / "cnmf.hdf5"
    with h5py.File(path, "w") as file:
        file["estimates/C"], file["estimates/YrA"], file["estimates/F_dff"] = F, 0.1 * F, "NoneType"
        file["estimates/idx_components"], file["params/data/fr"] = np.array([0, 3]), 20
    traces = read_traces(path)
    np.testing.assert_allclose(traces.values, 1.1 * F[[0, 3]])
    assert traces.fs == 20 and traces.names == ("0", "3")
    np.testing.assert_array_equal(read_traces(path, key="C", all_rois=True).values, F)
    with h5py.File(path, "a") as file:
        del file["estimates/F_dff"]
        file["estimates/F_dff"] = 3 * F
    np.testing.assert_array_equal(read_traces(path).values, 3 * F[[0, 3]])
    with pytest.raises(RecordingError, match="C, F_dff, YrA"):
        read_traces(path, key="S")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(RecordingError, match="no result of CaImAn"):
        read_traces(tmp_path / "other.h5")


def nwb_file(path, containers, rate=10.0):
    """An NWB file with ROIs and series (container class, container name, {series name: (T, K)})."""
    file = pynwb.NWBFile(session_description="test", identifier="test", session_start_time=datetime(2024, 1, 1, tzinfo=timezone.utc))
    device = file.create_device(name="microscope")
    channel = OpticalChannel(name="green", description="green", emission_lambda=510.0)
    plane = file.create_imaging_plane(name="plane", optical_channel=channel, description="plane", device=device, excitation_lambda=920.0,
                                      indicator="GCaMP6f", location="V1", imaging_rate=rate)
    module = file.create_processing_module("ophys", "optical physiology")
    segmentation = ImageSegmentation()
    module.add(segmentation)
    table = segmentation.create_plane_segmentation(description="cells", imaging_plane=plane, name="PlaneSegmentation")
    for k in range(5):
        table.add_roi(pixel_mask=[(k, 0, 1.0)])
    for kind, name, series in containers:
        container = kind(name=name)
        module.add(container)
        for series_name, data in series.items():
            regions = table.create_roi_table_region(region=list(range(5)), description="all")
            timing = {"rate": rate} if rate else {"timestamps": np.arange(len(data)) / 4.0}
            container.create_roi_response_series(name=series_name, data=data, rois=regions, unit="a.u.", **timing)
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    return path


def test_nwb_takes_dff_before_fluorescence_and_knows_neuropil(tmp_path):
    path = nwb_file(tmp_path / "a.nwb", [(Fluorescence, "Fluorescence", {"Deconvolved": F.T, "Neuropil": 2 * F.T}),
                                         (DfOverF, "DfOverF", {"RoiResponseSeries": 3 * F.T})])
    traces = read_traces(path)
    np.testing.assert_array_equal(traces.values, 3 * F)
    np.testing.assert_array_equal(traces.neuropil, 2 * F)
    assert traces.fs == 10 and len(traces.names) == 5
    np.testing.assert_array_equal(read_traces(path, key="Deconvolved").values, F)
    with pytest.raises(RecordingError, match="'other'"):
        read_traces(path, key="other")


def test_nwb_with_several_series_asks_and_with_timestamps_knows_its_rate(tmp_path):
    path = nwb_file(tmp_path / "a.nwb", [(Fluorescence, "Fluorescence", {"one": F.T, "two": 2 * F.T})], rate=None)
    with pytest.raises(RecordingError, match="several series"):
        read_traces(path)
    assert read_traces(path, key="two").fs == pytest.approx(4)
    with pytest.raises(RecordingError, match="no RoiResponseSeries"):
        read_traces(nwb_file(tmp_path / "b.nwb", []))


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5", "a.nwb"])
def test_truncated_files_are_said_to_be_so(name, tmp_path):
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, F)
    elif name == "a.npz":
        np.savez(path, F=F)
    elif name == "a.h5":
        with h5py.File(path, "w") as file:
            file["estimates/C"] = F
    else:
        nwb_file(path, [(Fluorescence, "Fluorescence", {"one": F.T})])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RecordingError, match=rf"{path.name} cannot be read"):
        read_traces(path)


def test_what_is_no_trace_is_refused(tmp_path):
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 40)))
    (tmp_path / "a.mat").write_text("")
    (tmp_path / "empty.csv").write_text("")
    for name in ("text.npy", "cube.npy", "a.mat", "missing.npy"):
        with pytest.raises(RecordingError):
            read_traces(tmp_path / name)
    with pytest.raises(RecordingError, match="no numbers"):
        read_traces(tmp_path / "empty.csv")
    for fs in (0.0, -1.0, np.nan):
        with pytest.raises(ConfigError, match="above 0"):
            read_traces(tmp_path / "text.npy", fs)


def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynwb", None)
    with pytest.raises(MissingPackageError, match=r"sortcore\[optical\]"):
        require("pynwb")


@pytest.fixture
def events():
    return find_events(F, 10.0, Threshold("fraction", 0.7), start_s=2.0)


def test_npz_gives_the_events_back(events, tmp_path):
    back = load_events(save_events(events, tmp_path / "new" / "spikes.npz"))
    for name in ("frames", "times_s", "cells", "sizes", "thresholds"):
        np.testing.assert_array_equal(getattr(back, name), getattr(events, name))
    assert save_events(events, tmp_path / "again.npz").read_bytes() == (tmp_path / "new" / "spikes.npz").read_bytes()
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(OutputError):
        load_events(tmp_path / "other.npz")
    with pytest.raises(OutputError):
        save_events(events, tmp_path / "other.npz" / "x.npz")


def test_nwb_gives_spike_times_and_activity_back(events, tmp_path):
    path = save_nwb(events, tmp_path / "spikes.nwb", fs=10.0, activity=F, start_s=2.0)
    with pynwb.NWBHDF5IO(str(path), "r") as io:
        file = io.read()
        for k, train in enumerate(events.trains()):
            np.testing.assert_array_equal(file.units["spike_times"][k], train)
            np.testing.assert_array_equal(file.units["spike_sizes"][k], events.sizes[events.cells == k])
        series = file.processing["ophys"]["activity"]
        np.testing.assert_array_equal(series.data[()].T, F)
        assert (series.rate, series.starting_time) == (10.0, 2.0)
    assert pynwb.validate(path=str(path)) in ([], ([], 0))
    assert save_nwb(find_events(np.zeros((0, 5)), 1.0), tmp_path / "none.nwb", fs=1.0).is_file()
    assert save_nwb(find_events(np.zeros((2, 5)), 1.0), tmp_path / "silent.nwb", fs=1.0).is_file()
    with pytest.raises(ModelError):
        save_nwb(events, tmp_path / "wrong.nwb", fs=10.0, activity=F[:2])


def test_pynapple_gives_trains_and_activity_back(events):
    group = to_pynapple(events, 4.0, start_s=2.0)
    assert isinstance(group, pynapple.TsGroup)
    for k, train in enumerate(events.trains()):
        np.testing.assert_allclose(group[k].t, train)
    np.testing.assert_allclose(group["threshold"], events.thresholds)
    np.testing.assert_allclose(group.time_support.values, [[2.0, 6.0]])
    frame = activity_to_pynapple(F, 10.0, 2.0)
    np.testing.assert_array_equal(frame.d, F.T)
    assert frame.t[0] == 2.0
    with pytest.raises(OutputError, match="outside"):
        to_pynapple(events, 1.0)


def test_files_of_numbers_are_read_without_the_optional_packages(tmp_path):
    np.save(tmp_path / "a.npy", F)
    code = f"""import sys
for name in ("h5py", "pynwb", "pynapple"):
    sys.modules[name] = None
from sortcore.optical.reading import read_traces
print(len(read_traces({str(tmp_path / "a.npy")!r}, 30.0)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "5", done.stderr
