"""Calcium movies whose cells, spikes and motion are known.

    clean(t, p) = bleach(t) [ rest(p) + sum_k brightness_k footprint_k(p) (1 + dff_k(t)) + sum_r field_r(p) course_r(t) ]
    movie = gain x photons, photons ~ Poisson(clean / gain)

Cells are discs with a dark nucleus and a soft rim, at places drawn at random, so that some overlap; the dF/F of each is that of
`simulate_calcium`. Neuropil is a few smooth fields whose courses wander. The tissue may shift from frame to frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sortcore.errors import ConfigError
from sortcore.optical.indicator import Indicator
from sortcore.optical.simulate import Firing, Noise, ornstein_uhlenbeck, simulate_calcium
from sortcore.settings import Checked, setting

FIRING = Firing(rate_hz=0.5, fluctuation=0.7, bursting=0.2)
SILENT = Noise(0.0, 0.0)
TRIES = 200  # places drawn for a cell, of which the first that is far enough from the others is taken
PIECE = 256  # frames made at once
MARGIN = 4.0  # standard deviations of motion around the picture


@dataclass(frozen=True)
class Scene(Checked):
    """What a movie shows. Brightness is in the movie's units, in which a photon counts `gain`."""

    radius_px: float = setting(5.0, "mean radius of a cell", "px", 1.0, 100.0)
    nucleus: float = setting(0.6, "how much darker the middle of a cell is than its rim", "", 0.0, 1.0)
    distance_px: float = setting(6.0, "least distance of two cells' centres, where there is room", "px", 0.0)
    brightness: float = setting(100.0, "mean brightness of a resting cell", "", 0.0)
    rest: float = setting(100.0, "mean brightness of all else at rest", "", 0.0)
    neuropil: float = setting(10.0, "standard deviation of the neuropil over time", "", 0.0)
    neuropil_fields: int = setting(3, "fields of the neuropil", "", 0, 50)
    neuropil_px: float = setting(15.0, "size of the neuropil's fields", "px", 1.0)
    neuropil_s: float = setting(1.0, "time over which the neuropil wanders", "s", 0.01)
    bleaching: float = setting(0.1, "share of the light that is lost by the end", "", 0.0, 0.99)
    gain: float = setting(2.0, "what a photon counts; the variance of the noise is so many times the brightness", "", 0.0)
    motion_px: float = setting(0.0, "standard deviation of the tissue's shift along each axis", "px", 0.0, 100.0)
    motion_s: float = setting(0.2, "time over which the tissue moves", "s", 1e-3)


@dataclass(frozen=True)
class MovieSimulation:
    """A movie and its truth: K cells, T frames of H x W pixels.

    movie: (T, H, W) uint16
    fs: frames per second
    footprints: (K, H, W) float32, peak 1
    dff: (K, T) noiseless dF/F of each cell
    brightness: (K,) of the resting cell at its peak, before bleaching
    spike_times_s: K arrays of increasing times, 0 being the instant of the first frame
    counts: (K, T) spikes of each frame
    shifts: (T, 2) rows and columns by which the tissue is displaced in each frame
    """

    movie: np.ndarray
    fs: float
    footprints: np.ndarray
    dff: np.ndarray
    brightness: np.ndarray
    spike_times_s: tuple[np.ndarray, ...]
    counts: np.ndarray
    shifts: np.ndarray


SCENE, INDICATOR = Scene(), Indicator()


def simulate_movie(n_cells: int, seconds: float, fs: float, shape: tuple[int, int] = (64, 64), *, scene: Scene = SCENE,
                   indicator: Indicator = INDICATOR, firing: Firing = FIRING, seed: int = 0,
                   out: np.ndarray | None = None) -> MovieSimulation:
    """A movie of so many cells and seconds; the same arguments give the same bytes.

    shape: (H, W); out: (T, H, W) uint16 that takes the movie, e.g. a memory map
    Raises ConfigError for arguments out of range.
    """
    H, W = shape
    if H < 4 or W < 4:
        raise ConfigError(f"A picture needs at least 4 x 4 pixels, but shape is {shape}.")
    traces = simulate_calcium(n_cells, seconds, fs, indicator=indicator, firing=firing, noise=SILENT, seed=seed)
    T = traces.traces.shape[1]
    placing, lighting, moving, counting = (np.random.default_rng(s) for s in np.random.SeedSequence([seed, 1]).spawn(4))
    edge = int(np.ceil(MARGIN * scene.motion_px)) + (2 if scene.motion_px else 0)
    wide = draw_cells(placing, n_cells, (H, W), edge, scene)
    brightness = lighting.uniform(0.6, 1.4, n_cells) * scene.brightness
    rest = scene.rest * (0.5 + smooth_field(lighting, (H + 2 * edge, W + 2 * edge), scene.neuropil_px))
    fields = [smooth_field(lighting, rest.shape, scene.neuropil_px) for _ in range(scene.neuropil_fields)]
    courses = [scene.neuropil * ornstein_uhlenbeck(lighting, T, 1 / (fs * scene.neuropil_s)) for _ in fields]
    shifts = np.stack([scene.motion_px * ornstein_uhlenbeck(moving, T, 1 / (fs * scene.motion_s)) for _ in range(2)], axis=1)
    shifts = np.clip(shifts, -MARGIN * scene.motion_px, MARGIN * scene.motion_px)
    light = np.concatenate([brightness[:, None] * (1 + traces.calcium), np.reshape(courses, (-1, T)), np.ones((1, T))])
    things = np.concatenate([wide, np.reshape(fields, (-1, *rest.shape)), rest[None]]).astype(np.float32)
    bleached = 1 - scene.bleaching * np.arange(T) / max(T - 1, 1)
    movie = np.empty((T, H, W), np.uint16) if out is None else out
    if movie.shape != (T, H, W):
        raise ConfigError(f"out must have the shape {(T, H, W)}, but it has {movie.shape}.")
    for start in range(0, T, PIECE):
        part = slice(start, min(start + PIECE, T))
        clean = bleached[part, None, None] * np.tensordot(light[:, part].T.astype(np.float32), things, 1)
        if edge:
            clean = np.stack([displaced(frame, shift, edge) for frame, shift in zip(clean, shifts[part], strict=True)])
        clean = np.maximum(clean, 0)
        movie[part] = np.clip(np.round(scene.gain * counting.poisson(clean / scene.gain) if scene.gain else clean), 0, 65535)
    inside = wide[:, edge : edge + H, edge : edge + W]
    peak = np.maximum(inside.max(axis=(1, 2)), 1e-12) if n_cells else np.zeros(0)
    return MovieSimulation(movie, float(fs), (inside / peak[:, None, None]).astype(np.float32), traces.calcium, brightness * peak,
                           traces.spike_times_s, traces.counts, shifts)


def draw_cells(rng: np.random.Generator, n_cells: int, shape: tuple[int, int], edge: int, scene: Scene) -> np.ndarray:
    """(K, H + 2 edge, W + 2 edge) footprints, none with its centre nearer to the picture's rim than a third of its radius."""
    rows, columns = np.mgrid[-edge : shape[0] + edge, -edge : shape[1] + edge]
    centres: list[np.ndarray] = []
    cells = np.zeros((n_cells, *rows.shape))
    for k in range(n_cells):
        radius = scene.radius_px * rng.uniform(0.8, 1.2)
        places = rng.uniform(radius / 3, np.array(shape) - 1 - radius / 3, (TRIES, 2))
        far = [min((np.hypot(*(place - c)) for c in centres), default=np.inf) for place in places]
        centre = next((p for p, d in zip(places, far, strict=True) if d >= scene.distance_px), places[int(np.argmax(far))])
        centres.append(centre)
        stretch, turn = rng.uniform(0.8, 1.25), rng.uniform(0, np.pi)
        y, x = rows - centre[0], columns - centre[1]
        along, across = y * np.cos(turn) + x * np.sin(turn), x * np.cos(turn) - y * np.sin(turn)
        away = np.hypot(along / stretch, across * stretch) / radius
        cells[k] = rim(away, 1.0) - scene.nucleus * rim(away, 0.5)
    cells[cells < 0.02] = 0
    return cells / np.maximum(cells.max(axis=(1, 2), keepdims=True), 1e-12) if n_cells else cells


def rim(away: np.ndarray, radius: float) -> np.ndarray:
    """1 within a radius, 0 beyond, soft between."""
    return 1 / (1 + np.exp(np.minimum((away - radius) / 0.08, 50)))


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], size_px: float) -> np.ndarray:
    """A smooth picture, 0 or more, with mean 0.5."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), min(size_px, min(shape) / 4), mode="wrap")
    field = np.exp(0.5 * (field - field.mean()) / field.std())
    return 0.5 * field / field.mean()


def displaced(frame: np.ndarray, shift: np.ndarray, edge: int) -> np.ndarray:
    """The middle of a frame, displaced by so many rows and columns."""
    moved = ndimage.shift(frame, shift, order=3, mode="nearest")
    return moved[edge:-edge, edge:-edge]
