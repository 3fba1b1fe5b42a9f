"""What the command `sortcore calcium` does: traces from a file to activity in a folder, never more than a chunk in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sortcore.errors import RecordingError
from sortcore.optical.calcium import CalciumResult, Destination, infer_calcium
from sortcore.progress import bars, silent
from sorters.outputs import output_folder

ESTIMATES = ("noise", "tau_rise_s", "tau_decay_s", "penalty", "kkt_residual")


def read_traces(path: Path) -> np.ndarray:
    """Traces (N, T) or (T,): .npy (memory-mapped), .npz with one array or one named traces, or .csv with a neuron a row.

    Raises RecordingError for a file that is missing or of another kind.
    """
    if not path.is_file():
        raise RecordingError(f"There is no file {path}; give the path of a .npy, .npz or .csv file of traces.")
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    if path.suffix == ".csv":
        return np.genfromtxt(path, delimiter=",", dtype=np.float64)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            name = "traces" if "traces" in arrays.files else arrays.files[0] if len(arrays.files) == 1 else None
            if name is None:
                raise RecordingError(f"{path} holds {', '.join(arrays.files)}; name the array of traces (neurons, frames) 'traces'.")
            return arrays[name]
    raise RecordingError(f"{path} ends in {path.suffix or 'nothing'}, but traces are read from .npy, .npz and .csv.")


def deconvolve_file(path: Path, fs: float, out: Path, tau_rise_s: float | None, tau_decay_s: float | None, *, overwrite: bool,
                    quiet: bool) -> str:
    """Deconvolve a file of traces into a folder; what to say of it."""
    traces = read_traces(path)
    many = traces if traces.ndim == 2 else traces[None]
    with output_folder(out, overwrite) as folder:
        arrays = [np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=many.shape)
                  for name in ("activity", "calcium", "baseline")] if many.size else [None] * 3
        result = infer_calcium(many, fs, tau_rise_s=tau_rise_s, tau_decay_s=tau_decay_s, out=Destination(*arrays),
                               track=silent if quiet else bars)
        for array in arrays:
            if array is not None:
                array.flush()
        write_estimates(folder / "estimates.csv", result)
    return (f"{many.shape[0]} traces of {many.shape[1]} frames: decay {np.nanmedian(result.tau_decay_s):.2f} s, rise "
            f"{np.nanmedian(result.tau_rise_s):.2f} s (medians). Results are in {out}." if many.size else f"{path} holds no frames.")


def write_estimates(path: Path, result: CalciumResult) -> None:
    """One row a trace, one column an estimate."""
    table = np.column_stack([getattr(result, name) for name in ESTIMATES])
    np.savetxt(path, table, delimiter=",", header=",".join(ESTIMATES), comments="", fmt="%.8g")
