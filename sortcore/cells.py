"""The field of a simulated cell: point sources of current in a homogeneous medium.

The voltage at a contact is sum_m I_m(t) / r_m (Gold et al., J Neurophysiol 2006; Einevoll et al., Nat Rev Neurosci 2013).
The soma sinks current in the shape of an action potential; its dendrites return it later and more slowly the farther they
are, so that the shape changes from contact to contact. Few sources cannot cancel each other as a whole cell's do, so the
far field is damped besides, to the tenth or less at 100 um that is measured (Henze et al., J Neurophysiol 2000).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sortcore.types import Probe

BEFORE_MS, AFTER_MS = 1.0, 2.0
SUBSAMPLES = 16  # spikes fall on sixteenths of a sample
SOMA_UM = 8.0  # a contact is never nearer than this to a source
REACH_UM = 80.0  # damping of the far field
BRANCHES, PER_BRANCH = 5, 4  # dendrites of a cell, and sources on each
SMALLEST = 0.01  # a waveform is zero where it stays under this share of its trough


def template_size(fs: float) -> tuple[int, int]:
    """Sample of a waveform at which its trough lies, and its length D."""
    return round(BEFORE_MS * 1e-3 * fs), round((BEFORE_MS + AFTER_MS) * 1e-3 * fs)


@dataclass(frozen=True)
class Waveform:
    """A cell's waveform at every sub-sample shift, on the channels that it touches.

    channels: the stretch of channels from the first to the last touched
    stack: (SUBSAMPLES, D, n) float32, later by -1/2, -1/2 + 1/SUBSAMPLES, ... samples; deepest trough -1
    """

    channels: slice
    stack: np.ndarray

    def scaled(self, factor: float) -> Waveform:
        return Waveform(self.channels, self.stack * np.float32(factor))

    def template(self, n_channels: int) -> np.ndarray:
        """(n_channels, D) the waveform that is not shifted."""
        out = np.zeros((n_channels, self.stack.shape[1]), np.float32)
        out[self.channels] = self.stack[SUBSAMPLES // 2].T
        return out


@dataclass(frozen=True)
class Shape:
    """Current of an action potential: a sharp sink, a slower return, a small source before. Widths and times in ms."""

    width: float
    return_size: float
    return_time: float
    return_width: float
    before_size: float

    def __call__(self, t: np.ndarray, slow: np.ndarray | float = 1.0) -> np.ndarray:
        """Current at times t (ms) after the sink's peak, all of it slower by a factor."""
        t = t / slow
        sink = -np.exp(-0.5 * (t / self.width) ** 2)
        late = self.return_size * np.exp(-0.5 * ((t - self.return_time) / self.return_width) ** 2)
        return sink + late + self.before_size * np.exp(-0.5 * ((t + 2.2 * self.width) / self.width) ** 2)


@dataclass(frozen=True)
class Cell:
    """Where a cell's sources are, (M, 3) um from the soma, which is first, and what current each carries."""

    sources: np.ndarray
    weights: np.ndarray
    delays_ms: np.ndarray
    slowness: np.ndarray
    shape: Shape

    def field(self, contacts: np.ndarray, t: np.ndarray) -> np.ndarray:
        """(n, len(t)) voltage at contacts (n, 3) at times t (ms), in arbitrary units."""
        distance = np.linalg.norm(contacts[:, None] - self.sources[None], axis=2)  # (n, M)
        currents = self.weights[:, None] * self.shape(t[None] - self.delays_ms[:, None], self.slowness[:, None])  # (M, D)
        return (np.exp(-distance / REACH_UM) / np.maximum(distance, SOMA_UM)) @ currents


def draw_cell(rng: np.random.Generator) -> Cell:
    """A random cell: narrow or broad spike, dendrites in random directions, the first (apical) the longest."""
    width = rng.uniform(0.055, 0.13)
    shape = Shape(width, rng.uniform(0.15, 0.45), rng.uniform(3.5, 5.5) * width, rng.uniform(1.4, 2.4) * width, rng.uniform(0.0, 0.12))
    directions = rng.standard_normal((BRANCHES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = np.where(np.arange(BRANCHES) == 0, rng.uniform(100, 220), rng.uniform(40, 100, BRANCHES))
    along = (np.arange(PER_BRANCH) + 0.7) / PER_BRANCH
    reach = lengths[:, None] * along  # (branches, per branch)
    sources = np.concatenate([np.zeros((1, 3)), (reach[..., None] * directions[:, None]).reshape(-1, 3)])
    share = rng.uniform(0.5, 1.5, (BRANCHES, 1)) * np.exp(-1.2 * along)
    speed_um_per_ms = rng.uniform(400, 900)
    delays = np.concatenate([[0.0], reach.ravel() / speed_um_per_ms])
    slowness = np.concatenate([[1.0], 1.0 + 0.003 * reach.ravel()])
    weights = -share.ravel() / share.sum() / slowness[1:]  # all the charge comes back; slower means smaller
    return Cell(sources, np.concatenate([[1.0], weights]), delays, slowness, shape)


@dataclass(frozen=True)
class Neuron:
    """A cell in its place: its soma (3,) in um, the shank that sees it, and the scale and time at which its trough is -1 at 0 ms."""

    cell: Cell
    soma: np.ndarray
    shank: int
    scale: float
    peak_ms: float

    def waveform(self, probe: Probe, fs: float, moved_um: float = 0.0) -> Waveform:
        """What the probe records of it, with the tissue moved along the probe towards larger depth."""
        mine = np.flatnonzero(probe.shank == self.shank)
        contacts = np.column_stack([probe.positions_um[mine], np.zeros(len(mine))]) - self.soma - [0.0, moved_um, 0.0]
        trough, length = template_size(fs)
        shifts = np.arange(SUBSAMPLES) / SUBSAMPLES - 0.5
        times = (np.arange(length)[None] - trough - shifts[:, None]) * 1e3 / fs + self.peak_ms  # (SUBSAMPLES, D)
        wave = self.cell.field(contacts, times.ravel()).reshape(len(mine), *times.shape) * fade(length) * self.scale
        touched = np.abs(wave).max(axis=(1, 2)) >= SMALLEST
        touched[np.abs(wave).max(axis=(1, 2)).argmax()] = True
        channels = slice(int(mine[touched].min()), int(mine[touched].max()) + 1)
        stack = np.zeros((SUBSAMPLES, length, channels.stop - channels.start), np.float32)
        stack[:, :, mine[touched] - channels.start] = wave[touched].transpose(1, 2, 0)
        return Waveform(channels, stack)


def draw_neuron(rng: np.random.Generator, probe: Probe, home: int) -> Neuron:
    """A random cell near contact `home`, seen by that contact's shank only."""
    cell = draw_cell(rng)
    soma = np.append(probe.positions_um[home] + rng.normal(0, 9, 2), rng.uniform(12, 30))
    shank = int(probe.shank[home])
    contacts = np.column_stack([probe.positions_um[probe.shank == shank], np.zeros((probe.shank == shank).sum())]) - soma
    fine = np.arange(-0.5, 0.5, 0.002)
    near = cell.field(contacts, fine)
    return Neuron(cell, soma, shank, float(-1 / near.min()), float(fine[near.min(axis=0).argmin()]))


def fade(length: int) -> np.ndarray:
    """(length,) window that takes a waveform to zero at both ends."""
    edge = max(length // 8, 1)
    window = np.ones(length)
    window[:edge] = np.sin(0.5 * np.pi * np.arange(edge) / edge) ** 2
    window[-edge:] = window[:edge][::-1]
    return window
