"""Why true units were not found, in readable lines.

    python -m benchmarks.diagnose RECORDING SORTED [--below 0.8] [--delta-ms 0.4]

`causes` says how the reasons are told apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.causes import Diagnosis, Extra, diagnose
from benchmarks.score import DELTA_MS, Score
from benchmarks.trains import Truth, load_sorted, load_truth


def describe(d: Diagnosis) -> str:
    """A few readable lines about one true unit."""
    snr = f"SNR {d.snr:4.1f}" if np.isfinite(d.snr) else "SNR  -  "
    quality = f"accuracy {d.accuracy:.2f} precision {d.precision:.2f} recall {d.recall:.2f}"
    if not d.accuracy:
        quality = f"unmatched, the best unit agrees {d.agreement:.2f}" if d.best is not None else "unmatched, no unit of its own"
    head = f"unit {d.unit:3d}  {d.n_spikes:5d} spikes {d.rate_hz:5.1f} Hz  {snr}  {quality}  {d.reason.upper()}"
    if d.rival >= 0 and d.reason in ("stolen", "merged"):
        head += f" {'by the unit of' if d.reason == 'stolen' else 'with'} true unit {d.rival}"
    lines = [head, "     errors: " + (", ".join(f"{name} {n}" for name, n in d.errors.items() if n) or "none")]
    for s in d.sharing[:5]:
        whose = "its own" if s.owner == d.unit else "nobody's" if s.owner < 0 else f"of true unit {s.owner}"
        mark = " <- best" if s.sorted_id == d.best else ""
        lines.append(f"     sorted {s.sorted_id:4d} ({whose}) holds {s.coverage:4.0%} of it and is {s.purity:4.0%} it{mark}")
    if d.best is not None and d.recall < 0.95:
        lines.append("     recall by thirds of the recording: " + " ".join("-" if np.isnan(x) else f"{x:.2f}" for x in d.thirds))
    return "\n".join(lines + [f"     {note}" for note in d.notes])


def summarise(truth: Truth, result: Score, units: list[Diagnosis], extras: list[Extra], below: float = 0.8) -> str:
    """The whole report: the score, each bad unit, what is lost to each reason, and the extra units."""
    s = result.summary()
    good = "" if s["extra_good"] is None else f" ({s['extra_good']} labelled good)"
    lines = [f"{truth.name}: accuracy {s['accuracy']:.4f} precision {s['precision']:.4f} recall {s['recall']:.4f}   "
             f"units > .8: {s['n80']}, > .95: {s['n95']} of {s['n_true']}   sorted {s['n_sorted']}, extra {s['extra']}{good}", ""]
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
    parser.add_argument("--keep-noise", action="store_true", help="count units labelled noise, which sorters leave out, as sorted")
    a = parser.parse_args(arguments)
    try:
        truth = load_truth(a.recording)
        found = load_sorted(a.sorted, truth.trains.fs, keep_noise=a.keep_noise)
    except (FileNotFoundError, KeyError, ValueError) as error:
        parser.error(str(error))
    print(summarise(truth, *diagnose(truth, found, a.delta_ms), below=a.below))


if __name__ == "__main__":
    main()
