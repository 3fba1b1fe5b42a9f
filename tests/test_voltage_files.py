"""`sortcore voltage`, its files and its picture."""

import numpy as np
import pytest
from typer.testing import CliRunner

import sortcore as sc
from sortcore.errors import ModelError, OutputError
from sortcore.optical.voltage.plots import plot_voltage
from sortcore.optical.voltage.saving import load_voltage, save_voltage, voltage_to_nwb, voltage_to_pynapple
from sortcore.optical.voltage.simulate import VoltageNoise, simulate_voltage
from sorters.cli import app


@pytest.fixture(scope="module")
def made():
    return simulate_voltage(3, 10.0, 500.0, noise=VoltageNoise(snr=6), seed=1)


@pytest.fixture(scope="module")
def result(made):
    return sc.detect_voltage_spikes(made.traces, made.fs)


def same(a, b, atol: float = 0.0) -> None:
    for name in ("subthreshold", "waveforms", "probabilities", "thresholds", "noise"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=atol)
    np.testing.assert_array_equal(a.spikes.samples, b.spikes.samples)
    np.testing.assert_array_equal(a.spikes.units, b.spikes.units)
    assert (a.fs, a.polarity, a.method) == (b.fs, b.polarity, b.method)


def test_saved_and_loaded_is_the_same(result, tmp_path):
    path = save_voltage(result, tmp_path / "deep" / "voltage.npz")
    same(load_voltage(path), result)
    assert path.read_bytes() == save_voltage(result, tmp_path / "again.npz").read_bytes()
    (tmp_path / "none.npz").write_bytes(b"nothing")
    with pytest.raises(OutputError):
        load_voltage(tmp_path / "none.npz")


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
def test_the_command_finds_what_the_function_finds(made, result, tmp_path, suffix):
    path = tmp_path / f"traces.{suffix}"
    {"npy": np.save, "npz": np.savez, "csv": lambda p, a: np.savetxt(p, a, delimiter=",", fmt="%.9g")}[suffix](path, made.traces)
    done = CliRunner().invoke(app, ["voltage", str(path), "--fs", "500", "--out", str(tmp_path / "out"), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "spikes" in done.output and "precision" in done.output
    same(load_voltage(tmp_path / "out" / "voltage.npz"), result, atol=1e-5)
    table = np.genfromtxt(tmp_path / "out" / "spikes.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(table["frame"], result.spikes.samples)
    np.testing.assert_allclose(table["time_s"], result.times_s, atol=1e-6)
    np.testing.assert_allclose(table["probability"], result.probabilities, atol=1e-5)
    assert len(np.genfromtxt(tmp_path / "out" / "estimates.csv", delimiter=",", names=True)) == 3
    assert (tmp_path / "out" / "traces.png").stat().st_size > 10_000


def test_the_command_says_what_is_missing(made, tmp_path):
    np.save(tmp_path / "traces.npy", made.traces)
    for extra, word in (([], "--fs"), (["--fs", "30"], "infer_calcium"), (["--fs", "500", "--polarity", "left"], "polarity")):
        done = CliRunner().invoke(app, ["voltage", str(tmp_path / "traces.npy"), "--out", str(tmp_path / "out"), *extra])
        assert done.exit_code != 0 and word in done.output
    assert not (tmp_path / "out").exists()


def test_a_constant_file_has_no_spikes(tmp_path):
    np.save(tmp_path / "traces.npy", np.ones((2, 500)))
    done = CliRunner().invoke(app, ["voltage", str(tmp_path / "traces.npy"), "--fs", "500", "--out", str(tmp_path / "out"), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "0 spikes" in done.output


def test_nwb_holds_spikes_probabilities_and_potential(result, tmp_path):
    pynwb = pytest.importorskip("pynwb")
    path = voltage_to_nwb(result, tmp_path / "voltage.nwb", start_s=2.0)
    with pynwb.NWBHDF5IO(str(path), "r") as io:
        file = io.read()
        for k, train in enumerate(result.trains()):
            np.testing.assert_allclose(file.units["spike_times"][k], 2.0 + train)
            assert len(file.units["spike_probabilities"][k]) == len(train)
        np.testing.assert_array_equal(file.processing["ophys"]["subthreshold"].data[:], result.subthreshold.T)
    empty = sc.detect_voltage_spikes(np.ones((2, 100)), 500.0)
    assert voltage_to_nwb(empty, tmp_path / "empty.nwb").exists()


def test_pynapple_holds_the_trains(result):
    pytest.importorskip("pynapple")
    group = voltage_to_pynapple(result, start_s=1.0)
    for k, train in enumerate(result.trains()):
        np.testing.assert_allclose(group[k].t, 1.0 + train)
    np.testing.assert_allclose(group["detectability"], result.detectability)


def test_the_picture_shows_traces_potential_spikes_and_waveforms(made, result):
    figure = plot_voltage(made.traces, result, truth=made.spike_times_s, shown=[0, 2], span_s=(1.0, 3.0))
    figure.canvas.draw()
    assert len(figure.axes) == 4
    for ax, k in zip(figure.axes[::2], (0, 2), strict=True):
        trace, under = ax.get_lines()
        np.testing.assert_allclose(trace.get_ydata(), made.traces[k, 500:1500])
        np.testing.assert_allclose(under.get_ydata(), (result.subthreshold + result.baseline)[k, 500:1500])
        true, found = ([segment[0, 0] for segment in lines.get_segments()] for lines in ax.collections)
        assert np.isin(true, made.spike_times_s[k]).all() and np.isin(found, result.times_s).all()
    for ax, k in zip(figure.axes[1::2], (0, 2), strict=True):
        np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), result.waveforms[k] / result.noise[k])
    with pytest.raises(ModelError, match="traces of shape"):
        plot_voltage(made.traces[:, :100], result)
    with pytest.raises(IndexError, match="no trace 3"):
        plot_voltage(made.traces, result, shown=[3])


def test_pictures_of_little():
    for traces in (np.zeros((0, 10)), np.ones((1, 100)), np.full(50, np.nan)):
        plot_voltage(traces, sc.detect_voltage_spikes(traces, 400.0)).canvas.draw()
