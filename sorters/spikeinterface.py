"""sortcore as a SpikeInterface sorter: run_sorter("sortcore", recording, folder=...).

The class follows the contract of `spikeinterface.sorters.basesorter.BaseSorter`: everything is a class method, and all
that passes from one step to the next lies in the folder. The engine, and with it torch, is imported when a sort starts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from spikeinterface.core import BaseSorting, BaseSortingSegment
from spikeinterface.sorters.basesorter import BaseSorter

from sorters.registration import complete_all

RESULT = "result"

# A forked worker inherits torch's threads and CUDA context from its parent, but neither works there: the first parallel
# loop waits for ever. `forked` says that this process is such a worker; it sorts in an interpreter of its own.
forked = False


def _after_fork() -> None:
    global forked
    forked = "torch" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


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
    compatible_with_parallel = {"loky": True, "multiprocessing": True, "threading": True}
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
        if forked:
            run_in_new_interpreter(sorter_output_folder, params, verbose)
            return
        import sortcore
        from sortcore.export import save_result

        from sorters.adapter import SpikeInterfaceRecording, probe_of
        from sorters.settings import config_from_params

        recording = cls.load_recording_from_folder(sorter_output_folder.parent, with_warnings=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said in _setup_recording
            adapted, probe = SpikeInterfaceRecording(recording), probe_of(recording)
        result = sortcore.sort(adapted, probe, config_from_params(params), device=params["device"], seed=params["seed"], progress=verbose)
        save_result(result, sorter_output_folder / RESULT)
        lines = [f"{stage}: {seconds:.2f} s" for stage, seconds in result.timings_s.items()]
        (sorter_output_folder / f"{cls.sorter_name}.log").write_text("\n".join([*lines, *result.log.steps]) + "\n", encoding="utf8")

    @classmethod
    def _get_result_from_folder(cls, sorter_output_folder: Path) -> SortcoreSorting:
        params = Path(sorter_output_folder).parent / "spikeinterface_params.json"
        keep_noise = params.is_file() and json.loads(params.read_text(encoding="utf8"))["sorter_params"].get("keep_noise", False)
        return SortcoreSorting(Path(sorter_output_folder) / RESULT, keep_noise=keep_noise)


def run_in_new_interpreter(sorter_output_folder: Path, params: dict[str, Any], verbose: bool) -> None:
    """`SortcoreSorter._run_from_folder` in a process that shares nothing with this one. Raises RuntimeError with its error."""
    code = "import json, pathlib, sys; from sorters.spikeinterface import SortcoreSorter as S; a = json.load(sys.stdin); S._run_from_folder(pathlib.Path(a[0]), *a[1:])"
    told = json.dumps([str(sorter_output_folder), params, verbose])
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
