"""Figures of voltage traces, their spikes, and what a spike looks like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sortcore.errors import ModelError
from sortcore.optical.movie.plots import draw_cells
from sortcore.optical.plots import choose, thinned, unique_labels
from sortcore.optical.voltage.detect import VoltageResult
from sortcore.optical.voltage.movie import VoltageCells
from sortcore.panels import COLORS, GREY, counted, say, tidy
from sortcore.plots import new_figure

MOST_TRACES = 8


def plot_voltage(traces: np.ndarray, result: VoltageResult, *, truth: Sequence[np.ndarray] | None = None,
                 shown: Sequence[int] | None = None, names: Sequence[str] = (), span_s: tuple[float, float] | None = None) -> Figure:
    """Trace, subthreshold potential and spikes of some traces, one below the other; beside each the waveform of its spikes.

    traces (N, T) or (T,): as they were given; result: what was found in them
    truth: N arrays of true spike times in seconds, as grey ticks above those found
    shown: which, by default the first eight; names: N, in place of their numbers; span_s: from and to
    Raises ModelError for a result of other traces, IndexError for a trace that there is not.
    """
    traces, below, slow = (np.atleast_2d(a) for a in (traces, result.subthreshold, result.baseline))
    if traces.shape != below.shape:
        raise ModelError(f"The result is of traces of shape {below.shape}, but these have {traces.shape}.")
    chosen = choose(shown, len(traces), MOST_TRACES, "trace")
    times = (np.arange(traces.shape[1]) + 0.5) / result.fs
    low, high = span_s or (0.0, traces.shape[1] / result.fs)
    inside = (times >= low) & (times <= high)
    figure = new_figure(11, float(np.clip(1.4 * len(chosen), 1.8, 14)) + 0.7)
    if not chosen or not inside.any():
        ax = figure.add_subplot()
        tidy(ax, "Voltage", "time (s)")
        say(ax, "no traces" if not chosen else "no frames in this span")
        return figure
    axes = figure.subplots(len(chosen), 2, squeeze=False, width_ratios=(7, 1))
    for (ax, small), k in zip(axes, chosen, strict=True):
        mine = result.spikes.units == k
        draw_trace(ax, times[inside], np.asarray(traces[k, inside], np.float64), (slow[k] + below[k])[inside], result.times_s[mine],
                   result.probabilities[mine], None if truth is None else np.asarray(truth[k]))
        tidy(ax, ylabel=names[k] if len(names) else f"trace {k}")
        ax.set_xlim(low, high)
        draw_waveform(small, result, k)
    axes[-1, 0].set_xlabel("time (s)", fontsize=9)
    axes[-1, 1].set_xlabel("ms", fontsize=9)
    axes[0, 0].legend(*unique_labels(axes[:, 0].tolist()), loc="lower right", bbox_to_anchor=(1, 1), ncols=4, fontsize=8, frameon=False)
    axes[0, 0].set_title(counted(len(chosen), "trace") + f" of {len(traces)}", loc="left", fontsize=10, fontweight="bold")
    return figure


def plot_voltage_cells(cells: VoltageCells) -> Figure:
    """Where the cells of a voltage imaging movie are: outlines and numbers over its mean."""
    figure = new_figure(7.5, 7.0)
    draw_cells(figure.add_subplot(), cells.mean_image, cells.footprints, f"{counted(len(cells.traces), 'cell')} over the mean of the movie")
    return figure


def draw_trace(ax: Axes, times: np.ndarray, trace: np.ndarray, under: np.ndarray, spikes: np.ndarray, probabilities: np.ndarray,
               truth: np.ndarray | None) -> None:
    """One trace, the potential under its spikes, and ticks of spikes below, the fainter the less probable."""
    seen = trace[np.isfinite(trace)]
    bottom, top = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    height = max(top - bottom, 1e-9)
    ax.plot(*thinned(times, trace), color=GREY, linewidth=0.6, label="trace")
    ax.plot(*thinned(times, under), color=COLORS[0], linewidth=1.0, label="subthreshold")
    floor = bottom - 0.05 * height
    inside = (spikes >= times[0]) & (spikes <= times[-1])
    shade = np.clip(probabilities[inside], 0.15, 1) if inside.any() else None
    if truth is not None:
        ticks = truth[(truth >= times[0]) & (truth <= times[-1])]
        ax.vlines(ticks, floor - 0.14 * height, floor - 0.02 * height, color="#333333", linewidth=0.8, label="true spikes")
        floor -= 0.16 * height
    ax.vlines(spikes[inside], floor - 0.14 * height, floor - 0.02 * height, color=COLORS[1], linewidth=0.9,
              alpha=shade, label="spikes")
    floor -= 0.16 * height
    ax.set_ylim(floor - 0.03 * height, top + 0.05 * height)
    ax.set_yticks([y for y in ax.get_yticks() if bottom - 0.02 * height <= y <= top + 0.04 * height])


def draw_waveform(ax: Axes, result: VoltageResult, k: int) -> None:
    """A spike of mean height, in units of the noise of a frame."""
    tidy(ax)
    if np.isfinite(result.waveforms[k]).all():
        ax.plot(1e3 * result.waveform_times_s, result.waveforms[k] / result.noise[k], color=COLORS[1], linewidth=1.2)
        ax.axhline(0, color=GREY, linewidth=0.5)
        ax.set_title(f"d' = {result.detectability[k]:.1f}", fontsize=8)
    else:
        say(ax, "none")
