"""Figures of calcium traces and the spikes found in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sortcore.errors import ModelError
from sortcore.optical.spikes import Events
from sortcore.panels import COLORS, GREY, counted, say, tidy
from sortcore.plots import new_figure

MOST_CELLS = 8
POINTS = 4000  # of a line: of more frames the smallest and largest of each stretch are drawn


def plot_calcium(traces: np.ndarray, fs: float, *, fit: np.ndarray | None = None, activity: np.ndarray | None = None,
                 events: Events | None = None, truth: Sequence[np.ndarray] | None = None, cells: Sequence[int] | None = None,
                 names: Sequence[str] = (), span_s: tuple[float, float] | None = None, start_s: float = 0.0) -> Figure:
    """Trace, fit, activity and spikes of some cells, one below the other.

    traces (K, T); fit (K, T): baseline and calcium; activity (K, T): drawn below each trace, to its own scale
    events: found spikes, as ticks; truth: K arrays of true spike times in seconds, as grey ticks above them
    cells: which, by default the first eight; names: K, in place of their numbers
    span_s: from and to, in seconds; start_s: instant of the first frame
    Raises ModelError for arrays that do not fit together, IndexError for a cell that there is not.
    """
    traces = np.atleast_2d(traces)
    for name, other in (("fit", fit), ("activity", activity)):
        if other is not None and np.atleast_2d(other).shape != traces.shape:
            raise ModelError(f"{name} must have the shape of the traces, {traces.shape}, but it has {np.shape(other)}.")
    chosen = choose(cells, len(traces), MOST_CELLS, "cell")
    times = start_s + np.arange(traces.shape[1]) / fs
    low, high = span_s or (start_s, start_s + traces.shape[1] / fs)
    shown = (times >= low) & (times <= high)
    figure = new_figure(11, float(np.clip(1.25 * len(chosen), 1.5, 14)) + 0.7)
    if not chosen or not shown.any():
        ax = figure.add_subplot()
        tidy(ax, "Calcium", "time (s)")
        say(ax, "no cells" if not chosen else "no frames in this span")
        return figure
    axes = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0].tolist()
    for ax, k in zip(axes, chosen, strict=True):
        draw_cell(ax, times[shown], traces[k, shown], None if fit is None else np.atleast_2d(fit)[k, shown],
                  None if activity is None else np.atleast_2d(activity)[k, shown],
                  None if events is None else events.times_s[events.cells == k], None if truth is None else np.asarray(truth[k]))
        tidy(ax, ylabel=names[k] if len(names) else f"cell {k}")
        ax.set_xlim(low, high)
    axes[-1].set_xlabel("time (s)", fontsize=9)
    axes[0].legend(*unique_labels(axes), loc="lower right", bbox_to_anchor=(1, 1), ncols=5, fontsize=8, frameon=False)
    axes[0].set_title(counted(len(chosen), "cell") + f" of {len(traces)}", loc="left", fontsize=10, fontweight="bold")
    return figure


def choose(wanted: Sequence[int] | None, n: int, most: int, what: str) -> list[int]:
    """The rows of n that are drawn: those that are wanted, else the first. Raises IndexError for one that there is not."""
    chosen = list(range(min(n, most))) if wanted is None else list(wanted)
    for k in chosen:
        if not 0 <= k < n:
            raise IndexError(f"There is no {what} {k}; there are {n}, numbered from 0.")
    return chosen


def draw_cell(ax: Axes, times: np.ndarray, trace: np.ndarray, fit: np.ndarray | None, activity: np.ndarray | None,
              spikes: np.ndarray | None, truth: np.ndarray | None) -> None:
    """One cell: trace and fit above, activity and ticks of spikes below, on one axis."""
    seen = trace[np.isfinite(trace)]
    bottom, top = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    height = max(top - bottom, 1e-9)
    ax.plot(*thinned(times, trace), color=GREY, linewidth=0.6, label="trace")
    if fit is not None:
        ax.plot(*thinned(times, fit), color=COLORS[0], linewidth=1.0, label="fit")
    floor = bottom - 0.05 * height
    if activity is not None:
        largest = np.nanmax(np.append(activity, 0)) or 1.0
        base = floor - 0.4 * height
        ax.fill_between(*thinned(times, base + 0.35 * height * activity / largest), base, color=COLORS[2], linewidth=0.6, label="activity")
        floor = base - 0.03 * height
    for ticks, color, label in ((truth, "#333333", "true spikes"), (spikes, COLORS[1], "spikes")):
        if ticks is not None:
            ticks = ticks[(ticks >= times[0]) & (ticks <= times[-1])]
            ax.vlines(ticks, floor - 0.14 * height, floor - 0.02 * height, color=color, linewidth=0.8, label=label)
            floor -= 0.16 * height
    ax.set_ylim(floor - 0.03 * height, top + 0.05 * height)
    ax.set_yticks([y for y in ax.get_yticks() if bottom - 0.02 * height <= y <= top + 0.04 * height])


def thinned(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A line of few enough points that looks the same: of each stretch its smallest and its largest value."""
    size = len(values) // (POINTS // 2)
    if size < 2:
        return times, values
    n = len(values) // size
    blocks = np.where(np.isfinite(values), values, 0.0)[: n * size].reshape(n, size)
    at = np.sort(np.stack([blocks.argmin(axis=1), blocks.argmax(axis=1)], axis=1), axis=1) + size * np.arange(n)[:, None]
    at = np.append(at.ravel(), np.arange(n * size, len(values)))
    return times[at], values[at]


def unique_labels(axes: Sequence[Axes]) -> tuple[list, list[str]]:
    """Handles and labels of all axes, each label once."""
    found = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)
