"""Run a command and watch its time and the memory of all its processes."""

from __future__ import annotations

import contextlib
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL_S = 0.1


@dataclass(frozen=True)
class Measured:
    """code: exit status, negative for a signal; timed_out; seconds: wall time; peak_mb: largest sum of the resident memory
    of the process and its children (pages that they share, or that map the recording's file, count for each)."""

    code: int
    timed_out: bool
    seconds: float
    peak_mb: float


def tree_memory_mb(process: psutil.Process) -> float:
    """Resident memory of a process and all its descendants, in megabytes (2^20 bytes)."""
    total = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
            total += member.memory_info().rss
    return total / 2**20


def run_measured(command: list[str], log: Path, limit_s: float, cwd: Path | None = None) -> Measured:
    """Run a command in `cwd` with its output in `log`; after `limit_s` seconds it and its children are ended."""
    start, peak, timed_out = time.perf_counter(), 0.0, False
    with log.open("w") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=cwd)
        process = psutil.Process(child.pid)
        try:
            while child.poll() is None:
                peak = max(peak, tree_memory_mb(process))
                if time.perf_counter() - start > limit_s:
                    timed_out = True
                    end_tree(process)
                time.sleep(INTERVAL_S)
        except BaseException:
            end_tree(process)
            raise
    return Measured(child.returncode, timed_out, time.perf_counter() - start, peak)


def end_tree(process: psutil.Process) -> None:
    """End a process and all its descendants."""
    try:
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
