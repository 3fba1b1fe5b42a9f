"""Calcium deconvolution: speed beside oasis-deconv and suite2p in the same run, and accuracy against simultaneous electrophysiology.

    OMP_NUM_THREADS=1 python -m benchmarks.calcium speed
    python -m benchmarks.calcium accuracy SCORER.py TRUTH.npz [--noise NU]
    python -m benchmarks.calcium simulated [CELLS]
    python -m benchmarks.calcium memory FOLDER [TRACES]

SCORER.py is a script that scores a function of (dff, fs) by name; it is given `benchmarks.calcium:infer`. `simulated` varies
what is assumed of a trace, on cells of `benchmarks.calcium_cells`. `memory` writes 100,000 traces of 10,000 frames to FOLDER, 4 GB,
with three files of that size for the result, and deletes them when it is done (Linux).
"""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable

import numpy as np

import sortcore as sc
from benchmarks.calcium_cells import draw_trace
from sortcore.metrics import correlation
from sortcore.optical.ar1 import solve_ar1
from sortcore.optical.ar2 import solve_ar2
from sortcore.optical.calcium import Destination
from sortcore.optical.estimate import Assumptions
from sortcore.optical.kernels import exponential_kernel

FS, FRAMES = 30.0, 30_000
VARIED = {"penalty_sd": (0.6, 2.0), "selection_sd": (2.0, 6.0), "selectivity": (0.5, 2.0), "shape_per_s": (1.0, 4.0),
          "drift_sd_s": (0.01, 0.05), "dip_sd": (2.5, np.inf), "event_price": (2.0, 8.0)}


def infer(dff: np.ndarray, fs: float) -> np.ndarray:
    """The automatic default, as a scorer calls it."""
    return sc.infer_calcium(dff, fs).activity


def trace(seed: int = 0) -> np.ndarray:
    """A minute's worth of AR(2) spikes at 1 Hz over and over, noise sd 0.2: (FRAMES,) float64."""
    rng = np.random.default_rng(seed)
    kernel = exponential_kernel(FS, 0.7, 0.07).sampled(300)
    return np.convolve(rng.random(FRAMES) < 1 / FS, kernel)[:FRAMES] + 0.2 * rng.standard_normal(FRAMES)


def in_turn(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 6) -> tuple[float, float]:
    """Seconds of each, the best of several, in turn: a processor changes its pace from one second to the next."""
    best = [np.inf, np.inf]
    for i in range(rounds + 1):  # the first warms up
        for which, function in enumerate((ours, theirs)):
            start = time.perf_counter()
            function()
            if i:
                best[which] = min(best[which], time.perf_counter() - start)
    return best[0], best[1]


def speed() -> None:
    from oasis.functions import deconvolve
    from oasis.oasis_methods import oasisAR1

    warnings.simplefilter("ignore")
    y, kernel = trace(), exponential_kernel(FS, 0.7, 0.07)
    g = float(np.exp(-1 / (FS * 0.7)))
    rows = {
        "bare AR(1)": (lambda: solve_ar1(y, g, 0.5), lambda: oasisAR1(y, g, 0.5)),
        "automatic AR(1)": (lambda: sc.infer_ar1(y, FS), lambda: deconvolve(y, b_nonneg=False)),
        "exact AR(2)": (lambda: solve_ar2(y, kernel, 0.5), lambda: deconvolve(y, g=(None, None), b_nonneg=False)),
        "automatic default": (lambda: sc.infer_calcium(y, FS), lambda: deconvolve(y, g=(None, None), b_nonneg=False)),
        "network": (lambda: sc.infer_network(y, FS), lambda: deconvolve(y, g=(None, None), b_nonneg=False)),
    }
    for name, (ours, theirs) in rows.items():
        print_ratio(name, "oasis", *in_turn(ours, theirs))
    if importlib.util.find_spec("suite2p"):
        print_ratio("bare AR(1)", "suite2p", *beside_suite2p(g))
    else:
        print("suite2p is not installed, so its solver is left out.")


def print_ratio(name: str, peer: str, ours: float, theirs: float) -> None:
    print(f"{name:18s} sortcore {1e3 * ours:8.2f} ms ({FRAMES / ours / 1e6:6.1f} Mframes/s)   {peer} {1e3 * theirs:8.2f} ms   "
          f"ratio {theirs / ours:6.1f}")


def beside_suite2p(g: float, n_traces: int = 12) -> tuple[float, float]:
    """Seconds a trace of `solve_ar1` and of suite2p's solver, which knows no penalty, returns no fit and is given its memory.
    Many traces in turn, so that no processor learns one."""
    from suite2p.extraction.dcnv import oasis_trace

    traces = [trace(seed) for seed in range(n_traces)]
    single = [y.astype(np.float32) for y in traces]
    work = [np.zeros(FRAMES, dtype) for dtype in (np.float32, np.float32, np.int64, np.float32, np.float32)]

    def ours() -> None:
        for y in traces:
            solve_ar1(y, g, 0.5)

    def theirs() -> None:
        for y in single:
            oasis_trace(y, *work, np.float32(0.7), np.float32(FS))

    a, b = in_turn(ours, theirs)
    return a / n_traces, b / n_traces


def simulated(n_cells: int = 240, n_frames: int = 3000) -> None:
    """Mean correlation at 0.2 s over random cells, and the mean difference from the default with its standard error."""
    draws = (draw_trace(np.random.default_rng([5, i]), n_frames) for i in itertools.count())
    cells = list(itertools.islice((d for d in draws if d[1][int(d[2]) : -int(d[2])].sum() > 5), n_cells))
    default = np.zeros(len(cells))
    for change in ({}, *({name: value} for name, values in VARIED.items() for value in values)):
        given = Assumptions(**change)
        r = np.array([correlation(sc.infer_calcium(y, fs, assumptions=given).activity, n, fs) for y, n, fs in cells])
        default = default if change else r
        error = (r - default).std() / np.sqrt(len(r))
        print(f"{change or 'default'!s:28s} mean {r.mean():.4f} median {np.median(r):.4f}   {(r - default).mean():+.4f} +- {error:.4f}")


def memory(folder: str, n_traces: int = 100_000, n_frames: int = 10_000) -> None:
    """Largest anonymous memory of `infer_ar1` from a memory map to memory maps; pages of files, which the system drops, do not count."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        files = [np.lib.format.open_memmap(f"{place}/{name}.npy", "w+", np.float32, (n_traces, n_frames))
                 for name in ("traces", "activity", "calcium", "baseline")]
        block = np.stack([trace(seed)[:n_frames] for seed in range(500)]).astype(np.float32)
        for first in range(0, n_traces, len(block)):
            files[0][first : first + len(block)] = block[: n_traces - first]
        sc.infer_ar1(block[:10], FS)  # compiled
        done, seen = threading.Event(), [anonymous_mb()]
        watch = threading.Thread(target=lambda: [seen.append(anonymous_mb()) for _ in iter(lambda: done.wait(0.1), True)])
        watch.start()
        start = time.perf_counter()
        result = sc.infer_ar1(files[0], FS, out=Destination(*files[1:]))
        seconds = time.perf_counter() - start
        done.set()
        watch.join()
        same = np.array_equal(result.activity[-1], sc.infer_ar1(files[0][-1], FS).activity)
        rate = n_traces * n_frames / seconds / 1e6
        print(f"{n_traces} traces x {n_frames} frames: {max(seen):.0f} MB of anonymous memory at most, {max(seen) - seen[0]:.0f} more than "
              f"before, {seconds:.0f} s ({rate:.0f} Mframes/s); the last trace is as alone: {same}")


def anonymous_mb() -> float:
    """Memory of this process that is no file's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["simulated"]:
        sys.exit(simulated(*(int(n) for n in sys.argv[2:])))
    if sys.argv[1:2] == ["memory"]:
        sys.exit(memory(sys.argv[2], *(int(n) for n in sys.argv[3:])))
    if sys.argv[1:2] == ["accuracy"]:
        sys.exit(subprocess.call([sys.executable, sys.argv[2], sys.argv[3], "benchmarks.calcium:infer", *sys.argv[4:]]))
    speed()
