"""What a trace says of itself: noise, rise and decay of its indicator.

The noise level is the median absolute difference of successive frames. How well rise and decay fit is judged by the objective of
the deconvolution itself, the penalty a stated number of noise sd of the kernel's matched filter, so that a kernel pays for every
event by what it would take to see it. A log-normal prior over the times, centred on what indicators have, decides where the trace
is silent; it weighs as much as one event. The times taken are the mean of their logarithms over the grid, each by its probability:
a trace that cannot tell two times apart gets one between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sortcore.optical.ar2 import Deconvolution, solve_ar2
from sortcore.optical.kernels import exponential_kernel

NORMAL_MAD = 0.6745  # median |e| of normal e of sd 1
MAD_OF_DIFFERENCES = NORMAL_MAD * np.sqrt(2)
DECAYS_S = (0.15, 0.25, 0.4, 0.65, 1.0, 1.6, 2.5, 4.0)
RISES_S = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
PRIOR_DECAY_S, PRIOR_RISE_S = (1.0, 0.7), (0.05, 1.0)  # median and log sd; indicators in use decay in 0.2 to 3 s, rise in 0.01 to 0.3
SHORTEST_RISE_S = 0.01  # rises shorter than this are alike to the prior
START = (4, 2)
NEAR = ((-1, 0), (1, 0), (0, -1), (0, 1))  # steps over the grid
LARGEST_SHAPE = 0.5  # of a frame's activity, where frames are slow
ESTIMATE_FRAMES = 16_000


@dataclass(frozen=True)
class Assumptions:
    """What a trace is taken to be like, in units of its noise.

    penalty_sd: penalty as noise sd of the kernel's matched filter
    selection_sd: the same, while rise and decay are chosen
    drift_sd_s: sd by which the baseline wanders in a second
    start_sd: sd of the baseline's start around the trace's lower fifth
    selectivity: nats that one per cent of the objective is worth against the prior over times
    shape_per_s: activity is a gamma process: what it sums to in t seconds is gamma distributed with this shape times t; the smaller
        it is, the fewer events make up most of the activity
    dip_sd: frames further below the fit than this count less; infinite for all frames alike
    event_price: what an event pays while the rise is chosen, per e-fold of its size, see `rise`
    event_selectivity: as `selectivity`, for the rise
    """

    penalty_sd: float = 1.2
    selection_sd: float = 4.0
    drift_sd_s: float = 0.0245
    start_sd: float = 10.0
    selectivity: float = 1.0
    shape_per_s: float = 2.0
    dip_sd: float = 3.0
    event_price: float = 4.0
    event_selectivity: float = 0.5

    def shape(self, fs: float) -> float:
        """Of the activity of a frame."""
        return min(self.shape_per_s / fs, LARGEST_SHAPE)

    def baseline(self, fs: float) -> tuple[float, float]:
        """Variances of its step per frame and of its start."""
        return self.drift_sd_s**2 / fs, self.start_sd**2


def noise_level(y: np.ndarray) -> float:
    """Noise sd of a trace (T,), NaN left out: median |difference of neighbours| / 0.954. Zero where there is nothing to tell."""
    steps = np.diff(y)
    steps = steps[np.isfinite(steps)]
    if not len(steps):
        return 0.0
    level = median(np.abs(steps - median(steps))) / MAD_OF_DIFFERENCES
    return level if level > 0 else float(steps.std()) / np.sqrt(2)


def median(x: np.ndarray) -> float:
    """Median of finite numbers (n,), at least one: one partition, several times as quick as numpy's."""
    half = len(x) // 2
    parted = np.partition(x, half)
    return float(parted[half]) if len(x) % 2 else 0.5 * float(parted[half] + parted[:half].max())


def fit_trace(y: np.ndarray, fs: float, decay: float, rise: float, penalty_sd: float, given: Assumptions,
              free_baseline: bool, weights: np.ndarray | None = None) -> Deconvolution:
    """Deconvolve a trace (T,) whose noise has variance 1 and whose baseline is near 0; weights (T,) are of its frames."""
    kernel = exponential_kernel(fs, decay, rise)
    drift, spread = given.baseline(fs) if free_baseline else (0.0, 0.0)
    return solve_ar2(y, kernel, penalty_sd * kernel.norm, weights=weights, barrier=given.shape(fs), drift=drift, spread=spread)


def fit_without_dips(y: np.ndarray, fs: float, decay: float, rise: float, penalty_sd: float, given: Assumptions, free_baseline: bool,
                     worth: float = 1.0) -> Deconvolution:
    """`fit_trace`, and again with `weights_of_dips` where some frame has a weight below `worth`."""
    found = fit_trace(y, fs, decay, rise, penalty_sd, given, free_baseline)
    weights = weights_of_dips(y - found.baseline - found.calcium, given.dip_sd)
    if weights is None or weights.min() >= worth:
        return found
    return fit_trace(y, fs, decay, rise, penalty_sd, given, free_baseline, weights)


def weights_of_dips(residual: np.ndarray, dip_sd: float) -> np.ndarray | None:
    """(T,) weights of frames, from what a fit left of a trace whose noise has variance 1; None where all count alike.

    A cell that moves out of its outline dims, and no activity explains that: a frame e below the fit gets the weight
    min(1, (dip_sd v / e)^2), so that it pulls the less the deeper it lies. v = 1, or what the residual's median says where a kernel
    that does not fit leaves more than noise. Frames above the fit keep their weight, for that is where activity starts.
    """
    limit = dip_sd * max(1.0, float(np.nanmedian(np.abs(residual))) / NORMAL_MAD)
    depth = np.nan_to_num(-residual)
    return (limit / np.maximum(depth, limit)) ** 2 if depth.max() > limit else None


def busiest(y: np.ndarray, n_frames: int) -> np.ndarray:
    """The stretch of at most n_frames (T,) that varies most."""
    if len(y) <= n_frames:
        return y
    starts = np.arange(0, len(y) - n_frames + 1, max(n_frames // 4, 1))
    seen = np.isfinite(y)
    middle = y[seen].mean() if seen.any() else 0.0
    z = np.where(seen, y - middle, 0.0)  # near zero, so that squares lose nothing
    n, total, squares = (sum_before[starts + n_frames] - sum_before[starts] for sum_before in
                         (np.cumsum(np.insert(values, 0, 0.0)) for values in (seen, z, z * z)))
    n = np.maximum(n, 1)
    first = starts[int(np.argmax(squares / n - (total / n) ** 2))]
    return y[first : first + n_frames]


def descend(cost: Callable[[tuple[int, ...]], float], at: tuple[int, ...], steps: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Where on a grid no step makes the cost less, going from `at` to the best neighbour while one is better."""
    while True:
        best = min((tuple(a + b for a, b in zip(at, step, strict=True)) for step in steps), key=cost)
        if cost(best) >= cost(at):
            return at
        at = best


def estimate_times(y: np.ndarray, fs: float, given: Assumptions, *, decay: float | None = None, rise: float | None = None,
                   free_baseline: bool = True) -> tuple[float, float]:
    """Decay and rise in seconds of a trace (T,) in units of its noise; those given are kept.

    Steps from the prior's middle over the grid of times to the better neighbour, until there is none, and takes the mean over the
    places seen: what is not seen lies beyond worse ones.
    """
    if decay is not None and rise is not None:
        return decay, rise
    decays = DECAYS_S if decay is None else (decay,)
    rises = RISES_S if rise is None else (rise,)
    part = busiest(y, ESTIMATE_FRAMES)
    seen: dict[tuple[int, int], float] = {}

    def cost(place: tuple[int, ...]) -> float:
        i, j = place
        if not (0 <= i < len(decays) and 0 <= j < len(rises)) or (rise is None and rises[j] > 0.5 * decays[i]):
            return np.inf
        if (i, j) not in seen:
            found = fit_trace(part, fs, decays[i], rises[j], given.selection_sd, given, free_baseline).objective
            off = (np.log(decays[i] / PRIOR_DECAY_S[0]) / PRIOR_DECAY_S[1]) ** 2
            off += (np.log(max(rises[j], SHORTEST_RISE_S) / PRIOR_RISE_S[0]) / PRIOR_RISE_S[1]) ** 2
            seen[i, j] = 100 * given.selectivity * np.log(max(found, 1e-12)) + 0.5 * off
        return seen[i, j]

    at = (START[0] if decay is None else 0, START[1] if rise is None else 0)
    while cost(at) == np.inf:  # a decay that is given may be too short for the prior's rise
        at = (at[0], at[1] - 1)
    lowest = cost(descend(cost, at, NEAR))
    weights = np.exp(lowest - np.array(list(seen.values())))
    if decay is None:
        decay = float(np.exp(np.average(np.log([decays[i] for i, _ in seen]), weights=weights)))
    if rise is None:
        rise = min(float(np.exp(np.average(np.log([max(rises[j], SHORTEST_RISE_S) for _, j in seen]), weights=weights))), 0.5 * decay)
    return decay, rise
