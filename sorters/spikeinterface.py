"""sortcore as a SpikeInterface sorter: run_sorter("sortcore", recording, folder=...).

The class follows the contract of `spikeinterface.sorters.basesorter.BaseSorter`: everything is a class method, and all
that passes from one step to the next lies in the folder. The engine, and with it torch, is imported when a sort starts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from spikeinterface.core import BaseSorting, BaseSortingSegment
from spikeinterface.sorters.basesorter import BaseSorter

from sorters.registration import complete_all

RESULT, WORK = "result", "work"  # in SpikeInterface's folder sorter_output


class Forked:
    """Whether this process was forked from one that had torch.

    Such a worker inherits torch's threads and CUDA context, but neither works there: the first parallel loop waits for
    ever. It sorts in an interpreter of its own.
    """

    with_torch = False

    @classmethod
    def note(cls) -> None:
        cls.with_torch = "torch" in sys.modules


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=Forked.note)


class Lazy:
    """A class attribute that is worked out when it is asked for, so that importing SpikeInterface does not import torch."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self.make()


def _defaults() -> dict[str, Any]:
    from sorters.settings import default_params

    return default_params()


def _descriptions() -> dict[str, str]:
    from sorters.settings import params_description

    return params_description()


class SortcoreSorter(BaseSorter):
    """Convolutive semi-NMF with drift-aware preprocessing, a matched-filter detector and a local matching pursuit."""

    sorter_name = "sortcore"
    requires_locations = False
    gpu_capability = "nvidia-optional"
    requires_binary_data = False
    compatible_with_parallel: ClassVar = {"loky": True, "multiprocessing": True, "threading": True}
    handle_multi_segment = True

    _default_params = Lazy(_defaults)
    _params_description = Lazy(_descriptions)

    sorter_description = (
        "sortcore explains the recording as a sum of templates times sparse amplitudes (convolutive semi-NMF), after whitening in space "
        "and time: matched-filter detection at a stated false-alarm rate, coordinate ascent on the log joint, and a matching pursuit "
        "that is local in space and time. Runs on CPU and GPU; the same recording and seed give the same spikes."
    )
    installation_mesg = "\tpip install sortcore"

    @classmethod
    def is_installed(cls) -> bool:
        return all(importlib.util.find_spec(package) for package in ("sortcore", "torch", "numba"))

    @classmethod
    def get_sorter_version(cls) -> str:
        import sortcore

        return sortcore.__version__

    @classmethod
    def initialize_folder(cls, recording: Any, output_folder: str | Path | None, verbose: bool, remove_existing_folder: bool) -> Path:
        """As SpikeInterface does it; but a folder with a sort that did not come to its end is used again, and what it has
        finished is kept, unless the folder is to be removed."""
        folder = Path(output_folder or f"{cls.sorter_name}_output").absolute()
        if remove_existing_folder or not is_unfinished(folder):
            return super().initialize_folder(recording, output_folder, verbose, remove_existing_folder)
        work, aside = folder / "sorter_output" / WORK, folder.with_name(f".{folder.name}.{WORK}")
        os.replace(work, aside)
        try:
            return super().initialize_folder(recording, output_folder, verbose, True)
        finally:
            work.parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside, work)

    @classmethod
    def _check_params(cls, recording: Any, output_folder: Path, params: dict[str, Any]) -> dict[str, Any]:
        from sortcore.numerics import pick_device
        from sorters.settings import config_from_params

        config_from_params(params)
        pick_device(params["device"])
        return params

    @classmethod
    def _setup_recording(cls, recording: Any, sorter_output_folder: Path, params: dict[str, Any], verbose: bool) -> None:
        """Nothing is copied; what is wrong with the recording or its probe is said before work starts."""
        from sorters.adapter import SpikeInterfaceRecording, probe_of

        SpikeInterfaceRecording(recording)
        probe_of(recording)

    @classmethod
    def _check_apply_filter_in_params(cls, params: dict[str, Any]) -> bool:
        return True

    @classmethod
    def _run_from_folder(cls, sorter_output_folder: Path, params: dict[str, Any], verbose: bool) -> None:
        run = sort_in_new_interpreter if Forked.with_torch else sort_folder
        run(str(sorter_output_folder), params, verbose)

    @classmethod
    def run_from_folder(cls, output_folder: str | Path, raise_error: bool, verbose: bool) -> float | None:
        """As SpikeInterface does it; what stages have kept in the sorter's own folder is of no use once it says that all is done."""
        seconds = super().run_from_folder(output_folder, raise_error, verbose)
        if not is_unfinished(Path(output_folder)):
            shutil.rmtree(Path(output_folder) / "sorter_output" / WORK, ignore_errors=True)
        return seconds

    @classmethod
    def _get_result_from_folder(cls, sorter_output_folder: Path) -> SortcoreSorting:
        params = Path(sorter_output_folder).parent / "spikeinterface_params.json"
        keep_noise = params.is_file() and json.loads(params.read_text(encoding="utf8"))["sorter_params"].get("keep_noise", False)
        return SortcoreSorting(Path(sorter_output_folder) / RESULT, keep_noise=keep_noise)


def is_unfinished(folder: Path) -> bool:
    """Whether a folder of `run_sorter` holds what a sort has finished that did not come to its end."""
    log = folder / "spikeinterface_log.json"
    ended = log.is_file() and not json.loads(log.read_text(encoding="utf8")).get("error", True)
    return (folder / "sorter_output" / WORK).is_dir() and not ended


def sort_folder(folder: str, params: dict[str, Any], verbose: bool) -> None:
    """Sort the recording that SpikeInterface has described beside `folder`, and save the result in it."""
    import sortcore
    from sortcore.export import save_result
    from sorters.adapter import SpikeInterfaceRecording, probe_of
    from sorters.settings import config_from_params

    recording = SortcoreSorter.load_recording_from_folder(Path(folder).parent, with_warnings=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said in _setup_recording
        adapted, probe = SpikeInterfaceRecording(recording), probe_of(recording)
    result = sortcore.sort(adapted, probe, config_from_params(params), device=params["device"], seed=params["seed"], progress=verbose,
                           work=params.get("work_folder") or Path(folder) / WORK)
    saved = save_result(result, Path(folder) / RESULT, overwrite=True)
    shutil.copyfile(saved / "log.txt", Path(folder) / f"{SortcoreSorter.sorter_name}.log")  # where SpikeInterface looks for it


def sort_in_new_interpreter(folder: str, params: dict[str, Any], verbose: bool) -> None:
    """`sort_folder` in a process that shares nothing with this one. Raises RuntimeError with its error."""
    code = "import json, sys; from sorters.spikeinterface import sort_folder; sort_folder(*json.load(sys.stdin))"
    told = json.dumps([folder, params, verbose])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], input=told, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"The sorting process ended with code {done.returncode}.")
    if verbose:
        sys.stderr.write(done.stderr)


class SortcoreSorting(BaseSorting):
    """The units of a result folder, as SpikeInterface sees them.

    Unit ids are the units' numbers in the result; units labelled noise are left out unless `keep_noise`. Every column of
    the unit table is a property (label, snr, contamination, amplitude_uv, ...). A class of its own, and no NumpySorting,
    because a sorting that comes back from a worker process is built anew from its arguments: a NumpySorting would lose
    its properties, and the last segments where they hold no spike.

    Parameters
    ----------
    folder_path : folder written by `sortcore.export.save_result`
    keep_noise : also give the units labelled noise
    """

    def __init__(self, folder_path: str | Path, keep_noise: bool = False) -> None:
        from sortcore.export import load_result

        result = load_result(folder_path)
        label = np.asarray(result.units.label, dtype=str)
        kept = np.arange(result.n_units) if keep_noise else np.flatnonzero(label != "noise")
        BaseSorting.__init__(self, result.fs, kept)
        first = 0
        for length in result.segment_lengths:
            start, stop = np.searchsorted(result.spikes.samples, [first, first + length])
            self.add_sorting_segment(SortcoreSegment(result.spikes.samples[start:stop] - first, result.spikes.units[start:stop]))
            first += length
        for name, values in vars(result.units).items():
            if name != "position_um":
                self.set_property(name, np.asarray(values)[kept])
        self.set_property("x_um", result.units.position_um[kept, 0])
        self.set_property("y_um", result.units.position_um[kept, 1])
        self._kwargs = {"folder_path": str(Path(folder_path).absolute()), "keep_noise": bool(keep_noise)}


class SortcoreSegment(BaseSortingSegment):
    """The spikes of one segment, grouped by unit."""

    def __init__(self, samples: np.ndarray, units: np.ndarray) -> None:
        BaseSortingSegment.__init__(self)
        order = np.argsort(units, kind="stable")
        self._units, self._samples = units[order], samples[order]

    def get_unit_spike_train(self, unit_id: int, start_frame: int | None = None, end_frame: int | None = None) -> np.ndarray:
        low, high = np.searchsorted(self._units, [unit_id, unit_id + 1])
        train = self._samples[low:high]
        low = 0 if start_frame is None else int(np.searchsorted(train, start_frame))
        high = len(train) if end_frame is None else int(np.searchsorted(train, end_frame))
        return train[low:high]


def run_sorter(*args: Any, **kwargs: Any) -> Any:
    """SpikeInterface's `run_sorter`, from a module that a worker process has to import `sorters` to find."""
    from spikeinterface.sorters.runsorter import run_sorter

    return run_sorter(*args, **kwargs)


complete_all()
