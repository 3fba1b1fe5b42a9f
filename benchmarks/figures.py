"""Pictures: accuracy of the true units against their size and rate, and who is confused with whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.report import name_of
from benchmarks.score import Score

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

MARKERS = "os^vDP*X<>"
MEASURES = ("accuracy", "precision", "recall")


def draw_units(file: Path, recording: str, lines: list[dict[str, Any]]) -> None:
    """Accuracy, precision and recall of each true unit against its signal-to-noise ratio and its rate, all sorters overlaid."""
    done = [line for line in lines if "units" in line]
    if not done:
        return
    figure, axes = plt.subplots(len(MEASURES), 2, figsize=(11, 10), sharey=True, sharex="col", constrained_layout=True)
    for i, line in enumerate(done):
        units = line["units"]
        for column, name in enumerate(("snr", "rate_hz")):
            x = np.array([np.nan if v is None else v for v in units[name]], float)
            x *= 1 + 0.01 * (i - (len(done) - 1) / 2)  # side by side where they agree
            for row, measure in enumerate(MEASURES):
                axes[row, column].plot(x, units[measure], MARKERS[i % len(MARKERS)], color=f"C{i % 10}", alpha=0.65, markersize=5,
                                       label=f"{name_of(line)} ({line['accuracy']:.3f})")
    for row, measure in enumerate(MEASURES):
        axes[row, 0].set_ylabel(measure)
    axes[-1, 0].set_xlabel("signal-to-noise ratio")
    axes[-1, 1].set_xlabel("rate (Hz)")
    for axis in axes[-1]:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes[0, 1].legend(fontsize=8, loc="lower right", title="mean accuracy", title_fontsize=8)
    figure.suptitle(recording)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_confusion(file: Path, title: str, result: Score, true_ids: np.ndarray, sorted_ids: np.ndarray) -> None:
    """The agreement matrix: matched pairs in order of accuracy on the diagonal, then unmatched true and extra sorted units."""
    rows = np.argsort(-result.accuracy, kind="stable")
    matched = [int(k) for k in result.match[rows] if k >= 0]
    rest = np.flatnonzero(result.extra).tolist()
    if result.agreement.size:  # an extra unit stands by the true unit that it is most like
        rest.sort(key=lambda k: int(np.flatnonzero(rows == result.agreement[:, k].argmax())[0]))
    columns = np.array([*matched, *rest], int)
    figure, axis = plt.subplots(figsize=(2 + 0.14 * max(len(columns), 12), 2 + 0.14 * max(len(rows), 12)), constrained_layout=True)
    shown = result.agreement[np.ix_(rows, columns)] if result.agreement.size else np.zeros((max(len(rows), 1), 1))
    image = axis.imshow(shown, vmin=0, vmax=1, cmap="magma_r", aspect="auto", interpolation="nearest")
    axis.axvline(len(matched) - 0.5, color="grey", linewidth=0.8)
    axis.axhline(len(matched) - 0.5, color="grey", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [str(true_ids[r]) for r in rows], fontsize=6)
    axis.set_xticks(range(len(columns)), [str(sorted_ids[k]) for k in columns], fontsize=6, rotation=90)
    axis.set_ylabel("true unit, best first")
    axis.set_xlabel("sorted unit: matched, then extra")
    axis.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axis, label="agreement", shrink=0.7)
    figure.savefig(file, dpi=110)
    plt.close(figure)
