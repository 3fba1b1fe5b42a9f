"""The parts of which the figures are made: each function draws one thing about a result on one matplotlib Axes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from sortcore.types import LABELS, Motion, SortingResult

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito, told apart by the colour-blind
LABEL_COLORS = {"good": "#0072B2", "mua": "#D55E00", "noise": "#777777"}
LABEL_MARKERS = {"good": "o", "mua": "s", "noise": "X"}
GREY = "#9A9A9A"


def depth_order(result: SortingResult) -> np.ndarray:
    """(K,) units by shank, then from the bottom of the probe to its top."""
    preprocessing = result.model.preprocessing
    shank_of = dict(zip(preprocessing.channels.tolist(), preprocessing.probe.shank.tolist(), strict=True))
    of_unit = np.array([shank_of[channel] for channel in result.units.channel.tolist()], dtype=np.int64)
    return np.lexsort((result.units.position_um[:, 0], result.units.position_um[:, 1], of_unit))


def unit_colors(result: SortingResult) -> np.ndarray:
    """(K,) a colour for each unit, so that neighbours in depth differ."""
    colors = np.empty(result.n_units, dtype="<U7")
    colors[np.lexsort(result.units.position_um.T)] = [COLORS[i % len(COLORS)] for i in range(result.n_units)]
    return colors


def counted(number: int, noun: str) -> str:
    """"1 unit", "2 units"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def tidy(ax: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Title, axis labels and no more frame than needed."""
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(ylabel, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def say(ax: Axes, text: str) -> None:
    """Say why a panel is empty."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=GREY, fontsize=10)


def draw_probe(ax: Axes, result: SortingResult) -> None:
    """Contacts, and every unit where its waveform has its centre, the larger the louder; the marker tells the label."""
    contacts, units = result.model.preprocessing.probe.positions_um, result.units
    ax.scatter(contacts[:, 0], contacts[:, 1], s=np.clip(2500 / len(contacts), 5, 30), marker="s", color="#D8D8D8", linewidths=0, zorder=1)
    size = (20 + 160 * units.amplitude_uv / max(units.amplitude_uv.max(initial=0), 1e-9)) * np.clip(60 / max(len(units), 1), 0.3, 1)
    colors = unit_colors(result)
    for label in LABELS:
        mine = units.label == label
        ax.scatter(units.position_um[mine, 0], units.position_um[mine, 1], s=size[mine], c=colors[mine], alpha=0.75, edgecolors="white",
                   linewidths=0.7, marker=LABEL_MARKERS[label], zorder=2)
    low, high = contacts.min(axis=0), contacts.max(axis=0)
    room = np.maximum(0.04 * (high - low), 15)
    wide = max(room[0], 0.25 * (high[0] - low[0]))
    ax.set_xlim(low[0] - wide, high[0] + wide)
    ax.set_ylim(low[1] - room[1], high[1] + room[1])
    ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    tidy(ax, "Probe", "x (µm)", "depth (µm)")


def draw_depth_amplitude(ax: Axes, result: SortingResult) -> None:
    """Trough-to-peak amplitude of each unit against its depth."""
    units, colors = result.units, unit_colors(result)
    for label in LABELS:
        mine = units.label == label
        ax.scatter(units.amplitude_uv[mine], units.position_um[mine, 1], s=26, c=colors[mine], marker=LABEL_MARKERS[label],
                   edgecolors="white", linewidths=0.6)
    ax.set_xlim(0, 1.08 * (units.amplitude_uv.max(initial=0) or 100))
    ax.xaxis.set_major_locator(MaxNLocator(3))
    tidy(ax, "Amplitude", "trough to peak (µV)")
    ax.tick_params(labelleft=False)
    ax.grid(axis="y", color="#EEEEEE", linewidth=0.8)
    ax.set_axisbelow(True)


def draw_raster(ax: Axes, result: SortingResult, max_spikes: int = 8000) -> None:
    """Spikes of every unit, ordered by depth; of a long recording the beginning, so that single spikes are seen."""
    spikes, total = result.spikes, result.duration_s
    stop = total if len(spikes) <= max_spikes else spikes.samples[max_spikes] / result.fs
    row = np.empty(result.n_units, int)
    row[depth_order(result)] = np.arange(result.n_units)
    shown = np.searchsorted(spikes.samples, stop * result.fs, side="right")
    time, unit = spikes.samples[:shown] / result.fs, spikes.units[:shown]
    ticks = np.stack([np.stack([time, row[unit] - 0.42], axis=1), np.stack([time, row[unit] + 0.42], axis=1)], axis=1)
    ax.add_collection(LineCollection(list(ticks), colors=unit_colors(result)[unit], linewidths=0.6, rasterized=True))
    draw_segment_ends(ax, result)
    ax.set_xlim(0, stop)
    ax.set_ylim(-0.7, max(result.n_units, 1) - 0.3)
    ax.set_yticks([])
    part = f"first {stop:.3g} s of {total:.4g} s" if stop < total else f"{total:.4g} s"
    by = "shank and depth" if len(set(result.model.preprocessing.probe.shank)) > 1 else "depth"
    tidy(ax, f"Raster, {part}", "time (s)", f"{counted(result.n_units, 'unit')}, by {by}")
    if not len(spikes):
        say(ax, "no spikes")


def draw_segment_ends(ax: Axes, result: SortingResult) -> None:
    """A dashed line where one segment of the recording ends and the next begins."""
    for end in np.cumsum(result.segment_lengths)[:-1] / result.fs:
        ax.axvline(end, color="black", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)


def draw_quality(ax: Axes, result: SortingResult) -> None:
    """Firing rate against signal-to-noise ratio, with the label of each unit."""
    units = result.units
    rates = np.maximum(units.firing_rate_hz, 1e-3)  # the axis is logarithmic
    for label in LABELS:
        mine = units.label == label
        ax.scatter(units.snr[mine], rates[mine], s=26, color=LABEL_COLORS[label], alpha=0.85, marker=LABEL_MARKERS[label],
                   edgecolors="white", linewidths=0.6, label=label)
    ax.set_yscale("log")
    ax.set_ylim(0.6 * min(rates.min(initial=np.inf), 1), 1.6 * max(rates.max(initial=0), 10))
    tidy(ax, "Quality", "SNR (waveform norm / noise sd)", "firing rate (Hz)")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xlim(0, 1.06 * max(units.snr.max(initial=0), 10))
    ax.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1.03, 0.985), ncols=3, handletextpad=0, columnspacing=0.6)


def nearby_channels(result: SortingResult, unit: int, count: int, floor: float = 0.08) -> np.ndarray:
    """Used channels that a unit touches with more than `floor` of its largest waveform: the `count` nearest to that one."""
    size = np.ptp(result.model.templates_uv[unit], axis=1)
    probe, main = result.model.preprocessing.probe, int(size.argmax())
    distance = np.linalg.norm(probe.positions_um - probe.positions_um[main], axis=1)
    touched = np.flatnonzero((size >= floor * size[main]) & (probe.shank == probe.shank[main]))
    return touched[np.argsort(distance[touched], kind="stable")[:count]]


def pitch(values: np.ndarray, default: float) -> float:
    """Smallest distance between distinct coordinates, or `default` where there is but one."""
    gaps = np.diff(np.unique(np.round(values)))
    return float(gaps.min()) if len(gaps) else default


def waveform_lines(result: SortingResult, unit: int, channels: np.ndarray, height: float = 1.5) -> tuple[np.ndarray, tuple[float, float]]:
    """(n, D, 2) curves of a unit's waveforms, each at its contact's place in micrometres; and the micrometres that a
    millisecond and a microvolt take. The largest waveform is `height` rows high."""
    waves = result.model.templates_uv[unit, channels]
    places = result.model.preprocessing.probe.positions_um[channels]
    dy = pitch(places[:, 1], 20.0)
    same_row = [pitch(places[np.abs(places[:, 1] - y) < 0.3 * dy, 0], np.inf) for y in np.unique(places[:, 1])]
    dx = min(same_row) if np.isfinite(min(same_row)) else max(float(np.ptp(places[:, 0])), dy)
    n_samples = waves.shape[1]
    um_per_uv = height * dy / max(float(np.ptp(waves, axis=1).max()), 1e-9)
    x = places[:, :1] + dx * 0.86 * (np.arange(n_samples) / max(n_samples - 1, 1) - 0.5)
    lines = np.stack([np.broadcast_to(x, waves.shape), places[:, 1:] + um_per_uv * waves], axis=2)
    return lines, (dx * 0.86 * result.fs / 1000 / max(n_samples - 1, 1), um_per_uv)


def bar_length(value: float) -> float:
    """The largest of ..., 1, 2, 5, 10, 20, 50, ... that is no larger than `value`."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-9)))
    return float(power * max(step for step in (1, 2, 5) if step == 1 or step * power <= value))


def draw_template(ax: Axes, result: SortingResult, unit: int, color: str, channels: int = 24, scale: bool = True) -> None:
    """Mean waveforms of a unit at the places of the contacts, with a scale bar."""
    near = nearby_channels(result, unit, channels)
    lines, (um_per_ms, um_per_uv) = waveform_lines(result, unit, near)
    ax.add_collection(LineCollection(list(lines), colors=color, linewidths=1.3))
    low, high = lines.min(axis=(0, 1)), lines.max(axis=(0, 1))
    room = 0.04 * np.maximum(high - low, 1)
    if scale:
        size = bar_length(0.6 * float(np.ptp(result.model.templates_uv[unit], axis=1).max()))
        x, y = low - [0, 2 * room[1] + size * um_per_uv]
        ax.plot([x, x, x + um_per_ms], [y + size * um_per_uv, y, y], color="black", linewidth=1.2)
        ax.text(x + 1.15 * um_per_ms, y, f"1 ms, {size:g} µV", fontsize=8, va="bottom")
        low = np.minimum(low, [x, y])
        for line, channel in zip(lines, result.model.preprocessing.channels[near], strict=True):
            ax.text(line[0, 0], line[0, 1] + 0.2 * room[1], str(channel), fontsize=7, color=GREY, va="bottom")
    ax.set_xlim(low[0] - room[0], high[0] + room[0])
    ax.set_ylim(low[1] - room[1], high[1] + room[1])
    ax.set_axis_off()


def draw_gallery(ax: Axes, result: SortingResult, limit: int = 40, columns: int | None = None) -> None:
    """Templates in cells, by depth: each on the channels about its largest, scaled to itself."""
    order = depth_order(result)
    if len(order) > limit:
        order = order[np.isin(order, np.argsort(-result.units.snr, kind="stable")[:limit])]
    if columns is None:  # about 2.5 times as many as rows, the rows as even as can be
        rows = -(-len(order) // int(np.clip(np.ceil(np.sqrt(2.5 * len(order))), 1, 10)))
        columns = max(1, -(-len(order) // max(rows, 1)))
    colors, curves, shades = unit_colors(result), [], []
    for i, unit in enumerate(order):
        lines, _ = waveform_lines(result, unit, nearby_channels(result, unit, 8), height=2.0)
        low, span = lines.min(axis=(0, 1)), np.ptp(lines.reshape(-1, 2), axis=0)
        cell = np.array([i % columns, -(i // columns) - 1])
        curves += list(cell + [0.12, 0.05] + (lines - low) / np.maximum(span, 1e-9) * [0.76, 0.72])
        shades += [colors[unit]] * len(lines)
        ax.text(cell[0] + 0.5, cell[1] + 0.83, f"{unit}", fontsize=7.5, ha="center", va="bottom", color="#444444")
    ax.add_collection(LineCollection(curves, colors=shades, linewidths=0.9))
    rows = -(-len(order) // columns) if len(order) else 1
    ax.set_xlim(0, columns)
    ax.set_ylim(-rows, 0.05)
    kept = f", the {limit} of largest SNR" if result.n_units > limit else ""
    tidy(ax, f"Templates by depth{kept}; the number is the unit")
    ax.set_axis_off()
    if not len(order):
        say(ax, "no units")


def autocorrelogram(samples: np.ndarray, fs: float, segment_lengths: tuple[int, ...], window_ms: float = 50.0,
                    bin_ms: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Lags (ms, centres of the bins) and the rate (Hz) of the unit's other spikes at each; segments are kept apart."""
    n_bins = round(window_ms / bin_ms)
    edges_ms = np.arange(-n_bins, n_bins + 1) * bin_ms
    reach = int(np.ceil(n_bins * bin_ms * fs / 1000)) + 1
    apart = samples + reach * np.searchsorted(np.cumsum(segment_lengths), samples, side="right")
    counts = np.zeros(n_bins)
    for step in range(1, len(samples)):
        lags = apart[step:] - apart[:-step]
        lags = lags[lags < reach]
        if not len(lags):
            break
        counts += np.histogram(lags * 1000 / fs, edges_ms[n_bins:])[0]
    rate = np.concatenate([counts[::-1], counts]) / max(len(samples), 1) / (bin_ms / 1000)
    return (edges_ms[:-1] + edges_ms[1:]) / 2, rate


def draw_autocorrelogram(ax: Axes, result: SortingResult, unit: int, color: str, window_ms: float = 50.0, bin_ms: float = 1.0) -> None:
    """Autocorrelogram, with the refractory period of the settings shaded."""
    lags, rate = autocorrelogram(result.spike_train(unit), result.fs, result.segment_lengths, window_ms, bin_ms)
    refractory = float(result.config.get("curate", {}).get("refractory_ms", 1.5))
    ax.stairs(rate, np.append(lags - bin_ms / 2, lags[-1] + bin_ms / 2), fill=True, color=color)
    ax.axvspan(-refractory, refractory, color="#BBBBBB", alpha=0.5, linewidth=0)
    ax.set_xlim(-window_ms, window_ms)
    ax.set_ylim(0, max(1.08 * rate.max(), 1e-3))


def draw_amplitudes(ax: Axes, result: SortingResult, unit: int, color: str, max_points: int = 5000) -> None:
    """Amplitude of the unit's spikes over time."""
    mine = np.flatnonzero(result.spikes.units == unit)
    mine = mine[:: max(1, -(-len(mine) // max_points))]
    size = float(np.clip(60 / np.sqrt(max(len(mine), 1)), 2.5, 5))
    ax.plot(result.spikes.samples[mine] / result.fs, result.amplitudes_uv[mine], ".", markersize=size, color=color, alpha=0.6,
            markeredgewidth=0, rasterized=True)
    draw_segment_ends(ax, result)
    ax.set_xlim(0, max(result.duration_s, 1e-9))
    ax.set_ylim(0, 1.15 * max(float(np.abs(result.amplitudes_uv[mine]).max(initial=0)), 1e-3))


def draw_motion(ax: Axes, motion: Motion) -> None:
    """Displacement over time, a line for each depth of the estimate, the deeper the darker."""
    n = len(motion.depths_um)
    for v, depth in enumerate(motion.depths_um):
        ax.plot(motion.times_s, motion.displacement_um[:, v], color=str(0.75 * (1 - (v + 1) / n)), linewidth=1.2, label=f"{depth:.0f} µm")
    if 1 < n <= 12:
        ax.legend(title="depth", fontsize=7, title_fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(ax, "Motion of the tissue", "", "displacement (µm)")
    ax.grid(axis="y", color="#EEEEEE", linewidth=0.8)


def draw_moving_spikes(ax: Axes, result: SortingResult, motion: Motion, max_spikes: int) -> None:
    """Spikes over time at the depth where their unit was on the probe."""
    spikes = result.spikes.select(np.arange(0, len(result.spikes), 1 + len(result.spikes) // max_spikes))
    times, colors = spikes.samples / result.fs, unit_colors(result)
    for u in np.unique(spikes.units):
        mine, home = spikes.units == u, float(result.units.position_um[u, 1])
        ax.scatter(times[mine], home + motion.over(times[mine], home), s=1.5, c=str(colors[u]), linewidths=0, rasterized=True)
    draw_segment_ends(ax, result)
    tidy(ax, "Spikes where they were", "time (s)", "depth (µm)")
