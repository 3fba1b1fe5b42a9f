"""A sorted movie in the files that suite2p writes, for the programs that read those.

These are stat.npy and ops.npy (pickled, as suite2p has them), F.npy, Fneu.npy, spks.npy and iscell.npy. suite2p's users take
F - 0.7 Fneu for a cell's own fluorescence, so F is the demixed trace plus 0.7 of the background at the cell, which is Fneu.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from sortcore.archive import staging
from sortcore.optical.records import MovieResult

NEUROPIL = 0.7  # suite2p's coefficient
FOLDER = "suite2p/plane0"


def save_suite2p(result: MovieResult, folder: str | Path) -> Path:
    """Write suite2p's files of a sorted movie into `folder`/suite2p/plane0, and return that folder.

    Raises OutputError where they cannot be written.
    """
    plane = Path(folder) / FOLDER
    demixed = result.demixed
    around = background_at_cells(result)
    covered = np.bincount(demixed.footprints.indices, minlength=demixed.footprints.shape[1])
    cells = [cell(result, k, covered) for k in range(result.n_cells)]
    files: dict[str, np.ndarray] = {
        "F": (demixed.traces + NEUROPIL * around).astype(np.float32), "Fneu": around.astype(np.float32),
        "spks": np.asarray(result.activity, np.float32), "iscell": np.ones((result.n_cells, 2), np.float32),
        "stat": np.array(cells, dtype=object), "ops": np.array(options(result, plane), dtype=object)}
    with staging(plane, "stat.npy") as stage:
        for name, array in files.items():
            np.save(stage / f"{name}.npy", array, allow_pickle=name in ("stat", "ops"))
    return plane


def background_at_cells(result: MovieResult) -> np.ndarray:
    """(K, T) background within each footprint: its mean, weighted by the footprint."""
    background, footprints = result.demixed.background, result.demixed.footprints
    fields = np.reshape(background.fields, (len(background.fields), footprints.shape[1]))
    weights = np.maximum(np.asarray(footprints.sum(axis=1)).ravel(), 1e-12)
    return ((footprints @ fields.T) / weights[:, None]) @ background.courses


def cell(result: MovieResult, k: int, covered: np.ndarray) -> dict[str, Any]:
    """One entry of stat.npy: the pixels of a cell and what suite2p tells of its shape. covered: (P,) cells that share each pixel."""
    footprints, (_, W) = result.demixed.footprints, result.demixed.shape
    mine = slice(footprints.indptr[k], footprints.indptr[k + 1])
    rows, columns = np.divmod(footprints.indices[mine].astype(np.int64), W)
    weights, trace = footprints.data[mine], result.demixed.traces[k].astype(np.float64)
    shared = covered[footprints.indices[mine]] > 1
    middle = (int(np.median(rows)), int(np.median(columns)))
    spread = np.sqrt(np.mean((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    radius = float(np.sqrt(len(rows) / np.pi))
    steady = trace.std() <= 1e-9 * max(abs(trace).max(initial=0), 1e-300)
    return {"ypix": rows, "xpix": columns, "lam": weights, "med": middle, "npix": len(rows), "radius": radius, "overlap": shared,
            "npix_norm": len(rows) / max(float(np.mean(np.diff(footprints.indptr))), 1.0), "soma_crop": np.ones(len(rows), bool),
            "npix_soma": len(rows), "npix_norm_no_crop": 1.0, "compact": float(max(spread / max(radius / np.sqrt(2), 1e-9), 1.0)),
            "aspect_ratio": aspect(rows, columns), "footprint": float(spread), "mrs": float(spread), "mrs0": radius,
            "skew": 0.0 if steady else float(stats.skew(trace)), "std": float(trace.std()), "snr": float(result.quality.snr[k]),
            "neuropil_mask": np.zeros(0, np.int64)}


def aspect(rows: np.ndarray, columns: np.ndarray) -> float:
    """How elongated a cell is, 1 for a disc, 2 for a line."""
    if len(rows) < 3:
        return 1.0
    low, high = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(rows, columns)), 0))
    return float(2 * high / max(low + high, 1e-9))


def options(result: MovieResult, plane: Path) -> dict[str, Any]:
    """The entries of ops.npy that say what the movie was."""
    H, W = result.demixed.shape
    mean = np.asarray(result.demixed.mean_image, np.float32)
    decay = result.demixed.tau_decay_s[np.isfinite(result.demixed.tau_decay_s)]
    size = 2 * np.sqrt(np.median(result.quality.size_px) / np.pi) if result.n_cells else 10.0
    tau = float(np.median(decay)) if len(decay) else 1.0
    return {"Ly": H, "Lx": W, "fs": float(result.fs), "tau": tau, "nframes": result.demixed.n_frames, "meanImg": mean,
            "meanImgE": mean, "max_proj": mean, "Vcorr": mean, "yrange": [0, H], "xrange": [0, W], "neucoeff": NEUROPIL,
            "nplanes": 1, "nchannels": 1, "functional_chan": 1, "diameter": [float(size), float(size)], "aspect": 1.0,
            "save_path": str(plane), "save_path0": str(plane.parent.parent), "data_path": [], "chan2_thres": 0.6, "do_registration": 0}
