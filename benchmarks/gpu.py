"""The sorter on a GPU: builds, checks, times and prints in one call.

    python -m benchmarks.gpu [--device cuda] [--channels 384] [--seconds 300] [--out FOLDER]

Simulates half a minute of a Neuropixels probe, writes it to a file again and again, in noise of its own each time, until the recording
is long enough, and sorts that file from reading to curated units. Prints how many times real time that is, each stage against the
device's rates, the most memory that was held on the device, whether two runs give the same bytes, and how many spikes are the same on
the CPU.
Needs torch, numpy, scipy and numba alone. `--device cpu` tries it all where there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import sortcore as sc
from benchmarks.operations import product_rate, sort_counted, synchronize, table
from benchmarks.scaling import SIMULATED_S, write_long
from sortcore import metrics
from sortcore.numerics import pick_device
from sortcore.recording import BinaryRecording

SAME_MS = 0.1  # two spikes so close are one


def build(folder: Path, n_channels: int, seconds: float, seed: int = 0) -> tuple[BinaryRecording, sc.Probe]:
    """A file of simulated data, repeated, and its probe."""
    probe = sc.load_probe("neuropixels1")
    probe = probe.select(np.arange(min(n_channels, probe.n_channels)))
    path = folder / "recording.bin"
    made = write_long(path, probe, max(2, int(0.6 * probe.n_channels)), seconds, seed)
    return sc.binary_recording(path, probe.n_channels, made.fs, "int16", made.gain_uv), probe


def rates(device: torch.device, path: Path) -> str:
    """What the machine can do: a matrix product, a copy on the device, a copy to it, and reading the file."""
    lines = [f"matrix product {product_rate(device) / 1e12:.2f} TFLOP/s"]
    big = torch.empty(2**28 if device.type == "cuda" else 2**25, dtype=torch.float32, device=device)
    lines.append(f"copy on the device {2 * 4 * big.numel() / timed(big.clone, device) / 1e9:.0f} GB/s")
    if device.type == "cuda":
        here = torch.empty(2**26, dtype=torch.float32)
        lines.append(f"copy to it {4 * here.numel() / timed(lambda: here.to(device), device) / 1e9:.1f} GB/s")
    count = min(path.stat().st_size // 2, 2**29)
    lines.append(f"reading {2 * count / timed(lambda: np.fromfile(path, np.int16, count), device, 2) / 1e9:.1f} GB/s")
    return ", ".join(lines)


def timed(work, device: torch.device, times: int = 5) -> float:
    """Seconds of the fastest of some runs."""
    best = float("inf")
    for _ in range(times):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def same_bytes(a: sc.SortingResult, b: sc.SortingResult) -> bool:
    return all(np.array_equal(getattr(a.spikes, name), getattr(b.spikes, name)) for name in vars(a.spikes))


def same_share(a: sc.SortingResult, b: sc.SortingResult) -> float:
    """Spikes that both have, of the same unit, as a share of those that either has."""
    trains = [[r.spike_train(k) for k in range(r.n_units)] for r in (a, b)]
    found = metrics.compare(*trains, SAME_MS * a.fs / 1000)
    both = sum(len(t) * recall for t, recall in zip(trains[0], found.recall, strict=True))
    return both / max(1.0, len(a.spikes) + len(b.spikes) - both)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--compare-seconds", type=float, default=SIMULATED_S, help="of the recording that is sorted on the CPU as well")
    parser.add_argument("--out", type=Path, help="where the recording is written; a temporary folder if not given")
    a = parser.parse_args(arguments)
    device = pick_device(a.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    with tempfile.TemporaryDirectory(dir=a.out) as temporary:
        start = time.perf_counter()
        recording, probe = build(Path(temporary), a.channels, a.seconds)
        print(f"{name}, torch {torch.__version__}; {recording.n_channels} channels, {recording.n_samples / recording.fs:.0f} s, "
              f"written in {time.perf_counter() - start:.0f} s.\n{rates(device, recording.path)}", flush=True)
        short = sc.array_recording(recording.read(0, int(a.compare_seconds * recording.fs)), recording.fs, recording.gain_uv)
        one, two = (sc.sort(short, probe, device=a.device, progress=False) for _ in range(2))
        start = time.perf_counter()
        there = sc.sort(short, probe, device="cpu", progress=False)
        print(f"\n{a.compare_seconds:.0f} s: twice on the device the {'same' if same_bytes(one, two) else 'OTHER'} bytes; "
              f"{same_share(one, there):.2%} of the spikes the same on the CPU, which took {time.perf_counter() - start:.1f} s "
              f"({sum(there.timings_s.values()):.1f} s in stages; on the device {sum(two.timings_s.values()):.1f} s).", flush=True)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        result, done = sort_counted(recording, probe, a.device)
        seconds = time.perf_counter() - start
        print(f"\n{recording.n_samples / recording.fs / seconds:.1f} times real time ({seconds:.1f} s), {result.n_units} units, "
              f"{len(result.spikes)} spikes", end="")
        print(f", {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB on the device" if device.type == "cuda" else "")
        print(f"\n{table(result, done, product_rate(device))}")


if __name__ == "__main__":
    main()
