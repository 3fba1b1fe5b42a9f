"""A first guess of what a trace's spikes are like, from nothing but the trace."""

from __future__ import annotations

import numpy as np

from sortcore.optical.voltage.evidence import RATE_HZ, Neuron, best_height
from sortcore.optical.voltage.filter import matched_filter
from sortcore.optical.voltage.noise import Noise, measure_noise, without_spikes
from sortcore.optical.voltage.waveform import DECAYS_S, Grid, exposure, generic

DETECTABILITIES = np.array([1.7, 2.2, 2.8, 3.5, 4.3, 5.3, 6.6, 8.5, 12.0, 18.0, 30.0])
NEAR, NEARER = np.array([0.8, 1.0, 1.25]), np.array([0.82, 0.91, 1.0, 1.1, 1.2])
START_RHO = 0.15
USUAL = 1  # of the decays
LOOK_S, GUESS_S = 20.0, 60.0  # of the trace that is looked at for a first idea, and for the guess


def first_guess(x: np.ndarray, grid: Grid, measured: Noise) -> tuple[Neuron, Noise]:
    """The generic spike whose decay, height and rate explain a trace (T,) best, and the noise that it leaves.

    measured: noise of the trace, spikes included; what the guess explains is taken off and the guess made again
    """
    usual = [generic(grid, DECAYS_S[USUAL])]
    best = best_of(middle_of(x, int(LOOK_S * grid.fs)), usual, grid, measured, DETECTABILITIES, None)
    x = middle_of(x, int(GUESS_S * grid.fs))
    shapes = [generic(grid, decay) for decay in DECAYS_S]
    for tried, factors in ((shapes, NEAR), (shapes, NEAR), (None, NEARER)):
        noise = less_explained(measured, best, grid)
        d = matched_filter(best.fine, grid, noise).d
        best = best_of(x, tried or [best.fine], grid, noise, d * factors, best.rate_hz)
    return best, less_explained(measured, best, grid)


def best_of(x: np.ndarray, shapes: list[np.ndarray], grid: Grid, noise: Noise, detectabilities: np.ndarray,
            near_hz: float | None) -> Neuron:
    """Of waveforms (F,), each at heights that make it so detectable, the one that explains a trace (T,) best."""
    z, found = noise.decorrelated(x), []
    for fine in shapes:
        matched = matched_filter(fine, grid, noise)
        found.append(best_height(fine, matched, matched.scores(z), detectabilities / matched.d, START_RHO, near_hz))
    return max(found, key=lambda neuron: neuron.evidence)


def less_explained(measured: Noise, neuron: Neuron, grid: Grid) -> Noise:
    """The noise of a trace, measured with its spikes, without them."""
    return without_spikes(measured, exposure(grid) @ neuron.fine, neuron.rate_hz / grid.fs)


def middle_of(x: np.ndarray, n_frames: int) -> np.ndarray:
    """At most n_frames from the middle of a trace (T,)."""
    first = max(0, (len(x) - n_frames) // 2)
    return x[first : first + n_frames]


def points_down(x: np.ndarray, grid: Grid) -> float:
    """By how many nats more spikes that go down explain a trace (T,) than spikes that go up."""
    x = middle_of(x, int(LOOK_S * grid.fs))
    noise, fine = measure_noise(x, grid.fs), generic(grid, DECAYS_S[1])
    if noise.white <= 0:
        return 0.0
    matched = matched_filter(fine, grid, noise)
    scores, heights = matched.scores(noise.decorrelated(x)), DETECTABILITIES[1::2] / matched.d
    up, down = (best_height(fine, matched, sign * scores, heights, START_RHO, RATE_HZ).evidence for sign in (1, -1))
    return down - up
