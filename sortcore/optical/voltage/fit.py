"""One voltage trace: what its noise, its spikes and their waveform are, each found in turn with the others known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sortcore.optical.traces import filled
from sortcore.optical.voltage.evidence import Neuron, best_height, best_spread, frame_ratios
from sortcore.optical.voltage.filter import WITHIN_S, Found, MatchedFilter, find_spikes, frames_within, matched_filter, placed, score_spread
from sortcore.optical.voltage.guess import first_guess
from sortcore.optical.voltage.history import prior_log_odds
from sortcore.optical.voltage.learning import relearned
from sortcore.optical.voltage.network import FilterView, load_voltage_network, network_expected, picked
from sortcore.optical.voltage.noise import FEWEST_FRAMES, Noise, baseline, measure_noise, without_spikes
from sortcore.optical.voltage.steps import without_steps
from sortcore.optical.voltage.waveform import Grid, exposure

ROUNDS = 2  # of the coordinate ascent
FACTORS = np.array([0.85, 0.93, 1.0, 1.08, 1.18])
LOST_S = 0.003  # no spike is looked for so shortly before a missing frame
IMPOSSIBLE = -1e3


@dataclass(frozen=True)
class Fitted:
    """One trace, understood.

    whole: (T,) without baseline, spikes upwards, missing frames filled; x: (T,) the same without sudden steps
    missing: (T,) bool; slow: (T,) the baseline
    log_prior: (T,) log odds of a spike in each frame before the frame is looked at
    """

    whole: np.ndarray
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
    measured = measure_noise(y - slow, grid.fs, missing)
    if not np.isfinite(measured.spectrum).all() or measured.white <= 0:
        return None
    neuron, noise = first_guess(y - slow, grid, measured)
    matched = matched_filter(neuron.fine, grid, noise)
    x = without_steps(y - slow, neuron, matched, noise)
    prior = np.full(len(y), np.log(neuron.rate_hz / grid.fs))
    shape, fit = neuron.fine, pursued(Fitted(y - slow, x, missing, slow, noise, neuron, matched, Found.none(grid.P, len(y)), prior))
    for _ in range(ROUNDS):
        fit = pursued(with_history(learned(fit, shape)))
    return pursued(with_history(fit))


def pursued(fit: Fitted) -> Fitted:
    """The trace with its spikes, all else known."""
    prior = np.where(lost(fit.missing, fit.matched.grid.fs), IMPOSSIBLE, fit.log_prior)
    scores = fit.matched.scores(fit.noise.decorrelated(fit.x))
    return replace(fit, found=find_spikes(scores, fit.matched, fit.neuron.rho, prior))


def with_history(fit: Fitted) -> Fitted:
    """The trace with what its spikes say of each other."""
    fs = fit.matched.grid.fs
    return replace(fit, log_prior=prior_log_odds(fit.found.expected, fs, fit.neuron.rate_hz, 2 * frames_within(WITHIN_S, fs)))


def learned(fit: Fitted, shape: np.ndarray) -> Fitted:
    """The trace with waveform, noise, height and spread learned anew, its spikes being known; shape (F,): the waveform first guessed."""
    grid = fit.matched.grid
    neuron = relearned(fit.neuron, fit.noise.decorrelated(fit.x), fit.found, fit.matched, fit.noise, shape)
    noise = noise_left(fit, neuron)
    z, matched = noise.decorrelated(fit.x), matched_filter(neuron.fine, grid, noise)
    neuron = best_height(neuron.fine, matched, matched.scores(z), FACTORS, neuron.rho, neuron.rate_hz)
    matched = matched_filter(neuron.fine, grid, noise)
    return replace(fit, noise=noise, matched=matched, neuron=best_spread(neuron, matched, matched.scores(z)))


def noise_left(fit: Fitted, neuron: Neuron) -> Noise:
    """Noise of a trace less its spikes. What spikes that were not subtracted add, and those that were none took, is known in the mean."""
    grid, T = fit.matched.grid, len(fit.x)
    templates, n = exposure(grid) @ neuron.fine, int(fit.found.subtracted.sum())
    rest = fit.x - spike_part(fit.found, templates, grid, T)
    noise = without_spikes(measure_noise(rest, grid.fs, fit.missing), templates, neuron.rate_hz / grid.fs - n / T)
    return noise.scaled(score_spread(matched_filter(neuron.fine, grid, noise), noise.decorrelated(rest)))


def by_network(fit: Fitted) -> Fitted:
    """The trace with the spikes that the network finds; phases and amplitudes are the filter's."""
    grid, found = fit.matched.grid, fit.found
    possible = ~lost(fit.missing, grid.fs)
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


def spike_part(found: Found, templates: np.ndarray, grid: Grid, n_frames: int, kept: np.ndarray | None = None) -> np.ndarray:
    """(T,) the spikes that were subtracted, or those kept (S,), as templates (P, L) make them."""
    L = templates.shape[1]
    out = np.zeros(n_frames + 2 * L)
    which = found.subtracted if kept is None else kept
    for n, p, a in zip(found.frames[which], found.phases[which], found.amplitudes[which], strict=True):
        first = n - grid.before + L
        out[first : first + L] += a * templates[p]
    return out[L : L + n_frames]


def lost(missing: np.ndarray, fs: float) -> np.ndarray:
    """(T,) frames at which a spike would show in a missing frame."""
    out = missing.copy()
    for k in range(1, frames_within(LOST_S, fs) + 1):
        out[:-k] |= missing[k:]
    return out
