"""Sorts that are stopped: what the processes of the tests run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

import sortcore as sc
from sortcore.ephys import deconvolve as pursuit
from sortcore.ephys.kept import SPIKES
from sortcore.ephys.pipeline import model_matcher, run
from sortcore.ephys.preprocess import Whitener
from sortcore.export import load_model
from sortcore.numerics import pick_device
from sortcore.recording import BinaryRecording, Thinned, binary_recording
from sortcore.steps import Steps
from sortcore.types import Probe, SortingResult, Spikes
from sortcore.workers import InOrder, one_thread_each

LONG = {"fit": {"sample_seconds": 4.0, "iterations": 1}}  # so that 12 s are longer than the sample


def opened(raw: Path) -> BinaryRecording:
    return binary_recording(raw, 12, 30000.0, gain_uv=0.195)


def sort(raw: Path, probe: Probe, work: Path | None, settings: dict | None = None, progress: object = False, fresh: bool = False,
         spread: InOrder | None = None) -> SortingResult:
    config = sc.SortConfig.from_dict({**LONG, **(settings or {})})
    return sc.sort(opened(raw), probe, config, device="cpu", progress=progress, work=work, fresh=fresh, spread=spread)  # type: ignore[arg-type]


def contents(result: SortingResult) -> dict[str, bytes]:
    """All that is found, as bytes."""
    model, spikes = result.model, result.spikes
    arrays = {**vars(spikes), **vars(result.units), **vars(model.priors), "uv": model.templates_uv, "scale": model.scale_uv,
              "footprints": model.templates.footprints, "profiles": model.templates.profiles, "log": result.log.log_joint,
              "whitening": model.preprocessing.whitening, "taps": model.preprocessing.taps}
    return {name: np.ascontiguousarray(a).tobytes() for name, a in arrays.items()}


class Stages:
    """The stages whose progress was seen."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, items: Iterable, stage: str, total: int) -> Iterable:
        self.seen.append(stage.split()[0])
        return items


class Deadly:
    """Progress that kills the process at one item of one stage."""

    def __init__(self, stage: str, item: int) -> None:
        self.stage, self.item = stage, item

    def __call__(self, items: Iterable, stage: str, total: int) -> Iterator:
        for i, thing in enumerate(items):
            if stage.split()[0] == self.stage and i == self.item:
                os.kill(os.getpid(), signal.SIGKILL)
            yield thing


@one_thread_each()
def sort_in_parts(raw: Path, probe: Probe, folder: Path, die_in: str = "", item: int = 0, stages: Stages | None = None) -> SortingResult:
    """A sort that keeps every chunk of the stages that pass over the recording."""
    steps = Steps(folder, "in parts", every_seconds=0.0)
    track = stages or Deadly(die_in, item)
    return run(steps, opened(raw), probe, sc.SortConfig.from_dict(LONG), pick_device("cpu"), 0, track)


@one_thread_each()
def last_pass(raw: Path, model_file: Path, folder: Path, die_at: int | None = None, stages: Stages | None = None) -> Spikes:
    """The last pass over a recording in chunks of 0.5 s, each kept as it is done."""
    model, config = load_model(model_file), sc.SortConfig.from_dict({"pursuit": {"chunk_seconds": 0.5}})
    whitener, recording = Whitener(model.preprocessing, pick_device("cpu")), opened(raw)
    steps = Steps(folder, "last pass", every_seconds=0.0)
    track = Deadly("deconvolve", die_at) if die_at is not None else stages or Stages()
    return steps.keep("deconvolve", SPIKES, lambda: pursuit.deconvolve(
        lambda c: whitener(recording, c), Thinned(recording.segment_lengths, model.preprocessing.every).segment_lengths,
        model_matcher(model, None, config), model.templates.trough, model.preprocessing.whitened_fs, config.pursuit, track), parts=Spikes)
