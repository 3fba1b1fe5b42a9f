"""From fluorescence traces to spiking activity, automatically.

    y_t = b_t + (k * s)_t + noise,    s_t >= 0

This is the model of `sortcore.model` with one footprint per cell: the amplitudes' update, the profile being the indicator's
kernel k. Since k is long and smooth a matched filter and a threshold would not do, so the update is solved exactly, as a
non-negative deconvolution. All that is not given is estimated from the trace: noise, rise and decay, the drifting baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sortcore.errors import ModelError
from sortcore.optical.ar1 import ar1_gradient, solve_ar1
from sortcore.optical.estimate import Assumptions, estimate_times, fit_without_dips, noise_level
from sortcore.optical.kernels import exponential_kernel, kkt_residual
from sortcore.optical.rise import estimate_rise
from sortcore.optical.traces import check_traces
from sortcore.progress import Track, silent
from sortcore.workers import in_order, n_workers

CHUNK_FRAMES = 2_000_000  # frames of all traces that one worker holds at once
QUIET_PERCENTILE = 20.0


@dataclass(frozen=True)
class Known:
    """What the user knows; None is estimated from each trace.

    tau_rise_s, tau_decay_s: seconds, a rise of 0 makes the model AR(1)
    baseline: in the traces' units, constant; noise: sd per frame, same units
    penalty: L1 penalty, same units
    """

    tau_rise_s: float | None = None
    tau_decay_s: float | None = None
    baseline: float | None = None
    noise: float | None = None
    penalty: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("tau_decay_s", 0.0), ("noise", 0.0)):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > least):
                raise ModelError(f"{name} must be a positive number, but it is {value}; leave it out to have it estimated.")
        for name in ("tau_rise_s", "penalty"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise ModelError(f"{name} must not be negative, but it is {value}; leave it out to have it estimated.")
        if self.baseline is not None and not np.isfinite(self.baseline):
            raise ModelError(f"The baseline must be finite, but it is {self.baseline}; leave it out to have it estimated.")
        if self.tau_rise_s is not None and self.tau_decay_s is not None and self.tau_rise_s >= self.tau_decay_s:
            raise ModelError(f"The rise must be shorter than the decay, but tau_rise_s = {self.tau_rise_s} and tau_decay_s = "
                             f"{self.tau_decay_s}.")


@dataclass(frozen=True)
class CalciumResult:
    """Activity of N cells over T frames, and all that was estimated. For one trace given as (T,) arrays lose their first axis.

    activity: (N, T) float32, s: peak height that the spikes of each frame add, in the traces' units, not counts
    calcium: (N, T) float32, the fit k * s without baseline
    baseline: (N, T) float32
    noise: (N,) sd per frame
    tau_rise_s, tau_decay_s: (N,) seconds; a rise of 0 is AR(1)
    penalty: (N,) on the activity, in the traces' units
    kkt_residual: (N,) distance from the optimum of the penalised problem, relative (see `kernels.kkt_residual`)
    fs: frames per second
    Times, noise, penalty and residual are NaN for a trace without a finite frame; its activity is zero.
    """

    activity: np.ndarray
    calcium: np.ndarray
    baseline: np.ndarray
    noise: np.ndarray
    tau_rise_s: np.ndarray
    tau_decay_s: np.ndarray
    penalty: np.ndarray
    kkt_residual: np.ndarray
    fs: float


@dataclass(frozen=True)
class Destination:
    """Where batch results go: arrays (N, T), such as memory maps; those that are None are made in memory."""

    activity: np.ndarray | None = None
    calcium: np.ndarray | None = None
    baseline: np.ndarray | None = None

    def allocated(self, shape: tuple[int, int]) -> list[np.ndarray]:
        out = []
        for name in ("activity", "calcium", "baseline"):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ModelError(f"The array for {name} has shape {array.shape}, but the traces have {shape}.")
            out.append(np.zeros(shape, dtype=np.float32) if array is None else array)
        return out


@dataclass(frozen=True)
class _Trace:
    """One trace's result; arrays (T,)."""

    activity: np.ndarray
    calcium: np.ndarray
    baseline: np.ndarray
    numbers: tuple[float, float, float, float, float] = field(default=(np.nan,) * 5)


def infer_calcium(traces: np.ndarray, fs: float, *, tau_rise_s: float | None = None, tau_decay_s: float | None = None,
                  baseline: float | None = None, noise: float | None = None, penalty: float | None = None,
                  assumptions: Assumptions | None = None, out: Destination | None = None, track: Track = silent) -> CalciumResult:
    """Spiking activity of fluorescence traces, unsupervised.

    traces: (N, T) or (T,), any units (dF/F or raw), any real dtype, NaN where missing; may be a memory map
    fs: frames per second
    tau_rise_s, tau_decay_s, baseline, noise, penalty: fix what is known, see `Known`
    assumptions: what is assumed of a trace in units of its noise
    out: arrays that take the result in place, so that a batch larger than memory can be written to memory maps
    track: progress, see `sortcore.progress`
    Frames that lie far below the fit are taken for movement and count less in a second one, see `estimate.weights_of_dips`.
    Raises ModelError for traces that are not 1-D or 2-D real numbers or infinite, for no fs, and for impossible known values.
    """
    traces = np.asanyarray(traces)
    check_traces(traces, fs)
    known = Known(tau_rise_s, tau_decay_s, baseline, noise, penalty)
    given = assumptions or Assumptions()
    many = traces if traces.ndim == 2 else traces[None]
    return _batch(many, fs, lambda y: _infer_one(y, float(fs), known, given), out or Destination(), track, traces.ndim == 1)


def infer_ar1(traces: np.ndarray, fs: float, *, tau_decay_s: float | None = None, penalty_sd: float = 1.2,
              out: Destination | None = None, track: Track = silent) -> CalciumResult:
    """The fast way: AR(1) with automatic noise, decay, constant baseline and penalty, in a few passes over each trace.

    The rise is ignored, so activity comes late by about the rise time. Arguments, result and errors as `infer_calcium`.
    """
    traces = np.asanyarray(traces)
    check_traces(traces, fs)
    known = Known(tau_decay_s=tau_decay_s)
    many = traces if traces.ndim == 2 else traces[None]
    return _batch(many, fs, lambda y: _ar1_one(y, float(fs), known.tau_decay_s, penalty_sd), out or Destination(), track, traces.ndim == 1)


def _batch(many: np.ndarray, fs: float, one: Callable[[np.ndarray], _Trace], out: Destination, track: Track, single: bool) -> CalciumResult:
    """Traces chunk by chunk, each by one thread, written where they belong as they come."""
    N, T = many.shape
    arrays, numbers = out.allocated((N, T)), np.full((N, 5), np.nan)
    step = max(1, min(CHUNK_FRAMES // max(T, 1), -(-N // (4 * n_workers()))))

    def chunk(first: int) -> tuple[int, list[_Trace]]:
        return first, [one(np.array(row, dtype=np.float64)) for row in many[first : first + step]]

    starts = range(0, N, step)
    for first, found in track(in_order(chunk, starts), "calcium", len(starts)):
        for i, trace in enumerate(found, first):
            for array, values in zip(arrays, (trace.activity, trace.calcium, trace.baseline), strict=True):
                array[i] = values
            numbers[i] = trace.numbers
    if single:
        arrays, numbers = [array[0] for array in arrays], numbers[0]
    activity, calcium, baseline = arrays
    sigma, rise, decay, penalty, residual = numbers.T
    return CalciumResult(activity, calcium, baseline, sigma, rise, decay, penalty, residual, float(fs))


def _infer_one(y: np.ndarray, fs: float, known: Known, given: Assumptions) -> _Trace:
    if np.isinf(y).any():
        raise ModelError("A trace holds infinite values; mark missing frames with NaN.")
    seen = np.isfinite(y)
    zero = np.zeros(len(y))
    if not seen.any():
        return _Trace(zero, zero, zero)
    floor = float(np.percentile(y[seen], QUIET_PERCENTILE)) if known.baseline is None else known.baseline
    sigma = noise_level(y) if known.noise is None else known.noise
    if sigma <= 1e-9 * max(abs(floor), float(np.abs(y[seen]).max()), 1e-300):  # constant, or a single frame
        times = [np.nan if value is None else value for value in (known.tau_rise_s, known.tau_decay_s, known.penalty)]
        return _Trace(zero, zero, zero + floor, (0.0, times[0], times[1], times[2], 0.0))
    x, free = (y - floor) / sigma, known.baseline is None
    decay, rise = estimate_times(x, fs, given, decay=known.tau_decay_s, rise=known.tau_rise_s, free_baseline=free)
    if known.tau_rise_s is None:
        rise = estimate_rise(x, fs, decay, given, free_baseline=free)
    norm = exponential_kernel(fs, decay, rise).norm
    per_sd = given.penalty_sd if known.penalty is None else known.penalty / (sigma * norm)
    found = fit_without_dips(x, fs, decay, rise, per_sd, given, free)
    numbers = (sigma, rise, decay, per_sd * norm * sigma, found.kkt_residual)
    return _Trace(sigma * found.activity, sigma * found.calcium, floor + sigma * found.baseline, numbers)


def _ar1_one(y: np.ndarray, fs: float, tau_decay_s: float | None, penalty_sd: float) -> _Trace:
    seen = np.isfinite(y)
    zero = np.zeros(len(y))
    if not seen.any():
        return _Trace(zero, zero, zero)
    complete = bool(seen.all())
    part = y if complete else y[seen]
    sigma = noise_level(y[:10_000])
    if sigma == 0:
        floor = float(np.median(part))
        return _Trace(zero, zero, zero + floor, (0.0, 0.0, tau_decay_s or np.nan, np.nan, 0.0))
    g = float(np.exp(-1 / (fs * tau_decay_s))) if tau_decay_s else _decay_of_autocovariance(part, sigma)
    lam = penalty_sd * sigma / np.sqrt(1 - g * g)
    floor = float(np.percentile(part[:: max(1, len(part) // 5000)], QUIET_PERCENTILE))
    c, s = solve_ar1(y - floor, g, lam)
    floor = float(np.mean(part - (c if complete else c[seen])))
    c, s = solve_ar1(y - floor, g, lam)
    residual = kkt_residual(s, ar1_gradient(y - floor, c, g, lam, None if complete else seen.astype(float)), 1 / (1 - g * g))
    return _Trace(s, c, zero + floor, (sigma, 0.0, -1 / (fs * np.log(g)), lam, residual))


def _decay_of_autocovariance(y: np.ndarray, sigma: float, n_lags: int = 5) -> float:
    """g by least squares on gamma_{l+1} = g gamma_l over lags 0 to n_lags, the noise taken off lag 0; kept within [0.05, 0.999]."""
    x = y - y.mean()
    n = min(n_lags + 2, len(x))
    gamma = np.array([x[lag:] @ x[: len(x) - lag] for lag in range(n)]) / len(x)
    if n < 2:
        return 0.9
    gamma[0] -= sigma**2
    power = float(gamma[:-1] @ gamma[:-1])
    return float(np.clip(gamma[:-1] @ gamma[1:] / power if power > 0 else 0.9, 0.05, 0.999))
