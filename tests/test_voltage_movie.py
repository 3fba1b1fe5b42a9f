"""Voltage imaging movies: a trace a cell, whether its footprint is given or found, and the spikes in it."""

import numpy as np
import pytest
from scipy import sparse
from typer.testing import CliRunner

import sortcore as sc
from sortcore.errors import ModelError
from sortcore.metrics import score_spikes
from sortcore.optical.voltage.movie import rows_of, tents
from sortcore.optical.voltage.simulate import VoltageNoise, VoltageSimulation, simulate_voltage
from sorters.cli import app

FS, SHAPE, CENTRES = 400.0, (36, 44), [(9, 9), (9, 15), (26, 10), (24, 32), (10, 33)]  # the first two overlap


def disc(centre: tuple[int, int], radius: float = 4.0) -> np.ndarray:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return 1 / (1 + np.exp((np.hypot(y - centre[0], x - centre[1]) - radius) / 0.4))


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, np.ndarray, VoltageSimulation]:
    """(T, H, W) movie, (K, H, W) footprints, what the cells do."""
    footprints = np.array([disc(c) for c in CENTRES], np.float32)
    footprints[footprints < 0.02] = 0
    cells = simulate_voltage(len(CENTRES), 30.0, FS, noise=VoltageNoise(snr=30), seed=4)
    rng = np.random.default_rng(0)
    T = cells.traces.shape[1]
    wave = np.sin(2 * np.pi * 9 * np.arange(T) / FS)[:, None, None] * np.linspace(0, 1, SHAPE[1])
    movie = 400 + 25 * np.tensordot(cells.traces.T, footprints, 1) + 15 * wave
    return (movie + 15 * rng.standard_normal(movie.shape)).astype(np.float32), footprints, cells


def f1(found: sc.VoltageMovie, cells: VoltageSimulation, unit: int, cell: int) -> float:
    return score_spikes(cells.spike_times_s[cell], found.voltage.trains()[unit], 0.005).f1


def fast(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two traces' changes from frame to frame, which no bleaching makes alike."""
    return float(np.corrcoef(np.diff(a), np.diff(b))[0, 1])


def test_given_footprints_give_each_cell_its_own_spikes(made):
    movie, footprints, cells = made
    found = sc.sort_voltage_movie(movie, FS, footprints)
    assert found.traces.shape == cells.traces.shape and found.shape == SHAPE
    assert min(f1(found, cells, k, k) for k in range(len(CENTRES))) > 0.88
    averages = np.array([(movie * f).sum(axis=(1, 2)) / f.sum() for f in footprints])
    for a, b in ((0, 1), (1, 0)):
        own, other, mixed = (fast(*pair) for pair in ((found.traces[a], cells.traces[a]), (found.traces[a], cells.traces[b]),
                                                      (averages[a], cells.traces[b])))
        assert own > 0.8 and abs(other) < 0.05 and mixed > 0.15


def test_footprints_are_found(made):
    movie, footprints, cells = made
    found = sc.sort_voltage_movie(movie, FS)
    alike = np.corrcoef(np.concatenate([footprints.reshape(len(footprints), -1), found.footprints.toarray()]))
    alike = alike[: len(footprints), len(footprints) :]
    assert found.footprints.shape[0] == len(CENTRES) and (alike.max(axis=1) > 0.8).all(), alike.round(2)
    assert min(f1(found, cells, int(alike[k].argmax()), k) for k in range(len(CENTRES))) > 0.7


def test_a_movie_may_be_a_file_and_footprints_sparse(made, tmp_path):
    movie, footprints, _ = made
    np.save(tmp_path / "movie.npy", movie[:4000])
    rows = sparse.csr_array(footprints.reshape(len(footprints), -1))
    one, two = sc.sort_voltage_movie(tmp_path / "movie.npy", FS, 7 * rows), sc.sort_voltage_movie(movie[:4000], FS, footprints)
    np.testing.assert_allclose(one.traces, two.traces, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "sparse", "none"])
def test_the_command_takes_a_movie(made, tmp_path, kind):
    movie, footprints, cells = made
    np.save(tmp_path / "movie.npy", np.rint(movie[:4000]).astype(np.uint16))
    np.savez(tmp_path / "dense.npz", footprints=footprints)
    sparse.save_npz(tmp_path / "sparse.npz", sparse.csr_array(footprints.reshape(len(footprints), -1)))
    np.savez(tmp_path / "none.npz", something=np.zeros(3))
    command = ["voltage", str(tmp_path / "movie.npy"), "--fs", "400", "--out", str(tmp_path / "out"), "--quiet",
               "--footprints", str(tmp_path / f"{kind}.npz")]
    done = CliRunner().invoke(app, command)
    if kind == "none":
        assert done.exit_code and "holds no footprints" in done.output and not (tmp_path / "out").exists()
        return
    assert done.exit_code == 0 and "5 cells of 4000 frames" in done.output, done.output
    with np.load(tmp_path / "out" / "cells.npz") as kept:
        np.testing.assert_allclose(kept["footprints"], footprints, atol=0.01)
        assert kept["traces"].shape == (5, 4000)
        np.testing.assert_allclose(kept["mean_image"], np.rint(movie[:4000]).mean(axis=0), rtol=1e-2)
    assert (tmp_path / "out" / "cells.png").stat().st_size > 5000
    assert len((tmp_path / "out" / "spikes.csv").read_text().splitlines()) > sum(t.searchsorted(10) for t in cells.spike_times_s) / 2


def test_what_is_wrong_with_footprints_is_said(made):
    movie, footprints, _ = made
    with pytest.raises(ModelError, match=r"\(cells, 36, 44\)"):
        sc.sort_voltage_movie(movie, FS, footprints[:, :-1])
    with pytest.raises(ModelError, match="not negative"):
        rows_of(-footprints, SHAPE)
    with pytest.raises(ModelError, match="empty"):
        rows_of(np.zeros((1, *SHAPE)), SHAPE)
    none = sc.sort_voltage_movie(movie[:400], FS, np.zeros((0, *SHAPE)))
    assert none.traces.shape == (0, 400) and not len(none.voltage.spikes)


@pytest.mark.parametrize("shape", [(36, 44), (5, 100), (1, 9)])
def test_the_background_can_be_anything_that_is_smooth(shape):
    fields = tents(shape, 10.0)
    np.testing.assert_allclose(fields.sum(axis=0), 1, atol=1e-6)
    assert (fields >= 0).all()
