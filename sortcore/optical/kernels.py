"""The indicator's kernel: what one unit of activity does to the fluorescence.

    h(t) = (exp(-t / tau_decay) - exp(-t / tau_rise)) / peak,  t >= 0,        peak 1

A spike falls anywhere within its frame, so the kernel that the frames see is h averaged over a frame. For a difference of two
exponentials this is again one, k_n = u d^n + v r^n, an AR(2) process whose two states are the slow and the fast part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sortcore.errors import ModelError

FASTEST_RISE = 0.05  # a rise of fewer frames than this is none
CLOSEST = 0.95  # a rise time is at most this share of the decay time: two equal times are not a difference of exponentials


@dataclass(frozen=True)
class Exponentials:
    """Kernel k_n = u d^n + v r^n of a frame-by-frame recursion; the AR coefficients are g_1 = d + r, g_2 = -d r.

    d, r: slow and fast decay per frame, 0 <= r < d < 1
    u, v: their weights; v = 0 is AR(1), v = -u r / d starts AR(2) from zero one frame earlier
    Raises ModelError where the process is unstable or complex.
    """

    d: float
    r: float = 0.0
    u: float = 1.0
    v: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.r < self.d < 1):
            raise ModelError(f"The kernel decays per frame by d = {self.d} and r = {self.r}, but a stable one has 0 <= r < d < 1. "
                             "Give decay and rise times that are positive, the rise shorter than the decay.")
        if not (np.isfinite([self.u, self.v]).all() and self.u > 0 and self.u + self.v >= -1e-12):
            raise ModelError(f"The kernel's weights are u = {self.u} and v = {self.v}, but it must be finite and not negative.")

    def sampled(self, n_frames: int) -> np.ndarray:
        """(n_frames,) float64"""
        n = np.arange(n_frames)
        return self.u * self.d**n + self.v * self.r**n

    @property
    def norm(self) -> float:
        """Euclidean norm over infinitely many frames."""
        d, r, u, v = self.d, self.r, self.u, self.v
        return float(np.sqrt(u * u / (1 - d * d) + 2 * u * v / (1 - d * r) + v * v / (1 - r * r)))


def exponential_kernel(fs: float, tau_decay_s: float, tau_rise_s: float = 0.0) -> Exponentials:
    """Difference of exponentials of peak 1, averaged over a frame.

    fs: frames per second; tau_decay_s, tau_rise_s: seconds; no rise gives AR(1)
    Raises ModelError for times or a rate that are not positive and finite.
    """
    if not (np.isfinite(fs) and fs > 0):
        raise ModelError(f"The frame rate must be a positive number of frames per second, but fs is {fs}.")
    if not (np.isfinite(tau_decay_s) and tau_decay_s > 0 and np.isfinite(tau_rise_s) and tau_rise_s >= 0):
        raise ModelError(f"Times of decay and rise must be positive seconds (a rise may be 0), but are {tau_decay_s} and {tau_rise_s}.")
    a = 1 / (fs * tau_decay_s)
    if tau_rise_s * fs < FASTEST_RISE:
        u = 2 * np.sinh(a / 2) / a
        return Exponentials(float(np.exp(-a)), 0.0, float(u), float((1 - np.exp(-a / 2)) / a - u))
    rise = min(tau_rise_s, CLOSEST * tau_decay_s)
    c = 1 / (fs * rise)
    t_peak = np.log(tau_decay_s / rise) * tau_decay_s * rise / (tau_decay_s - rise)
    peak = np.exp(-t_peak / tau_decay_s) - np.exp(-t_peak / rise)
    u, v = 2 * np.sinh(a / 2) / a / peak, -2 * np.sinh(c / 2) / c / peak
    # The first frame holds half a frame of the kernel; where the recursion would make it negative it starts at that half.
    first = ((1 - np.exp(-a / 2)) / a - (1 - np.exp(-c / 2)) / c) / peak
    return Exponentials(float(np.exp(-a)), float(np.exp(-c)), float(u), float(max(v, first - u)))


def autoregressive_kernel(*g: float) -> Exponentials:
    """Kernel of c_t = g_1 c_{t-1} (+ g_2 c_{t-2}) + s_t, starting at 1.

    Raises ModelError for an unstable process, a negative root or complex roots: no indicator rings.
    """
    if len(g) == 1:
        return Exponentials(float(g[0]))
    if len(g) != 2:
        raise ModelError(f"An indicator is AR(1) or AR(2), but {len(g)} coefficients were given; use a kernel of your own instead.")
    disc = g[0] ** 2 + 4 * g[1]
    if not disc > 0:
        raise ModelError(f"AR(2) with g = {g} has complex or equal roots, but an indicator's are real and distinct; check them.")
    d, r = (g[0] + np.sqrt(disc)) / 2, (g[0] - np.sqrt(disc)) / 2
    return Exponentials(float(d), float(r), float(d / (d - r)), float(-r / (d - r)))


def kkt_residual(s: np.ndarray, gradient: np.ndarray, norm2: float) -> float:
    """How far s >= 0 is from optimal: max_t |s_t - max(0, s_t - gradient_t / ||k||^2)|, relative to the largest s (at least to
    the largest step from zero). Zero where all Karush-Kuhn-Tucker conditions hold."""
    if not len(s):
        return 0.0
    step = np.abs(s - np.maximum(0, s - gradient / norm2)).max()
    scale = max(float(s.max()), float(np.abs(gradient).max()) / norm2, 1e-300)
    return float(step / scale)
