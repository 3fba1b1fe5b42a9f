"""A SpikeInterface recording as the engine sees it: stored values, gains, segments and a probe."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from sortcore.errors import ProbeError, RecordingError
from sortcore.probes import match_probe, number_shanks, probe_from_dict
from sortcore.types import Probe


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
        try:
            return np.asarray(self.recording.get_traces(segment_index=segment, start_frame=start - first, end_frame=stop - first))
        except OSError as error:
            raise RecordingError(f"The recording cannot be read any more ({error.strerror or error}). Is its file still there?") from error


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

    Channels of different probes, shanks or values of the property "group" are different shanks. Raises ProbeError where
    two contacts of a shank lie at the same place.
    """
    n = recording.get_num_channels()
    if not recording.has_probe():
        warnings.warn("The recording has no probe, so every channel is sorted for itself; attach one with recording.set_probe() "
                      "if neighbouring channels see the same spikes.", stacklevel=2)
        return Probe.independent(n)
    group = recording.get_probegroup()
    name = str(group.probes[0].name or group.probes[0].model_name or "probe")
    probe = match_probe(probe_from_dict(group.to_dict(array_as_list=True), name), n)
    groups = recording.get_property("group")
    shank = probe.shank if groups is None else number_shanks([(int(s), str(g)) for s, g in zip(probe.shank, groups, strict=True)])
    return check_distinct(Probe(probe.positions_um, shank, name))


def check_distinct(probe: Probe) -> Probe:
    """The probe itself. Raises ProbeError where two contacts of one shank lie at the same place."""
    places = np.column_stack([probe.shank, probe.positions_um])
    _, which, count = np.unique(places, axis=0, return_inverse=True, return_counts=True)
    if (count > 1).any():
        channels = np.flatnonzero(which.ravel() == np.argmax(count > 1))
        x, y = probe.positions_um[channels[0]]
        raise ProbeError(f"Channels {', '.join(map(str, channels))} lie at the same place, ({x:g}, {y:g}) um; every contact "
                         "of a shank needs its own. Mend the probe, or put the channels on different shanks.")
    return probe
