"""Run one sorter on one recording folder, in a process of its own.

    python -m benchmarks.runners FOLDER SORTER OUT [--parameters JSON] [--jobs N]

OUT receives sorting.npz and run.json (seconds of the sorting alone, seconds per stage where the sorter says, or the error).
SORTER is "sortcore", any SpikeInterface sorter, "spikesift" through its own interface, or "oracle": SpikeInterface's wobble
matcher given the true mean waveforms, the ceiling of a sorter that learned every waveform perfectly on a still recording.
"ceiling" is the same with sortcore's own preprocessing and matcher.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ceiling import run_ceiling
from benchmarks.recordings import open_recording
from benchmarks.stages import stage_seconds
from benchmarks.trains import Trains, from_spikeinterface, load_sorted, load_truth, make_trains, save_trains

PACKAGES = {"kilosort4": "kilosort", "mountainsort5": "mountainsort5", "spikesift": "spikesift"}


def run_oracle(folder: Path, parameters: dict[str, Any]) -> Trains:
    """Match the true mean waveforms, measured on the filtered and locally whitened recording, with wobble."""
    import spikeinterface.preprocessing as spre
    from spikeinterface.core import ChannelSparsity, Templates, estimate_templates
    from spikeinterface.sortingcomponents.matching import find_spikes_from_templates

    from benchmarks.trains import to_spikeinterface

    known = load_truth(folder).trains
    truth = to_spikeinterface(known)
    filtered = spre.bandpass_filter(open_recording(folder), 300, 6000, dtype="float32")
    white = spre.whiten(filtered, mode="local", radius_um=100.0, dtype="float32", seed=0)
    white = spre.zscore(white, mode="median+mad", dtype="float32", seed=0)
    before, after = int(0.001 * known.fs), int(0.002 * known.fs)
    waves = estimate_templates(white, truth.to_spike_vector(), truth.unit_ids, before, after, operator="average", return_in_uV=False)
    size = np.ptp(waves, axis=1)
    mask = (size > 1.0) | (size == size.max(axis=1, keepdims=True))
    templates = Templates(waves, known.fs, before, is_in_uV=False, channel_ids=white.channel_ids, unit_ids=truth.unit_ids,
                          probe=white.get_probe())
    sparse = templates.to_sparse(ChannelSparsity(mask, truth.unit_ids, white.channel_ids))
    spikes = find_spikes_from_templates(white, sparse, method="wobble", **parameters)
    return make_trains(spikes["sample_index"], known.ids[spikes["cluster_index"]], known.fs, known.ids)


def run_spikesift(folder: Path, parameters: dict[str, Any]) -> Trains:
    """Spikesift reads the binary file by itself."""
    import spikesift

    recording = open_recording(folder)
    data = spikesift.Recording(binary_file=str(folder / "recording.bin"), data_type=str(recording.get_dtype()),
                               probe_geometry=recording.get_channel_locations().astype(np.float32),
                               sampling_frequency=recording.get_sampling_frequency())
    trains = spikesift.perform_spike_sorting(data, verbose=False, **parameters).all_spikes()
    samples = [np.asarray(train, np.int64) for train in trains.values()]
    ids = np.array(sorted(int(k) for k in trains), np.int64)
    units = [np.full(len(train), int(k)) for k, train in trains.items()]
    empty = np.zeros(0, np.int64)
    return make_trains(np.concatenate([empty, *samples]), np.concatenate([empty, *units]), recording.get_sampling_frequency(), ids)


def run_spikeinterface(name: str, folder: Path, parameters: dict[str, Any], work: Path) -> tuple[Trains, dict[str, float]]:
    """Any sorter that SpikeInterface knows, ours among them, with the seconds per stage of ours."""
    if name == "sortcore":
        import sorters

        sorters.register()
    from spikeinterface.sorters import run_sorter

    sorting = run_sorter(name, open_recording(folder), folder=work / "sorted", verbose=False, **parameters)
    result = work / "sorted" / "sorter_output" / "result"
    if name != "sortcore":
        return from_spikeinterface(sorting), {}
    # the same spikes with their amplitudes and labels
    keep_noise = bool(parameters.get("keep_noise", False))
    return load_sorted(result, sorting.sampling_frequency, keep_noise), stage_seconds(result)


CEILINGS = {"oracle": run_oracle, "ceiling": run_ceiling}


def version_of(name: str) -> str:
    """The version of the package that a sorter comes from; our own is that of the code that runs, installed or not."""
    if name in ("sortcore", "ceiling"):
        import sortcore

        return sortcore.__version__
    try:
        return importlib.metadata.version(PACKAGES.get(name, "spikeinterface"))
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def run(folder: Path, name: str, out: Path, parameters: dict[str, Any], jobs: int) -> dict[str, Any]:
    """Sort, save and time; an error is recorded, not raised."""
    import spikeinterface.full as si

    si.set_global_job_kwargs(n_jobs=jobs, progress_bar=False)
    line: dict[str, Any] = {"version": version_of(name)}
    work = Path(tempfile.mkdtemp(prefix="benchmark-"))
    stages: dict[str, float] = {}
    try:
        start = time.perf_counter()
        if name in CEILINGS:
            trains = CEILINGS[name](folder, parameters)
        elif name == "spikesift":
            trains = run_spikesift(folder, parameters)
        else:
            trains, stages = run_spikeinterface(name, folder, parameters, work)
        line.update(seconds=round(time.perf_counter() - start, 2), timings_s=stages)
        save_trains(out / "sorting.npz", trains)
    except Exception as error:
        traceback.print_exc()
        message = [text for text in str(error).strip().splitlines() if text.strip()]
        line["error"] = f"{type(error).__name__}: {message[-1] if message else ''}"[:300]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runners", description="Run one sorter on one recording folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("sorter")
    parser.add_argument("out", type=Path)
    parser.add_argument("--parameters", type=json.loads, default={}, help="the sorter's parameters as JSON")
    parser.add_argument("--jobs", type=int, default=2, help="processes that SpikeInterface may use")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "run.json").write_text(json.dumps(run(a.folder, a.sorter, a.out, a.parameters, a.jobs), indent=1))


if __name__ == "__main__":
    main()
