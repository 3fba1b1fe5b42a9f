"""Confidence intervals of shares and rates: where events are few, or none, the figure alone says little."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta, chi2, norm

from sortcore.errors import ModelError

METHODS = ("clopper-pearson", "wilson", "jeffreys")


def share_interval(events: ArrayLike, trials: ArrayLike, level: float = 0.95,
                   method: str = "clopper-pearson") -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the two-sided interval of a share p, of which `events` of `trials` were seen.

    clopper-pearson   every p that the binomial test does not reject: covers p at least as often as `level` says
    wilson            every p that the normal test does not reject: narrower, covers as often on average
    jeffreys          quantiles of Beta(events + 1/2, trials - events + 1/2), with ends 0 and 1 for no event and nothing else

    events, trials: of one shape; no trials give (0, 1). No event of n does not mean p = 0: the upper end is then about 3.7 / n
    with clopper-pearson at 95 % (Brown, Cai & DasGupta, Stat Sci 2001).
    Raises ModelError for counts that are no counts, a level not between 0 and 1, or an unknown method.
    """
    k, n = np.broadcast_arrays(np.asarray(events, dtype=np.float64), np.asarray(trials, dtype=np.float64))
    if not ((k >= 0) & (k <= n) & np.isfinite(n)).all():
        raise ModelError("events must lie between 0 and trials, and both be finite, but some do not.")
    tail = one_tail(level)
    if method == "clopper-pearson":
        low, high = beta.ppf(tail, k, n - k + 1), beta.ppf(1 - tail, k + 1, n - k)
    elif method == "jeffreys":
        low, high = beta.ppf(tail, k + 0.5, n - k + 0.5), beta.ppf(1 - tail, k + 0.5, n - k + 0.5)
    elif method == "wilson":
        z = norm.ppf(1 - tail)
        size = np.maximum(n, 1)
        centre, half = k + z**2 / 2, z * np.sqrt(k * (n - k) / size + z**2 / 4)
        low, high = (centre - half) / (n + z**2), (centre + half) / (n + z**2)
    else:
        raise ModelError(f"method must be one of {', '.join(METHODS)}, but it is {method!r}.")
    return np.where(k == 0, 0.0, low), np.where(k == n, 1.0, high)


def poisson_interval(events: ArrayLike, exposure: ArrayLike = 1.0, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the two-sided interval of a rate, of which `events` were counted in a time `exposure`.

    Exact (Garwood, Biometrika 1936): chi-square quantiles, / (2 exposure). No event in a time t leaves rates up to 3.7 / t
    at 95 %.
    Raises ModelError for counts below 0, an exposure not above 0, or a level not between 0 and 1.
    """
    k, t = np.broadcast_arrays(np.asarray(events, dtype=np.float64), np.asarray(exposure, dtype=np.float64))
    if not ((k >= 0) & np.isfinite(k) & (t > 0)).all():
        raise ModelError("events must be counts of 0 or more and the exposure above 0, but some are not.")
    tail = one_tail(level)
    low = np.where(k > 0, chi2.ppf(tail, 2 * np.maximum(k, 1e-9)), 0.0)
    return low / (2 * t), chi2.ppf(1 - tail, 2 * (k + 1)) / (2 * t)


def one_tail(level: float) -> float:
    """Probability left out at either end."""
    if not 0 < level < 1:
        raise ModelError(f"The level of an interval must lie between 0 and 1, such as 0.95, but it is {level}.")
    return (1 - level) / 2
