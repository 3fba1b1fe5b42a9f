"""Calcium movies: cells, traces and activity against the truth, beside the ceiling, plain averaging and suite2p; and why cells are missed.

    python -m benchmarks.movies score DIR... [--out PICTURES] [--suite2p PYTHON]
    python -m benchmarks.movies simulated
    python -m benchmarks.movies cost
    python -m benchmarks.movies memory MOVIE.npy

DIR holds movie.npy (T, H, W) and truth.npz: footprints (K, H, W), dff (K, T), spike_frames, spike_cells, fs. A true cell is found when its
footprint correlates above .6 with one found footprint, one to one. Traces are compared with the true dF/F, activity with the true
spikes, both smoothed by a Gaussian of 0.2 s. The ceiling is the least squares of `unmix` with the true footprints and background
fields learned as always, deconvolved as always. PYTHON is an interpreter that has suite2p; it runs with its defaults and tau 0.7, without
registration.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import linear_sum_assignment

import sortcore as sc
from sortcore.optical.movie.demix import find_cells
from sortcore.optical.movie.reading import open_movie
from sortcore.optical.movie.simulate import MovieSimulation, Scene, simulate_movie
from sortcore.optical.movie.survey import survey
from sortcore.optical.movie.unmixing import unmix

FOUND, SMOOTH_S, OVERLAP = 0.6, 0.2, 0.1
SUITE2P = """
import json, os, sys, tempfile, time
import numpy as np, suite2p, tifffile
from suite2p.run_s2p import run_s2p
movie, fs, out = np.load(sys.argv[1], mmap_mode='r'), float(sys.argv[2]), sys.argv[3]
times = []
for _ in range(2):
    folder = tempfile.mkdtemp(dir=os.path.dirname(out))
    tifffile.imwrite(folder + '/movie.tif', np.asarray(movie).astype(np.int16))
    s = suite2p.default_settings()
    s['fs'], s['tau'], s['torch_device'], s['run']['do_registration'] = fs, 0.7, 'cpu', 0
    start, cpu = time.perf_counter(), time.process_time()
    run_s2p(db={'data_path': [folder], 'save_path0': folder, 'input_format': 'tif', 'nplanes': 1, 'nchannels': 1}, settings=s)
    times.append((time.perf_counter() - start, time.process_time() - cpu))
plane = folder + '/suite2p/plane0/'
stat = np.load(plane + 'stat.npy', allow_pickle=True)
footprints = np.zeros((len(stat), *movie.shape[1:]), np.float32)
for k, one in enumerate(stat):
    footprints[k, one['ypix'], one['xpix']] = one['lam']
F, N, spikes = (np.load(plane + name) for name in ('F.npy', 'Fneu.npy', 'spks.npy'))
np.savez(out, footprints=footprints, traces=F - 0.7 * N, activity=spikes, wall=times[-1][0], cpu=times[-1][1])
"""


def correlations(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(found, true) correlations of footprints over the whole field."""
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (found, true))
    a, b = ((x - x.mean(1, keepdims=True)) / np.maximum(x.std(1, keepdims=True), 1e-12) for x in (a, b))
    return a @ b.T / a.shape[1]


def score(truth: dict, footprints: np.ndarray, traces: np.ndarray, activity: np.ndarray) -> dict[str, float]:
    """F1 of the cells, and over the found ones the median correlation of traces and of activity."""
    true, fs = truth["footprints"], float(truth["fs"])
    c = correlations(footprints, true) if len(footprints) else np.zeros((0, len(true)))
    rows, columns = linear_sum_assignment(-c)
    pairs = [(i, j) for i, j in zip(rows, columns, strict=True) if c[i, j] > FOUND]
    spikes = np.zeros(truth["dff"].shape)
    np.add.at(spikes, (truth["spike_cells"], truth["spike_frames"].astype(int)), 1)
    smooth = [gaussian_filter1d(np.asarray(x, float), SMOOTH_S * fs, axis=1) for x in (activity, spikes)]
    trace_r = {j: np.corrcoef(traces[i], truth["dff"][j])[0, 1] for i, j in pairs}
    return {"true": len(true), "found": len(pairs), "reported": len(footprints), "F1": 2 * len(pairs) / max(len(true) + len(footprints), 1),
            "trace r": float(np.median(list(trace_r.values()))) if pairs else np.nan,
            "activity r": float(np.median([np.corrcoef(smooth[0][i], smooth[1][j])[0, 1] for i, j in pairs])) if pairs else np.nan,
            "overlapping r": float(np.median([r for j, r in trace_r.items() if j in set(overlapping(true))] or [np.nan]))}


def overlapping(true: np.ndarray) -> np.ndarray:
    """True cells whose footprint has a cosine above OVERLAP with another's."""
    flat = true.reshape(len(true), -1).astype(np.float32)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    cosines = flat @ flat.T
    np.fill_diagonal(cosines, 0)
    return np.flatnonzero(cosines.max(axis=1, initial=0) > OVERLAP)


def show(name: str, scores: dict[str, float], more: str = "") -> None:
    numbers = "  ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in scores.items())
    print(f"{name:24s} {numbers}  {more}", flush=True)


def rows(folder: Path, pictures: Path | None, suite2p: str | None) -> None:
    """Everything about one movie."""
    movie = np.load(folder / "movie.npy", mmap_mode="r")
    with np.load(folder / "truth.npz") as z:
        truth = {key: z[key] for key in z.files}
    truth["footprints"] = truth["footprints"].astype(np.float32)
    fs = float(truth["fs"])
    sc.demix(movie[:600], fs)  # compiles
    start, cpu = time.perf_counter(), time.process_time()
    found = sc.demix(movie, fs)
    took = f"{time.perf_counter() - start:.1f} s, CPU {time.process_time() - cpu:.1f} s"
    images = found.images()
    print(f"\n{folder.name}: {movie.shape[0]} frames of {movie.shape[1]} x {movie.shape[2]} at {fs:g} Hz, "
          f"{len(overlapping(truth['footprints']))} cells overlap")
    show("sortcore, denoised", score(truth, images, found.denoised, found.activity), took)
    show("sortcore, raw traces", score(truth, images, found.traces, found.activity))
    combined = sc.sort_movie(movie, fs).activity
    show("sortcore, with network", score(truth, images, found.denoised, combined))
    ceiling, traces = with_true_footprints(movie, fs, truth["footprints"])
    show("ceiling", score(truth, truth["footprints"], ceiling.calcium, ceiling.activity))
    show("ceiling, raw traces", score(truth, truth["footprints"], traces, ceiling.activity))
    weights = (truth["footprints"] / truth["footprints"].sum(axis=(1, 2), keepdims=True)).reshape(len(truth["footprints"]), -1)
    plain = np.concatenate([weights @ movie[s : s + 500].reshape(-1, weights.shape[1]).T.astype(np.float32)
                            for s in range(0, len(movie), 500)], axis=1)
    averaged = sc.infer_calcium(plain, fs)
    show("averages of true cells", score(truth, truth["footprints"], plain, averaged.activity))
    show("the same, denoised", score(truth, truth["footprints"], averaged.calcium, averaged.activity))
    if suite2p:
        peer(folder, truth, fs, suite2p)
    diagnose(images, truth, found, pictures / f"{folder.name}.png" if pictures else None)


def with_true_footprints(movie: np.ndarray, fs: float, footprints: np.ndarray) -> tuple[sc.CalciumResult, np.ndarray]:
    """What comes out when cells are known and only traces are to be told."""
    opened = open_movie(movie)
    seen = survey(opened, fs)
    _, around, _ = find_cells(seen, sc.DemixConfig())
    traces = unmix(opened, seen, sparse.csr_array(footprints.reshape(len(footprints), -1)), around.fields).traces
    return sc.infer_calcium(traces, fs), traces


def peer(folder: Path, truth: dict, fs: float, python: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        out = str(Path(scratch) / "found.npz")
        done = subprocess.run([python, "-c", SUITE2P, str(folder / "movie.npy"), str(fs), out], capture_output=True, text=True, check=False)
        if done.returncode:
            print("suite2p failed:", done.stderr[-400:])
            return
        with np.load(out) as z:
            took = f"{float(z['wall']):.1f} s, CPU {float(z['cpu']):.1f} s"
            show("suite2p", score(truth, z["footprints"], z["traces"], z["activity"]), took)


def diagnose(images: np.ndarray, truth: dict, found: sc.Demixed, picture: Path | None) -> None:
    """Why cells are missed or too many: absent, split or merged; and a picture of them."""
    true = truth["footprints"]
    c = correlations(images, true) if len(images) else np.zeros((0, len(true)))
    rows_, columns = linear_sum_assignment(-c)
    hit = {j: i for i, j in zip(rows_, columns, strict=True) if c[i, j] > FOUND}
    print(f"  footprints of found cells: median correlation {np.median([c[i, j] for j, i in hit.items()]) if hit else np.nan:.3f}")
    for j in sorted(set(range(len(true))) - set(hit)):
        best = int(c[:, j].argmax()) if len(c) else -1
        why = "absent" if best < 0 or c[best, j] < 0.3 else "merged with another" if best in hit.values() else "found badly"
        y, x = np.unravel_index(int(true[j].argmax()), true[j].shape)
        print(f"  missed {j} at ({y}, {x}): {why}, best r {c[best, j] if best >= 0 else 0:.2f}, sd of dF/F {truth['dff'][j].std():.3f}")
    for i in sorted(set(range(len(images))) - set(hit.values())):
        best = int(c[i].argmax())
        y, x = np.unravel_index(int(images[i].argmax()), images[i].shape)
        print(f"  extra {i} at ({y}, {x}): {'piece of cell' if c[i, best] > 0.2 else 'no cell near;'} {best}, r {c[i, best]:.2f}, "
              f"{int((images[i] > 0.2).sum())} px, fit {found.footprint_fit[i]:.2f}")
    if picture is not None:
        draw(images, true, hit, found, picture)


def draw(images: np.ndarray, true: np.ndarray, hit: dict[int, int], found: sc.Demixed, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(20, 10))
    for axis, back in zip(axes, (found.mean_image, images.max(axis=0) if len(images) else found.mean_image), strict=True):
        axis.imshow(back, cmap="gray")
        for j, one in enumerate(true):
            axis.contour(one, [0.3], colors="lime" if j in hit else "red", linewidths=1)
        for i, one in enumerate(images):
            if i not in hit.values():
                axis.contour(one, [0.3], colors="orange", linewidths=1)
    axes[0].set_title("mean; true cells green, missed red, extra orange")
    axes[1].set_title("found footprints")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=60, bbox_inches="tight")
    plt.close(figure)


def as_truth(made: MovieSimulation) -> dict:
    cells = np.concatenate([np.zeros(0, int), *(np.full(len(t), k) for k, t in enumerate(made.spike_times_s))])
    frames = np.concatenate([np.zeros(0), *made.spike_times_s]) * made.fs
    inside = (frames >= 0) & (frames < len(made.movie))
    return {"footprints": made.footprints, "dff": made.dff, "fs": made.fs, "spike_frames": frames[inside], "spike_cells": cells[inside]}


def simulated() -> None:
    """Cells of other kinds than those of measured footprints: rings of many sizes, dim, dense, other rates, no cells."""
    cases = {f"radius {r:g} px": (int(40 * min(1, (6 / r) ** 2)) + 4, 100, 20.0, (160, 160), Scene(radius_px=r, distance_px=1.2 * r))
             for r in (3.0, 5.0, 8.0, 11.0, 14.0)}
    cases |= {"5 Hz": (30, 200, 5.0, (128, 160), Scene()), "10 Hz": (30, 200, 10.0, (128, 160), Scene()),
              "60 Hz, 30 s": (20, 30, 60.0, (128, 128), Scene()), "dim": (30, 100, 20.0, (128, 128), Scene(brightness=30.0, rest=150.0)),
              "dense": (80, 100, 20.0, (128, 128), Scene(radius_px=6.0, distance_px=6.0)),
              "fine neuropil": (30, 100, 20.0, (160, 160), Scene(neuropil_px=8.0)),
              "strong neuropil": (30, 100, 20.0, (160, 160), Scene(neuropil=40.0)), "no cells": (0, 100, 20.0, (128, 128), Scene())}
    for name, (n_cells, seconds, fs, shape, scene) in cases.items():
        made = simulate_movie(n_cells, seconds, fs, shape, scene=scene)
        start = time.perf_counter()
        found = sc.demix(made.movie, fs)
        show(name, score(as_truth(made), found.images(), found.denoised, found.activity), f"{time.perf_counter() - start:.1f} s")


def cost() -> None:
    """CPU seconds against frames and against pixels, and the exponents."""
    sc.demix(simulate_movie(5, 40.0, 20.0, (64, 64), scene=Scene(radius_px=4.0)).movie, 20.0)
    for name, sizes in (("frames", [(1500, 128), (3000, 128), (6000, 128)]), ("pixels", [(1500, 96), (1500, 192), (1500, 384)])):
        seconds = []
        for frames, side in sizes:
            scene = Scene(radius_px=4.0, distance_px=9.0)
            movie = simulate_movie(max(4, side * side // 500), frames / 20, 20.0, (side, side), scene=scene).movie
            start = time.process_time()
            n = len(sc.demix(movie, 20.0))
            seconds.append(time.process_time() - start)
            print(f"{frames} frames of {side} x {side}: {seconds[-1]:.1f} s of CPU, {n} cells", flush=True)
        amounts = [frames if name == "frames" else side * side for frames, side in sizes]
        print(f"exponent against {name}: {np.polyfit(np.log(amounts), np.log(seconds), 1)[0]:.2f}")


def memory(path: str, fs: float = 30.0) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    n = len(sc.demix(path, fs))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    took = {"seconds": round(time.perf_counter() - start), "cpu": round(time.process_time() - cpu)}
    print(json.dumps({"cells": n, **took, "peak GiB": round(peak, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("score", "simulated", "cost", "memory"))
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--suite2p", metavar="PYTHON")
    given = parser.parse_args()
    if given.what == "score":
        for path in given.paths:
            rows(Path(path), given.out, given.suite2p)
    elif given.what == "memory":
        memory(given.paths[0])
    else:
        {"simulated": simulated, "cost": cost}[given.what]()


if __name__ == "__main__":
    sys.exit(main())
