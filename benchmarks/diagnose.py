"""Why a true unit was not found, from the spike trains alone.

    python -m benchmarks.diagnose RECORDING SORTED [--below 0.8] [--delta-ms 0.4]

Every error of a unit is put down to one cause, counted in spikes:

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

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import chi2_contingency

from benchmarks.score import DELTA_MS, Score, score
from benchmarks.trains import Trains, Truth, load_sorted, load_truth

REASONS = {"split": "split", "stolen": "stolen", "missed": "missed below threshold", "merged": "merged", "doubled": "doubled",
           "noise": "contaminated"}
MIN_OWN = 0.1  # a sorted unit is somebody's if this share of it is theirs, ...
MIN_COVERED = 0.3  # ... or if it holds this share of them
DRIFT_RANGE = 0.4  # recall that differs by more between thirds of the recording is drift
OFFSET_MS = 2.0  # a train that agrees only within this time is shifted


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


@dataclass(frozen=True)
class Comparison:
    """True trains and sorted ones side by side, with their spikes counted once for all questions."""

    truth: Truth
    found: Trains
    result: Score
    delta: int
    true_trains: list[np.ndarray]
    sorted_trains: list[np.ndarray]
    counts: np.ndarray  # (U, K) matching spikes
    chance: np.ndarray  # (U, K) of which by chance
    owner: np.ndarray  # (K,) true unit that a sorted unit belongs to, -1 for none


def near(a: np.ndarray, b: np.ndarray, delta: int) -> np.ndarray:
    """(len(a),) True where a spike of `b` lies within `delta` samples; both increasing."""
    return np.abs(lag(a, b)) <= delta


def lag(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(len(a),) time of the nearest spike of `b`, relative to `a`; very large where `b` is empty."""
    if not len(b):
        return np.full(len(a), 2**40)
    after = np.searchsorted(b, a)
    low, high = b[np.maximum(after - 1, 0)] - a, b[np.minimum(after, len(b) - 1)] - a
    return np.where(np.abs(low) <= np.abs(high), low, high)


def by_chance(n: float, m: float, delta: int, n_samples: int) -> float:
    """Spikes of n that fall within `delta` of one of m, were the trains independent."""
    return n * m * (2 * delta + 1) / n_samples


def is_real(count: float, chance: float) -> bool:
    """Are there clearly more coincidences than chance brings?"""
    return count - chance > 2 + 4 * np.sqrt(chance)


def compare(truth: Truth, found: Trains, delta_ms: float = DELTA_MS) -> Comparison:
    """Score a sorting and find out to which true unit each sorted unit belongs."""
    result = score(truth, found, delta_ms)
    delta = int(delta_ms / 1000 * found.fs)
    n_true, n_sorted = truth.trains.counts().astype(float), found.counts().astype(float)
    # agreement = matches / (n + m - matches), solved for the matches
    counts = np.round(result.agreement * (n_true[:, None] + n_sorted) / (1 + result.agreement))
    chance = by_chance(n_true[:, None], n_sorted, delta, truth.n_samples)
    excess = counts - chance
    owner = np.full(found.n_units, -1)
    for k in range(found.n_units if len(n_true) else 0):
        if k in result.match:
            owner[k] = np.flatnonzero(result.match == k)[0]
            continue
        u = int(excess[:, k].argmax())
        mine = excess[u, k] >= MIN_OWN * n_sorted[k] or excess[u, k] >= MIN_COVERED * n_true[u]
        owner[k] = u if mine and is_real(counts[u, k], chance[u, k]) else -1
    return Comparison(truth, found, result, delta, truth.trains.split(), found.split(), counts, chance, owner)


def best_unit(c: Comparison, u: int) -> int:
    """The sorted unit that stands for a true one, -1 for none: its match, else the most alike that is its own or holds half of it."""
    if c.result.match[u] >= 0 or not c.found.n_units:
        return int(c.result.match[u])
    own = (c.owner == u) | (c.counts[u] - c.chance[u] >= 0.5 * len(c.true_trains[u]))
    agreement = np.where(own & (c.counts[u] > c.chance[u]), c.result.agreement[u], 0.0)
    return int(agreement.argmax()) if agreement.max() > 0 else -1


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
    return {"merged": int(givers.sum()), "doubled": max(doubled, 0), "noise": int(open_.sum())}, int(givers.argmax()) if givers.any() else -1


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
        burst = np.diff(train, prepend=-(10**9)) < 0.02 * c.found.fs
        collided = near(train, neighbour_spikes(c.truth, u), int(0.001 * c.found.fs))
        for mask, name in ((burst, "within 20 ms of the spike before"), (collided, "within 1 ms of a neighbour's spike")):
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
    elif cause == "missed" and errors["missed"] > 0.9 * len(train):
        reason = "never detected"
    if cause in ("missed", "noise") and c.result.accuracy[u] < 0.5 and (shifted := constant_offset(c, u)):
        reason, notes = "shifted in time", (f"unit {c.found.ids[shifted[0]]} has its spikes {shifted[1]:+.2f} ms away", *notes)
    n_sorted = c.found.counts()
    shared = [k for k in np.argsort(-c.counts[u], kind="stable") if is_real(c.counts[u, k], c.chance[u, k]) or k == best]
    sharing = tuple(Sharing(int(c.found.ids[k]), c.counts[u, k] / max(len(train), 1), c.counts[u, k] / max(n_sorted[k], 1), _true_id(c, c.owner[k]))
                    for k in shared if c.counts[u, k] >= 0.05 * len(train) or k == best)
    return Diagnosis(_true_id(c, u), len(train), len(train) / c.truth.seconds, float(c.truth.snr[u]), float(c.result.accuracy[u]),
                     float(c.result.precision[u]), float(c.result.recall[u]), reason, errors, int(c.found.ids[best]) if best >= 0 else None,
                     _true_id(c, rival), sharing, tuple(float(x) for x in thirds), notes)  # type: ignore[arg-type]


def _true_id(c: Comparison, u: int) -> int:
    return int(c.truth.trains.ids[u]) if u >= 0 else -1


def explain_extra(c: Comparison, k: int) -> Extra:
    """What a sorted unit is that matches no true one: fragment, duplicate, mixture or noise."""
    mine, u = c.sorted_trains[k], int(c.owner[k])
    label = c.found.labels.get(int(c.found.ids[k]), "")
    explained, parts = np.zeros(len(mine), bool), 0
    for v in np.argsort(-c.counts[:, k], kind="stable"):
        if is_real(c.counts[v, k], c.chance[v, k]):
            explained |= near(mine, c.true_trains[v], c.delta)
            parts += c.counts[v, k] >= 0.2 * len(mine)
    purity = c.counts[u, k] / max(len(mine), 1) if u >= 0 else 0.0
    coverage = c.counts[u, k] / max(len(c.true_trains[u]), 1) if u >= 0 else 0.0
    twin = c.result.match[u] if u >= 0 else -1
    doubled = near(mine, c.sorted_trains[twin], c.delta).mean() if twin >= 0 and len(mine) else 0.0
    if explained.mean() < 0.5 if len(mine) else True:
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
    return c.result, units, [explain_extra(c, k) for k in np.flatnonzero(c.result.extra)]


def describe(d: Diagnosis) -> str:
    """A few readable lines about one true unit."""
    snr = f"SNR {d.snr:4.1f}" if np.isfinite(d.snr) else "SNR  -  "
    head = (f"unit {d.unit:3d}  {d.n_spikes:5d} spikes {d.rate_hz:5.1f} Hz  {snr}  accuracy {d.accuracy:.2f} precision {d.precision:.2f} "
            f"recall {d.recall:.2f}  {d.reason.upper()}")
    if d.rival >= 0 and d.reason in ("stolen", "merged"):
        head += f" {'by' if d.reason == 'stolen' else 'with'} true unit {d.rival}"
    lines = [head, "     errors: " + (", ".join(f"{name} {n}" for name, n in d.errors.items() if n) or "none")]
    for s in d.sharing[:5]:
        whose = "its own" if s.owner == d.unit else "nobody's" if s.owner < 0 else f"of true unit {s.owner}"
        lines.append(f"     sorted {s.sorted_id:4d} ({whose}) holds {s.coverage:4.0%} of it and is {s.purity:4.0%} it" + (" <- best" if s.sorted_id == d.best else ""))
    if d.best is not None and d.recall < 0.95:
        lines.append("     recall by thirds of the recording: " + " ".join("-" if np.isnan(x) else f"{x:.2f}" for x in d.thirds))
    return "\n".join(lines + [f"     {note}" for note in d.notes])


def summarise(truth: Truth, result: Score, units: list[Diagnosis], extras: list[Extra], below: float = 0.8) -> str:
    """The whole report: the score, each bad unit, what is lost to each reason, and the extra units."""
    s = result.summary()
    good = "" if s["extra_good"] is None else f" ({s['extra_good']} labelled good)"
    lines = [f"{truth.name}: accuracy {s['accuracy']:.4f} precision {s['precision']:.4f} recall {s['recall']:.4f}   units > .8: {s['n80']}, "
             f"> .95: {s['n95']} of {s['n_true']}   sorted {s['n_sorted']}, extra {s['extra']}{good}", ""]
    lines += [describe(d) for d in sorted(units, key=lambda d: d.accuracy) if d.accuracy < below]
    lost: dict[str, list[float]] = {}
    for d in units:
        lost.setdefault(d.reason, []).append(1 - d.accuracy)
    lines += ["", "points of mean accuracy lost to each reason, all units:"]
    for reason, losses in sorted(lost.items(), key=lambda item: -sum(item[1])):
        if sum(losses) > 0:
            bad = sum(x > 1 - below for x in losses)
            lines.append(f"  {reason:24s} {100 * sum(losses) / len(units):5.2f}   {bad} units under {below:g}, {len(losses) - bad} above")
    if extras:
        lines += ["", "sorted units that match no true one:"]
    for e in sorted(extras, key=lambda e: (e.kind, -e.n_spikes)):
        whose = f"; {e.purity:4.0%} of it is true unit {e.owner}, {e.coverage:.0%} of that unit" if e.owner >= 0 else ""
        lines.append(f"  sorted {e.sorted_id:4d} {e.n_spikes:6d} spikes {e.label:5s} {e.kind}{whose}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnose", description="Why each true unit under --below was not found.")
    parser.add_argument("recording", type=Path, help="folder with truth.npz and info.json")
    parser.add_argument("sorted", type=Path, help=".npz with samples and units, or a result folder")
    parser.add_argument("--below", type=float, default=0.8, help="explain true units under this accuracy (1.01: all)")
    parser.add_argument("--delta-ms", type=float, default=DELTA_MS, help="spikes within this time are the same")
    a = parser.parse_args(arguments)
    truth = load_truth(a.recording)
    print(summarise(truth, *diagnose(truth, load_sorted(a.sorted, truth.trains.fs), a.delta_ms), below=a.below))


if __name__ == "__main__":
    main()
