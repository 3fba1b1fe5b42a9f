"""What the command `sortcore calcium` does: traces from a file to activity in a folder, never more than a chunk in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sortcore.optical.calcium import CalciumResult, Destination, infer_calcium
from sortcore.optical.reading import read_traces, require_rate
from sortcore.progress import bars, silent
from sorters.outputs import output_folder

ESTIMATES = ("noise", "tau_rise_s", "tau_decay_s", "penalty", "kkt_residual")


def deconvolve_file(path: Path, fs: float | None, out: Path, tau_rise_s: float | None, tau_decay_s: float | None, *, overwrite: bool,
                    quiet: bool) -> str:
    """Deconvolve the traces of a file or folder into a folder; what to say of it. fs: frames per second, where the file does not say."""
    traces = read_traces(path, fs)
    many, fs = traces.values, require_rate(traces)
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
