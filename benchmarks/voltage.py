"""Voltage imaging: spikes beside an ideal observer's, and VolPy's figures on such traces.

    OMP_NUM_THREADS=1 python -m benchmarks.voltage MAKER.py [--seeds 1 2 3] [--traces 10] [--seconds 60]

MAKER.py makes traces whose spikes are known, as `python MAKER.py OUT.npz --fs --seconds --snr --traces --seed [--complex]`.

The ideal observer is told what the maker does: the kernel, the exposure (phases within a frame are marginalised), the baseline, the
noise's spectrum and each trace's number of spikes; it does not know that rates wander and that spikes come in doublets. Its threshold
is the one of best F1 in hindsight. A method that learns how a neuron fires can do better.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import sortcore as sc
from sortcore.metrics import match_spikes
from sortcore.optical.voltage.filter import find_spikes, matched_filter
from sortcore.optical.voltage.noise import noise_of
from sortcore.optical.voltage.waveform import Grid

TOLERANCE_S = 0.005
RATES, SNRS = (400, 1000), (3, 4, 5, 6, 8)
VOLPY = {400: (0.30, 0.46, 0.62, 0.72, 0.84), 1000: (0.59, 0.80, 0.88, 0.91, 0.96)}
FINE = 10  # points a frame of the maker
DECAY_S, RISE_S, DEPTH, DEEPEST_S = 0.0015, 0.0003, 0.12, 0.006
SUBTHRESHOLD, SUBTHRESHOLD_S = 0.3, 0.02


@dataclass(frozen=True)
class Counts:
    """Spikes that were there, found, and both."""

    true: int = 0
    found: int = 0
    right: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.true + other.true, self.found + other.found, self.right + other.right)

    @property
    def f1(self) -> float:
        return 2 * self.right / max(self.true + self.found, 1)


def count(true: np.ndarray, found: np.ndarray, fs: float) -> Counts:
    """Of one trace, frames (S,)."""
    return Counts(len(true), len(found), match_spikes(true, found, TOLERANCE_S * fs))


def make(maker: Path, folder: Path, fs: int, snr: float, seed: int, hard: bool, traces: int, seconds: float) -> dict[str, np.ndarray]:
    """The arrays that the maker writes."""
    out = folder / "made.npz"
    command = [sys.executable, str(maker), str(out), "--fs", fs, "--snr", snr, "--seed", seed, "--traces", traces, "--seconds", seconds]
    subprocess.run([str(part) for part in command] + ["--complex"] * hard, check=True, capture_output=True)
    with np.load(out) as file:
        return {name: file[name] for name in file.files}


def true_kernel(fs: float) -> tuple[Grid, np.ndarray]:
    """The maker's kernel on its own grid, in its unit: the largest frame of a spike at a frame's start is 1."""
    grid = Grid(fs, FINE, 0, int(0.03 * fs))
    t = np.arange(grid.n_points) / (fs * FINE)
    kernel = np.exp(-t / DECAY_S) * (1 - np.exp(-t / RISE_S))
    kernel = kernel / kernel.max() - DEPTH * (t / DEEPEST_S) * np.exp(1 - t / DEEPEST_S)
    return grid, kernel / kernel.reshape(-1, FINE).mean(1).max()


def ideal(y: np.ndarray, fs: float, snr: float, n_spikes: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames and log odds of the ideal observer's candidates in a trace (T,)."""
    T = len(y)
    x = y - 6 - 2 * np.exp(-1.5 * np.arange(T) / T)
    decay, w = np.exp(-1 / (SUBTHRESHOLD_S * fs)), 2 * np.pi * np.fft.rfftfreq(int(fs))
    noise = noise_of(1 / snr**2 + SUBTHRESHOLD**2 * (1 - decay**2) / np.abs(1 - decay * np.exp(-1j * w)) ** 2)
    grid, kernel = true_kernel(fs)
    matched = matched_filter(kernel, grid, noise)
    found = find_spikes(matched.scores(noise.decorrelated(x)), matched, 1e-3, np.full(T, np.log(n_spikes / T)))
    return found.frames, found.log_odds


def ceiling(made: list[dict[str, np.ndarray]]) -> float:
    """Largest F1 of the ideal observer over all thresholds, one threshold for all traces."""
    thresholds = np.arange(-3, 4, 0.125)
    total = [Counts()] * len(thresholds)
    for one in made:
        fs, snr = float(one["fs"]), float(one["snr"])
        for k, y in enumerate(one["traces"].astype(np.float64)):
            true = one["spike_samples"][one["spike_traces"] == k]
            frames, log_odds = ideal(y, fs, snr, len(true))
            total = [sofar + count(true, frames[log_odds > level], fs) for sofar, level in zip(total, thresholds, strict=True)]
    return max(one.f1 for one in total)


def score(made: list[dict[str, np.ndarray]], method: str) -> tuple[Counts, float, float]:
    """Counts of one method, how many times faster than real time one core is, and the expected calibration error."""
    total, seconds, of_trace, p, right = Counts(), 0.0, 0.0, [np.zeros(0)], [np.zeros(0)]
    for one in made:
        fs = float(one["fs"])
        start = time.process_time()
        result = sc.detect_voltage_spikes(one["traces"], fs, method=method)
        seconds += time.process_time() - start
        of_trace += one["traces"].size / fs
        for k in range(len(one["traces"])):
            true, mine = one["spike_samples"][one["spike_traces"] == k], result.spikes.units == k
            total += count(true, result.spikes.samples[mine], fs)
            p.append(result.probabilities[mine])
            distance = np.abs(result.spikes.samples[mine][:, None] - true).min(axis=1, initial=np.iinfo(np.int64).max)
            right.append(distance <= TOLERANCE_S * fs)
    return total, of_trace / seconds, calibration_error(np.concatenate(p), np.concatenate(right))


def calibration_error(p: np.ndarray, right: np.ndarray, n_bins: int = 10) -> float:
    """Mean distance of the share that is right from the mean probability, over bins of probability."""
    bins = np.minimum((p * n_bins).astype(int), n_bins - 1)
    return float(sum(abs(right[bins == b].sum() - p[bins == b].sum()) for b in range(n_bins)) / max(len(p), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maker", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--traces", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--methods", nargs="+", default=["filter", "network"])
    options = parser.parse_args()
    for method in options.methods:
        sc.detect_voltage_spikes(np.random.default_rng(0).standard_normal(2000), 400.0, method=method)  # compiled before it is timed
    print("F1 within 5 ms, in brackets its share of the ideal observer's; complex: plateaus, shrinking spikes, artefacts; x: real time")
    for fs in RATES:
        for snr, volpy in zip(SNRS, VOLPY[fs], strict=True):
            with tempfile.TemporaryDirectory() as folder:
                made = {hard: [make(options.maker, Path(folder), fs, snr, seed, hard, options.traces, options.seconds)
                               for seed in options.seeds] for hard in (False, True)}
            best = ceiling(made[False])
            line = f"{fs:5d} Hz SNR {snr}: ideal {best:.3f}  VolPy {volpy:.2f}"
            for method in options.methods:
                (plain, speed, error), (hard, _, _) = score(made[False], method), score(made[True], method)
                line += (f"  | {method} {plain.f1:.3f} ({plain.f1 / best:.2f})  complex {hard.f1:.3f} ({hard.f1 - plain.f1:+.3f})  "
                         f"calibration {error:.3f}  {speed:.0f} x")
            print(line, flush=True)


if __name__ == "__main__":
    main()
