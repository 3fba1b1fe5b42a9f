"""Every error of a true unit put down to one cause, from the spike trains alone.

The causes, counted in spikes:

    of its own spikes that its best sorted unit lacks
        split      they are in another sorted unit that is its own
        stolen     they are in a sorted unit that belongs to another true unit
        missed     they are in no sorted unit
    of its best sorted unit's spikes that are not its own
        merged     they are another true unit's
        doubled    they are a second report of a spike already found
        noise      they are nobody's

The largest count is the reason; missed and split become "drifted" where the recall changes over the recording.
Coincidences by chance, known from the firing rates, are not counted as sharing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2_contingency

from benchmarks.matching import Comparison, best_unit, by_chance, compare, is_real, lag, near
from benchmarks.score import DELTA_MS, Score
from benchmarks.trains import Trains, Truth

REASONS = {"split": "split", "stolen": "stolen", "missed": "missed below threshold", "merged": "merged", "doubled": "doubled",
           "noise": "contaminated"}
DRIFT_RANGE = 0.4  # recall that differs by more between thirds of the recording is drift
OFFSET_MS = 2.0  # a train that agrees only within this time is shifted
BURST_MS = 20.0


@dataclass(frozen=True)
class Sharing:
    """A sorted unit that shares spikes with a true one: its id, the share of the true unit it holds, the share of it that
    is the true unit's, and the true unit that it belongs to (-1: nobody)."""

    sorted_id: int
    coverage: float
    purity: float
    owner: int


@dataclass(frozen=True)
class Diagnosis:
    """Why one true unit is as good as it is.

    accuracy, precision, recall: 0 where no sorted unit agrees on half the spikes; agreement: with the best unit, however poor
    errors: spikes lost to each of split, stolen, missed, merged, doubled, noise
    best: id of the sorted unit that it was compared with, None where no unit holds it
    rival: true unit that it is confused with, -1 where there is none
    thirds: recall in each third of the recording, by its best unit
    notes: further observations, in words
    """

    unit: int
    n_spikes: int
    rate_hz: float
    snr: float
    accuracy: float
    precision: float
    recall: float
    agreement: float
    reason: str
    errors: dict[str, int]
    best: int | None
    rival: int
    sharing: tuple[Sharing, ...]
    thirds: tuple[float, float, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Extra:
    """A sorted unit that matches no true one, and what it is made of."""

    sorted_id: int
    n_spikes: int
    label: str
    kind: str
    owner: int
    purity: float
    coverage: float


def lost_spikes(c: Comparison, u: int, best: int) -> tuple[dict[str, int], np.ndarray, int]:
    """Where the spikes are that the best unit lacks: counts, the mask of those in no unit, and the true unit that took most."""
    train = c.true_trains[u]
    open_ = ~near(train, c.sorted_trains[best], c.delta) if best >= 0 else np.ones(len(train), bool)
    errors, takers = {"split": 0, "stolen": 0}, np.zeros(len(c.true_trains), int)
    candidates = [k for k in np.argsort(-c.counts[u], kind="stable") if k != best and is_real(c.counts[u, k], c.chance[u, k])]
    for k in candidates:
        other, v = c.sorted_trains[k], c.owner[k]
        if v not in (u, -1):  # a spike of v near one of u is v's own, not one stolen
            other = other[~near(other, c.true_trains[v], c.delta)]
        taken = open_ & near(train, other, c.delta)
        if not is_real(taken.sum(), by_chance(open_.sum(), len(other), c.delta, c.truth.n_samples)):
            continue
        errors["split" if v in (u, -1) else "stolen"] += int(taken.sum())
        if v not in (u, -1):
            takers[v] += taken.sum()
        open_ &= ~taken
    errors["missed"] = int(open_.sum())
    return errors, open_, int(takers.argmax()) if takers.any() else -1


def false_spikes(c: Comparison, u: int, best: int) -> tuple[dict[str, int], int]:
    """Whose the spikes of the best unit are that are not the true unit's, and the true unit that gave most."""
    if best < 0:
        return {"merged": 0, "doubled": 0, "noise": 0}, -1
    train, mine = c.true_trains[u], c.sorted_trains[best]
    hits = near(mine, train, c.delta)
    doubled = int(hits.sum() - near(train, mine, c.delta).sum())
    open_, givers = ~hits, np.zeros(len(c.true_trains), int)
    for v in np.argsort(-c.counts[:, best], kind="stable"):
        if v == u or not c.counts[v, best]:
            continue
        given = open_ & near(mine, c.true_trains[v], c.delta)
        if is_real(given.sum(), by_chance(open_.sum(), len(c.true_trains[v]), c.delta, c.truth.n_samples)):
            givers[v] = given.sum()
            open_ &= ~given
    giver = int(givers.argmax()) if givers.any() else -1
    return {"merged": int(givers.sum()), "doubled": max(doubled, 0), "noise": int(open_.sum())}, giver


def recall_by_third(c: Comparison, u: int, best: int) -> tuple[np.ndarray, bool]:
    """(3,) recall of the best unit in each third of the recording (NaN under 5 spikes), and whether it changes."""
    train = c.true_trains[u]
    hit = near(train, c.sorted_trains[best], c.delta) if best >= 0 else np.zeros(len(train), bool)
    third = np.minimum(train * 3 // c.truth.n_samples, 2)
    total, hits = np.bincount(third, minlength=3), np.bincount(third[hit], minlength=3)
    recall = np.where(total >= 5, hits / np.maximum(total, 1), np.nan)
    known = total >= 5
    if known.sum() < 2 or np.ptp(recall[known]) < DRIFT_RANGE or hits.sum() in (0, total.sum()):
        return recall, False
    table = np.stack([hits, total - hits])[:, known]
    return recall, bool((table.sum(1) > 0).all() and chi2_contingency(table).pvalue < 1e-3)


def constant_offset(c: Comparison, u: int) -> tuple[int, float] | None:
    """A sorted unit that holds most of the true spikes, but all of them later or earlier: its index and the lag in ms."""
    train, wide = c.true_trains[u], int(OFFSET_MS / 1000 * c.found.fs)
    for k, other in enumerate(c.sorted_trains):
        lags = lag(train, other)
        inside = np.abs(lags) <= wide
        chance = by_chance(len(train), len(other), wide, c.truth.n_samples)
        if inside.sum() - chance < 0.5 * len(train) or (np.abs(lags) <= c.delta).sum() > 0.5 * inside.sum():
            continue
        middle = np.median(lags[inside])
        if (np.abs(lags[inside] - middle) <= c.delta / 2).mean() > 0.7:
            return k, float(middle / c.found.fs * 1000)
    return None


def observations(c: Comparison, u: int, best: int, missed: np.ndarray) -> tuple[str, ...]:
    """What distinguishes the spikes that were missed or false: bursts, collisions, amplitude."""
    train, notes = c.true_trains[u], []
    if missed.sum() >= 5 and not missed.all():
        masks = {f"within {BURST_MS:g} ms of the spike before": np.diff(train, prepend=-(10**9)) < BURST_MS / 1000 * c.found.fs,
                 "within 1 ms of a neighbour's spike": near(train, neighbour_spikes(c.truth, u), int(0.001 * c.found.fs))}
        if c.truth.trains.amplitudes is not None:
            true_amplitude = c.truth.trains.amplitudes[c.truth.trains.units == u]
            masks["in the lowest quarter of amplitudes"] = true_amplitude < np.quantile(true_amplitude, 0.25)
        for name, mask in masks.items():
            inside, outside = missed[mask], missed[~mask]
            if len(inside) >= 5 and len(outside) and inside.mean() > 1.5 * outside.mean() + 0.05:
                notes.append(f"{inside.mean():.0%} of its spikes {name} are missed, {outside.mean():.0%} of the others")
    if c.found.amplitudes is not None and best >= 0:
        mine = c.found.units == best
        hit = near(c.found.samples[mine], train, c.delta)
        amplitude = c.found.amplitudes[mine]
        if hit.sum() >= 3 and (~hit).sum() >= 3:
            notes.append(f"amplitude {_spread(amplitude[hit])} where right, {_spread(amplitude[~hit])} where wrong")
    return tuple(notes)


def _spread(values: np.ndarray) -> str:
    return f"{np.mean(values):.1f} +- {np.std(values):.1f}"


def neighbour_spikes(truth: Truth, u: int, radius_um: float = 80.0) -> np.ndarray:
    """Increasing spike times of the other true units, of those whose largest channel is near where that is known."""
    others = truth.trains.units != u
    if truth.best_channel is not None and truth.positions_um is not None:
        place = truth.positions_um[truth.best_channel]
        close = np.linalg.norm(place - place[u], axis=1) <= radius_um
        others &= close[truth.trains.units]
    return truth.trains.samples[others]


def diagnose_unit(c: Comparison, u: int) -> Diagnosis:
    """Put the errors of one true unit down to their causes."""
    train, best = c.true_trains[u], best_unit(c, u)
    errors, missed, taker = lost_spikes(c, u, best)
    wrong, giver = false_spikes(c, u, best)
    errors = {**errors, **wrong}
    thirds, changes = recall_by_third(c, u, best)
    cause = max(errors, key=lambda name: errors[name])
    rival = {"stolen": taker, "merged": giver}.get(cause, giver if giver >= 0 else taker)
    reason = REASONS[cause] if errors[cause] else "found"
    notes = observations(c, u, best, missed)
    if cause in ("missed", "split") and changes:
        reason = "drifted"
    elif cause == "missed" and (best < 0 or errors["missed"] > 0.9 * len(train)):
        reason = "never detected"
    if cause in ("missed", "noise") and c.result.accuracy[u] < 0.5 and (shifted := constant_offset(c, u)):
        reason, notes = "shifted in time", (f"unit {c.found.ids[shifted[0]]} has its spikes {shifted[1]:+.2f} ms away", *notes)
    return Diagnosis(_true_id(c, u), len(train), len(train) / c.truth.seconds, float(c.truth.snr[u]), float(c.result.accuracy[u]),
                     float(c.result.precision[u]), float(c.result.recall[u]), float(c.result.agreement[u, best]) if best >= 0 else 0.0,
                     reason, errors, int(c.found.ids[best]) if best >= 0 else None, _true_id(c, rival), sharing_units(c, u, best),
                     (float(thirds[0]), float(thirds[1]), float(thirds[2])), notes)


def sharing_units(c: Comparison, u: int, best: int) -> tuple[Sharing, ...]:
    """The sorted units that hold more of a true unit than chance and at least a twentieth, most first; the best one always."""
    n, found = max(len(c.true_trains[u]), 1), []
    for k in np.argsort(-c.counts[u], kind="stable"):
        if k == best or (is_real(c.counts[u, k], c.chance[u, k]) and c.counts[u, k] >= 0.05 * n):
            purity = c.counts[u, k] / max(len(c.sorted_trains[k]), 1)
            found.append(Sharing(int(c.found.ids[k]), float(c.counts[u, k] / n), float(purity), _true_id(c, c.owner[k])))
    return tuple(found)


def _true_id(c: Comparison, u: int) -> int:
    return int(c.truth.trains.ids[u]) if u >= 0 else -1


def explain_extra(c: Comparison, k: int) -> Extra:
    """What a sorted unit is that matches no true one: fragment, duplicate, mixture or noise."""
    mine, u = c.sorted_trains[k], int(c.owner[k])
    label = c.found.labels.get(int(c.found.ids[k]), "")
    explained, parts = np.zeros(max(len(mine), 1), bool), 0
    for v in np.argsort(-c.counts[:, k], kind="stable"):
        if is_real(c.counts[v, k], c.chance[v, k]):
            explained[: len(mine)] |= near(mine, c.true_trains[v], c.delta)
            parts += c.counts[v, k] >= 0.2 * len(mine)
    purity = c.counts[u, k] / max(len(mine), 1) if u >= 0 else 0.0
    coverage = c.counts[u, k] / max(len(c.true_trains[u]), 1) if u >= 0 else 0.0
    twin = c.result.match[u] if u >= 0 else -1
    doubled = near(mine, c.sorted_trains[twin], c.delta).mean() if twin >= 0 and len(mine) else 0.0
    if explained.mean() < 0.5:
        kind = "mostly noise"
    elif doubled > 0.5:
        kind = f"duplicate of unit {c.found.ids[twin]}"
    elif purity >= 0.5 and parts < 2:
        kind = "fragment"
    else:
        kind = "mixture"
    return Extra(int(c.found.ids[k]), len(mine), label, kind, _true_id(c, u), float(purity), float(coverage))


def diagnose(truth: Truth, found: Trains, delta_ms: float = DELTA_MS) -> tuple[Score, list[Diagnosis], list[Extra]]:
    """Score a sorting; explain every true unit, and every sorted unit that matches none."""
    c = compare(truth, found, delta_ms)
    units = [diagnose_unit(c, u) for u in range(truth.trains.n_units)]
    return c.result, units, [explain_extra(c, int(k)) for k in np.flatnonzero(c.result.extra)]
