"""What the command `sortcore calcium` does: traces from a file to activity in a folder, never more than a chunk in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sortcore.errors import ModelError
from sortcore.numerics import pick_device
from sortcore.optical.calcium import CalciumResult, Destination, infer_calcium
from sortcore.optical.network import infer_network
from sortcore.optical.neuropil import subtract_neuropil
from sortcore.optical.plots import plot_calcium
from sortcore.optical.reading import read_traces, require_rate
from sortcore.optical.saving import save_events
from sortcore.optical.spikes import Events, Threshold, find_events
from sortcore.optical.traces import fluorescence_at_rest
from sortcore.progress import Track, bars, silent
from sortcore.types import Traces
from sorters.outputs import output_folder

CELLS = 256  # worked on at once
DRAWN, SHOWN_S = 8, 60.0
ESTIMATES = ("noise", "tau_rise_s", "tau_decay_s", "penalty", "kkt_residual")


def deconvolve_file(path: Path, fs: float | None, out: Path, tau_rise_s: float | None, tau_decay_s: float | None, *, overwrite: bool,
                    quiet: bool, neuropil: bool = True, false_positives: float = 0.01, network: bool = True,
                    device: str = "auto") -> str:
    """Deconvolve the traces of a file or folder into a folder; what to say of it.

    fs: frames per second, where the file does not say; neuropil: subtract it where the file has it
    false_positives: rate in Hz at which noise alone may pass for a spike
    network: write the spikes that the network expects in each frame as well; device: where it runs
    """
    pick_device(device)
    traces = read_traces(path, fs)
    fs = require_rate(traces)
    track = silent if quiet else bars
    with output_folder(out, overwrite) as folder:
        many = without_neuropil(traces, fs, folder, track) if neuropil and traces.neuropil is not None else traces.values
        if not many.size:
            return f"{path} holds no frames."
        arrays = [new_array(folder / f"{name}.npy", many.shape) for name in ("activity", "calcium", "baseline")]
        result = infer_calcium(many, fs, tau_rise_s=tau_rise_s, tau_decay_s=tau_decay_s, out=Destination(*arrays), track=track)
        for array in arrays:
            array.flush()
        write_estimates(folder / "estimates.csv", result)
        events = all_events(result.activity, fs, Threshold("false_positives", false_positives))
        save_events(events, folder / "spikes.npz")
        draw(many, result, events, traces.names, folder / "traces.png")
        counted = expect_spikes(many, result, folder, device, track) if network else ""
    return (f"{many.shape[0]} traces of {many.shape[1]} frames: decay {np.nanmedian(result.tau_decay_s):.2f} s, rise "
            f"{np.nanmedian(result.tau_rise_s):.2f} s (medians), {len(events)} spikes or bursts.{counted} Results are in {out}.")


def expect_spikes(traces: np.ndarray, result: CalciumResult, folder: Path, device: str, track: Track) -> str:
    """The network's expected spikes of each frame, and each trace's number of spikes with its interval; what to say of it."""
    parts = blocks(len(traces))
    levels = np.concatenate([np.median(result.baseline[part], axis=1) for part in parts])
    try:
        rest = fluorescence_at_rest(np.where(np.isnan(result.noise), np.nan, levels), result.noise)
    except ModelError as error:
        return f" The network was left out. {error}"
    expected, rows = new_array(folder / "expected_spikes.npy", traces.shape), []
    for part in track(parts, "network", len(parts)):
        found = infer_network((traces[part] - result.baseline[part]) / rest[part, None], result.fs, out=expected[part], device=device)
        rows.append(np.column_stack([found.total, found.total_low, found.total_high]))
    expected.flush()
    counts = np.concatenate(rows)
    np.savetxt(folder / "spike_counts.csv", counts, delimiter=",", header="expected,low,high", comments="", fmt="%.6g")
    return f" The network expects {np.nansum(counts[:, 0]):.0f} spikes."


def blocks(n: int) -> list[slice]:
    """Cells that are worked on at once."""
    return [slice(start, min(start + CELLS, n)) for start in range(0, n, CELLS)]


def new_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)


def without_neuropil(traces: Traces, fs: float, folder: Path, track: Track) -> np.ndarray:
    """Traces (K, T) less their neuropil, kept in the folder with each cell's coefficient."""
    assert traces.neuropil is not None
    out, found = new_array(folder / "traces.npy", traces.values.shape), []
    parts = blocks(len(out))
    for part in track(parts, "neuropil", len(parts)):
        one = subtract_neuropil(traces.values[part], traces.neuropil[part], fs)
        out[part] = one.traces
        found.append(one.coefficients)
    np.savetxt(folder / "neuropil.csv", np.concatenate([np.zeros(0), *found]), header="coefficient", comments="", fmt="%.4f")
    return out


def all_events(activity: np.ndarray, fs: float, threshold: Threshold) -> Events:
    """The events of cells (K, T), some cells at a time, as activity may be larger than memory."""
    parts = blocks(len(activity))
    found = [find_events(activity[part], fs, threshold) for part in parts]
    cells = np.concatenate([e.cells + part.start for e, part in zip(found, parts, strict=True)])
    frames = np.concatenate([e.frames for e in found])
    order = np.lexsort((cells, frames))
    return Events(frames[order], frames[order] / fs, cells[order], np.concatenate([e.sizes for e in found])[order],
                  np.concatenate([e.thresholds for e in found]))


def draw(traces: np.ndarray, result: CalciumResult, events: Events, names: tuple[str, ...], path: Path) -> None:
    """A picture of the cells with the most spikes, a minute of each."""
    busiest = np.argsort(-np.bincount(events.cells, minlength=len(traces)), kind="stable")[:DRAWN]
    place = np.full(len(traces), -1)
    place[busiest] = np.arange(len(busiest))
    drawn = place[events.cells] >= 0
    mine = Events(events.frames[drawn], events.times_s[drawn], place[events.cells[drawn]], events.sizes[drawn], events.thresholds[busiest])
    figure = plot_calcium(np.asarray(traces[busiest], np.float64), result.fs, fit=result.baseline[busiest] + result.calcium[busiest],
                          activity=result.activity[busiest], events=mine, names=[names[i] for i in busiest],
                          span_s=(0.0, min(SHOWN_S, traces.shape[1] / result.fs)))
    figure.savefig(path, dpi=120)


def write_estimates(path: Path, result: CalciumResult) -> None:
    """One row a trace, one column an estimate."""
    table = np.column_stack([getattr(result, name) for name in ESTIMATES])
    np.savetxt(path, table, delimiter=",", header=",".join(ESTIMATES), comments="", fmt="%.8g")
