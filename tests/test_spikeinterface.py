"""sortcore as a sorter of SpikeInterface: known by name, checked before work, the same spikes by every way of running it."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import probeinterface
import pytest
import spikeinterface as si
import spikeinterface.sorters as ss
from helpers_result import planted
from spikeinterface.sorters import launcher

import sorters
from sortcore import SortConfig
from sortcore.errors import ConfigError, ProbeError, RecordingError
from sortcore.export import load_result, save_result
from sortcore.metrics import compare, spike_trains
from sortcore.recording import Recording
from sortcore.simulate import Simulation
from sortcore.types import Probe
from sorters.adapter import SpikeInterfaceRecording, check_distinct, gain_and_offset, probe_of
from sorters.registration import HOOK_NAME, install_hook, remove_hook
from sorters.settings import FLAT, config_from_params, default_params, params_description
from sorters.spikeinterface import SortcoreSorter, SortcoreSorting

# Python 3.12 and later warn of every fork of a process with threads; ours sort in an interpreter of their own.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SPLIT, LENGTH = 140_000, 240_000  # samples of the first of two segments, and of both


@pytest.fixture(scope="module")
def recording(small_simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> si.BaseRecording:
    """8 s of the small simulation as two binary segments with a probe, as SpikeInterface reads it."""
    folder, made = tmp_path_factory.mktemp("segments"), small_simulation
    paths = [folder / "first.bin", folder / "second.bin"]
    for path, part in zip(paths, (made.data[:SPLIT], made.data[SPLIT:LENGTH]), strict=True):
        part.tofile(path)
    binary = si.read_binary(paths, made.fs, "int16", made.data.shape[1], gain_to_uV=made.gain_uv, offset_to_uV=0.0)
    binary.set_probe(probe_at(made.probe.positions_um))
    return binary


@pytest.fixture(scope="module")
def sorted_folder(recording: si.BaseRecording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run of run_sorter, which several tests look at."""
    folder = tmp_path_factory.mktemp("sorted") / "sortcore"
    ss.run_sorter("sortcore", recording, folder=folder, device="cpu")
    return folder


def probe_at(positions_um: np.ndarray, shank_ids: list[str] | None = None) -> probeinterface.Probe:
    probe = probeinterface.Probe(ndim=np.shape(positions_um)[1], si_units="um")
    probe.set_contacts(np.asarray(positions_um, dtype=float), shapes="circle", shape_params={"radius": 5}, shank_ids=shank_ids)
    probe.set_device_channel_indices(np.arange(len(positions_um)))
    return probe


def numpy_recording(data: np.ndarray, gain_uv: float | None = 1.0, offset_uv: float | None = 0.0) -> si.NumpyRecording:
    made = si.NumpyRecording([data], 30000.0)
    if gain_uv is not None:
        made.set_channel_gains(gain_uv)
    if offset_uv is not None:
        made.set_channel_offsets(offset_uv)
    return made


# known by name


def test_spikeinterface_lists_sortcore() -> None:
    assert "sortcore" in ss.available_sorters() and "sortcore" in ss.installed_sorters()
    assert ss.sorter_dict["sortcore"] is SortcoreSorter
    assert SortcoreSorter.get_sorter_version() == sorters.__version__


def test_registering_again_changes_nothing() -> None:
    before = len(ss.sorter_full_list)
    sorters.register()
    assert len(ss.sorter_full_list) == before


@pytest.mark.parametrize("first, second", [("sorters", "spikeinterface.sorters"), ("spikeinterface.sorters", "sorters"),
                                           ("sorters.spikeinterface", "spikeinterface.sorters")])
def test_the_order_of_imports_does_not_matter(first: str, second: str) -> None:
    code = (f"import {first}, {second}, spikeinterface.sorters as ss; from spikeinterface.sorters import launcher; "
            "print(ss.sorter_full_list.count(ss.sorter_dict['sortcore']), launcher.run_sorter.__module__)")
    assert run(code) == "1 sorters.spikeinterface"


def test_importing_sorters_loads_nothing_heavy() -> None:
    assert run("import sorters, sys; print(sorted({'torch', 'numba', 'spikeinterface', 'numpy'} & set(sys.modules)))") == "[]"


def test_listing_sorters_does_not_load_torch() -> None:
    code = "import sorters, spikeinterface.sorters as ss, sys; print('sortcore' in ss.installed_sorters(), 'torch' in sys.modules)"
    assert run(code) == "True False"


def test_the_hook_registers_where_nobody_imports_sorters(tmp_path: Path) -> None:
    assert install_hook(tmp_path) == tmp_path / HOOK_NAME
    code = "import site, sys; site.addsitedir(sys.argv[1]); import spikeinterface.sorters as ss; print('sortcore' in ss.sorter_dict)"
    assert run(code, str(tmp_path)) == "True"
    assert remove_hook(tmp_path) and not remove_hook(tmp_path)
    assert run(code, str(tmp_path)) == "False"


def run(code: str, *arguments: str) -> str:
    """What a new interpreter prints."""
    path = f"import sys; sys.path[:] = {sys.path!r}; "
    return subprocess.run([sys.executable, "-c", path + code, *arguments], capture_output=True, text=True, check=True).stdout.strip()


# parameters


def test_default_parameters_are_json_described_and_those_of_the_engine() -> None:
    params = ss.get_default_sorter_params("sortcore")
    assert json.loads(json.dumps(params)) == params
    assert set(ss.get_sorter_params_description("sortcore")) == set(params) == set(params_description())
    assert config_from_params(params) == SortConfig()
    assert "[Hz]" in params_description()["highpass_hz"]


def test_every_flat_parameter_reaches_its_setting() -> None:
    for name, (section, setting) in FLAT.items():
        default = default_params()[name]
        other = not default if isinstance(default, bool) else "none" if isinstance(default, str) else type(default)(default * 0.9 or 5000)
        config = config_from_params({**default_params(), name: other})
        assert getattr(getattr(config, section), setting) == other != default
        assert config_from_params({**default_params(), name: default}) == SortConfig()


def test_settings_reach_what_has_no_parameter_of_its_own() -> None:
    config = config_from_params({**default_params(), "settings": {"fit": {"rank": 3}, "pursuit": {"subsamples": 4}}})
    assert config.fit.rank == 3 and config.pursuit.subsamples == 4


@pytest.mark.parametrize("wrong, words", [
    ({"highpass_hz": -3}, "highpass_hz must lie between"), ({"reference": "car"}, "reference must be one of"),
    ({"whiten_time": 1}, "whiten_time must be true or false"), ({"min_spikes": 3.5}, "whole number"), ({"seed": -1}, "seed must be"),
    ({"device": "gpu"}, "device must be auto"), ({"settings": {"fitt": {"rank": 3}}}, "no section 'fitt'"),
    ({"settings": {"fit": {"ranks": 3}}}, "no setting 'ranks'"), ({"settings": 3}, "settings must be a table"),
    ({"min_snr": 6.0, "settings": {"curate": {"min_snr": 7.0}}}, "give one of them"),
])
def test_wrong_parameters_are_refused_before_work(recording: si.BaseRecording, tmp_path: Path, wrong: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ss.run_sorter("sortcore", recording, folder=tmp_path / "out", **wrong)
    assert not (tmp_path / "out" / "spikeinterface_log.json").exists()


# the adapter


def test_the_adapter_reads_every_segment(recording: si.BaseRecording, small_simulation: Simulation) -> None:
    adapted, data = SpikeInterfaceRecording(recording), small_simulation.data[:LENGTH]
    assert isinstance(adapted, Recording)
    assert adapted.segment_lengths == (SPLIT, len(data) - SPLIT) and adapted.n_channels == data.shape[1]
    for start, stop in ((0, 10), (SPLIT - 5, SPLIT), (SPLIT, SPLIT + 7), (len(data) - 3, len(data))):
        np.testing.assert_array_equal(adapted.read(start, stop), data[start:stop])


@pytest.mark.parametrize("dtype, gain_uv, offset_uv", [
    ("int16", 0.5, 0.0), ("uint16", 0.25, -8192.0), ("float32", 2.0, 7.0), ("int16", -0.5, 3.0),
])
def test_gain_and_offset_give_spikeinterfaces_microvolts(dtype: str, gain_uv: float, offset_uv: float) -> None:
    made = numpy_recording(np.arange(12).reshape(4, 3).astype(dtype), gain_uv, offset_uv)
    gain, offset = gain_and_offset(made)
    np.testing.assert_allclose(gain * (made.get_traces().astype(float) - offset), made.get_traces(return_in_uV=True), rtol=1e-6)


def test_an_unsigned_recording_without_an_offset_is_centred() -> None:
    gain, offset = gain_and_offset(numpy_recording(np.zeros((4, 2), "uint16"), 0.5, None))
    assert (gain == 0.5).all() and (offset == 32768).all()


def test_a_recording_without_a_gain_is_taken_in_microvolts_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="no gain"):
        gain, offset = gain_and_offset(numpy_recording(np.zeros((4, 2), "int16"), None, None))
    assert (gain == 1).all() and (offset == 0).all()


def test_a_gain_of_zero_is_refused() -> None:
    with pytest.raises(RecordingError, match="gains"):
        gain_and_offset(numpy_recording(np.zeros((4, 2), "int16"), 0.0))


def test_no_probe_means_independent_channels_and_a_warning() -> None:
    with pytest.warns(UserWarning, match="no probe"):
        probe = probe_of(numpy_recording(np.zeros((4, 3), "int16")))
    assert len(set(probe.shank)) == 3


def test_channels_of_another_group_or_shank_are_another_shank() -> None:
    made = numpy_recording(np.zeros((4, 4), "int16"))
    made.set_probe(probe_at([[0, 0], [0, 20], [200, 0], [200, 20]], ["a", "a", "b", "b"]))
    assert probe_of(made).shank.tolist() == [0, 0, 1, 1]
    made.set_channel_groups([0, 1, 0, 1])
    assert len(set(probe_of(made).shank)) == 4


def test_the_probe_follows_the_order_of_the_channels() -> None:
    positions = np.array([[0, 0], [0, 20], [0, 40]])
    probe = probe_at(positions)
    probe.set_device_channel_indices([2, 0, 1])
    made = numpy_recording(np.zeros((4, 3), "int16"))
    made.set_probe(probe)
    np.testing.assert_array_equal(probe_of(made).positions_um, positions[[1, 2, 0]])
    np.testing.assert_array_equal(probe_of(made.select_channels(made.channel_ids[[2, 0]])).positions_um, positions[[0, 1]])


def test_contacts_at_the_same_place_are_refused_unless_their_shanks_differ() -> None:
    positions = np.array([[0.0, 0], [0, 20], [0, 0], [0, 20]])
    with pytest.raises(ProbeError, match="Channels 0, 2 lie at the same place"):
        check_distinct(Probe(positions, np.zeros(4)))
    probe = Probe(positions, np.array([0, 0, 1, 1]))
    assert check_distinct(probe) is probe


# sorting


def test_run_sorter_finds_the_planted_units(sorted_folder: Path, recording: si.BaseRecording, small_simulation: Simulation) -> None:
    sorting, made = ss.read_sorter_folder(sorted_folder), small_simulation
    assert sorting.get_num_segments() == 2 and sorting.has_recording()
    assert sorting.get_sampling_frequency() == made.fs
    first, second = ([sorting.get_unit_spike_train(unit, segment_index=i) for unit in sorting.unit_ids] for i in (0, 1))
    assert all(train.max(initial=0) < length for part, length in ((first, SPLIT), (second, LENGTH - SPLIT)) for train in part)
    found = [np.concatenate([a, b + SPLIT]) for a, b in zip(first, second, strict=True)]
    early = made.spike_samples < LENGTH
    score = compare(spike_trains(made.spike_samples[early], made.spike_units[early], 6), found, 12)
    assert (score.accuracy > 0.8).sum() >= 5, score.accuracy


def test_units_carry_the_table_of_the_result(sorted_folder: Path) -> None:
    sorting = ss.read_sorter_folder(sorted_folder)
    counts = sorting.count_num_spikes_per_unit(outputs="array")
    np.testing.assert_array_equal(sorting.get_property("n_spikes"), counts)
    assert {"label", "snr", "contamination", "amplitude_uv", "channel", "x_um", "y_um"} <= set(sorting.get_property_keys())
    assert not (sorting.get_property("label") == "noise").any()


def test_the_log_of_spikeinterface_holds_ours(sorted_folder: Path) -> None:
    log = json.loads((sorted_folder / "spikeinterface_log.json").read_text())
    assert log["error"] is False and any("seed 0" in line for line in log["runtime_trace"])


def test_a_sorting_survives_pickling_with_its_properties(sorted_folder: Path) -> None:
    sorting = ss.read_sorter_folder(sorted_folder)
    copy = pickle.loads(pickle.dumps(sorting))
    assert copy.get_num_segments() == 2
    np.testing.assert_array_equal(copy.get_property("snr"), sorting.get_property("snr"))
    np.testing.assert_array_equal(copy.to_spike_vector(), sorting.to_spike_vector())


def test_noise_is_left_out_unless_asked_for_and_empty_segments_are_kept(tmp_path: Path) -> None:
    result = planted(seconds=(3.0, 2.0)).result
    label = np.array(["good", "noise", "mua", "good", "good", "noise"])
    lengths = (*result.segment_lengths, 1000)  # a last segment without spikes
    result = dataclasses.replace(result, units=dataclasses.replace(result.units, label=label), segment_lengths=lengths)
    save_result(result, tmp_path / "r")
    sorting = SortcoreSorting(tmp_path / "r")
    assert sorting.unit_ids.tolist() == [0, 2, 3, 4] and sorting.get_num_segments() == 3
    assert sorting.get_unit_spike_train(0, segment_index=2).size == 0
    assert SortcoreSorting(tmp_path / "r", keep_noise=True).unit_ids.tolist() == list(range(6))
    whole = np.concatenate([sorting.get_unit_spike_train(3, segment_index=i) + sum(lengths[:i]) for i in range(3)])
    np.testing.assert_array_equal(whole, result.spike_train(3))
    train = sorting.get_unit_spike_train(3, segment_index=0)
    part = sorting.get_unit_spike_train(3, segment_index=0, start_frame=train[2], end_frame=train[5])
    np.testing.assert_array_equal(part, train[2:5])


def test_shanks_are_sorted_apart_by_property(recording: si.BaseRecording, tmp_path: Path) -> None:
    grouped = recording.select_segments([1])
    grouped.set_channel_groups([0] * 6 + [1] * 6)
    sorting = ss.run_sorter_by_property("sortcore", grouped, "group", folder=tmp_path / "by_group", device="cpu")
    groups, channel = sorting.get_property("group"), sorting.get_property("channel")
    assert set(groups) == {0, 1} and channel.max() < 6


@pytest.mark.parametrize("engine, options", [
    ("loop", {}), ("processpoolexecutor", {"max_workers": 2}), ("joblib", {"n_jobs": 2, "backend": "loky"}),
])
def test_jobs_give_the_same_spikes_by_every_engine(recording: si.BaseRecording, sorted_folder: Path, tmp_path: Path, engine: str,
                                                   options: dict) -> None:
    """Also from workers that never imported us; torch has run in this process before, which a forked one must survive."""
    assert ss.read_sorter_folder(sorted_folder) is not None
    jobs = [{"sorter_name": "sortcore", "recording": recording, "folder": tmp_path / str(i), "device": "cpu"} for i in range(2)]
    sortings = ss.run_sorter_jobs(jobs, engine=engine, engine_kwargs=options, return_output=True)
    expected = ss.read_sorter_folder(sorted_folder)
    for sorting in sortings:
        np.testing.assert_array_equal(sorting.to_spike_vector(), expected.to_spike_vector())
        np.testing.assert_array_equal(sorting.get_property("label"), expected.get_property("label"))


def test_jobs_give_the_same_spikes_by_dask(recording: si.BaseRecording, sorted_folder: Path, tmp_path: Path) -> None:
    """In another process that knows nothing of us, two at once in its threads."""
    distributed = pytest.importorskip("distributed")
    jobs = [{"sorter_name": "sortcore", "recording": recording, "folder": tmp_path / str(i), "device": "cpu"} for i in range(2)]
    with (distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0", silence_logs=50) as cluster,
          distributed.Client(cluster) as client):
        ss.run_sorter_jobs(jobs, engine="dask", engine_kwargs={"client": client})
    expected = ss.read_sorter_folder(sorted_folder).to_spike_vector()
    for job in jobs:
        np.testing.assert_array_equal(ss.read_sorter_folder(job["folder"]).to_spike_vector(), expected)


@pytest.mark.skipif(os.name != "posix", reason="slurm is of Unix")
def test_the_script_for_slurm_sorts(recording: si.BaseRecording, sorted_folder: Path, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """`sbatch` here starts the script as a program of its own, as slurm does on another machine."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text('#!/bin/sh\nfor last; do :; done\necho "$@"\nexec "$last"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    job = {"sorter_name": "sortcore", "recording": recording, "folder": tmp_path / "out", "device": "cpu", "seed": 0}
    ss.run_sorter_jobs([job], engine="slurm", engine_kwargs={"tmp_script_folder": tmp_path / "scripts", "sbatch_args": {"mem": "2G"}})
    script = (tmp_path / "scripts" / "si_script_0.py").read_text()
    assert script.startswith(f"#! {sys.executable}\n") and "import sorters" in script and 'sorter_name="sortcore"' in script
    expected = ss.read_sorter_folder(sorted_folder).to_spike_vector()
    np.testing.assert_array_equal(ss.read_sorter_folder(tmp_path / "out").to_spike_vector(), expected)


def test_the_script_for_slurm_tells_of_every_contact(tmp_path: Path) -> None:
    """numpy prints neither all values of a large array nor all their digits."""
    positions = np.stack([np.zeros(400), np.arange(400) + np.pi], axis=1)
    np.zeros((1000, 400), "int16").tofile(tmp_path / "raw.bin")
    wide = si.read_binary(tmp_path / "raw.bin", 30000.0, "int16", 400, gain_to_uV=1.0, offset_to_uV=0.0)
    wide.set_probe(probe_at(positions))
    script = launcher._slurm_script.format(python=sys.executable, recording_dict=wide.to_dict(), kwargs_txt="")
    names: dict = {}
    exec(script.partition("kwargs = dict")[0], names)
    np.testing.assert_array_equal(si.load(names["rec_dict"]).get_channel_locations(), positions)


def test_a_stopped_sort_goes_on_in_its_folder(recording: si.BaseRecording, sorted_folder: Path, tmp_path: Path) -> None:
    """Killed by SIGKILL as soon as it has kept something, then run again by the same call."""
    recording.dump(tmp_path / "recording.json")
    code = ("import sorters, sys, spikeinterface as si; from spikeinterface.sorters import run_sorter; "
            "run_sorter('sortcore', si.load(sys.argv[1]), folder=sys.argv[2], device='cpu')")
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "recording.json", tmp_path / "out"],
                               env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)})
    work = tmp_path / "out" / "sorter_output" / "work"
    while not list(work.glob("*/initialize-*.npz")) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9
    kept = {p.name for p in work.glob("*/*.npz")}
    sorting = ss.run_sorter("sortcore", recording, folder=tmp_path / "out", device="cpu")
    np.testing.assert_array_equal(sorting.to_spike_vector(), ss.read_sorter_folder(sorted_folder).to_spike_vector())
    assert len(kept) >= 4 and not work.exists(), "it is of no more use"
    seconds = load_result(tmp_path / "out" / "sorter_output" / "result").timings_s
    assert seconds["detect"] < 0.3 * seconds["fit"], "the detector was kept"
    with pytest.raises(ValueError, match="already exists"):
        ss.run_sorter("sortcore", recording, folder=tmp_path / "out", device="cpu")


def test_a_work_folder_serves_several_sorts(recording: si.BaseRecording, tmp_path: Path) -> None:
    for i in range(2):
        ss.run_sorter("sortcore", recording, folder=tmp_path / str(i), device="cpu", work_folder=str(tmp_path / "work"), min_snr=5.0 + i)
    first, second = (load_result(tmp_path / str(i) / "sorter_output" / "result").timings_s for i in range(2))
    assert second["fit"] < 0.2 * first["fit"]


@pytest.mark.filterwarnings("ignore:.*spikeinterface.*:UserWarning")
def test_an_error_in_a_forked_worker_says_why(small_simulation: Simulation, tmp_path: Path) -> None:
    np.zeros((30000, 4), "int16").tofile(tmp_path / "zeros.bin")
    zeros = si.read_binary(tmp_path / "zeros.bin", 30000.0, "int16", 4, gain_to_uV=1.0, offset_to_uV=0.0)
    zeros.set_probe(probe_at([[0, 0], [0, 20], [0, 40], [0, 60]]))
    jobs = [{"sorter_name": "sortcore", "recording": zeros, "folder": tmp_path / "out", "device": "cpu"}]
    with pytest.raises(Exception, match="None of the 4 channels|sorted"):
        ss.run_sorter_jobs(jobs, engine="processpoolexecutor", engine_kwargs={"max_workers": 1})


def test_the_folder_may_be_deleted_after_the_run(recording: si.BaseRecording, tmp_path: Path) -> None:
    sorting = ss.run_sorter("sortcore", recording.select_segments([1]), folder=tmp_path / "gone", delete_output_folder=True, device="cpu")
    assert not (tmp_path / "gone" / "sorter_output").exists()
    assert sorting.to_spike_vector().size > 0 and sorting.get_property("snr") is not None
