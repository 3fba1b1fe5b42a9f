"""Spikes found in calcium, in files: .npz, NWB, and as pynapple objects."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from sortcore.archive import read_record, save_record, whole
from sortcore.errors import ModelError, OutputError
from sortcore.optical.spikes import Events
from sortcore.optional import require

KIND = "calcium spikes"
UNKNOWN_START = datetime(1970, 1, 1, tzinfo=timezone.utc)


def save_events(events: Events, path: str | Path) -> Path:
    """Save events to one .npz: frames, times_s, cells, sizes (S,) and thresholds (K,). The same events give the same bytes.

    Raises OutputError where the file cannot be written.
    """
    return save_record(events, path, KIND)


def load_events(path: str | Path) -> Events:
    """The inverse of `save_events`, to the bit. Raises OutputError where the file is none of it, or damaged."""
    return read_record(Events, Path(path), kind=KIND)


def save_nwb(events: Events, path: str | Path, *, fs: float, activity: np.ndarray | None = None, start_s: float = 0.0,
             session_start: datetime | None = None, description: str = "Spikes inferred from calcium fluorescence") -> Path:
    """Save events to an NWB file: one row of `units` a cell, its spike_times in seconds and spike_sizes.

    activity: (K, T) is kept too, as time series `activity` (frames, cells) of the processing module `ophys`
    session_start: with its time zone; NWB must have one, and 1970 says that it is not known
    Raises MissingPackageError without pynwb, ModelError where activity is not of these cells, OutputError where the file
    cannot be written.
    """
    pynwb = require("pynwb")
    path = Path(path)
    file = pynwb.NWBFile(session_description=description, identifier=path.stem, session_start_time=session_start or UNKNOWN_START)
    if activity is not None:
        if np.ndim(activity) != 2 or len(activity) != events.n_cells:
            raise ModelError(f"Activity must be ({events.n_cells} cells, frames), but it has shape {np.shape(activity)}.")
        module = file.create_processing_module("ophys", "deconvolution of calcium fluorescence")
        module.add(pynwb.TimeSeries(name="activity", data=np.ascontiguousarray(np.asarray(activity).T), unit="a.u.", rate=float(fs),
                                    starting_time=float(start_s), description="spiking activity, (frames, cells)"))
    sizes = [events.sizes[events.cells == k] for k in range(events.n_cells)]
    add_trains(file, events.trains(), sizes, "spike_sizes", "activity at each spike",
               {"threshold": ("activity that the cell's spikes exceed", events.thresholds)})
    return write_nwb(file, path)


def add_trains(file: Any, trains: list[np.ndarray], sizes: list[np.ndarray], sized_as: str, means: str,
               columns: dict[str, tuple[str, np.ndarray]], observed_s: list[list[float]] | None = None) -> None:
    """Add K spike trains in seconds to the units of an NWB file, with the size of each spike.

    sized_as, means: name and description of the sizes; columns: by name, description and a number for each cell
    observed_s: from when to when
    """
    sized = any(len(train) for train in trains)  # NWB cannot hold a column of which every row is empty
    if sized:
        file.add_unit_column(sized_as, means, index=True)
    for name, (description, _) in columns.items():
        if trains:
            file.add_unit_column(name, description)
    for k, train in enumerate(trains):
        values: dict[str, Any] = {name: float(numbers[k]) for name, (_, numbers) in columns.items()}
        if sized:
            values |= {"spike_times": train, sized_as: sizes[k]}
        if observed_s is not None:
            values["obs_intervals"] = observed_s
        file.add_unit(id=k, **values)


def write_nwb(file: Any, path: Path) -> Path:
    """Write an NWB file that is there as a whole or not at all. Raises OutputError where that cannot be."""
    pynwb = require("pynwb")
    with whole(path, ".part.nwb") as part, pynwb.NWBHDF5IO(str(part), "w") as io:
        io.write(file)
    return path


def to_pynapple(events: Events, seconds: float, start_s: float = 0.0) -> Any:
    """The events as a pynapple TsGroup over the recording's time: one Ts a cell, `threshold` its metadata.

    seconds: length of the recording. Raises MissingPackageError without pynapple, OutputError where events lie outside.
    """
    nap = require("pynapple")
    if len(events) and not (start_s <= events.times_s.min() and events.times_s.max() <= start_s + seconds):
        raise OutputError(f"Events lie at {events.times_s.min():.6g} to {events.times_s.max():.6g} s, outside the recording of {start_s:g} "
                          f"to {start_s + seconds:g} s; give its true length.")
    support = nap.IntervalSet(start=start_s, end=start_s + seconds)
    trains = {k: nap.Ts(t=train) for k, train in enumerate(events.trains())}
    return nap.TsGroup(trains, time_support=support, metadata={"threshold": events.thresholds})


def activity_to_pynapple(activity: np.ndarray, fs: float, start_s: float = 0.0) -> Any:
    """Activity (K, T) as a pynapple TsdFrame (frames, cells). Raises MissingPackageError without pynapple."""
    rows = np.atleast_2d(activity)
    return require("pynapple").TsdFrame(t=start_s + np.arange(rows.shape[1]) / fs, d=rows.T)
