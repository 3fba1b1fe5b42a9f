"""A SpikeInterface recording as the engine sees it: stored values, gains, segments and a probe."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from sortcore.errors import ProbeError, RecordingError
from sortcore.types import Probe

MIN_SHANK_GAP_UM = 200.0


class SpikeInterfaceRecording:
    """The `sortcore.recording.Recording` of any SpikeInterface recording; segments run on end to end.

    SpikeInterface has uV = gain * stored + offset_uv, the engine uV = gain * (stored - offset). Where the recording
    carries no gain a stored unit is taken as a microvolt, with a warning; an unsigned one without an offset is centred.
    """

    def __init__(self, recording: Any) -> None:
        self.recording = recording
        self.fs = float(recording.get_sampling_frequency())
        self.n_channels = int(recording.get_num_channels())
        self.segment_lengths = tuple(int(recording.get_num_samples(i)) for i in range(recording.get_num_segments()))
        self.gain_uv, self.offset = gain_and_offset(recording)
        self._first = np.concatenate([[0], np.cumsum(self.segment_lengths)])
        if not self.n_channels or not sum(self.segment_lengths):
            raise RecordingError(f"The recording is empty: {self.n_channels} channels, {sum(self.segment_lengths)} samples.")

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, N) stored values; start and stop lie in one segment."""
        segment = int(np.searchsorted(self._first, start, side="right")) - 1
        first = int(self._first[segment])
        return np.asarray(self.recording.get_traces(segment_index=segment, start_frame=start - first, end_frame=stop - first))


def gain_and_offset(recording: Any) -> tuple[np.ndarray, np.ndarray]:
    """(N,) microvolts per stored unit and (N,) stored units that stand for zero volts."""
    n, dtype = recording.get_num_channels(), np.dtype(recording.get_dtype())
    if dtype.kind not in "iuf":
        raise RecordingError(f"A recording must hold integers or floats, but its dtype is {dtype}.")
    gain, offset_uv = recording.get_channel_gains(), recording.get_channel_offsets()
    if gain is None:
        warnings.warn("The recording has no gain; one stored unit is taken as 1 uV. Set it with recording.set_channel_gains(uV per unit).",
                      stacklevel=3)
        gain = np.ones(n)
    gain = np.asarray(gain, dtype=np.float64)
    if not np.isfinite(gain).all() or (gain == 0).any():
        raise RecordingError("Some channel gains of the recording are zero or not finite; mend them with recording.set_channel_gains().")
    if offset_uv is None:
        offset_uv = -gain * 2.0 ** (8 * dtype.itemsize - 1) if dtype.kind == "u" else np.zeros(n)
    offset = -np.asarray(offset_uv, dtype=np.float64) / gain
    if not np.isfinite(offset).all():
        raise RecordingError("Some channel offsets of the recording are not finite; mend them with recording.set_channel_offsets().")
    return gain, offset


def probe_of(recording: Any) -> Probe:
    """The engine's probe of a SpikeInterface recording; independent channels, with a warning, where it has none.

    Channels of different probes, shanks or values of the property "group" are different shanks.
    """
    n = recording.get_num_channels()
    if not recording.has_probe():
        warnings.warn("The recording has no probe, so every channel is sorted for itself; attach one with recording.set_probe() "
                      "if neighbouring channels see the same spikes.", stacklevel=2)
        return Probe.independent(n)
    group = recording.get_probegroup()
    positions = np.concatenate([np.asarray(p.contact_positions, dtype=np.float64) for p in group.probes])
    if positions.shape[1] == 3:
        positions = positions[:, np.sort(np.argsort(np.ptp(positions, axis=0), kind="stable")[1:])]  # the plane it extends in
    number = np.repeat(np.arange(len(group.probes)), [p.get_contact_count() for p in group.probes])
    shank_ids = np.concatenate([np.full(p.get_contact_count(), "") if p.shank_ids is None else np.asarray(p.shank_ids, dtype=str)
                                for p in group.probes])
    order = np.argsort(group.get_global_device_channel_indices()["device_channel_indices"], kind="stable")
    groups = recording.get_property("group")
    groups = np.zeros(n, dtype=int) if groups is None else groups
    keys = [f"{number[c]}/{shank_ids[c]}/{groups[i]}" for i, c in enumerate(order)]
    shank = np.unique(keys, return_inverse=True)[1]
    name = group.probes[0].name or group.probes[0].model_name or "probe"
    return Probe(spread_shanks(positions[order], shank), shank, str(name))


def spread_shanks(positions_um: np.ndarray, shank: np.ndarray) -> np.ndarray:
    """Move shanks apart that share a place, as tetrodes given without their distances do; two contacts of one shank must not."""
    for s in np.unique(shank):
        mine = np.flatnonzero(shank == s)
        _, first, count = np.unique(positions_um[mine], axis=0, return_index=True, return_counts=True)
        if (count > 1).any():
            where = positions_um[mine[first[count > 1][0]]]
            same = mine[(positions_um[mine] == where).all(axis=1)]
            raise ProbeError(f"Channels {', '.join(map(str, same))} lie at the same place, ({where[0]:g}, {where[1]:g}) um; every contact of a "
                             "shank needs its own. Mend the probe, or give each group of channels its own shank.")
    if len(np.unique(positions_um, axis=0)) == len(positions_um):
        return positions_um
    moved, edge = positions_um.copy(), None
    for s in np.unique(shank):
        mine = shank == s
        if edge is not None:
            moved[mine, 0] += edge + MIN_SHANK_GAP_UM - moved[mine, 0].min()
        edge = moved[mine, 0].max()
    return moved
