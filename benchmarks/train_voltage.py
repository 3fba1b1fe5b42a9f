"""Train the network that finds spikes in voltage traces, on simulated traces of all kinds.

    OMP_NUM_THREADS=1 python -m benchmarks.train_voltage OUT.npz [--recordings 400] [--steps 4000] [--seed 0]

Each recording draws its own frame rate, spike width, after-hyperpolarisation, noise, firing, plateaus and artefacts. The matched
filter is fitted to it as it would be to a recorded trace, and the network learns, frame by frame, what to add to the filter's logits
(binary cross-entropy). Printed: cross-entropy per spike on recordings left out, of the filter and of both.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from sortcore.optical.voltage.fit import filter_view, fit_trace
from sortcore.optical.voltage.network import PRUNED, VoltageNetwork, channels_of, filter_logit, save_voltage_network
from sortcore.optical.voltage.simulate import SpikeShape, VoltageFiring, VoltageNoise, simulate_voltage
from sortcore.optical.voltage.waveform import grid_at

SECONDS, CROP, BATCH = 30.0, 64, 256
LEARNING_RATE = 3e-3
LEFT_OUT = 40


@dataclass(frozen=True)
class Example:
    """One trace: channels (C, T), the filter's logits (T,), and whether a spike peaks in each frame (T,)."""

    channels: np.ndarray
    logits: np.ndarray
    spikes: np.ndarray


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def sometimes(rng: np.random.Generator, value: float, chance: float = 0.5) -> float:
    return value if rng.random() < chance else 0.0


def random_example(rng: np.random.Generator) -> Example:
    """A trace of a recording like no other."""
    fs = log_uniform(rng, 200, 1300)
    shape = SpikeShape(log_uniform(rng, 1.5e-4, 8e-4), log_uniform(rng, 7e-4, 4e-3), rng.uniform(0, 0.25),
                       log_uniform(rng, 4e-3, 1.5e-2))
    firing = VoltageFiring(log_uniform(rng, 0.7, 25), rng.uniform(0, 1.2), log_uniform(rng, 0.2, 3), rng.uniform(0, 0.3),
                           log_uniform(rng, 0.004, 0.015), rng.uniform(0.002, 0.004), sometimes(rng, rng.uniform(0, 0.2)),
                           sometimes(rng, log_uniform(rng, 0.03, 0.3)), rng.uniform(0.75, 1))
    noise = VoltageNoise(log_uniform(rng, 2.3, 10), rng.uniform(0.05, 0.6), log_uniform(rng, 0.008, 0.06),
                         sometimes(rng, rng.uniform(0, 0.4)), log_uniform(rng, 0.1, 0.5), 8.0, rng.uniform(0, 0.4),
                         log_uniform(rng, 10, 200), sometimes(rng, log_uniform(rng, 0.02, 0.2)), rng.uniform(0.5, 3))
    made = simulate_voltage(1, SECONDS, fs, shape=shape, firing=firing, noise=noise, seed=int(rng.integers(1 << 31)))
    fitted = fit_trace(made.traces[0].astype(np.float64), grid_at(fs))
    if fitted is None:
        return random_example(rng)
    view = filter_view(fitted)
    peak = shape.rise_s * np.log1p(shape.decay_s / shape.rise_s)
    frames = np.floor((made.spike_times_s[0] + peak) * fs).astype(int)
    spikes = np.zeros(made.traces.shape[1], np.float32)
    spikes[frames[frames < len(spikes)]] = 1
    return Example(channels_of(view, fs), filter_logit(view).astype(np.float32), spikes)


def batch(rng: np.random.Generator, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Crops of random traces; crops with spikes are not preferred, which would make spikes seem more probable than they are."""
    parts = []
    for _ in range(BATCH):
        one = examples[rng.integers(len(examples))]
        first = int(rng.integers(len(one.logits) - CROP))
        crop = slice(first, first + CROP)
        parts.append((one.channels[:, crop], one.logits[crop], one.spikes[crop]))
    channels, logits, spikes = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*parts, strict=True))
    return channels, logits, spikes


def loss_of(network: VoltageNetwork, channels: torch.Tensor, logits: torch.Tensor, spikes: torch.Tensor) -> torch.Tensor:
    """Cross-entropy per spike, without the ends of the crops."""
    inner = slice(CROP // PRUNED, CROP - CROP // PRUNED)
    total = binary_cross_entropy_with_logits((logits + network(channels))[:, inner], spikes[:, inner], reduction="sum")
    return total / spikes[:, inner].sum().clamp(min=1)


def left_out_loss(network: VoltageNetwork, examples: list[Example]) -> tuple[float, float]:
    """Cross-entropy per spike of the filter and of the network, over whole traces."""
    with torch.no_grad():
        sums = np.zeros(3)
        for one in examples:
            T = len(one.logits) // 4 * 4
            logits, spikes = torch.from_numpy(one.logits[:T]), torch.from_numpy(one.spikes[:T])
            change = network(torch.from_numpy(one.channels[None, :, :T]))[0]
            sums += [float(binary_cross_entropy_with_logits(logits, spikes, reduction="sum")),
                     float(binary_cross_entropy_with_logits(logits + change, spikes, reduction="sum")), float(spikes.sum())]
    return sums[0] / sums[2], sums[1] / sums[2]


def train(network: VoltageNetwork, examples: list[Example], left_out: list[Example], steps: int, seed: int, out: Path) -> None:
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    start = time.time()
    for step in range(steps):
        loss = loss_of(network, *batch(rng, examples))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 499 or step + 1 == steps:
            before, after = left_out_loss(network, left_out)
            save_voltage_network(network, out)
            print(f"step {step + 1}, {time.time() - start:.0f} s: left out, filter {before:.4f}, with network {after:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recordings", type=int, default=400)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    examples = [random_example(rng) for _ in range(options.recordings + LEFT_OUT)]
    train(VoltageNetwork(), examples[LEFT_OUT:], examples[:LEFT_OUT], options.steps, options.seed, options.out)


if __name__ == "__main__":
    main()
