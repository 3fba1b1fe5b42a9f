"""`sortcore calcium`: files in, files out, an error in one sentence."""

import numpy as np
import pytest
from typer.testing import CliRunner

import sortcore as sc
from sortcore.optical.saving import load_events
from sortcore.optical.simulate import simulate_calcium
from sorters.cli import app


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
def test_traces_become_activity(tmp_path, suffix):
    y = np.random.default_rng(0).standard_normal((2, 300)) + 5 * (np.arange(300) % 100 > 90)
    path = tmp_path / f"traces.{suffix}"
    {"npy": np.save, "npz": np.savez, "csv": lambda p, a: np.savetxt(p, a, delimiter=",")}[suffix](path, y)
    done = CliRunner().invoke(app, ["calcium", str(path), "--fs", "30", "--out", str(tmp_path / "out"), "--quiet"])
    assert done.exit_code == 0, done.output
    expected = sc.infer_calcium(y, 30.0)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "activity.npy"), expected.activity, atol=1e-5)
    events = load_events(tmp_path / "out" / "spikes.npz")
    assert len(events) and set(events.cells) <= {0, 1}
    np.testing.assert_allclose(events.sizes, expected.activity[events.cells, events.frames], atol=1e-5)
    assert (tmp_path / "out" / "traces.png").stat().st_size > 10_000
    table = np.genfromtxt(tmp_path / "out" / "estimates.csv", delimiter=",", names=True)
    np.testing.assert_allclose(table["tau_decay_s"], expected.tau_decay_s, rtol=1e-6)


def test_what_cannot_be_read_is_said(tmp_path):
    (tmp_path / "traces.txt").write_text("1")
    for name in ("none.npy", "traces.txt"):
        done = CliRunner().invoke(app, ["calcium", str(tmp_path / name), "--fs", "30", "--out", str(tmp_path / "out")])
        assert done.exit_code == 1 and "Error:" in done.output


def test_a_suite2p_folder_tells_its_rate_and_a_plain_file_is_asked_for_it(tmp_path):
    y = np.random.default_rng(0).standard_normal((3, 300)).astype(np.float32)
    (tmp_path / "plane0").mkdir()
    np.save(tmp_path / "plane0" / "F.npy", y)
    np.save(tmp_path / "plane0" / "iscell.npy", np.array([[1, 0.9], [0, 0.1], [1, 0.8]]))
    np.save(tmp_path / "plane0" / "ops.npy", {"fs": 20.0})
    done = CliRunner().invoke(app, ["calcium", str(tmp_path / "plane0"), "--out", str(tmp_path / "out"), "--quiet"])
    assert done.exit_code == 0, done.output
    expected = sc.infer_calcium(y[[0, 2]], 20.0)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "activity.npy"), expected.activity, atol=1e-5)
    np.save(tmp_path / "plain.npy", y)
    done = CliRunner().invoke(app, ["calcium", str(tmp_path / "plain.npy"), "--out", str(tmp_path / "other"), "--quiet"])
    assert done.exit_code == 2 and "--fs" in done.output


def test_neuropil_is_subtracted_where_the_file_has_it(tmp_path):
    made = simulate_calcium(2, 120.0, 20.0, seed=1)
    around = 0.5 + np.convolve(np.random.default_rng(2).standard_normal(made.traces.shape[1] + 99), np.ones(100) / 10, "valid")
    neuropil = np.tile(around, (2, 1)).astype(np.float32)
    folder = tmp_path / "plane0"
    folder.mkdir()
    np.save(folder / "F.npy", (100 * (1 + made.traces) + 60 * neuropil).astype(np.float32))
    np.save(folder / "Fneu.npy", 100 * neuropil)
    np.save(folder / "ops.npy", {"fs": 20.0})
    for flag, name in (("--neuropil", "with"), ("--no-neuropil", "without")):
        done = CliRunner().invoke(app, ["calcium", str(folder), "--out", str(tmp_path / name), "--quiet", flag])
        assert done.exit_code == 0, done.output
    coefficients = np.genfromtxt(tmp_path / "with" / "neuropil.csv", skip_header=1)
    np.testing.assert_allclose(coefficients, 0.6, atol=0.15)
    assert not (tmp_path / "without" / "neuropil.csv").exists()


def test_the_network_is_given_dff_of_whatever_it_is(tmp_path):
    """Raw fluorescence and dF/F give the same expected spikes; per cent are named."""
    made = simulate_calcium(3, 120.0, 30.0, seed=3)
    brightness = np.array([[200.0], [900.0], [400.0]])
    for name, values in (("raw", brightness * (1 + made.traces)), ("dff", made.traces), ("percent", 100 * made.traces - 1)):
        np.save(tmp_path / f"{name}.npy", values)
        done = CliRunner().invoke(app, ["calcium", str(tmp_path / f"{name}.npy"), "--fs", "30", "--out", str(tmp_path / name), "--quiet"])
        assert done.exit_code == 0 and ("divide them by 100" in done.output) == (name == "percent"), done.output
        assert (tmp_path / name / "expected_spikes.npy").exists() == (name != "percent")
    raw, dff = (np.load(tmp_path / name / "expected_spikes.npy") for name in ("raw", "dff"))
    known = sc.infer_network(made.traces, 30.0).expected
    for found in (raw, dff):
        assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(found, known, strict=True)) > 0.98
        np.testing.assert_allclose(found.sum(axis=1), known.sum(axis=1), rtol=0.15)
    table = np.genfromtxt(tmp_path / "dff" / "spike_counts.csv", delimiter=",", names=True)
    np.testing.assert_allclose(table["expected"], dff.sum(axis=1), rtol=1e-3)
    assert (table["low"] <= table["expected"]).all() and (table["expected"] <= table["high"]).all()


def test_a_wrong_device_is_refused_before_any_work(tmp_path):
    done = CliRunner().invoke(app, ["calcium", str(tmp_path / "none.npy"), "--out", str(tmp_path / "out"), "--device", "gpu"])
    assert done.exit_code == 2 and "auto, cpu, cuda or mps" in done.output and not (tmp_path / "out").exists()


def test_the_network_can_be_left_out(tmp_path):
    np.save(tmp_path / "traces.npy", np.random.default_rng(0).standard_normal((1, 300)) / 10)
    done = CliRunner().invoke(app, ["calcium", str(tmp_path / "traces.npy"), "--fs", "30", "--out", str(tmp_path / "out"), "--no-network"])
    assert done.exit_code == 0 and not (tmp_path / "out" / "expected_spikes.npy").exists(), done.output
