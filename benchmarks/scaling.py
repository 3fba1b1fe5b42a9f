"""Cost against size: processor time and memory against duration and channels, and the exponents fitted to them.

    python -m benchmarks.scaling [--durations 30 120 480 1200] [--channels 32 96 192 384] [--out FOLDER]

Half a minute of a Neuropixels probe, or of its first channels, is simulated and written to a file again and again, each time with
noise of its own, until it is long enough; the file is sorted by a process of its own. Processor time is that of all its threads,
memory the most it held.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import sortcore as sc
from benchmarks.report import markdown
from sortcore.types import Probe

SIMULATED_S = 30.0
FRESH = 2.0  # noise added each time, over the simulation's own: the same noise again and again would be taken for cells
CHANNELS, SECONDS = 32, 60.0  # held where the other is varied
CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Cost:
    """One sort: channels, seconds of recording, processor seconds, peak resident memory in MB, units found."""

    channels: int
    seconds: float
    processor_s: float
    peak_mb: float
    units: int


def first_contacts(n: int) -> Probe:
    probe = sc.load_probe("neuropixels1")
    return probe.select(np.arange(n))


def measure(n_channels: int, seconds: float, folder: Path) -> Cost:
    """Simulate, write and sort one recording."""
    path = folder / "recording.bin"
    write_long(path, first_contacts(n_channels), max(2, n_channels // 2), seconds, n_channels)
    command = [sys.executable, "-m", "benchmarks.scaling", "--sort", str(path), "--channels", str(n_channels)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    path.unlink()
    if child.returncode:
        raise RuntimeError(f"The sort of {n_channels} channels and {seconds:g} s ended with status {child.returncode}.")
    return Cost(n_channels, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, json.loads(said)["units"])


def write_long(path: Path, probe: Probe, n_units: int, seconds: float, seed: int) -> sc.Simulation:
    """Write a recording in which the same cells fire the same trains every half minute, in other noise; that half minute."""
    louder = np.hypot(1.0, FRESH)  # so that the cells' sizes are as always, over all the noise
    made = sc.simulate(probe, min(SIMULATED_S, seconds), n_units, snr=(5.0 * louder, 20.0 * louder), seed=seed)
    rng, size = np.random.default_rng(seed), int(made.fs)
    with path.open("wb") as file:
        for _ in range(max(1, round(seconds / SIMULATED_S))):
            for start in range(0, len(made.data), size):
                part = made.data[start : start + size]
                noise = rng.standard_normal(part.shape, dtype=np.float32) * np.float32(FRESH * made.noise_uv / made.gain_uv)
                np.clip(np.rint(part + noise), -32768, 32767).astype(np.int16).tofile(file)
    return made


def sort_file(path: Path, n_channels: int) -> None:
    result = sc.sort(sc.binary_recording(path, n_channels, 30000.0, "int16", 0.195), first_contacts(n_channels), progress=False)
    print(json.dumps({"units": result.n_units}))


def exponent(sizes: list[float], costs: list[float]) -> float:
    """The power of size that cost grows with: the slope of a straight line through both logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def table(costs: list[Cost]) -> str:
    rows = [["channels", "seconds", "processor s", "processor s per channel and minute", "peak MB", "units"]]
    for c in costs:
        rows.append([str(c.channels), f"{c.seconds:.0f}", f"{c.processor_s:.1f}", f"{c.processor_s / c.channels / c.seconds * 60:.3f}",
                     f"{c.peak_mb:.0f}", str(c.units)])
    return markdown(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--durations", type=float, nargs="*", default=[30.0, 120.0, 480.0, 1200.0], help=f"s, of {CHANNELS} channels")
    parser.add_argument("--channels", type=int, nargs="*", default=[32, 96, 192, 384], help=f"of {SECONDS:g} s")
    parser.add_argument("--out", type=Path, help="where recordings are written; a temporary folder if not given")
    parser.add_argument("--sort", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    if a.sort:
        return sort_file(a.sort, a.channels[0])
    with tempfile.TemporaryDirectory(dir=a.out) as folder:
        measure(4, 2.0, Path(folder))  # so that all is compiled
        for name, sizes in (("duration", a.durations), ("channels", a.channels)):
            costs = [measure(*((CHANNELS, size) if name == "duration" else (size, SECONDS)), Path(folder)) for size in sizes]
            print(f"{table(costs)}\n")
            if len(costs) > 1:
                grows = exponent(sizes, [c.processor_s for c in costs])
                print(f"Processor time grows with the {grows:.2f}th power of {name}; "
                      f"memory from {costs[0].peak_mb:.0f} to {costs[-1].peak_mb:.0f} MB.\n", flush=True)
    return None


if __name__ == "__main__":
    main()
