"""From spikes to fluorescence: what a calcium indicator makes of a spike train.

Each spike adds a step to the calcium of the cell, and the indicator answers. Five kinds, from the plainest:

    ar1         c_t = g c_{t-1} + n_t                              g = exp(-1 / (fs tau_decay)), n_t spikes of frame t
    ar2         c_t = g1 c_{t-1} + g2 c_{t-2} + n_t                d = exp(-1 / (fs tau_decay)), r = exp(-1 / (fs tau_rise)),
                                                                   g1 = d + r, g2 = -d r
    difference  c(t) = sum_i exp(-(t - t_i) / tau_decay) - exp(-(t - t_i) / tau_rise)     spikes at their times, not frames
    hill        f = h(rest + c) - h(rest), h(x) = x^n / (x^n + half^n), c of `difference`, one spike's peak being 1
    binding     dB/dt = ((C / half)^n (1 - B) - B) / tau_decay, C(t) = rest + sum_i exp(-(t - t_i) / tau_rise)

In `hill` the indicator is in equilibrium with a calcium that is slow (Deneux et al., Nat Commun 2016). In `binding` the
calcium comes and goes with tau_rise and binds n at a time to the indicator, which lets it go with tau_decay (Vogelstein et
al., Biophys J 2009; Greenberg et al., bioRxiv 479055): spikes close together give more than their sum (n > 1), a cell that
fires much saturates, and rises are steeper the larger they are. With n = 1 and large `half` both are `difference`.

All are scaled so that one spike of a cell at rest peaks at `amplitude`: over frames in ar1 and ar2, over time in the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.signal import lfilter

from sortcore.errors import ConfigError
from sortcore.settings import Checked, setting

KINDS = ("ar1", "ar2", "difference", "hill", "binding")
STEPS_PER_RISE = 8  # of the integration of `binding`


@dataclass(frozen=True)
class Indicator(Checked):
    """How fluorescence answers to spikes. ar1 ignores tau_rise_s; only hill and binding know cooperativity, half and rest."""

    kind: str = setting("difference", "law by which fluorescence follows spikes", choices=KINDS)
    tau_rise_s: float = setting(0.05, "time constant of the rise", "s", 0.0, 10.0)
    tau_decay_s: float = setting(0.6, "time constant of the decay", "s", 1e-4, 100.0)
    amplitude: float = setting(0.2, "peak of one spike in dF/F", "", 0.0)
    spread: float = setting(0.0, "standard deviation of the logarithm of the calcium that a spike lets in", "", 0.0, 2.0)
    cooperativity: float = setting(1.0, "Hill coefficient n", "", 0.5, 8.0)
    half: float = setting(1e6, "calcium that half saturates the indicator, where one spike's is 1", "", 1e-3)
    rest: float = setting(0.0, "calcium at rest, where one spike's is 1", "", 0.0, 100.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_rise_s >= self.tau_decay_s and self.kind != "ar1":
            raise ConfigError(f"The rise must be faster than the decay, but tau_rise_s is {self.tau_rise_s} and tau_decay_s "
                              f"{self.tau_decay_s}.")
        if self.tau_rise_s == 0 and self.kind == "binding":
            raise ConfigError("With kind binding tau_rise_s is how long calcium stays, and must not be 0.")

    def g(self, fs: float) -> tuple[float, ...]:
        """Coefficients of the autoregression at a frame rate: (g,) of ar1, (g1, g2) of the others."""
        d, r = decay_per_frame(self.tau_decay_s, fs), decay_per_frame(self.tau_rise_s, fs)
        return (d,) if self.kind == "ar1" else (d + r, -d * r)

    def response(self, times_s: np.ndarray, n_frames: int, fs: float, weights: np.ndarray | None = None) -> np.ndarray:
        """(T,) noiseless dF/F at the instants t / fs of frames t = 0 .. T - 1.

        times_s: (S,) spikes, where 0 is the first frame's instant; weights: (S,) calcium of each, 1 by default
        """
        times_s = np.asarray(times_s, dtype=np.float64)
        weights = np.ones(len(times_s)) if weights is None else np.asarray(weights, dtype=np.float64)
        order = np.argsort(times_s, kind="stable")
        times_s, weights = times_s[order], weights[order]
        if self.kind in ("ar1", "ar2"):
            one = autoregression(np.eye(1, int(fs * peak_time(self.tau_rise_s, self.tau_decay_s)) + 3)[0], self.g(fs))
            return self.amplitude / one.max() * autoregression(spike_counts(times_s, n_frames, fs, weights), self.g(fs))
        if self.kind == "binding":
            near_peak = np.linspace(0, 12 * self.tau_rise_s, 600)
            one = bound(np.zeros(1), np.ones(1), near_peak, self)
            answer = bound(times_s, weights, np.arange(n_frames) / fs, self)
            return self.amplitude * (answer - resting(self)) / (one.max() - resting(self))
        calcium = difference(times_s, weights, n_frames, fs, self.tau_rise_s, self.tau_decay_s)
        if self.kind == "difference":
            return self.amplitude * calcium
        h = hill(np.array([self.rest, self.rest + 1]), self)
        return self.amplitude * (hill(self.rest + calcium, self) - h[0]) / (h[1] - h[0])


# Rise, decay and nonlinearity like those published: Chen et al., Nature 2013; Dana et al., eLife 2016 and Nat Methods 2019;
# Zhang et al., Nature 2023; synthetic dyes: Tada et al., Eur J Neurosci 2014. Cells differ by a factor of two from them.
INDICATORS = {
    "gcamp6s": Indicator("binding", 0.09, 0.75, 0.23, 0.2, 2.0, 2.5, 0.8),
    "gcamp6f": Indicator("binding", 0.025, 0.22, 0.19, 0.2, 2.0, 2.5, 0.8),
    "gcamp7f": Indicator("binding", 0.025, 0.35, 0.25, 0.2, 2.0, 2.5, 1.0),
    "gcamp8f": Indicator("binding", 0.006, 0.12, 0.35, 0.2, 1.8, 3.0, 0.7),
    "gcamp8m": Indicator("binding", 0.006, 0.18, 0.45, 0.2, 1.7, 3.0, 1.0),
    "gcamp8s": Indicator("binding", 0.008, 0.35, 0.50, 0.2, 1.9, 3.0, 1.0),
    "rgeco1a": Indicator("binding", 0.04, 0.60, 0.12, 0.2, 1.7, 3.0, 0.8),
    "ogb1": Indicator("hill", 0.01, 0.70, 0.08, 0.1, 1.0, 12.0, 0.5),
    "cal520": Indicator("hill", 0.02, 0.60, 0.15, 0.1, 1.0, 20.0, 0.5),
}


def spike_counts(times_s: np.ndarray, n_frames: int, fs: float, weights: np.ndarray | None = None) -> np.ndarray:
    """(T,) spikes of each frame, frame t holding the times from (t - 1/2) / fs on and before (t + 1/2) / fs.

    Counts are int64, or float64 sums of weights (S,); spikes outside all frames are left out.
    """
    frame = np.floor(np.asarray(times_s, dtype=np.float64) * fs + 0.5).astype(np.int64)
    inside = (frame >= 0) & (frame < n_frames)
    return np.bincount(frame[inside], None if weights is None else weights[inside], minlength=n_frames)


def decay_per_frame(tau_s: float, fs: float) -> float:
    """exp(-1 / (fs tau)), 0 for tau = 0."""
    return float(np.exp(-1 / (fs * tau_s))) if tau_s > 0 else 0.0


def autoregression(spikes: np.ndarray, g: tuple[float, ...]) -> np.ndarray:
    """c_t = sum_i g_i c_{t-i} + s_t over spikes (..., T)."""
    return lfilter([1.0], [1.0, *(-x for x in g)], np.asarray(spikes, dtype=np.float64))


def peak_time(tau_rise_s: float, tau_decay_s: float) -> float:
    """Seconds from a spike to the peak of the difference of exponentials."""
    return float(np.log(tau_decay_s / tau_rise_s) * tau_decay_s * tau_rise_s / (tau_decay_s - tau_rise_s)) if tau_rise_s > 0 else 0.0


def difference(times_s: np.ndarray, weights: np.ndarray, n_frames: int, fs: float, tau_rise_s: float, tau_decay_s: float) -> np.ndarray:
    """(T,) difference of exponentials after each spike, one spike's peak over time being 1."""
    decay = exponentials(times_s, weights, n_frames, fs, tau_decay_s)
    if tau_rise_s == 0:
        return decay
    peak = peak_time(tau_rise_s, tau_decay_s)
    norm = np.exp(-peak / tau_decay_s) - np.exp(-peak / tau_rise_s)
    return (decay - exponentials(times_s, weights, n_frames, fs, tau_rise_s)) / norm


def exponentials(times_s: np.ndarray, weights: np.ndarray, n_frames: int, fs: float, tau_s: float) -> np.ndarray:
    """(T,) sum_i w_i exp(-(t / fs - t_i) / tau) over the spikes up to frame t: exact, in time O(S + T)."""
    first = np.maximum(np.ceil(times_s * fs - 1e-9), 0).astype(np.int64)  # frame that first sees the spike
    inside = first < n_frames
    started = weights[inside] * np.exp(-np.maximum(first[inside] / fs - times_s[inside], 0) / tau_s)
    return lfilter([1.0], [1.0, -decay_per_frame(tau_s, fs)], np.bincount(first[inside], started, minlength=n_frames))


def hill(x: np.ndarray, indicator: Indicator) -> np.ndarray:
    """x^n / (x^n + half^n)."""
    a = (np.maximum(x, 0) / indicator.half) ** indicator.cooperativity
    return a / (1 + a)


def resting(indicator: Indicator) -> float:
    """Share of the indicator that is bound at rest."""
    return float(hill(np.array([indicator.rest]), indicator)[0])


def bound(times_s: np.ndarray, weights: np.ndarray, frames_s: np.ndarray, indicator: Indicator) -> np.ndarray:
    """(T,) share B of the indicator that is bound at increasing times (T,), spikes (S,) in order; at rest before all."""
    return _bound(times_s, weights, frames_s, indicator.tau_rise_s, indicator.tau_decay_s, indicator.cooperativity, indicator.half,
                  indicator.rest, resting(indicator))


@njit
def _bound(times: np.ndarray, weights: np.ndarray, frames: np.ndarray, tau_calcium: float, tau: float, n: float, half: float, rest: float,
           start: float) -> np.ndarray:
    """From event to event (spike or frame), in steps over which calcium is held at its middle: then B relaxes exponentially."""
    out = np.empty(len(frames))
    longest = tau_calcium / STEPS_PER_RISE
    calcium, b, i = 0.0, start, 0
    now = 0.0
    if len(frames):
        now = frames[0]
    if len(times):
        now = min(now, times[0])
    for t in range(len(frames)):
        while now < frames[t] or (i < len(times) and times[i] <= frames[t]):
            spike = i < len(times) and times[i] <= frames[t]
            then = times[i] if spike else frames[t]
            gap = then - now
            # where calcium is as good as gone, one step will do
            steps = 1 if calcium < 1e-6 * (rest + 1e-3) else int(np.ceil(gap / longest))
            for _ in range(steps):
                h = gap / steps
                a = ((rest + calcium * np.exp(-0.5 * h / tau_calcium)) / half) ** n
                level = a / (1 + a)
                b = level + (b - level) * np.exp(-(1 + a) * h / tau)
                calcium *= np.exp(-h / tau_calcium)
            now = then
            if spike:
                calcium += weights[i]
                i += 1
        out[t] = b
    return out
