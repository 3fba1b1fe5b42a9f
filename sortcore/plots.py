"""Figures of a sorted recording.

Every function returns a matplotlib Figure that no window system and no global state knows of: save it with
`figure.savefig("name.png")`, or show it by naming it at the end of a notebook cell.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from sortcore.archive import writing
from sortcore.panels import (
    LABEL_COLORS,
    counted,
    depth_order,
    draw_amplitudes,
    draw_autocorrelogram,
    draw_depth_amplitude,
    draw_gallery,
    draw_motion,
    draw_moving_spikes,
    draw_probe,
    draw_quality,
    draw_raster,
    draw_segment_ends,
    draw_template,
    say,
    tidy,
    unit_colors,
)
from sortcore.types import LABELS, SortingResult

PAGE_UNITS = 15  # of a contact sheet


def new_figure(width: float, height: float, arranged: bool = True) -> Figure:
    """An empty figure of so many inches that draws itself, and finds room for its labels if `arranged`."""
    layout = ConstrainedLayoutEngine(wspace=0.03) if arranged else None
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def headline(result: SortingResult) -> str:
    """The sorting in one line."""
    labels = ", ".join(f"{(result.units.label == name).sum()} {name}" for name in LABELS)
    parts = [f"{counted(result.n_units, 'unit')} ({labels})", counted(len(result.spikes), "spike"),
             counted(len(result.model.preprocessing.channels), "channel"), f"{result.duration_s:.4g} s"]
    return "   ·   ".join(parts)


def plot_summary(result: SortingResult) -> Figure:
    """A sorting on one page: where the units are, how large, when they fire, what they look like and how good they are."""
    figure = new_figure(13, 7.6)
    grid = figure.add_gridspec(2, 4, width_ratios=(1.15, 0.95, 3.6, 1.9), height_ratios=(1, 1.05))
    probe = figure.add_subplot(grid[:, 0])
    draw_probe(probe, result)
    draw_depth_amplitude(figure.add_subplot(grid[:, 1], sharey=probe), result)
    draw_raster(figure.add_subplot(grid[0, 2]), result)
    draw_quality(figure.add_subplot(grid[0, 3]), result)
    draw_gallery(figure.add_subplot(grid[1, 2:]), result)
    figure.suptitle(headline(result), fontsize=12, x=0.012, ha="left")
    return figure


def plot_raster(result: SortingResult, max_spikes: int = 30000) -> Figure:
    """Spikes of every unit over time, by depth; the first `max_spikes` of them."""
    figure = new_figure(11, float(np.clip(0.14 * result.n_units, 3, 14)))
    draw_raster(figure.add_subplot(), result, max_spikes)
    return figure


def plot_motion(result: SortingResult, max_spikes: int = 30000) -> Figure:
    """How the tissue moved over time, at each depth that moves by itself, and every unit's spikes where they were on the probe.

    Raises ValueError where no motion was seen.
    """
    if result.motion is None:
        raise ValueError("The tissue was not seen to move: the result has no motion.")
    figure = new_figure(11, 7)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    draw_motion(top, result.motion)
    draw_moving_spikes(bottom, result, result.motion, max_spikes)
    return figure


def plot_templates(result: SortingResult, limit: int = 200) -> Figure:
    """Every template on the channels about its largest, by depth; of more than `limit` units those of largest SNR."""
    rows = max(1, -(-min(result.n_units, limit) // 10))
    figure = new_figure(11, 0.5 + 1.15 * rows)
    draw_gallery(figure.add_subplot(), result, limit, columns=10)
    return figure


def plot_unit(result: SortingResult, unit: int) -> Figure:
    """One unit: waveforms on the probe, autocorrelogram, amplitude and firing rate over time, and its quality in numbers.

    Raises IndexError where there is no such unit.
    """
    if not 0 <= unit < result.n_units:
        raise IndexError(f"There is no unit {unit}; the result has {result.n_units}, numbered from 0.")
    figure, color = new_figure(12, 6.6), str(unit_colors(result)[unit])
    grid = figure.add_gridspec(3, 4, width_ratios=(2.2, 2.0, 2.0, 0.9), height_ratios=(1.25, 1, 0.7))
    template = figure.add_subplot(grid[:, 0])
    draw_template(template, result, unit, color)
    template.set_title("Mean waveform, by contact (grey: channel)", loc="left", fontsize=10, fontweight="bold")
    correlogram = figure.add_subplot(grid[0, 1])
    draw_autocorrelogram(correlogram, result, unit, color)
    tidy(correlogram, "Autocorrelogram (grey: refractory)", "lag (ms)", "rate (Hz)")
    numbers = figure.add_subplot(grid[0, 2:])
    write_numbers(numbers, result, unit)
    amplitudes = figure.add_subplot(grid[1, 1:3])
    draw_amplitudes(amplitudes, result, unit, color)
    tidy(amplitudes, "Amplitude at the trough", "", "µV")
    draw_amplitude_histogram(figure.add_subplot(grid[1, 3], sharey=amplitudes), result, unit, color)
    draw_rate(figure.add_subplot(grid[2, 1:3], sharex=amplitudes), result, unit, color)
    label = str(result.units.label[unit])
    figure.suptitle(f"Unit {unit}: {label}", fontsize=13, x=0.012, ha="left", fontweight="bold", color=LABEL_COLORS.get(label, "black"))
    return figure


def draw_rate(ax: Axes, result: SortingResult, unit: int, color: str) -> None:
    """Firing rate of a unit over the recording, in some sixty bins."""
    total = sum(result.segment_lengths)
    edges = np.linspace(0, total, int(np.clip(result.duration_s, 1, 60)) + 1)
    rate = np.histogram(result.spike_train(unit), edges)[0] / np.diff(edges) * result.fs
    ax.stairs(rate, edges / result.fs, fill=True, color=color, alpha=0.8)
    draw_segment_ends(ax, result)
    ax.set_ylim(0, max(1.1 * rate.max(), 1e-3))
    tidy(ax, "Firing rate", "time (s)", "Hz")


def draw_amplitude_histogram(ax: Axes, result: SortingResult, unit: int, color: str) -> None:
    """Amplitudes of a unit beside their time course, and the Gaussian prior by which its spikes were judged."""
    mine, priors = result.spikes.units == unit, result.model.priors
    scale = float(result.model.scale_uv[unit])
    counts, edges = np.histogram(result.amplitudes_uv[mine], 40) if mine.any() else (np.zeros(1), np.array([0.0, 1.0]))
    ax.stairs(counts, edges, orientation="horizontal", fill=True, color=color, alpha=0.8)
    mean, spread = float(priors.amp_mean[unit]) * scale, float(priors.amp_std[unit]) * scale
    if spread > 0:
        y = np.linspace(mean - 4 * spread, mean + 4 * spread, 200)
        density = np.exp(-0.5 * ((y - mean) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
        ax.plot(density * mine.sum() * (edges[1] - edges[0]), y, color="black", linewidth=1.2)
    tidy(ax, "and its prior", "spikes")
    ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    ax.tick_params(labelleft=False)


def numbers_of(result: SortingResult, unit: int) -> list[tuple[str, str]]:
    """The unit table's row of a unit, for people."""
    u = result.units
    x, y = u.position_um[unit]
    return [
        ("spikes", f"{u.n_spikes[unit]:,} ({u.firing_rate_hz[unit]:.2f} Hz)"),
        ("channel, position", f"{u.channel[unit]}, ({x:.0f}, {y:.0f}) µm"),
        ("trough to peak", f"{u.amplitude_uv[unit]:.0f} µV"),
        ("SNR", f"{u.snr[unit]:.1f} noise sd"),
        ("contamination", f"{100 * u.contamination[unit]:.1f} % (95 %: < {100 * u.contamination_upper[unit]:.0f} %)"),
        ("refractory violations", f"{u.refractory_violations[unit]}"),
        ("missed spikes", f"{100 * u.missed[unit]:.1f} %"),
        ("present", f"{100 * u.presence[unit]:.0f} % of the time"),
    ]


def write_numbers(ax: Axes, result: SortingResult, unit: int) -> None:
    """The quality of a unit in numbers."""
    rows = numbers_of(result, unit)
    for i, (name, value) in enumerate(rows):
        y = 1 - (i + 0.5) / len(rows)
        ax.text(0.05, y, name, transform=ax.transAxes, fontsize=9.5, color="#666666", va="center")
        ax.text(0.42, y, value, transform=ax.transAxes, fontsize=9.5, va="center")
    ax.set_axis_off()


def plot_units(result: SortingResult, units: np.ndarray) -> Figure:
    """A contact sheet, three units a row: waveforms, autocorrelogram, amplitude over time and the main numbers of each."""
    rows = max(1, -(-len(units) // 3))
    height = 2.25 * rows + 0.3
    figure = new_figure(15, height, arranged=False)
    if not len(units):
        say(figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[]), "no units")
        return figure
    colors = unit_colors(result)
    for place, unit in enumerate(units):
        bottom = 1 - 2.25 / height * (place // 3 + 1)
        draw_card(figure, result, int(unit), str(colors[unit]), 0.012 + 0.331 * (place % 3), bottom, 2.25 / height)
    caption = ("Left: mean waveform by contact, scaled to itself.   Middle: autocorrelogram, rate (Hz) against lag (ms).   "
               "Right: amplitude (µV) against time (s).")
    figure.text(0.012, 0.07 / height, caption, fontsize=8, color="#666666")
    return figure


def draw_card(figure: Figure, result: SortingResult, unit: int, color: str, left: float, bottom: float, height: float) -> None:
    """One unit of a contact sheet, in the part of the figure that begins at (left, bottom) and is `height` high."""
    draw_template(figure.add_axes((left, bottom + 0.05 * height, 0.105, 0.78 * height)), result, unit, color, channels=12, scale=False)
    correlogram = figure.add_axes((left + 0.115, bottom + 0.14 * height, 0.085, 0.64 * height))
    draw_autocorrelogram(correlogram, result, unit, color)
    amplitudes = figure.add_axes((left + 0.228, bottom + 0.14 * height, 0.085, 0.64 * height))
    draw_amplitudes(amplitudes, result, unit, color, max_points=1000)
    for ax in (correlogram, amplitudes):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=6.5, length=2, pad=1.5)
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.xaxis.set_major_locator(MaxNLocator(3))
    u, label = result.units, str(result.units.label[unit])
    text = (f"{u.n_spikes[unit]:,} spikes, {u.firing_rate_hz[unit]:.1f} Hz, {u.amplitude_uv[unit]:.0f} µV, SNR {u.snr[unit]:.1f}, "
            f"contamination {100 * u.contamination[unit]:.0f} %")
    y = bottom + 0.87 * height
    figure.text(left, y, f"{unit} {label}", fontsize=9, fontweight="bold", color=LABEL_COLORS.get(label, "black"))
    figure.text(left + 0.055, y, text, fontsize=7.5, color="#444444")


def save_report(result: SortingResult, folder: str | Path, dpi: int = 110) -> list[Path]:
    """Draw summary.png, motion.png where the tissue moved, and units_01.png, units_02.png, ... (fifteen units each, by depth) in a
    folder; returns the files.

    Pictures of the same names are replaced. Raises OutputError where the folder cannot be written.
    """
    folder, order = Path(folder), depth_order(result)
    pages = [order[i : i + PAGE_UNITS] for i in range(0, len(order), PAGE_UNITS)]
    files = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("units_[0-9][0-9]*.png"):
            old.unlink()
        (folder / "motion.png").unlink(missing_ok=True)
        files.append(save_figure(plot_summary(result), folder / "summary.png", dpi))
        if result.motion is not None:
            files.append(save_figure(plot_motion(result), folder / "motion.png", dpi))
        for i, page in enumerate(pages):
            files.append(save_figure(plot_units(result, page), folder / f"units_{i + 1:02d}.png", dpi))
    return files


def save_figure(figure: Figure, path: Path, dpi: int) -> Path:
    """Save a PNG whose bytes depend on the picture alone, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, dpi=dpi, format="png", metadata={"Software": None})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
