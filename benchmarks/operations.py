"""Arithmetic and bytes of each stage of the sorter, against what the machine can do.

    python -m benchmarks.operations RECORDING [--device auto]

RECORDING is a folder as in `python -m benchmarks`. The operations that are counted are those of filtering, detecting
and scoring templates; what is left of a stage's time is whitening in space, the greedy pursuit, clustering, tests and reading.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sortcore as sc
from benchmarks.report import markdown
from sortcore import matching
from sortcore.ephys import detect, preprocess
from sortcore.ephys.pipeline import Clock
from sortcore.numerics import BLOCK, pick_device
from sortcore.recording import Recording
from sortcore.spectra import Spectra
from sortcore.workers import n_workers

SIZE = 4096  # of the large matrix product on a card; a quarter of it on a processor


@dataclass
class Tally:
    """Operations and bytes read since the last stage ended, and of each stage that has."""

    operations: float = 0.0
    read: float = 0.0
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, operations: float, read: float = 0.0) -> None:
        with self.lock:
            self.operations += operations
            self.read += read

    def end(self, stage: str) -> None:
        with self.lock:
            self.stages[stage] = self.operations, self.read
            self.operations = self.read = 0.0


@dataclass(frozen=True)
class Watched:
    """A recording whose reading is counted."""

    inner: Recording
    tally: Tally

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self, start: int, stop: int) -> np.ndarray:
        data = self.inner.read(start, stop)
        self.tally.add(0.0, data.nbytes)
        return data


def filter_operations(x: torch.Tensor, taps: torch.Tensor, every: int = 1) -> float:
    """Two real transforms of 5/2 n log2 n, the second shorter, and a product of spectra, per sample that is kept."""
    return float(x.numel()) * (2.5 * np.log2(7 * len(taps)) * (1 + 1 / every) + 3) * 7 / 6


def score_operations(templates: Spectra, x: torch.Tensor) -> float:
    """Transforms of each channel and each unit, and a product over channels at each frequency."""
    hop = templates.size - templates.n_samples + 1
    windows = -(-max(0, x.shape[1] - templates.n_samples + 1) // hop)
    transform = 2.5 * templates.size * np.log2(templates.size)
    products = sum(2 * part.shape[0] * part.shape[1] * part.shape[2] for *_, part in templates.parts)
    return windows * ((len(x) + templates.n_units) * transform + products)


def detect_operations(x: torch.Tensor, kernels: torch.Tensor, space: torch.Tensor | None = None) -> float:
    """A product with a block-Toeplitz matrix: every kernel at every sample, zeros of the matrix counted."""
    return 2.0 * x.numel() * len(kernels) * (BLOCK + kernels.shape[1] - 1)


@contextlib.contextmanager
def counted(tally: Tally) -> Iterator[None]:
    """While this lasts, the heavy operations are counted."""
    watched: list[tuple[Any, str, Callable[..., float]]] = [
        (preprocess, "fft_filter", filter_operations), (matching, "correlation", score_operations),
        (detect, "correlate", detect_operations),
    ]
    before, lap = [getattr(module, name) for module, name, _ in watched], Clock.lap

    def counting(work: Callable[..., Any], operations: Callable[..., float]) -> Callable[..., Any]:
        def wrapped(*given: Any) -> Any:
            tally.add(operations(*given))
            return work(*given)
        return wrapped

    def ending(clock: Clock, stage: str) -> None:
        tally.end(stage)
        lap(clock, stage)

    for (module, name, operations), work in zip(watched, before, strict=True):
        setattr(module, name, counting(work, operations))
    setattr(Clock, "lap", ending)  # noqa: B010  a method is not assigned to otherwise
    try:
        yield
    finally:
        for (module, name, _), work in zip(watched, before, strict=True):
            setattr(module, name, work)
        setattr(Clock, "lap", lap)  # noqa: B010


def product_rate(device: torch.device, seconds: float = 1.0) -> float:
    """Operations a second of a large float32 matrix product, by as many threads as the sorter has."""
    n = SIZE if device.type == "cuda" else SIZE // 4
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(n_workers())
    try:
        a @ b
        rate = 0.0
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            synchronize(device)
            start = time.perf_counter()
            a @ b
            synchronize(device)
            rate = max(rate, 2.0 * n**3 / (time.perf_counter() - start))
        return rate
    finally:
        torch.set_num_threads(threads)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sort_counted(recording: Recording, probe: sc.Probe, device: str) -> tuple[sc.SortingResult, dict[str, tuple[float, float]]]:
    """A sorting, and the operations and bytes of each of its stages."""
    tally = Tally()
    with counted(tally):
        result = sc.sort(Watched(recording, tally), probe, device=device, progress=False)
    return result, tally.stages


def table(result: sc.SortingResult, done: dict[str, tuple[float, float]], rate: float) -> str:
    """A line a stage: seconds, operations, the share of what a large matrix product would do in that time, bytes read."""
    rows = [["stage", "seconds", "GFLOP", "share of a matrix product's rate", "GB read"]]
    total = sum(result.timings_s.values()), *(sum(d[i] for d in done.values()) for i in (0, 1))
    for stage, seconds, operations, read in [*((s, t, *done[s]) for s, t in result.timings_s.items()), ("all", *total)]:
        share = operations / max(seconds, 1e-9) / rate
        rows.append([stage, f"{seconds:.2f}", f"{operations / 1e9:.1f}", f"{share:.0%}", f"{read / 1e9:.2f}"])
    return markdown(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, help="folder of a recording")
    parser.add_argument("--device", default="auto")
    a = parser.parse_args(arguments)
    from benchmarks.recordings import open_recording
    from sorters.adapter import SpikeInterfaceRecording, probe_of

    opened, device = open_recording(a.recording), pick_device(a.device)
    small = sc.load_probe("tetrode")
    sc.sort(sc.simulate(small, 2.0, 2).recording(), small, device=a.device, progress=False)  # so that all is compiled
    rate = product_rate(device)
    result, done = sort_counted(SpikeInterfaceRecording(opened), probe_of(opened), a.device)
    print(f"A large matrix product runs at {rate / 1e9:.0f} GFLOP/s on {device.type}.\n\n{table(result, done, rate)}")


if __name__ == "__main__":
    main()
