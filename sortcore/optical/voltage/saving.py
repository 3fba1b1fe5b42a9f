"""Spikes of voltage imaging in files: .npz, .csv, NWB, and as pynapple objects."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from sortcore.archive import read_record, save_record
from sortcore.errors import OutputError
from sortcore.optical.saving import UNKNOWN_START, add_trains, write_nwb
from sortcore.optical.voltage.detect import VoltageResult
from sortcore.optional import require

KIND = "voltage spikes"
COLUMNS = ("trace", "time_s", "frame", "probability", "log_odds", "amplitude_sd")
ESTIMATES = ("noise", "detectability", "amplitude_spread", "rate_hz", "thresholds", "precision", "recall")


def save_voltage(result: VoltageResult, path: str | Path) -> Path:
    """Save a result to one .npz, whole. The same result gives the same bytes. Raises OutputError where the file cannot be written."""
    return save_record(result, path, KIND)


def load_voltage(path: str | Path) -> VoltageResult:
    """The inverse of `save_voltage`, to the bit. Raises OutputError where the file is none of it, or damaged."""
    return read_record(VoltageResult, Path(path), kind=KIND)


def write_spikes_csv(result: VoltageResult, path: Path) -> None:
    """One row a spike: trace, time, frame, probability, log odds, amplitude in standard deviations of the matched filter's noise."""
    spikes = result.spikes
    table = np.column_stack([spikes.units, result.times_s, spikes.samples, result.probabilities, spikes.scores, spikes.amplitudes])
    np.savetxt(path, table, delimiter=",", header=",".join(COLUMNS), comments="", fmt=("%d", "%.6f", "%d", "%.5f", "%.4f", "%.4f"))


def write_estimates_csv(result: VoltageResult, path: Path) -> None:
    """One row a trace, one column an estimate."""
    table = np.column_stack([getattr(result, name) for name in ESTIMATES])
    np.savetxt(path, table, delimiter=",", header=",".join(ESTIMATES), comments="", fmt="%.8g")


def voltage_to_nwb(result: VoltageResult, path: str | Path, *, start_s: float = 0.0, session_start: datetime | None = None,
                   description: str = "Spikes found in voltage imaging") -> Path:
    """Save a result to an NWB file: one row of `units` a trace, its spike_times in seconds and spike_probabilities; the subthreshold
    potential is the time series `subthreshold` (frames, traces) of the processing module `ophys`.

    session_start: with its time zone; NWB must have one, and 1970 says that it is not known
    Raises MissingPackageError without pynwb, OutputError where the file cannot be written.
    """
    pynwb = require("pynwb")
    path = Path(path)
    file = pynwb.NWBFile(session_description=description, identifier=path.stem, session_start_time=session_start or UNKNOWN_START)
    module = file.create_processing_module("ophys", "voltage imaging")
    module.add(pynwb.TimeSeries(name="subthreshold", data=np.ascontiguousarray(np.atleast_2d(result.subthreshold).T), unit="a.u.",
                                rate=float(result.fs), starting_time=float(start_s), description="without spikes, (frames, traces)"))
    mine = result.spikes.by_unit(result.n_traces)
    add_trains(file, [start_s + result.times_s[m] for m in mine], [result.probabilities[m] for m in mine], "spike_probabilities",
               "of each spike to be one",
               {"detectability": ("mean score of a spike over the score's standard deviation in noise", result.detectability)})
    return write_nwb(file, path)


def voltage_to_pynapple(result: VoltageResult, start_s: float = 0.0) -> Any:
    """The spikes as a pynapple TsGroup over the recording's time: one Ts a trace, `expected_hz` and `detectability` its metadata.

    Raises MissingPackageError without pynapple, OutputError for a result without frames.
    """
    nap = require("pynapple")
    seconds = np.atleast_2d(result.subthreshold).shape[1] / result.fs
    if not seconds:
        raise OutputError("The result has no frames, so there is no time over which its spikes could be given.")
    support = nap.IntervalSet(start=start_s, end=start_s + seconds)
    trains = {k: nap.Ts(t=start_s + train) for k, train in enumerate(result.trains())}
    return nap.TsGroup(trains, time_support=support, metadata={"expected_hz": result.rate_hz, "detectability": result.detectability})
