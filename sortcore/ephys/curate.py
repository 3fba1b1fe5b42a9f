"""What a user needs to know before trusting a unit, in numbers; duplicates removed; labels good, mua and noise."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr
from scipy.stats import chi2

from sortcore.ephys.config import CurateConfig
from sortcore.types import Preprocessing, Priors, Spikes, Units

TENTHS = 10
COINCIDENCE = ((0.5, 1.2), (1.0, 2.5), (2.0, 2.5))  # within so many ms of a unit so many times larger
FAR_FIELD = (1.0, 5.0)  # the same of a unit beyond the reach of its waveform,
REACH_UM = 300.0  # within so many um
LEFTOVER_SHARE = 0.4  # of few spikes, which may coincide by chance
LEFTOVER_OF_MANY = 0.18


def measure(spikes: Spikes, templates_uv: np.ndarray, priors: Priors, threshold: np.ndarray, parameters: np.ndarray,
            preprocessing: Preprocessing, n_samples: int, config: CurateConfig) -> Units:
    """One row a unit: size, place, contamination, missed spikes and the label that follows from them.

    templates_uv: (K, N, D) mean waveforms; threshold: (K,) smallest score that counts as a spike; parameters: (K,) free
    parameters of each waveform
    """
    fs, k = preprocessing.fs, len(templates_uv)
    counts = np.bincount(spikes.units, minlength=k)
    refractory = config.refractory_ms * fs / 1000
    violations, presence = np.zeros(k, np.int64), np.zeros(k)
    for u, mine in enumerate(spikes.by_unit(k)):
        times = spikes.samples[mine]
        violations[u] = (np.diff(times) < refractory).sum()
        presence[u] = len(np.unique(times * TENTHS // max(n_samples, 1))) / TENTHS
    contamination = rate_of_strangers(violations, counts, refractory, n_samples)
    upper = rate_of_strangers(chi2.ppf(0.95, 2 * (violations + 1)) / 2, counts, refractory, n_samples)
    lower = rate_of_strangers(np.where(violations > 0, chi2.ppf(0.05, 2 * np.maximum(violations, 1)) / 2, 0), counts, refractory, n_samples)
    ptp = np.ptp(templates_uv, axis=2) if k else np.zeros((0, len(preprocessing.channels)))
    best = ptp.argmax(axis=1) if k else np.zeros(0, np.int64)
    missed = ndtr((threshold - priors.amp_mean) / np.sqrt(priors.amp_std**2 + 1))
    snr = priors.amp_mean
    evidence = np.bincount(spikes.units, weights=spikes.scores, minlength=k) - 0.5 * parameters * np.log(max(n_samples, 2))
    label = labels(counts, snr, lower, missed, evidence, config)
    return Units(
        label=label, n_spikes=counts, firing_rate_hz=counts * fs / max(n_samples, 1), channel=preprocessing.channels[best],
        position_um=centre_of_mass(ptp, preprocessing.probe.positions_um), amplitude_uv=ptp[np.arange(k), best], snr=snr,
        contamination=contamination, contamination_upper=upper, missed=missed, refractory_violations=violations, presence=presence,
        evidence=evidence,
    )


def labels(counts: np.ndarray, snr: np.ndarray, contamination: np.ndarray, missed: np.ndarray, evidence: np.ndarray,
           config: CurateConfig) -> np.ndarray:
    """(K,) "noise" where the data hardly support the unit, "mua" where strangers or losses are many, else "good".

    contamination: the least that the refractory violations allow, so that one of them in a few spikes condemns no unit
    """
    label = np.full(len(counts), "good", dtype="<U5")
    label[(contamination > config.max_contamination) | (missed > config.max_missed)] = "mua"
    weak = (evidence < 0) | (evidence < config.min_evidence * counts)
    label[(snr < config.min_snr) | (counts < config.min_spikes) | weak] = "noise"
    return label


def rate_of_strangers(violations: np.ndarray, counts: np.ndarray, refractory: float, n_samples: int) -> np.ndarray:
    """(K,) share of spikes from other, independent cells that makes so many refractory violations (Llobet et al. 2022).

    n violations among N spikes: n = N^2 r / T (1 - (1 - c)^2) for a share c, with r the refractory period and T the duration.
    """
    expected = np.maximum(counts.astype(float) ** 2 * refractory / max(n_samples, 1), 1e-12)
    return 1 - np.sqrt(np.maximum(1 - np.minimum(violations / expected, 1.0), 0.0))


def centre_of_mass(ptp: np.ndarray, positions_um: np.ndarray) -> np.ndarray:
    """(K, 2) contact positions weighted by the square of the waveform's size."""
    weight = ptp**2
    return weight @ positions_um / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)


def duplicates(spikes: Spikes, used: np.ndarray, snr: np.ndarray, fs: float, places_um: np.ndarray | None = None) -> np.ndarray:
    """(K,) whether a unit is what is left of larger ones on its channels, and no cell of its own.

    Either more of its spikes than chance allows fall close to those of larger units, or follow one of them at a fixed lag.
    used: (K, N) channels that each unit's waveform touches; places_um: (K, 2), by which the far field of larger units is told,
    beyond their waveforms' channels
    """
    trains = [spikes.samples[mine] for mine in spikes.by_unit(len(snr))]
    touching = used.astype(np.float32) @ used.T.astype(np.float32) > 0
    duration = max(int(spikes.samples[-1] - spikes.samples[0]), 1) if len(spikes) else 1
    gone = np.zeros(len(snr), bool)
    for u in np.argsort(snr, kind="stable"):
        if not len(trains[u]):
            continue
        near = touching[u] & ~gone
        around, shares = near, [0.0]
        rules = [(near, *rule) for rule in COINCIDENCE]
        if places_um is not None:
            around = near | (np.linalg.norm(places_um - places_um[u], axis=1) < REACH_UM) & ~gone
            rules.append((around, *FAR_FIELD))
        for among, within_ms, times_larger in rules:
            larger = [trains[v] for v in np.flatnonzero(among & (snr > times_larger * snr[u]))]
            if larger:
                shares.append(coinciding(trains[u], np.sort(np.concatenate(larger)), int(within_ms * fs / 1000), duration))
        shares += [locked_share(trains[u], trains[v], fs) for v in np.flatnonzero(around & (snr > COINCIDENCE[0][1] * snr[u]))]
        gone[u] = max(shares) > min(LEFTOVER_SHARE, LEFTOVER_OF_MANY + 1.5 / np.sqrt(len(trains[u])))
    return gone


def coinciding(train: np.ndarray, others: np.ndarray, near: int, duration: int) -> float:
    """Share of a train's spikes within `near` samples of others, beyond what chance makes of the rest."""
    hit = np.searchsorted(others, train + near, "right") > np.searchsorted(others, train - near, "left")
    by_chance = 1 - np.exp(-len(others) * (2 * near + 1) / duration)
    return float((hit.mean() - by_chance) / max(1 - by_chance, 0.1))


def locked_share(train: np.ndarray, other: np.ndarray, fs: float, reach_ms: float = 5.0, bin_ms: float = 0.3) -> float:
    """Largest share of a train's spikes that have the nearest spike of another train at one lag, to within a bin."""
    if not len(other):
        return 0.0
    after = np.clip(np.searchsorted(other, train), 1, len(other)) - 1
    lags = train - other[after]  # to the last spike before
    next_lags = train - other[np.minimum(after + 1, len(other) - 1)]
    lags = np.where(np.abs(next_lags) < np.abs(lags), next_lags, lags) * 1000 / fs
    lags = np.sort(lags[np.abs(lags) < reach_ms])
    return float((np.searchsorted(lags, lags + bin_ms, "right") - np.arange(len(lags))).max(initial=0) / len(train))
