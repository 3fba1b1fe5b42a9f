"""Figures of a sorted movie: where its cells are, what they do, and how the tissue moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy import sparse

from sortcore.archive import writing
from sortcore.optical.movie.quality import centres
from sortcore.optical.movie.records import MovieResult
from sortcore.optical.movie.register import Registration
from sortcore.optical.movie.saving import movie_events
from sortcore.optical.plots import plot_calcium, thinned
from sortcore.optical.spikes import Events
from sortcore.panels import COLORS, GREY, counted, say, tidy
from sortcore.plots import new_figure, save_figure

LEVEL = 0.4  # of its peak, at which the outline of a footprint is drawn
NUMBERED = 150  # cells, of more the outlines alone are drawn
DRAWN, SHOWN_S = 12, 60.0
MOST_TRACES = 40  # of the summary
MOST_TICKS = 60_000


def plot_movie(result: MovieResult) -> Figure:
    """The movie in one picture: mean image with outlines, footprints, traces, raster of the spikes, quality."""
    figure = new_figure(15, 10)
    halves = figure.add_gridspec(2, 1, height_ratios=(1.15, 1))
    above, below = halves[0].subgridspec(1, 3, width_ratios=(1, 1, 0.75)), halves[1].subgridspec(1, 2)
    places = [above[0], above[1], above[2], below[0], below[1]]
    for place, draw in zip(places, (draw_outlines, draw_footprints, draw_quality, draw_traces, draw_raster), strict=True):
        draw(figure.add_subplot(place), result)
    figure.suptitle(headline(result), x=0.01, ha="left", fontsize=12)
    return figure


def headline(result: MovieResult) -> str:
    """The sorted movie in one line."""
    return (f"{counted(result.n_cells, 'cell')}   ·   {counted(len(result.spikes), 'spike')}   ·   "
            f"{counted(result.demixed.n_frames, 'frame')}, {result.duration_s:.4g} s at {result.fs:g} Hz")


def plot_movie_traces(result: MovieResult, cells: np.ndarray | None = None, span_s: tuple[float, float] | None = None) -> Figure:
    """dF/F, what the kernel explains of it, activity and spikes of some cells; by default the twelve with the most spikes, the minute
    in which they have most."""
    if cells is None:
        cells = np.sort(np.argsort(-result.quality.n_spikes, kind="stable")[:DRAWN])
    mine = np.isin(result.spikes.units, cells)
    place = np.zeros(max(result.n_cells, 1), np.int64)
    place[cells] = np.arange(len(cells))
    all_events = movie_events(result)
    events = Events(all_events.frames[mine], all_events.times_s[mine], place[all_events.cells[mine]], all_events.sizes[mine],
                    np.zeros(len(cells)))
    dff = result.dff[cells].astype(np.float64)
    fit = np.stack([fit_in_dff(result, int(k)) for k in cells]) if len(cells) else dff
    return plot_calcium(dff, result.fs, fit=fit, activity=np.asarray(result.activity[cells], np.float64), events=events,
                        cells=range(len(cells)), names=[str(k) for k in cells], span_s=span_s or busiest(result))


def fit_in_dff(result: MovieResult, k: int) -> np.ndarray:
    """(T,) what the kernel explains of a cell's trace, as dF/F: both traces less the baseline, over the same F0."""
    demixed, dff = result.demixed, result.dff[k].astype(np.float64)
    base = np.asarray(demixed.baseline[k], np.float64)
    rise = demixed.traces[k] - base
    seen = np.isfinite(rise) & np.isfinite(dff)
    power = float(np.sum(dff[seen] ** 2))
    f0 = float(np.sum(rise[seen] * dff[seen])) / power if power > 0 else 0.0
    return (demixed.denoised[k] - base) / f0 if f0 > 0 else np.zeros_like(dff)


def busiest(result: MovieResult) -> tuple[float, float]:
    """From and to, in seconds: the minute with the most spikes."""
    step = 0.25 * SHOWN_S
    if result.duration_s <= SHOWN_S:
        return 0.0, result.duration_s
    counts = np.bincount((result.spikes.samples / result.fs / step).astype(np.int64), minlength=int(np.ceil(result.duration_s / step)))
    start = step * float(np.argmax(np.convolve(counts, np.ones(4), "valid"))) if len(counts) >= 4 else 0.0
    start = min(start, result.duration_s - SHOWN_S)
    return start, start + SHOWN_S


def plot_shifts(found: Registration, fs: float) -> Figure:
    """How the tissue moved: rows and columns over time, and how like the template each frame is in place."""
    figure = new_figure(11, 5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    times = np.arange(len(found.shifts)) / fs
    for i, name in enumerate(("down", "right")):
        above.plot(*thinned(times, found.shifts[:, i]), color=COLORS[i], linewidth=0.8, label=name)
    if found.lost.any():
        above.plot(times[found.lost], found.shifts[found.lost, 0], "x", color="#333333", markersize=4, label="not believed")
    above.legend(fontsize=8, frameon=False, loc="upper right", ncols=3)
    tidy(above, f"Motion of the tissue: {np.abs(found.shifts).max(initial=0):.1f} px at most, {np.std(found.shifts):.2f} px sd", "",
         "shift (px)")
    below.plot(*thinned(times, found.correlation), color=GREY, linewidth=0.8)
    tidy(below, "", "time (s)", "correlation\nwith template")
    return figure


def draw_outlines(ax: Axes, result: MovieResult) -> None:
    """The mean image, and the outline and number of each cell."""
    draw_cells(ax, result.demixed.mean_image, result.demixed.footprints, "Mean of the movie")


def draw_cells(ax: Axes, image: np.ndarray, footprints: sparse.csr_array, title: str) -> None:
    """A picture (H, W), and the outline and number of each footprint (K, P)."""
    draw_image(ax, image, title)
    places = centres(footprints, (image.shape[0], image.shape[1]))
    for k, color in enumerate(cell_colors(len(places))):
        picture, top, left = cutout(footprints, k, image.shape)
        if max(picture.shape) > 2:
            ax.contour(np.arange(picture.shape[1]) + left, np.arange(picture.shape[0]) + top, picture, levels=[LEVEL], colors=[color],
                       linewidths=0.8)
        if len(places) <= NUMBERED:
            ax.text(places[k, 1], places[k, 0], str(k), color="white", fontsize=6.5, ha="center", va="center", clip_on=True,
                    path_effects=[withStroke(linewidth=1.2, foreground="black")])


def draw_footprints(ax: Axes, result: MovieResult) -> None:
    """All footprints, each in a colour of its own, brighter where it is larger; overlaps mix."""
    H, W = result.demixed.shape
    canvas = np.zeros((H, W, 3))
    for k, color in enumerate(cell_colors(result.n_cells)):
        picture, top, left = cutout(result.demixed.footprints, k, (H, W))
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] += picture[..., None] * color
    ax.imshow(np.clip(canvas, 0, 1), interpolation="nearest")
    tidy(ax, "Footprints", "column (px)", "")
    if not result.n_cells:
        say(ax, "no cells")


def draw_image(ax: Axes, image: np.ndarray, title: str) -> None:
    """A picture in grey, its darkest and brightest half per cent cut."""
    seen = image[np.isfinite(image)]
    low, high = np.percentile(seen, [0.5, 99.5]) if len(seen) else (0.0, 1.0)
    ax.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-9), interpolation="nearest")
    tidy(ax, title, "column (px)", "row (px)")


def draw_traces(ax: Axes, result: MovieResult) -> None:
    """dF/F of the cells with the most spikes, one above the other, and what the kernel explains of it."""
    order = np.argsort(-result.quality.n_spikes, kind="stable")[:MOST_TRACES]
    tidy(ax, f"dF/F of the {len(order)} busiest cells, and the fit" if len(order) else "dF/F", "time (s)", "cell")
    if not len(order):
        say(ax, "no cells")
        return
    times = np.arange(result.demixed.n_frames) / result.fs
    low, high = busiest(result)
    shown = (times >= low) & (times <= high)
    spread = np.nanmedian(np.nanmax(result.dff[order], axis=1) - np.nanmedian(result.dff[order], axis=1))
    for place, k in enumerate(order):
        for values, color, width in ((result.dff[k], GREY, 0.4), (fit_in_dff(result, int(k)), COLORS[0], 0.8)):
            level = (values[shown] - np.nanmedian(result.dff[k])) / max(spread, 1e-9)
            ax.plot(*thinned(times[shown], level - place), color=color, linewidth=width)
    ax.set_yticks(-np.arange(len(order)), [str(k) for k in order], fontsize=5.5 if len(order) > 20 else 7)
    ax.set_xlim(low, high)
    ax.set_ylim(-len(order) - 0.2, 1.5)


def draw_raster(ax: Axes, result: MovieResult) -> None:
    """The spikes of all cells over all of the movie."""
    spikes = result.spikes.select(np.arange(0, len(result.spikes), 1 + len(result.spikes) // MOST_TICKS))
    ax.scatter(spikes.samples / result.fs, spikes.units, s=float(np.clip(4000 / max(result.n_cells, 1), 4, 40)), marker="|", linewidths=0.6,
               color=COLORS[1], rasterized=True)
    tidy(ax, "Spikes", "time (s)", "cell")
    ax.set_xlim(0, result.duration_s)
    ax.set_ylim(-0.7, max(result.n_cells - 0.3, 0.7))
    if not len(result.spikes):
        say(ax, "no spikes")


def draw_quality(ax: Axes, result: MovieResult) -> None:
    """Signal to noise against the fit of the footprint, one point a cell, the larger the more it overlaps with another."""
    quality = result.quality
    known = np.isfinite(quality.footprint_fit)
    height = np.where(known, quality.footprint_fit, 0.0)
    ax.scatter(quality.snr, height, s=12 + 80 * quality.overlap, c=[*cell_colors(result.n_cells)] or None, alpha=0.8, edgecolors="white",
               linewidths=0.5)
    if result.n_cells <= NUMBERED:
        for k in range(result.n_cells):
            ax.annotate(str(k), (quality.snr[k], height[k]), xytext=(3, 3), textcoords="offset points", fontsize=6, color="#666666")
    tidy(ax, "Quality; size is overlap", "signal to noise", "fit of the footprint" if known.any() else "fit of the footprint (not known)")


def cutout(footprints: sparse.csr_array, k: int, shape: tuple[int, ...]) -> tuple[np.ndarray, int, int]:
    """The part of a picture (H, W) that a footprint touches, a pixel wider, and the row and column where it begins."""
    H, W = shape
    mine = slice(footprints.indptr[k], footprints.indptr[k + 1])
    rows, columns = np.divmod(footprints.indices[mine], W)
    top, left = max(int(rows.min()) - 1, 0), max(int(columns.min()) - 1, 0)
    picture = np.zeros((min(int(rows.max()) + 2, H) - top, min(int(columns.max()) + 2, W) - left))
    picture[rows - top, columns - left] = footprints.data[mine]
    return picture, top, left


def cell_colors(n: int) -> np.ndarray:
    """(K, 3) bright colours, of which those of neighbouring numbers differ."""
    return hsv_to_rgb(np.stack([(np.arange(n) * 0.618034) % 1, np.full(n, 0.75), np.full(n, 1.0)], axis=1)) if n else np.zeros((0, 3))


def save_movie_pictures(result: MovieResult, folder: str | Path, found: Registration | None = None, dpi: int = 120) -> list[Path]:
    """Draw summary.png, traces.png and, of a movie that was registered, motion.png in a folder; returns the files.

    Raises OutputError where the folder cannot be written.
    """
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files = [save_figure(plot_movie(result), folder / "summary.png", dpi),
                 save_figure(plot_movie_traces(result), folder / "traces.png", dpi)]
        (folder / "motion.png").unlink(missing_ok=True)
        if found is not None:
            files.append(save_figure(plot_shifts(found, result.fs), folder / "motion.png", dpi))
    return files
