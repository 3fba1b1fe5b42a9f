"""The training of the calcium network: its simulated cells, its loss, and the whole way on a few cells."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.stats import nbinom

from benchmarks import calcium_cells, calcium_stretches, train_calcium
from sortcore.optical import network as net
from sortcore.optical.inputs import INPUTS


def test_cells_are_finite_and_fire_as_they_are_told() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        trace, counts, fs = calcium_cells.draw_trace(rng, 300)
        assert trace.shape == counts.shape == (300,) and np.isfinite(trace).all() and 2 <= fs <= 31
    cell = calcium_cells.Cell(5.0, 0.0, 1.0, 0.0, 0.0, 0.01, 0.002, 0.01, 0.5, 0.0, 2.0, 0.0, 1.0, 0.0, 0.1)
    light, counts = calcium_cells.fire(rng, 20000, 20.0, tuple(vars(cell).values()), 2.0)
    assert counts[:10000].sum() / 500 == pytest.approx(5.0, rel=0.1) and counts[10000:].sum() / 500 == pytest.approx(10.0, rel=0.1)
    assert light[:10000].mean() == pytest.approx(5.0 * 0.5 * 0.1, rel=0.1)  # rate x decay x size


def test_a_cell_that_switches_is_on_or_off() -> None:
    cell = calcium_cells.Cell(20.0, 0.0, 2.0, 0.5, 0.0, 0.01, 0.002, 0.01, 0.5, 0.0, 2.0, 0.0, 1.0, 0.0, 0.1)
    _, counts = calcium_cells.fire(np.random.default_rng(1), 20000, 20.0, tuple(vars(cell).values()), 1.0)
    rates = np.sort(counts.reshape(-1, 20).sum(1))  # of seconds
    assert np.median(rates[:600]) == pytest.approx(20 * calcium_cells.OFF, abs=1.0)
    assert np.median(rates[-100:]) == pytest.approx(20 * calcium_cells.ON, rel=0.3)


def test_the_same_seed_gives_the_same_cells() -> None:
    one, two = (calcium_cells.draw_trace(np.random.default_rng(3), 200) for _ in range(2))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


def test_the_loss_is_made_of_what_it_says() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 100)), rng.random((2, 100))
    mask = torch.ones(2, 100, dtype=torch.float64)
    found = train_calcium.correlation(torch.from_numpy(a), torch.from_numpy(b), mask)
    np.testing.assert_allclose(found, [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)], atol=1e-3)
    counts, mean, v = np.array([0.0, 7.0, 90.0]), np.array([1.0, 9.0, 60.0]), np.array([0.1, 0.5, 1.0])
    likely = train_calcium.negative_binomial(torch.from_numpy(counts), torch.from_numpy(mean), torch.from_numpy(np.log(v)))
    np.testing.assert_allclose(likely, -nbinom.logpmf(counts, 1 / v, 1 / (1 + v * mean)), rtol=1e-3)
    smooth = train_calcium.smoothed(torch.from_numpy(a).float(), torch.tensor([20.0, 20.0]))
    np.testing.assert_allclose(smooth, gaussian_filter1d(a, 4.0, mode="constant", truncate=8), atol=1e-4)


def test_recordings_of_a_cell_that_are_scaled_unalike_cost() -> None:
    fs, frames, counts = torch.full((2,), 20.0), torch.full((2,), 200), torch.zeros(2, 200)
    counts[:, ::10] = 1.0
    batch = [torch.zeros(2, 3, 200), counts, torch.zeros(2, 5), fs, frames]

    def cost(scale: float) -> float:
        mu = torch.stack([counts[0] * scale, counts[1] / scale]) + 1e-3
        return float(train_calcium.loss(lambda *_: (mu, torch.zeros(2)), batch, 0.5)[0])  # type: ignore[arg-type,return-value]

    assert cost(1.0) < cost(1.5) < cost(2.0)


def test_a_bank_without_a_data_set_draws_none_of_its_cells() -> None:
    rng = np.random.default_rng(4)
    recordings = [calcium_stretches.Recording(name, i, 20.0, *calcium_cells.draw_trace(rng, 1100)[:2])
                  for i, name in enumerate(["DS01", "DS01", "DS02"])]
    bank = calcium_stretches.recorded_bank(recordings, 0, variants=2)
    assert bank.datasets == ["DS01", "DS01", "DS02"] * 2 and bank.chance.sum() == pytest.approx(1)
    left = bank.without(["DS01"])
    assert left.datasets == ["DS02"] * 2 and left.chance.sum() == pytest.approx(1)
    rows = set(np.concatenate(left.groups))
    others = set(np.concatenate([g for g, name in zip(bank.groups, bank.datasets, strict=True) if name == "DS01"]))
    assert rows and not rows & others


def test_stretches_cover_a_recording_and_keep_its_spikes() -> None:
    rng = np.random.default_rng(1)
    counts = rng.poisson(0.1, 5003).astype(float)
    stretches = list(calcium_stretches.cut(rng.standard_normal(5003), counts, 60.0, 2))
    assert all(inputs.shape == (INPUTS, calcium_stretches.STRETCH) for inputs, *_ in stretches)
    assert stretches[0][1].sum() == counts[: 2 * calcium_stretches.STRETCH].sum()
    (_, short, _, fs, frames), = calcium_stretches.cut(rng.standard_normal(101), np.ones(101), 60.0, 2)
    assert short.sum() == 101 and frames == 51 and fs == 30.0


def test_training_leaves_weights_that_load_and_scores_of_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                          capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    rows = [(f"DS0{i // 2}", i, 20.0, *calcium_cells.draw_trace(rng, 1500)[:2]) for i in range(4)]
    spikes = [np.repeat(np.arange(1500), row[4].astype(int)) / 20.0 for row in rows]
    truth = tmp_path / "truth.npz"
    np.savez(truth, dff=np.concatenate([row[3] for row in rows]).astype(np.float16), dff_offsets=1500 * np.arange(5),
             spike_times_s=np.concatenate(spikes), spike_offsets=np.cumsum([0, *map(len, spikes)]),
             fs=[row[2] for row in rows], dataset=[row[0] for row in rows], neuron=[row[1] for row in rows])
    small = ["train", "--cells", "8", "--steps", "3", "--steps-recorded", "2", "--out", str(tmp_path / "w.npz")]
    monkeypatch.setattr(sys, "argv", [*small, "--truth", str(truth)])
    threads = torch.get_num_threads()
    try:
        train_calcium.main()
        assert np.isfinite(net.infer_network(rows[0][3], 20.0, weights=tmp_path / "w.npz").expected).all()
        monkeypatch.setattr(sys, "argv", [*small, "--truth", str(truth), "--leave-out", "DS00", "--start", str(tmp_path / "w.npz")])
        train_calcium.main()
    finally:
        torch.set_num_threads(threads)
    assert "DS00" in capsys.readouterr().out and (tmp_path / "w-without-DS00.npz").is_file()
