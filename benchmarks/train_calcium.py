"""Train the network that infers spikes from calcium traces, and say how good it is on cells that it has not seen.

    python -m benchmarks.train_calcium --out weights.npz                          on simulated traces alone
    python -m benchmarks.train_calcium --out weights.npz --truth TRUTH.npz        then on recordings as well
    python -m benchmarks.train_calcium --truth TRUTH.npz --leave-out each         a network for each data set, trained without it
    python -m benchmarks.train_calcium --truth TRUTH.npz --leave-out all          simulation alone, scored on every data set

TRUTH.npz holds dff (all recordings end to end) cut by dff_offsets, spike_times_s cut by spike_offsets and relative to the
instant of the first frame, and fs, dataset and neuron, one per recording. --start takes weights to begin with: those of a training on
simulated traces are left beside --out.
The loss of a pair of stretches of one cell: 1 - r, r the correlation of prediction and truth smoothed with SMOOTH_S, pooled
over the pair; the squared difference of their log ratios of predicted to true total, so that recordings of a cell are scaled
alike; the Poisson log likelihood of the counts of frames; and the negative binomial one of the total.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from benchmarks.calcium_stretches import Bank, Recording, read_truth, recorded_bank, simulated_bank
from sortcore.optical import network as net
from sortcore.optical.calcium import infer_calcium
from sortcore.optical.combined import combine

RUNS = 2  # of the training on recordings, whose weights are averaged
SMOOTH_S = 0.2
WAYS = ("network", "deconvolution", "sum")
PAIRS = 16  # of a batch
POISSON, TOTAL = 0.15, 0.1
FEW_SPIKES = 3.0  # added to totals before their logarithm is taken


@dataclass(frozen=True)
class Stage:
    """How one part of the training goes.

    rate: largest learning rate
    scale: weight of the loss that asks for one scale in all recordings of a cell
    summary_noise: sd added to summaries: there are few recorded cells, which must not be told apart by theirs
    simulated: pairs of a batch that are of simulated cells, of PAIRS
    """

    rate: float
    scale: float
    summary_noise: float
    simulated: int


ON_SIMULATED = Stage(4e-3, 0.15, 0.05, PAIRS)
ON_RECORDED = Stage(2e-3, 0.5, 0.25, 5)


def smoothed(values: torch.Tensor, fs: torch.Tensor) -> torch.Tensor:
    """(B, T) convolved with a Gaussian of SMOOTH_S."""
    n = values.shape[1]
    hertz = torch.fft.rfftfreq(2 * n) * fs[:, None]
    return torch.fft.irfft(torch.fft.rfft(values, 2 * n) * torch.exp(-2 * (math.pi * SMOOTH_S * hertz) ** 2), 2 * n)[:, :n]


def loss(network: net.CalciumNetwork, batch: list[torch.Tensor], scale_weight: float) -> tuple[torch.Tensor, float]:
    """The loss of pairs of stretches, and their mean correlation."""
    inputs, counts, features, fs, frames = batch
    with torch.autocast("cpu", torch.bfloat16):
        mu, log_v = network(inputs, features, fs)
    mask = (torch.arange(inputs.shape[2])[None] < frames[:, None]).float()
    counts = counts * mask
    mu = mu * mask
    paired = [(values * mask).reshape(len(mu) // 2, -1) for values in (smoothed(mu, fs), smoothed(counts, fs), torch.ones_like(mu))]
    r = correlation(*paired)
    fires = counts.reshape(len(r), -1).sum(1) > 0
    poisson = ((mu - counts * torch.log(mu + 1e-6)) * mask).sum(1) / (counts.sum(1) + 3)
    total = negative_binomial(counts.sum(1).reshape(-1, 2).sum(1), mu.sum(1).reshape(-1, 2).sum(1), log_v.reshape(-1, 2).mean(1))
    off = torch.log(((mu * mask).sum(1) + FEW_SPIKES) / (counts.sum(1) + FEW_SPIKES)).reshape(-1, 2)
    scale = (off[:, 0] - off[:, 1]).square().clamp(max=4)
    mean_r = (r * fires).sum() / fires.sum().clamp(min=1)
    return ((1 - r) * fires).mean() + POISSON * poisson.mean() + TOTAL * total.mean() + scale_weight * scale.mean(), float(mean_r.detach())


def correlation(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B,) Pearson correlation over the frames of the mask."""
    n = mask.sum(1, keepdim=True)
    a, b = ((x - x.sum(1, keepdim=True) / n) * mask for x in (a, b))
    return (a * b).sum(1) / ((a.square().sum(1) * b.square().sum(1) + 1e-8).sqrt() + 1e-4)


def negative_binomial(count: torch.Tensor, mean: torch.Tensor, log_v: torch.Tensor) -> torch.Tensor:
    """Negative log likelihood of counts with E = mean and Var = mean + v mean^2."""
    mean, shape = mean + 1e-3, torch.exp(-log_v.clamp(-6, 3))
    log_p = (torch.lgamma(count + shape) - torch.lgamma(shape) - torch.lgamma(count + 1)
             + shape * torch.log(shape / (shape + mean)) + count * torch.log(mean / (shape + mean)))
    return -log_p


def train(network: net.CalciumNetwork, banks: Sequence[Bank], stage: Stage, steps: int, seed: int) -> net.CalciumNetwork:
    """The running mean of the weights over AdamW steps; simulated cells are the first bank, recorded ones the second, if any."""
    pairs = (stage.simulated, PAIRS - stage.simulated)[: len(banks)]
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    average = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), stage.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, stage.rate, total_steps=steps, pct_start=0.1)
    began, seen = time.perf_counter(), []
    for step in range(steps):
        drawn = [bank.draw(rng, n) for bank, n in zip(banks, pairs, strict=True)]
        batch = [torch.from_numpy(np.concatenate(values)) for values in zip(*drawn, strict=True)]
        batch[2] = batch[2] + stage.summary_noise * torch.randn_like(batch[2]) * network.spread
        value, r = loss(network, batch, stage.scale)
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(weight, max(0.005, 20 / (step + 21)))
        seen.append((float(value.detach()), r))
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {np.mean(seen[-100:], 0)[0]:.4f}, r {np.mean(seen[-100:], 0)[1]:.3f}, "
                  f"{time.perf_counter() - began:.0f} s", flush=True)
    return average


def fine_tuned(base: net.CalciumNetwork, banks: Sequence[Bank], steps: int, seed: int) -> net.CalciumNetwork:
    """The mean of the weights of RUNS trainings on recordings that begin alike (Wortsman et al., ICML 2022)."""
    runs = [train(copy.deepcopy(base), banks, ON_RECORDED, steps, seed + i) for i in range(RUNS)]
    mean = copy.deepcopy(base)
    with torch.no_grad():
        for weight, *others in zip(mean.parameters(), *(run.parameters() for run in runs), strict=True):
            weight.copy_(torch.stack([other.detach() for other in others]).mean(0))
    return mean


def fresh_network(bank: Bank, seed: int) -> net.CalciumNetwork:
    torch.manual_seed(seed)
    network = net.CalciumNetwork()
    network.centre.copy_(torch.from_numpy(bank.features.mean(0)))
    network.spread.copy_(torch.from_numpy(bank.features.std(0)))
    return network


def scores(recordings: Sequence[Recording], weights: Path) -> list[dict]:
    """One row a neuron: correlation at SMOOTH_S without the first and last second, also of the deconvolution (which never learns from
    data) and of the sum of both, true and predicted total, and its interval."""
    cells: dict[tuple[str, int], list[tuple]] = {}
    for one in recordings:
        found = net.infer_network(one.dff, one.fs, weights=weights)
        edge = math.ceil(one.fs)
        expected = np.nan_to_num(found.expected)
        deconvolved = infer_calcium(one.dff, one.fs).activity
        traces = (one.counts, expected, deconvolved, combine(expected, deconvolved))
        smooth = [gaussian_filter1d(v, SMOOTH_S * one.fs, mode="nearest")[edge:-edge] for v in traces]
        cells.setdefault((one.dataset, one.neuron), []).append((*smooth, found.total, one.counts.sum(), found.gain_variance))
    rows = []
    for (dataset, neuron), parts in cells.items():
        true, *inferred = (np.concatenate([part[i] for part in parts]) for i in range(4))
        total, count, variance = (np.array([part[i] for part in parts]) for i in (4, 5, 6))
        low, high = net.count_interval(total.sum(), variance.mean(), 0.9)
        r = [float(np.corrcoef(found, true)[0, 1]) if true.any() and found.any() else 0.0 for found in inferred]
        rows.append(dict(dataset=dataset, neuron=neuron, **dict(zip(WAYS, r, strict=True)), fires=bool(true.any()),
                         predicted=float(total.sum()), true=float(count.sum()), gain_variance=float(variance.mean()), low=float(low),
                         high=float(high)))
    return rows


def report(rows: list[dict]) -> None:
    medians = []
    for dataset in sorted({row["dataset"] for row in rows}):
        these = [row for row in rows if row["dataset"] == dataset]
        medians.append([float(np.median([row[way] for row in these if row["fires"]])) for way in WAYS])
        ways = "  ".join(f"{way} {r:.3f}" for way, r in zip(WAYS, medians[-1], strict=True))
        print(f"{dataset:42s} n={len(these):3d}  {ways}  {counting(these)}", flush=True)
    print(json.dumps(dict(zip(WAYS, np.mean(medians, 0).round(4).tolist(), strict=True))), counting(rows), flush=True)


def counting(rows: list[dict]) -> str:
    ratio = np.array([(row["predicted"] + 0.5) / (row["true"] + 0.5) for row in rows])
    covered = np.mean([row["low"] <= row["true"] <= row["high"] for row in rows])
    close = np.mean(np.abs(ratio - 1) <= 0.2)
    return f"predicted/true median {np.median(ratio):.2f}, within 20 % {close:.2f}, in 90 % interval {covered:.2f}"


def save_widened(network: net.CalciumNetwork, widen: float, path: Path) -> None:
    """Write weights that give the gain `widen` times the variance."""
    with torch.no_grad():
        network.uncertainty.bias += math.log(widen)
    net.save_network(network, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("calcium_network.npz"), help="weights to write")
    parser.add_argument("--truth", type=Path, help="recordings with known spikes")
    parser.add_argument("--start", type=Path, help="weights of a network trained on simulated traces, instead of training it")
    parser.add_argument("--leave-out", help="each, all, or the beginnings of some data sets' names, as in DS09,DS14, each left out in turn")
    parser.add_argument("--cells", type=int, default=4000, help="simulated cells")
    parser.add_argument("--steps", type=int, default=4000, help="steps on simulated traces")
    parser.add_argument("--steps-recorded", type=int, default=500, help="steps on simulated and recorded traces")
    parser.add_argument("--widen", type=float, default=1.0, help="times the variance of the gain, so that intervals hold on new data sets")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    simulated = simulated_bank(options.cells, options.seed)
    if options.start:
        base = copy.deepcopy(net.load_network(options.start)).requires_grad_(True).train()
    else:
        base = train(fresh_network(simulated, options.seed), [simulated], ON_SIMULATED, options.steps, options.seed)
        net.save_network(base, options.out.with_name(f"{options.out.stem}-simulated.npz"))
    recordings = read_truth(options.truth) if options.truth else []
    recorded = recorded_bank(recordings, options.seed) if recordings else None
    if not options.leave_out:
        if recorded:
            base = fine_tuned(base, [simulated, recorded], options.steps_recorded, options.seed)
        save_widened(base, options.widen, options.out)
        return
    names = sorted({recording.dataset for recording in recordings})
    left_out = ("",) if options.leave_out in ("each", "all") else tuple(options.leave_out.split(","))
    folds = [names] if options.leave_out == "all" else [[name] for name in names if name.startswith(left_out)]
    rows: list[dict] = []
    for fold in folds:
        known = recorded.without(fold) if recorded else None
        fitted = copy.deepcopy(base)
        if known and known.groups:
            fitted = fine_tuned(base, [simulated, known], options.steps_recorded, options.seed)
        path = options.out.with_name(f"{options.out.stem}-without-{fold[0] if len(fold) == 1 else 'all'}.npz")
        save_widened(fitted, options.widen, path)
        rows += scores([recording for recording in recordings if recording.dataset in fold], path)
        report(rows)
    path = options.out.with_name(f"{options.out.stem}-scores.json")
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
