"""What a long recording of very many channels costs on a cluster, on paper: from costs measured here on fewer channels.

    python -m benchmarks.cluster [--measured 96,192,384] [--channels 5120] [--hours 1] [--workers 16]

Recordings of so many channels, with a cell for every fourth, are simulated and sorted by one core. The cost of each stage is
fitted as a N + b N^2 for N channels (filters and matching grow with N, whitening in space is a product of N by N) and read off at
the channels asked for. Stages over the recording are shared by the workers, one core each; the others run on one machine. What is
counted are samples with their margins, which neighbouring chunks both compute.
"""

from __future__ import annotations

import argparse
import os
import pickle
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls

import sortcore as sc
from benchmarks.report import markdown
from sortcore import matching
from sortcore.ephys import detect
from sortcore.ephys.config import PursuitConfig
from sortcore.ephys.pipeline import model_matcher
from sortcore.ephys.preprocess import ARTIFACT_MS, Whitener, thinning
from sortcore.recording import Chunk, Recording
from sortcore.sample import MOST_VALUES
from sortcore.simulate import simulate
from sortcore.types import Model, Probe
from sortcore.workers import one_thread_each

FS = 30000.0
EVERY = thinning(FS, sc.SortConfig().preprocess.least_rate_hz)
RATE = FS / EVERY  # at which the sorter works
SECONDS, SAMPLE_SECONDS = 10.0, 5.0  # of the recordings that are measured, and of their sample
SCANNED = 0.75  # of a long recording is looked at for drift, at most: half of it, then a quarter
BYTES = 2  # of a stored value


@dataclass(frozen=True)
class Costs:
    """Seconds of one core. whiten, look, match: for a second of recording, margins counted; first, fit: for a second of sample;
    noise, conclude: in all. taps, template: samples of the filter and of a template; spikes_hz: found; sent: bytes of what workers
    need for matching."""

    channels: int
    whiten: float
    look: float
    match: float
    noise: float
    first: float
    fit: float
    conclude: float
    taps: int
    template: int
    spikes_hz: float
    sent: float


def contacts(n: int) -> Probe:
    """Two columns, 20 um apart in depth, on shanks of 1280."""
    i = np.arange(n)
    shank = i // 1280
    return Probe(np.stack([500.0 * shank + 32.0 * (i % 2), 20.0 * (i % 1280 // 2)], axis=1), shank, f"{n} contacts")


@one_thread_each()
def measure(n: int) -> Costs:
    """Sort a simulated recording of n channels by one core, and time each part of it."""
    made = simulate(contacts(n), SECONDS, max(1, n // 4), snr=(6.0, 20.0), seed=n)
    recording = made.recording()
    config = sc.SortConfig.from_dict({"fit": {"sample_seconds": SAMPLE_SECONDS}})
    sc.sort(simulate(contacts(8), 2.0, 2).recording(), contacts(8), device="cpu", progress=False)  # so that all is compiled
    result = sc.sort(recording, made.probe, config, device="cpu", progress=False)
    whitener = Whitener(result.model.preprocessing, torch.device("cpu"))
    per_second, x = whitening(recording, whitener, config.pursuit)
    t, stages = result.timings_s, result.model.preprocessing
    prototypes, trough = detect.learn_prototypes(x.numpy(), int(0.0006 * RATE), int(0.001 * RATE), 0)
    bank = detect.make_bank(prototypes, trough, stages.probe, config.detect.radius_um)
    look = timed(lambda: detect.detect_all(x, bank, 4.0, config.detect, RATE, stages.probe.positions_um)) / (x.shape[1] / RATE)
    return Costs(n, per_second, look, matching_cost(result.model, x, config), t["learn noise"], t["initialize"] / SAMPLE_SECONDS,
                 t["fit"] / SAMPLE_SECONDS, t["curate"], len(stages.taps), result.model.templates.profiles.shape[2],
                 len(result.spikes) / SECONDS, len(pickle.dumps((whitener, model_matcher(result.model, None, config)))))


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def whitening(recording: Recording, whitener: Whitener, pursuit: PursuitConfig) -> tuple[float, torch.Tensor]:
    """Seconds for a second of recording, margins counted, and (N, T) three seconds whitened, in the sorter's chunks."""
    size, last = pursuit.chunk_samples(RATE, recording.n_channels), sum(recording.segment_lengths) // EVERY
    pieces = [Chunk(start, start + size, 0, last) for start in range(0, int(3 * RATE) - size + 1, size)]
    found: list[torch.Tensor] = []
    seconds = timed(lambda: found.extend(whitener(recording, c) for c in pieces))
    return seconds / (len(pieces) * (size + margin(whitener.margin)) / RATE), torch.cat(found, dim=1)


def margin(half_taps: int) -> int:
    """Thinned samples on both sides of a chunk that whitening it reads."""
    return 2 * (half_taps // EVERY + int(ARTIFACT_MS * RATE / 1000))


def matching_cost(model: Model, x: torch.Tensor, config: sc.SortConfig) -> float:
    """Seconds of matching for a second of x (N, T) whitened."""
    matcher, dead = model_matcher(model, None, config).reference, int(0.0005 * RATE)
    size = max(config.pursuit.chunk_samples(RATE, len(x)), 20 * matcher.n_samples)
    parts = [x[:, i : i + size].contiguous() for i in range(0, x.shape[1] - size + 1, size)]

    def work() -> None:
        for part in parts:
            matching.match(matcher, matching.scores(matcher, part).numpy(), dead)

    return timed(work) / (len(parts) * size / RATE)


def at(costs: list[Costs], name: str, n: int, square: bool = True) -> float:
    """A cost at n channels: a N + b N^2 through those that were measured, neither of them negative."""
    channels = np.array([c.channels for c in costs], float)
    values = np.array([getattr(c, name) for c in costs])
    terms = np.stack([channels, channels**2], axis=1)[:, : 1 + square]
    weights, _ = nnls(terms / values[:, None], np.ones(len(values)))
    return float(weights @ np.array([n, n**2], float)[: 1 + square])


def table(costs: list[Costs], n: int, hours: float, workers: int) -> str:
    """Stages of a recording of n channels and so many hours: where they run, and how long they take."""
    seconds, pursuit, last = 3600 * hours, PursuitConfig(), costs[-1]
    sample = min(180.0, MOST_VALUES / n / RATE, seconds)
    chunk = pursuit.chunk_samples(RATE, n)
    longer = max(chunk, 20 * last.template)
    around = margin(last.taps // 2)
    wide, both = 1 + around / chunk, 1 + (around + 8 * last.template) / longer
    whiten, look, match = (at(costs, name, n) for name in ("whiten", "look", "match"))
    scan = SCANNED * seconds
    spread = [("preprocess the sample", sample, sample * wide * whiten), ("detect in it", sample, sample * look),
              ("drift, two passes", scan, scan * (whiten + look)),
              ("deconvolve", seconds, seconds * (both * whiten + (1 + 8 * last.template / longer) * match))]
    local = [("learn noise", 8.0, at(costs, "noise", n)), ("first templates", sample, sample * at(costs, "first", n)),
             ("fit", sample, sample * at(costs, "fit", n)), ("curate", 0.0, at(costs, "conclude", n))]
    rows = [["stage", "where", "seconds of recording", "core hours", f"hours on {workers} workers"]]
    rows += [[name, "workers", f"{length:.0f}", f"{work / 3600:.2f}", f"{work / workers / 3600:.2f}"] for name, length, work in spread]
    rows += [[name, "one machine", f"{length:.0f}" if length else "", *2 * [f"{work / 3600:.2f}"]] for name, length, work in local]
    all_spread, all_local = sum(work for *_, work in spread), sum(work for *_, work in local)
    rows.append(["sum", "", "", f"{(all_spread + all_local) / 3600:.1f}", f"{(all_spread / workers + all_local) / 3600:.1f}"])
    size = n * FS * BYTES * seconds
    return markdown(rows) + (
        f"\nThe recording is {size / 1e9:.0f} GB; it is read {SCANNED + both:.2f} times. A chunk of the last pass is "
        f"{longer / RATE:.3f} s,\nand {both:.2f} times that with its margins. Each worker is sent "
        f"{at(costs, 'sent', n) / 1e9:.2f} GB once; "
        f"{at(costs, 'spikes_hz', n, square=False) * 28 * seconds / 1e9:.2f} GB of spikes come back."
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", default="96,192,384", help="channels of the recordings that are sorted here")
    parser.add_argument("--channels", type=int, default=5120)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=16)
    given = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # costs are of one core
    costs = [measure(int(n)) for n in given.measured.split(",")]
    names = ("whiten", "look", "match", "first", "fit", "noise", "conclude")
    print("Seconds of one core: for a second of recording (whiten, look, match), of sample (first, fit), in all (noise, conclude)\n")
    print(markdown([["channels", *names], *([str(c.channels), *(f"{getattr(c, name):.3f}" for name in names)] for c in costs)]))
    print(f"\n{given.channels} channels, {given.hours:g} h, {given.workers} workers of one core\n")
    print(table(costs, given.channels, given.hours, given.workers))


if __name__ == "__main__":
    main()
