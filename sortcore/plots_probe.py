"""A drawing of a probe."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from sortcore.types import Probe

MANY = 128


def draw_probe(probe: Probe, ax: Axes, labels: bool | None = None) -> Axes:
    """Draw the contacts where they are, in micrometres, one colour a shank, each with its channel number.

    labels: whether to write the numbers; by default up to 128 contacts. Draws into `ax` and returns it.
    """
    labels = probe.n_channels <= MANY if labels is None else labels
    x, y = probe.positions_um.T
    shanks = np.unique(probe.shank)
    for i, shank in enumerate(shanks):
        mine = probe.shank == shank
        ax.scatter(x[mine], y[mine], s=contact_area(probe), marker="s", color=f"C{i % 10}", label=f"shank {shank}")
    if labels:
        for channel in range(probe.n_channels):
            ax.annotate(str(channel), (x[channel], y[channel]), xytext=(4, 0), textcoords="offset points", fontsize=6, va="center")
    if 1 < len(shanks) <= 10:
        ax.legend(fontsize=8, frameon=False)
    width, height = max(np.ptp(x), 20.0), max(np.ptp(y), 20.0)
    ax.set_xlim(x.min() - 0.15 * width - 10, x.max() + 0.15 * width + 10)
    ax.set_ylim(y.min() - 0.03 * height - 10, y.max() + 0.03 * height + 10)
    # A long thin shank at its true proportions is a line: stretch it sideways, and only then.
    ax.set_aspect("equal" if 0.2 <= width / height <= 5 else "auto")
    ax.set(xlabel="x (um)", ylabel="y (um)")
    ax.set_title(f"{probe.name}: {probe.n_channels} channels", fontsize=9)
    return ax


def contact_area(probe: Probe) -> float:
    """Marker size, in points squared, that leaves neighbours apart."""
    return float(np.clip(1500.0 / probe.n_channels, 6.0, 60.0))
