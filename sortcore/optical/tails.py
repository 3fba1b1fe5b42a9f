"""The tail of noise, from the peaks of activity that has spikes too.

Small peaks are noise almost surely. A law is fitted to the peaks below a cut by maximum likelihood, as truncated there, and
the cut put where that law leaves `TAIL` above it, until both agree: peaks of spikes lie above the cut and do not count. Which
law depends on what a solver leaves of noise:

    light   p(x) ~ exp(-a x - b x^2), x > 0, b >= 0             where most frames are zero: exponential, or a Gaussian's part above 0
    heavy   P(size > x | size > u) = (1 + shape (x / u - 1) / scale)^(-1 / shape)     where a smooth solver leaves no frame empty

The heavy one is the generalised Pareto law that sizes of any law nearly follow above a high u (Pickands, Ann Stat 1975); u is
each cell's median, and since the cells of one call went through one solver, scale and shape are those of all of them. On
simulated noise, raw or deconvolved by sparse and smooth solvers, the rate is within a factor of three of the one asked for.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.stats import norm

TAIL = 0.1  # share of the noise's peaks that lies above the cut
ROUNDS = 12
FEWEST_PEAKS = 40  # to fit a law to; of fewer only the median is used, as of an exponential law
NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)
NODES = (NODES + 1) / 2
SHAPES = (0.3, 0.6)  # bounds of the heavy law's shape


def light_tail(sizes: np.ndarray, allowed: float) -> float:
    """Level that noise alone exceeds so many times, from peaks (P,) of which most are noise, by the light law."""
    sizes = np.sort(sizes[sizes > 0])
    if not len(sizes):
        return 0.0
    cut = median = float(sizes[len(sizes) // 2])
    law, n = (np.log(2) / median, 0.0), float(len(sizes))
    for _ in range(ROUNDS if len(sizes) >= FEWEST_PEAKS else 0):
        below = sizes[sizes <= cut]
        law = fit_law(below, cut)
        n = min(len(below) / max(1 - beyond(cut, law), 0.05), float(len(sizes)))
        last, cut = cut, float(np.clip(level_beyond(TAIL, law), median, sizes[-1]))
        if abs(cut - last) < 1e-3 * last:
            break
    share = allowed / n
    return level_beyond(share, law) if share < 1 else 0.0


def fit_law(sizes: np.ndarray, cut: float) -> tuple[float, float]:
    """(a, b) of p(x) ~ exp(-a x - b x^2) of sizes (P,), all in 0 to `cut`: maximum likelihood, which matches the means of x and x^2.

    Newton's method on a concave likelihood; where it would have b below 0 b is 0, and only the mean of x is matched.
    """
    x = NODES  # of 0 to 1, where cut is 1
    seen = np.array([(sizes / cut).mean(), ((sizes / cut) ** 2).mean()])
    for free in (2, 1):
        p = np.array([1.0, 0.5])[:free]
        powers = np.stack([x, x**2])[:free]
        for _ in range(40):
            density = WEIGHTS * np.exp(-p @ powers - (-p @ powers).max())
            density /= density.sum()
            mean = powers @ density
            spread = (powers * density) @ powers.T - np.outer(mean, mean)
            step = np.linalg.solve(spread + 1e-12 * np.eye(free), mean - seen[:free])
            p = p + step * min(1.0, 10 / np.abs(step).max(initial=1e-9))
            if np.abs(step).max() < 1e-8:
                break
        a, b = float(p[0]), float(p[1]) if free == 2 else 0.0
        if b > 1e-3:
            return a / cut, b / cut**2
    return max(a, 0.1) / cut, 0.0


def beyond(level: float, law: tuple[float, float]) -> float:
    """Share of the law that lies above a level."""
    a, b = law
    if b == 0:
        return float(np.exp(-a * level))
    mean, sd = -a / (2 * b), (2 * b) ** -0.5
    return float(np.exp(norm.logsf((level - mean) / sd) - norm.logsf(-mean / sd)))


def level_beyond(share: float, law: tuple[float, float]) -> float:
    """Level above which a share of the law lies: the inverse of `beyond`."""
    if law[1] == 0:
        return float(-np.log(share) / law[0])
    high = (2 * law[1]) ** -0.5
    while beyond(high, law) > share:
        high *= 2
    return float(brentq(lambda level: np.log(beyond(level, law) / share), 0.0, high, xtol=1e-9 * high))


def heavy_tails(sizes: list[np.ndarray], allowed: list[float]) -> list[float]:
    """K levels that noise alone exceeds so many times, from each cell's peaks, of which most are noise, by the heavy law."""
    medians = [float(np.median(s)) if len(s) else 0.0 for s in sizes]
    law, noise = common_pareto(np.concatenate([np.zeros(0), *(s[s > u] / u - 1 for s, u in zip(sizes, medians, strict=True) if u)]))
    levels = [0.0] * len(sizes)
    for k, (s, u, n) in enumerate(zip(sizes, medians, allowed, strict=True)):
        share = n / max(noise * (s > u).sum(), 0.5)
        if share < 1:
            levels[k] = u * (1 + level_beyond_pareto(share, law))
        elif int(n) < len(s):
            levels[k] = float(np.sort(s)[-1 - int(n)])
    return levels


def common_pareto(above: np.ndarray) -> tuple[tuple[float, float], float]:
    """(scale, shape) of excesses over the median (P,), in medians, and the share of them that is noise."""
    if len(above) < FEWEST_PEAKS:
        return (1 / np.log(2), 0.0), 1.0
    above = np.sort(above)
    cut = float(np.quantile(above, 0.6))
    for _ in range(ROUNDS):
        below = above[above <= cut]
        law = fit_pareto(below, cut)
        noise = min(len(below) / max(1 - beyond_pareto(cut, law), 0.05) / len(above), 1.0)
        last, cut = cut, float(np.clip(level_beyond_pareto(TAIL, law), above[len(above) // 3], above[-1]))
        if abs(cut - last) < 1e-3 * last:
            break
    return law, noise


def fit_pareto(sizes: np.ndarray, cut: float) -> tuple[float, float]:
    """Scale and shape of the generalised Pareto law of sizes (P,), all in 0 to `cut`: maximum likelihood, truncated there."""
    z = sizes / cut

    def loss(p: np.ndarray) -> float:
        law = (float(np.exp(np.clip(p[0], -7, 7))), float(np.clip(p[1], *SHAPES)))
        inside = 1 - beyond_pareto(1.0, law)
        if law[1] < 0 and 1 + law[1] / law[0] <= 0:
            return 1e6 + p[0] ** 2
        growth = np.log1p(law[1] * z / law[0]) / law[1] if abs(law[1]) > 1e-6 else z / law[0]
        return float(np.log(law[0]) + (1 + law[1]) * growth.mean() + np.log(max(inside, 1e-300)))

    start = np.array([[-0.5, np.mean(SHAPES)], [0.5, np.mean(SHAPES)], [-0.5, SHAPES[1]]])
    options = {"initial_simplex": start, "xatol": 1e-4, "fatol": 1e-9, "maxiter": 400}
    best = minimize(loss, start[0], method="Nelder-Mead", options=options).x
    return cut * float(np.exp(np.clip(best[0], -7, 7))), float(np.clip(best[1], *SHAPES))


def beyond_pareto(level: float, law: tuple[float, float]) -> float:
    """Share of the law that lies above a level."""
    scale, shape = law
    if abs(shape) < 1e-6:
        return float(np.exp(-level / scale))
    return float(max(1 + shape * level / scale, 0.0) ** (-1 / shape))


def level_beyond_pareto(share: float, law: tuple[float, float]) -> float:
    """Level above which a share of the law lies: the inverse of `beyond_pareto`."""
    scale, shape = law
    return float(-scale * np.log(share)) if abs(shape) < 1e-6 else float(scale * (share**-shape - 1) / shape)
