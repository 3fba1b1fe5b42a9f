"""One voltage trace: what its noise, its spikes and their waveform are, each found in turn with the others known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sortcore.optical.voltage_evidence import Neuron, best_height, best_spread, frame_ratios
from sortcore.optical.voltage_filter import WITHIN_S, Found, MatchedFilter, find_spikes, frames_within, matched_filter, placed, score_spread
from sortcore.optical.voltage_guess import first_guess
from sortcore.optical.voltage_history import prior_log_odds
from sortcore.optical.voltage_learning import relearned
from sortcore.optical.voltage_network import FilterView, load_voltage_network, network_expected, picked
from sortcore.optical.voltage_noise import FEWEST_FRAMES, Noise, baseline, filled, measure_noise, without_spikes
from sortcore.optical.voltage_steps import without_steps
from sortcore.optical.voltage_waveform import Grid, exposure

ROUNDS = 2  # of the coordinate ascent
FACTORS = np.array([0.85, 0.93, 1.0, 1.08, 1.18])
LOST_S = 0.003  # no spike is looked for so shortly before a missing frame
IMPOSSIBLE = -1e3


@dataclass(frozen=True)
class Fitted:
    """One trace, understood.

    x: (T,) without baseline, spikes upwards, missing frames filled; missing: (T,) bool
    """

    x: np.ndarray
    missing: np.ndarray
    slow: np.ndarray
    noise: Noise
    neuron: Neuron
    matched: MatchedFilter
    found: Found
    log_prior: np.ndarray


def fit_trace(y: np.ndarray, grid: Grid) -> Fitted | None:
    """Coordinate ascent on one trace (T,) whose spikes go up; None where it tells nothing."""
    missing = np.isnan(y)
    if (~missing).sum() < FEWEST_FRAMES or np.ptp(y[~missing]) == 0:
        return None
    y = filled(y)
    slow = baseline(y, grid.fs)
    x, impossible = y - slow, _lost(missing, grid.fs)
    measured = measure_noise(x, grid.fs, missing)
    if not np.isfinite(measured.spectrum).all() or measured.white <= 0:
        return None
    neuron, noise = first_guess(x, grid, measured)
    x = without_steps(x, neuron, matched_filter(neuron.fine, grid, noise), noise)
    shape, prior = neuron.fine, np.full(len(x), np.log(neuron.rate_hz / grid.fs))
    matched, z, found = _pursued(x, neuron, noise, grid, prior, impossible)
    for _ in range(ROUNDS):
        neuron = relearned(neuron, z, found, matched, noise, shape)
        noise = _noise_left(x, missing, neuron, found, grid)
        matched = matched_filter(neuron.fine, grid, noise)
        scores = matched.scores(noise.decorrelated(x))
        neuron = best_height(neuron.fine, matched, scores, FACTORS, neuron.rho, neuron.rate_hz)
        matched = matched_filter(neuron.fine, grid, noise)
        neuron = best_spread(neuron, matched, matched.scores(noise.decorrelated(x)))
        prior = prior_log_odds(found.expected, grid.fs, neuron.rate_hz, 2 * frames_within(WITHIN_S, grid.fs))
        matched, z, found = _pursued(x, neuron, noise, grid, prior, impossible)
    prior = prior_log_odds(found.expected, grid.fs, neuron.rate_hz, 2 * frames_within(WITHIN_S, grid.fs))
    matched, z, found = _pursued(x, neuron, noise, grid, prior, impossible)
    return Fitted(x, missing, slow, noise, neuron, matched, found, prior)


def by_network(fit: Fitted) -> Fitted:
    """The trace with the spikes that the network finds; phases and amplitudes are the filter's."""
    grid, found = fit.matched.grid, fit.found
    possible = ~_lost(fit.missing, grid.fs)
    expected = np.where(possible, network_expected(filter_view(fit), grid.fs, load_voltage_network()), 0.0)
    frames, p = picked(expected, grid.fs, possible)
    phases, amplitudes = placed(found, fit.matched, fit.neuron.rho, frames)
    return replace(fit, found=Found(frames, phases, amplitudes, np.log(p / (1 - p)), p > 0.5, expected, found.residual))


def filter_view(fit: Fitted) -> FilterView:
    """What the network looks at."""
    scores = fit.matched.scores(fit.noise.decorrelated(fit.x))
    ratios = frame_ratios(scores, fit.matched.energies, fit.neuron.rho**-2)
    log_odds = np.log(np.maximum(ratios, 1e-30)) + fit.log_prior
    return FilterView(fit.x, fit.noise.sd, fit.matched.d, log_odds, fit.log_prior, fit.found.expected)


def _pursued(x: np.ndarray, neuron: Neuron, noise: Noise, grid: Grid, prior: np.ndarray,
             impossible: np.ndarray) -> tuple[MatchedFilter, np.ndarray, Found]:
    matched, z = matched_filter(neuron.fine, grid, noise), noise.decorrelated(x)
    return matched, z, find_spikes(matched.scores(z), matched, neuron.rho, np.where(impossible, IMPOSSIBLE, prior))


def _noise_left(x: np.ndarray, missing: np.ndarray, neuron: Neuron, found: Found, grid: Grid) -> Noise:
    """Noise of a trace less its spikes. What spikes that were not subtracted add, and those that were none took, is known in the mean."""
    templates, n = exposure(grid) @ neuron.fine, int(found.subtracted.sum())
    rest = x - spike_part(found, templates, grid, len(x))
    noise = without_spikes(measure_noise(rest, grid.fs, missing), templates, neuron.rate_hz / grid.fs - n / len(x))
    return noise.scaled(score_spread(matched_filter(neuron.fine, grid, noise), noise.decorrelated(rest)))


def spike_part(found: Found, templates: np.ndarray, grid: Grid, n_frames: int, kept: np.ndarray | None = None) -> np.ndarray:
    """(T,) the spikes that were subtracted, or those kept (S,), as templates (P, L) make them."""
    L = templates.shape[1]
    out = np.zeros(n_frames + 2 * L)
    which = found.subtracted if kept is None else kept
    for n, p, a in zip(found.frames[which], found.phases[which], found.amplitudes[which], strict=True):
        first = n - grid.before + L
        out[first : first + L] += a * templates[p]
    return out[L : L + n_frames]


def _lost(missing: np.ndarray, fs: float) -> np.ndarray:
    """(T,) frames at which a spike would show in a missing frame."""
    out = missing.copy()
    for k in range(1, frames_within(LOST_S, fs) + 1):
        out[:-k] |= missing[k:]
    return out
