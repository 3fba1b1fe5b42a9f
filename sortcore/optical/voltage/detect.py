"""Spikes and subthreshold potential from voltage imaging.

    y_t = baseline_t + v_t + sum_i a_i w(t - t_i) + e_t

This is the model of `sortcore.model` with one footprint per cell, in the case of separated spikes: the amplitudes are found by a
matched filter and the waveform w is learned from the trace's own spikes, in turns (the adaptive matched filter of VolPy, Cai et
al., PLoS Comput Biol 2021, as a maximum-likelihood method). What is not known is marginalised rather than chosen: where in a frame
a spike falls, how high it is, whether there is one. So every spike comes with a probability, and they say how many are missed.

For each trace: baseline, noise, first guess of the spike; rounds of pursuit, waveform and noise; and what spikes say of each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sortcore.errors import ConfigError, ModelError
from sortcore.optical.traces import filled
from sortcore.optical.voltage.decision import balanced_threshold, expected_quality, noise_threshold
from sortcore.optical.voltage.fit import Fitted, by_network, fit_trace, spike_part
from sortcore.optical.voltage.guess import points_down
from sortcore.optical.voltage.noise import FEWEST_FRAMES, baseline
from sortcore.optical.voltage.waveform import Grid, grid_at
from sortcore.progress import Track, silent
from sortcore.types import Spikes
from sortcore.workers import in_order

LEAST_FS = 100.0
METHODS, DEFAULT = ("auto", "filter", "network"), "network"
POLARITIES = ("auto", "up", "down")
POLARITY_TRACES = 8  # that tell which way spikes go
LEAST_PROBABILITY, LEAST_UNSHOWN = 0.2, 0.5  # of a spike: where a trace shows by so much that it has any, and where not
SHOWN_NATS = 10.0


@dataclass(frozen=True)
class VoltageResult:
    """Spikes and potential of N traces of T frames. N is 1 for one trace given as (T,), and arrays (N, T) are then (T,).

    spikes: in order of time; units are traces, `samples` + `shifts` frames from the start of frame 0, amplitudes in standard
        deviations of the matched filter's noise, scores log odds
    probabilities: (S,) of each spike to be one
    subthreshold: (N, T) float32 potential without spikes, about the baseline, in the trace's units; NaN where frames are missing
    baseline: (N, T) float32 slow course, same units
    waveforms: (N, F) spike of mean height, same units, at `waveform_times_s` (F,) from its peak
    noise: (N,) standard deviation of a frame about the subthreshold potential, same units
    detectability: (N,) mean score of a spike over the score's standard deviation in noise (d')
    amplitude_spread: (N,) standard deviation of heights over their mean
    rate_hz: (N,) spikes per second, those not found included
    thresholds: (N,) log odds from which a candidate is a spike
    precision, recall: (N,) as the probabilities lead to expect them
    polarity: 1 where spikes go up, -1 where they go down; method: "filter" or "network"
    A trace that is constant, missing, or shorter than 32 frames has no spikes, and NaN for its numbers.
    """

    spikes: Spikes
    probabilities: np.ndarray
    subthreshold: np.ndarray
    baseline: np.ndarray
    waveforms: np.ndarray
    waveform_times_s: np.ndarray
    noise: np.ndarray
    detectability: np.ndarray
    amplitude_spread: np.ndarray
    rate_hz: np.ndarray
    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    polarity: int
    method: str
    fs: float

    @property
    def n_traces(self) -> int:
        return len(self.noise)

    @property
    def times_s(self) -> np.ndarray:
        """(S,) spike times in seconds from the start of frame 0."""
        return (self.spikes.samples + self.spikes.shifts.astype(np.float64)) / self.fs

    def trains(self) -> list[np.ndarray]:
        """N arrays of increasing times in seconds, as `sortcore.metrics` takes them."""
        times = self.times_s
        return [np.sort(times[self.spikes.units == k]) for k in range(self.n_traces)]


def detect_voltage_spikes(traces: np.ndarray, fs: float, *, method: str = "auto", polarity: str = "auto",
                          false_alarm_hz: float | None = None, min_probability: float | None = None,
                          track: Track = silent) -> VoltageResult:
    """Spikes of voltage imaging traces, with their probabilities, and the potential below them.

    traces: (N, T) or (T,), any units, any real dtype, NaN where frames are missing; may be a memory map
    fs: frames per second, at least 100
    method: "filter", the adaptive matched filter, or "network", which corrects it; "auto" is the network, which finds more
        (benchmarks), and the filter where a rate of false alarms is asked for
    polarity: "up" or "down", the way in which spikes go (of some indicators light falls as voltage rises); "auto" finds it out
    false_alarm_hz: rate at which noise alone may pass for a spike, per trace; by default the threshold balances precision and recall
    min_probability: threshold on the probability, instead of either
    track: progress, see `sortcore.progress`
    Raises ModelError for traces that are not 1-D or 2-D real numbers or infinite, ConfigError for fs or settings out of range.
    """
    traces = np.asanyarray(traces)
    _check(traces, fs, method, polarity, false_alarm_hz, min_probability)
    many = traces if traces.ndim == 2 else traces[None]
    grid = grid_at(float(fs))
    sign = {"up": 1, "down": -1}[polarity] if polarity != "auto" else _polarity(many, grid)

    method = chosen_method(method, false_alarm_hz)

    def one(k: int) -> Fitted | None:
        fitted = fit_trace(sign * _row(many, k), grid)
        return by_network(fitted) if fitted is not None and method == "network" else fitted

    out = _Collected(many.shape, grid, sign, method)
    for k, fitted in enumerate(track(in_order(one, range(len(many))), "voltage", len(many))):
        if fitted is not None:
            out.add(k, fitted, false_alarm_hz, min_probability)
    return out.result(single=traces.ndim == 1)


def chosen_method(method: str, false_alarm_hz: float | None) -> str:
    """What "auto" stands for."""
    if method == "network" and false_alarm_hz is not None:
        raise ConfigError("What noise alone does is known of the filter, not of the network; leave out false_alarm_hz, or take the filter.")
    if method != "auto":
        return method
    return "filter" if false_alarm_hz is not None else DEFAULT


class _Collected:
    """The result while traces come in."""

    def __init__(self, shape: tuple[int, int], grid: Grid, sign: int, method: str) -> None:
        N = shape[0]
        self.grid, self.sign, self.method = grid, sign, method
        self.subthreshold, self.slow = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
        self.waveforms, self.numbers = np.full((N, grid.n_points), np.nan), np.full((N, 7), np.nan)
        self.spikes: list[Spikes] = []
        self.probabilities: list[np.ndarray] = []

    def add(self, k: int, fit: Fitted, false_alarm_hz: float | None, min_probability: float | None) -> None:
        found, grid, p = fit.found, self.grid, fit.found.probabilities
        n_expected = float(found.expected.sum())
        threshold, score = _threshold(fit, n_expected, false_alarm_hz, min_probability)
        kept = score >= threshold
        rest = fit.whole - spike_part(found, fit.matched.templates, grid, len(fit.x), kept)
        self.subthreshold[k] = np.where(fit.missing, np.nan, self.sign * fit.noise.smoothed(rest))
        self.slow[k] = self.sign * fit.slow
        self.waveforms[k] = self.sign * fit.neuron.fine
        self.numbers[k] = (fit.noise.sd, fit.matched.d, fit.neuron.rho, n_expected / (~fit.missing).sum() * grid.fs, threshold,
                           *expected_quality(p, kept, n_expected))
        sd = np.sqrt(fit.matched.energies[found.phases[kept]])
        self.spikes.append(Spikes(found.frames[kept], ((found.phases[kept] + 0.5) / grid.P).astype(np.float32), np.full(kept.sum(), k),
                                  (found.amplitudes[kept] * sd).astype(np.float32), found.log_odds[kept].astype(np.float32)))
        self.probabilities.append(p[kept])

    def result(self, single: bool) -> VoltageResult:
        spikes, p = Spikes.concatenate(self.spikes), np.concatenate([np.zeros(0), *self.probabilities])
        order = np.lexsort((spikes.units, spikes.shifts, spikes.samples))
        arrays = (self.subthreshold, self.slow)
        below, slow = (array[0] for array in arrays) if single else arrays
        noise, d, rho, rate, threshold, precision, recall = self.numbers.T
        return VoltageResult(spikes.select(order), p[order], below, slow, self.waveforms, self.grid.times_s, noise, d, rho, rate,
                             threshold, precision, recall, self.sign, self.method, self.grid.fs)


def _threshold(fit: Fitted, n_expected: float, false_alarm_hz: float | None, min_probability: float | None) -> tuple[float, np.ndarray]:
    """Log odds from which candidates are spikes, and what of each candidate (S,) is compared with it."""
    found = fit.found
    if false_alarm_hz is not None:  # of noise alone, so what is known of other spikes does not count
        usual = np.log(fit.neuron.rate_hz / fit.matched.grid.fs)
        level = noise_threshold(fit.matched, fit.noise, fit.neuron.rho, false_alarm_hz)
        return level + usual, found.log_odds - fit.log_prior[found.frames] + usual
    least = LEAST_PROBABILITY if fit.neuron.evidence > SHOWN_NATS else LEAST_UNSHOWN
    p = balanced_threshold(found.probabilities, n_expected, least) if min_probability is None else min_probability
    if not np.isfinite(p):
        return np.inf, found.log_odds
    return float(np.log(max(p, 1e-12) / max(1 - p, 1e-12))) - 1e-9, found.log_odds


def _row(many: np.ndarray, k: int) -> np.ndarray:
    y = np.array(many[k], dtype=np.float64)
    if np.isinf(y).any():
        raise ModelError(f"Trace {k} holds infinite values; mark missing frames with NaN.")
    return y


def _polarity(many: np.ndarray, grid: Grid) -> int:
    """-1 where most of the evidence is for spikes that go down."""
    evidence = 0.0
    for k in np.unique(np.linspace(0, len(many) - 1, POLARITY_TRACES).astype(int)) if len(many) else ():
        y = _row(many, k)
        if np.isfinite(y).sum() >= FEWEST_FRAMES and np.ptp(y[np.isfinite(y)]) > 0:
            y = filled(y)
            evidence += points_down(y - baseline(y, grid.fs), grid)
    return -1 if evidence > 0 else 1


def _check(traces: np.ndarray, fs: float, method: str, polarity: str, false_alarm_hz: float | None, min_probability: float | None) -> None:
    if traces.ndim not in (1, 2) or traces.dtype.kind not in "fiub":
        raise ModelError(f"Traces must be real numbers (T,) or (cells, T), but they are {traces.dtype} of shape {traces.shape}.")
    if not (isinstance(fs, (int, float, np.number)) and np.isfinite(fs) and fs > 0):
        raise ConfigError(f"The frame rate fs must be a positive number of frames per second, but it is {fs!r}.")
    if fs < LEAST_FS:
        raise ConfigError(f"The frame rate is {fs:g} Hz, and a frame of {1e3 / fs:.0f} ms does not show single spikes; {LEAST_FS:g} Hz "
                          "is the least. For slow indicators use infer_calcium.")
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, but it is {method!r}.")
    if polarity not in POLARITIES:
        raise ConfigError(f"polarity must be one of {', '.join(POLARITIES)}, but it is {polarity!r}.")
    if false_alarm_hz is not None and not (np.isfinite(false_alarm_hz) and false_alarm_hz > 0):
        raise ConfigError(f"false_alarm_hz must be a rate above 0 Hz, but it is {false_alarm_hz}.")
    if min_probability is not None and not 0 <= min_probability <= 1:
        raise ConfigError(f"min_probability lies between 0 and 1, but it is {min_probability}.")
    if false_alarm_hz is not None and min_probability is not None:
        raise ConfigError("false_alarm_hz and min_probability both set the threshold; give one of them.")
