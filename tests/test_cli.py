"""The `sortcore` command: what it reads, writes and says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import probeinterface
import pytest
import spikeinterface as si
from helpers_result import planted
from typer.testing import CliRunner, Result

import sorters
from sortcore import SortConfig
from sortcore.errors import ConfigError, RecordingError
from sortcore.export import is_result, load_result, save_result
from sortcore.phy import export_phy
from sortcore.probes import probe_names
from sortcore.simulate import Simulation
from sortcore.types import SortingResult
from sorters.cli import app
from sorters.recordings import Reading, choose_stream, guess_format, open_input
from sorters.scoring import read_trains
from sorters.settings import from_toml, read_config, to_toml


def sortcore(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a new interpreter that finds what this one finds."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment)


def probe_json(path: Path, positions_um: np.ndarray) -> Path:
    probe = probeinterface.Probe(ndim=2, si_units="um")
    probe.set_contacts(positions_um, shapes="circle", shape_params={"radius": 5})
    probe.set_device_channel_indices(np.arange(len(positions_um)))
    probeinterface.write_probeinterface(path, probe)
    return path


@pytest.fixture(scope="module")
def folder(small_simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small simulation as a folder with recording.bin, info.json, probe.json and truth.npz."""
    made, folder = small_simulation, tmp_path_factory.mktemp("recording")
    made.data.tofile(folder / "recording.bin")
    probe_json(folder / "probe.json", made.probe.positions_um)
    info = {"fs": made.fs, "n_channels": made.data.shape[1], "dtype": "int16", "gain_uv": made.gain_uv}
    (folder / "info.json").write_text(json.dumps(info))
    np.savez(folder / "truth.npz", spike_samples=made.spike_samples, spike_units=made.spike_units, fs=made.fs)
    return folder


@pytest.fixture(scope="module")
def sorted_once(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder and the words of one run of `sortcore sort`."""
    out = tmp_path_factory.mktemp("out") / "new" / "sorted"
    return out, sortcore("sort", folder, "--out", out, "--device", "cpu")


@pytest.fixture(scope="module")
def binary(small_simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> si.BaseRecording:
    """The small simulation as SpikeInterface reads it, with its probe."""
    made, path = small_simulation, tmp_path_factory.mktemp("binary") / "raw.bin"
    made.data.tofile(path)
    recording = si.read_binary(path, made.fs, "int16", made.data.shape[1], gain_to_uV=made.gain_uv, offset_to_uV=0.0)
    recording.set_probe(probeinterface.read_probeinterface(probe_json(path.parent / "p.json", made.probe.positions_um)).probes[0])
    return recording


# sort


def test_sort_says_what_it_does_and_what_came_of_it(sorted_once: tuple[Path, Result], small_simulation: Simulation) -> None:
    out, done = sorted_once
    assert done.exit_code == 0, done.output
    result = load_result(out)
    assert "12 channels, 12.0 s at 30000 samples per second" in done.output and "12 contacts" in done.output
    assert f"{result.n_units} units (" in done.output and f"{len(result.spikes)} spikes in 12.0 s" in done.output
    assert (out / "phy" / "params.py").is_file() and list((out / "report").glob("*.png"))
    assert str(out / "phy" / "params.py") in done.output
    assert result.segment_lengths == (len(small_simulation.data),) and result.seed == 0


def test_phy_is_told_where_the_raw_file_is(sorted_once: tuple[Path, Result], folder: Path) -> None:
    text = (sorted_once[0] / "phy" / "params.py").read_text()
    assert str(folder / "recording.bin") in text and "n_channels_dat = 12" in text and "int16" in text


def test_score_of_the_sorted_simulation(sorted_once: tuple[Path, Result], folder: Path) -> None:
    told = json.loads(sortcore("score", sorted_once[0], folder, "--json").output)
    assert told["n_true"] == 6 and told["above"]["0.8"] >= 5
    assert sortcore("score", sorted_once[0] / "phy", folder / "truth.npz", "--json").exit_code == 0


def test_the_same_input_and_seed_give_the_same_result(sorted_once: tuple[Path, Result], small_simulation: Simulation, folder: Path,
                                                      tmp_path: Path) -> None:
    """Here from the raw file, with everything said by options, through `python -m sorters`."""
    arguments = ["sort", folder / "recording.bin", "--channels", 12, "--fs", 30000, "--gain-uv", small_simulation.gain_uv,
                 "--dtype", "int16", "--probe", folder / "probe.json", "--out", tmp_path / "out", "--device", "cpu", "--no-phy",
                 "--no-report"]
    done = python("-m", "sorters", *arguments)
    assert done.returncode == 0, done.stderr
    first, second = load_result(sorted_once[0]), load_result(tmp_path / "out")
    np.testing.assert_array_equal(first.spikes.samples, second.spikes.samples)
    np.testing.assert_array_equal(first.spikes.units, second.spikes.units)
    assert not (tmp_path / "out" / "phy").exists() and not (tmp_path / "out" / "report").exists()
    assert "%|" in done.stderr  # a bar a stage, with the time left
    for name in ("spikes.npz", "model.npz", "units.tsv"):
        assert (sorted_once[0] / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_overwriting_leaves_nothing_of_the_earlier_sorting(folder: Path, tmp_path: Path) -> None:
    out, old = tmp_path / "out", planted().result
    save_result(old, out)
    export_phy(old, out / "phy")
    config = tmp_path / "params.toml"
    config.write_text("[fit]\nrank = 3\n")
    refused = sortcore("sort", folder, "--out", out)
    assert refused.exit_code == 1 and "--overwrite" in refused.output and load_result(out).n_units == old.n_units
    done = sortcore("sort", folder, "--out", out, "--overwrite", "--no-phy", "--no-report", "--config", config, "--seed", 3, "--quiet")
    assert done.exit_code == 0, done.output
    result = load_result(out)
    assert result.seed == 3 and result.config["fit"]["rank"] == 3 and not (out / "phy").exists()


def killed_sort(pattern: str, out: Path, *arguments: object) -> None:
    """A `sort` command that is killed as soon as a file is there in its folder."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen([sys.executable, "-m", "sorters", *map(str, arguments)], env=environment, stdout=subprocess.DEVNULL)
    while not list(out.glob(pattern)) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() != 0


def test_a_sort_that_is_killed_goes_on(sorted_once: tuple[Path, Result], folder: Path, tmp_path: Path) -> None:
    """By the same command, be it while it sorts or while it writes; and another time from the beginning."""
    out = tmp_path / "out"
    arguments = ["sort", folder, "--out", out, "--device", "cpu", "--quiet"]
    killed_sort("work/*/drift-*.npz", out, *arguments)
    assert not is_result(out)
    killed_sort("phy", out, *arguments)
    assert is_result(out) and not (out / "report").exists()
    done = sortcore(*arguments)
    assert done.exit_code == 0 and f"What is kept in {out / 'work'} is used" in done.output, done.output
    assert (out / "report").is_dir() and not [entry for entry in out.iterdir() if entry.name.startswith(".")]
    for name in ("spikes.npz", "model.npz", "units.tsv"):
        assert (sorted_once[0] / name).read_bytes() == (out / name).read_bytes()
    assert sortcore(*arguments).exit_code == 1, "a result is not written over unless asked for"
    again, fresh = (load_after(*arguments, "--overwrite", "--no-report", *more) for more in ([], ["--fresh"]))
    assert again.timings_s["fit"] < 0.2 * fresh.timings_s["fit"]


def load_after(*arguments: object) -> SortingResult:
    """The result of a `sort` command."""
    done = sortcore(*arguments)
    assert done.exit_code == 0, done.output
    return load_result(arguments[arguments.index("--out") + 1])


def test_what_is_kept_is_said_when_a_sort_fails(folder: Path, tmp_path: Path) -> None:
    """The result cannot be saved: a folder is where a file of it should be."""
    (tmp_path / "out" / "spikes.npz" / "in the way").mkdir(parents=True)
    done = sortcore("sort", folder, "--out", tmp_path / "out", "--work", tmp_path / "work", "--overwrite", "--device", "cpu", "--quiet")
    assert done.exit_code == 1 and "Error:" in done.output
    assert f"What was finished is kept in {tmp_path / 'work'}" in done.output and list((tmp_path / "work").glob("*/deconvolve-*"))


@pytest.mark.parametrize("arguments, words, code", [
    (["--seed", -1], "seed must be", 2), (["--device", "gpu"], "device must be", 2), (["--fs", 20000], "--fs cannot be given", 2),
    (["--format", "spikeglxx"], "There is no format", 2), (["--probe", "neuropixel1"], "Did you mean neuropixels1", 1),
    (["--config", "nowhere.toml"], "nowhere.toml cannot be read", 2), (["--probe", "tetrode"], "has 4 wired contacts", 1),
])
def test_a_wrong_option_is_refused_before_work(folder: Path, tmp_path: Path, arguments: list, words: str, code: int) -> None:
    done = sortcore("sort", folder, "--out", tmp_path / "out", *arguments)
    assert done.exit_code == code and words in done.output, done.output
    assert "Sorting" not in done.output and not (tmp_path / "out").exists()


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    done = sortcore("sort", tmp_path / "nothing", "--out", tmp_path / "out")
    assert "Traceback" not in done.output and done.output.count("Error:") == 1
    done = python("-m", "sorters", "sort", tmp_path / "nothing", "--out", tmp_path / "out", "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_help_is_quick_to_load() -> None:
    code = "import sorters.cli, sys; print(sorted({'torch', 'numba', 'spikeinterface', 'numpy'} & set(sys.modules)))"
    assert python("-c", code).stdout.strip() == "[]"
    assert sortcore("--version").output.strip() == f"sortcore {sorters.__version__}"
    for command in ("sort", "demo", "probes", "params", "score", "info", "calcium", "movie", "install-hook"):
        assert sortcore(command, "--help").exit_code == 0


# finding and reading inputs


# SpikeInterface leaves the files that it saves open
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_way_of_storing_a_recording_reads_the_same(small_simulation: Simulation, binary: si.BaseRecording, folder: Path,
                                                         tmp_path: Path) -> None:
    made = small_simulation
    np.save(tmp_path / "array.npy", made.data)
    binary.save(folder=tmp_path / "saved", verbose=False, progress_bar=False)
    binary.save(folder=tmp_path / "saved.zarr", format="zarr", verbose=False, progress_bar=False)
    binary.dump(tmp_path / "dumped.json")
    gain = made.gain_uv
    inputs = {"folder": (folder, Reading()), "binary": (folder / "recording.bin", Reading(channels=12, fs=made.fs, gain_uv=gain)),
              "npy": (tmp_path / "array.npy", Reading(fs=made.fs, gain_uv=gain)), "saved": (tmp_path / "saved", Reading()),
              "zarr": (tmp_path / "saved.zarr", Reading()), "json": (tmp_path / "dumped.json", Reading())}
    for name, (path, reading) in inputs.items():
        source = open_input(path, reading)
        assert source.recording.fs == made.fs and source.recording.segment_lengths == (len(made.data),), name
        np.testing.assert_array_equal(source.recording.read(1000, 1100), made.data[1000:1100], err_msg=name)
        np.testing.assert_allclose(source.recording.gain_uv, gain, err_msg=name)
        if source.probe is not None:
            np.testing.assert_allclose(source.probe.positions_um, made.probe.positions_um, err_msg=name)
        if source.raw is not None:
            stored = np.fromfile(source.raw.paths[0], source.raw.dtype, 12, offset=source.raw.skip_bytes)
            np.testing.assert_array_equal(stored, made.data[0], err_msg=name)
    assert {name for name, given in inputs.items() if open_input(*given).probe is not None} == {"folder", "saved", "zarr", "json"}


@pytest.mark.parametrize("files, kind", [
    (["a/structure.oebin"], "openephysbinary"), (["x_g0_t0.imec0.ap.meta", "x_g0_t0.imec0.ap.bin"], "spikeglx"),
    (["tetrode.ncs"], "neuralynx"), (["raw.mda"], "mda"), (["block.tbk", "block.tev"], "tdt"), (["si_folder.json"], "saved"),
    (["recording.bin", "info.json"], "folder"),
    (["x.ap.cbin", "x.ap.meta"], "compressedbinaryibl"),
])
def test_the_format_of_a_folder_is_found_out(tmp_path: Path, files: list[str], kind: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert guess_format(tmp_path, Reading()) == kind


@pytest.mark.parametrize("name, kind", [
    ("a.nwb", "nwb"), ("a.RHD", "intan"), ("a.dat", "binary"), ("a.npy", "npy"), ("a.raw.h5", "maxwell"), ("a.raw", "binary"),
])
def test_the_format_of_a_file_is_found_out(tmp_path: Path, name: str, kind: str) -> None:
    assert guess_format(tmp_path / name, Reading()) == kind


def test_an_unknown_format_is_said_to_be_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").touch()
    for path in (tmp_path, tmp_path / "a.xyz"):
        with pytest.raises(RecordingError, match="--format"):
            open_input(path, Reading())


def test_a_file_that_is_not_what_its_name_says_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for name in ("a.npy", "a.nwb", "a.json", "a.rhd"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(RecordingError, match=r"^[^\n]*$"):
            open_input(tmp_path / name, Reading(fs=30000.0) if name == "a.npy" else Reading())


def test_the_stream_that_can_hold_spikes_is_chosen() -> None:
    assert choose_stream((["imec0.ap", "imec0.lf", "nidq"], ["imec0.ap", "imec0.lf", "nidq"]), "spikeglx", None) == "imec0.ap"
    assert choose_stream((["Signals A", "Signals ADC"], ["0", "1"]), "openephysbinary", "1") == "Signals ADC"
    with pytest.raises(ConfigError, match="--stream: imec0.ap, imec1.ap"):
        choose_stream((["imec0.ap", "imec1.ap"], ["imec0.ap", "imec1.ap"]), "spikeglx", None)


# the other commands


def test_parameters_make_a_round_trip_through_toml(tmp_path: Path) -> None:
    path = tmp_path / "params.toml"
    assert sortcore("params", "--out", path).exit_code == 0
    assert read_config(path) == SortConfig()
    assert sortcore("params").output.strip() == path.read_text().strip()
    other = SortConfig.from_dict({"preprocess": {"highpass_hz": 250.0, "whiten_time": False, "reference": "none"}, "fit": {"rank": 3}})
    assert from_toml(to_toml(other)) == other
    again = sortcore("params", "--out", path)
    assert again.exit_code == 1 and "--overwrite" in again.output


@pytest.mark.parametrize("text, words", [
    ("[fit]\nrankk = 3", "no setting 'rankk'"), ("[fits]\nrank = 3", "no section 'fits'"), ("rank = 3", "no section 'rank'"),
    ("[fit]\nrank = 99", "between 1 and 20"), ("[fit\n", "not TOML"), ('[fit]\nrank = "5"', "must be a number"),
])
def test_a_wrong_settings_file_is_refused_with_its_name(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_config(tmp_path / "p.toml")
    assert "p.toml" in str(caught.value)


def test_probes_are_listed_and_drawn(tmp_path: Path) -> None:
    listed = sortcore("probes")
    assert listed.exit_code == 0 and all(name in listed.output for name in probe_names())
    assert sortcore("probes", "tetrode", "--draw", tmp_path / "t.png").exit_code == 0
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    assert sortcore("probes", "--draw", tmp_path / "x.png").exit_code == 2
    assert sortcore("probes", "tetrode", "--draw", tmp_path / "t.nothing").exit_code == 1


def test_score_counts_what_was_planted(tmp_path: Path) -> None:
    """Unit 0 found whole, unit 1 to two thirds, unit 2 missed; one found unit is extra."""
    truth = {"spike_samples": [100, 200, 300, 1000, 1100, 1200, 5000], "spike_units": [0, 0, 0, 1, 1, 1, 2], "fs": 30000.0}
    found = {"spike_samples": [103, 203, 303, 1000, 1100, 8000], "spike_units": [7, 7, 7, 5, 5, 9]}
    np.savez(tmp_path / "truth.npz", **truth)
    np.savez(tmp_path / "found.npz", **found)
    told = json.loads(sortcore("score", tmp_path / "found.npz", tmp_path / "truth.npz", "--json").output)
    assert [u["match"] for u in told["units"]] == ["7", "5", None] and told["extra"] == ["9"]
    assert [u["accuracy"] for u in told["units"]] == [1.0, 0.6667, 0.0] and told["mean"]["accuracy"] == 0.5556
    table = sortcore("score", tmp_path / "found.npz", tmp_path / "truth.npz").output
    assert "0.667" in table and "1 of 3 found units match no true one" in table
    strict = json.loads(sortcore("score", tmp_path / "found.npz", tmp_path / "truth.npz", "--json", "--tolerance-ms", 0).output)
    assert [u["accuracy"] for u in strict["units"]] == [0.0, 0.6667, 0.0]


@pytest.mark.filterwarnings("ignore:The extractor is not serializable:UserWarning")
def test_score_reads_results_phy_and_spikeinterface_alike(tmp_path: Path) -> None:
    result = planted().result
    save_result(result, tmp_path / "result")
    export_phy(result, tmp_path / "phy")
    wanted = np.flatnonzero(result.units.label != "noise")
    trains = {int(k): result.spike_train(int(k)) for k in wanted}
    si.NumpySorting.from_unit_dict([trains], result.fs).save(folder=tmp_path / "saved")
    for name in ("result", "phy", "saved"):
        read = read_trains(tmp_path / name)
        assert read.fs == result.fs and read.ids == [str(k) for k in wanted], name
        for train, k in zip(read.samples, wanted, strict=True):
            np.testing.assert_array_equal(train, trains[int(k)])


@pytest.mark.parametrize("content, words", [
    ({"spike_samples": [1, 2], "spike_units": [0]}, "2 spike times but 1 unit"), ({"times": [1]}, "must hold spike_samples"),
    ({"spike_samples": [1], "spike_units": [0], "fs": 20000.0}, "not of one recording"), ({"spike_samples": [1], "spike_units": [0]}, None),
])
def test_score_says_what_is_wrong_with_a_file(tmp_path: Path, content: dict, words: str | None) -> None:
    np.savez(tmp_path / "truth.npz", spike_samples=[1, 2], spike_units=[0, 0], fs=30000.0)
    np.savez(tmp_path / "found.npz", **content)
    done = sortcore("score", tmp_path / "found.npz", tmp_path / "truth.npz")
    assert (done.exit_code == 0) == (words is None) and (words or "") in done.output
    assert sortcore("score", tmp_path, tmp_path / "none").exit_code == 1


def test_info_shows_a_saved_result(tmp_path: Path) -> None:
    result = planted().result
    save_result(result, tmp_path / "r")
    done = sortcore("info", tmp_path / "r")
    assert done.exit_code == 0 and f"{result.n_units} units (" in done.output
    assert sortcore("info", tmp_path).exit_code == 1


@pytest.mark.slow
def test_the_demo_finds_every_unit(tmp_path: Path) -> None:
    done = sortcore("demo", "--out", tmp_path / "demo", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert is_result(tmp_path / "demo") and (tmp_path / "demo" / "report").is_dir()
    assert "Of 12 true units 12 at 0.5, 12 at 0.8, 12 at 0.9 or more in accuracy" in done.output
