"""The settings of every stage, with their defaults, units and ranges.

Each is a small frozen dataclass checked when it is made. `SortConfig` holds one of each; `to_dict` and `from_dict` turn it
into plain data for files and back, with an error that names any unknown setting.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from typing import Any

from sortcore.errors import ConfigError
from sortcore.settings import Checked, setting

FULL_CHUNK_CHANNELS = 100  # memory of more channels' chunks would be given back and asked for anew each time


@dataclass(frozen=True)
class PreprocessConfig(Checked):
    highpass_hz: float = setting(300.0, "lower edge of the band-pass filter", "Hz", 1.0, 5000.0)
    lowpass_hz: float = setting(0.0, "upper edge of the band-pass filter; 0 leaves the high frequencies to the whitening", "Hz", 0.0)
    reference: str = setting("auto", "common reference taken off each sample: median of the shank, median of a ring (local), none; auto takes the median from 32 channels a shank on", choices=("auto", "median", "local", "none"))
    least_rate_hz: float = setting(15000.0, "samples are thinned to the lowest whole share of the sampling rate that is not under this; 0 keeps all", "Hz", 0.0)
    whitening_um: float = setting(100.0, "contacts within this distance are whitened together", "um", 0.0)
    whiten_time: bool = setting(True, "whiten in time as well as in space")
    artifact_sd: float = setting(300.0, "a whitened sample beyond this is an artefact and masked on its channel; so is one that spans most of a shank", "sd", 10.0, 30000.0)
    noise_seconds: float = setting(8.0, "length of the samples from which the noise is learned", "s", 0.5)


@dataclass(frozen=True)
class DetectConfig(Checked):
    false_alarm_hz: float = setting(0.1, "detections per channel and second in pure noise", "Hz", 1e-6, 100.0)
    radius_um: float = setting(100.0, "an event is one event within this distance", "um", 1.0)
    dead_time_ms: float = setting(0.6, "and within this time", "ms", 0.05, 5.0)


@dataclass(frozen=True)
class DriftConfig(Checked):
    follow: bool = setting(True, "estimate how the tissue moves along the probe, and follow it")
    least_depth_um: float = setting(100.0, "a probe that spans less tells of no motion", "um", 0.0)
    rounds: int = setting(2, "times that the motion left after following is estimated again", "", 0, 5)
    smallest_um: float = setting(4.0, "less motion than this is left alone", "um", 0.0)
    largest_um: float = setting(100.0, "most motion looked for between two times", "um", 1.0)
    bin_seconds: float = setting(2.0, "spikes of so long are looked at together", "s", 0.1)
    step_um: float = setting(2.0, "resolution in depth", "um", 0.1)
    window_um: float = setting(400.0, "stretch of depth that moves as one", "um", 50.0)
    horizon_seconds: float = setting(600.0, "times further apart than this are not compared", "s", 1.0)


@dataclass(frozen=True)
class InitializeConfig(Checked):
    min_spikes: int = setting(7, "smallest cluster that becomes a unit", "spikes", 2)
    n_components: int = setting(8, "principal components in which spikes are clustered", "", 1, 50)
    radius_um: float = setting(100.0, "channels whose waveforms are looked at", "um", 1.0)


@dataclass(frozen=True)
class FitConfig(Checked):
    sample_seconds: float = setting(180.0, "length of the sample on which templates are learned", "s", 1.0)
    iterations: int = setting(2, "rounds of coordinate ascent", "", 1, 50)
    rank: int = setting(8, "largest rank of a template", "", 1, 20)
    before_ms: float = setting(0.8, "template before the trough", "ms", 0.2, 5.0)
    after_ms: float = setting(1.3, "template after the trough", "ms", 0.2, 5.0)


@dataclass(frozen=True)
class PursuitConfig(Checked):
    subsamples: int = setting(8, "sub-sample shifts a spike may take", "", 1, 32)
    amplitude_prior: bool = setting(True, "judge a spike by its unit's mean amplitude and spread as well")
    chunk_seconds: float = setting(1.0, "recording worked on at once; less of it where there are more than 100 channels", "s", 0.05, 60.0)

    def chunk_samples(self, fs: float, n_channels: int) -> int:
        """Samples worked on at once."""
        return max(1, int(self.chunk_seconds * fs * min(1.0, FULL_CHUNK_CHANNELS / n_channels)))


@dataclass(frozen=True)
class CurateConfig(Checked):
    min_probability: float = setting(0.5, "a spike less probable to be of its unit, and no background, is left out", "probability", 0.0, 1.0)
    refractory_ms: float = setting(1.5, "no cell fires twice within this time", "ms", 0.1, 20.0)
    max_contamination: float = setting(0.2, "a good unit's contamination stays under this", "share", 0.0, 1.0)
    max_missed: float = setting(0.1, "a good unit misses fewer of its spikes than this", "share", 0.0, 1.0)
    min_snr: float = setting(5.0, "a unit whose whitened waveform has a smaller norm is labelled noise", "sd", 0.0)
    min_evidence: float = setting(4.0, "so is one whose spikes on average add less to the log joint", "nats", 0.0)
    min_spikes: int = setting(6, "a unit with fewer spikes is labelled noise", "spikes", 0)


@dataclass(frozen=True)
class SortConfig:
    """All settings of the sorter. The defaults are meant to be kept."""

    preprocess: PreprocessConfig = PreprocessConfig()
    detect: DetectConfig = DetectConfig()
    drift: DriftConfig = DriftConfig()
    initialize: InitializeConfig = InitializeConfig()
    fit: FitConfig = FitConfig()
    pursuit: PursuitConfig = PursuitConfig()
    curate: CurateConfig = CurateConfig()

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]]) -> SortConfig:
        """The inverse of `to_dict`; missing settings keep their defaults, unknown ones raise ConfigError."""
        parts: dict[str, Any] = {}
        known: dict[str, Any] = {f.name: type(f.default) for f in fields(cls)}
        for section, settings in values.items():
            if section not in known:
                raise ConfigError(f"There is no section {section!r} in the settings; there are {', '.join(known)}.")
            if not isinstance(settings, dict):
                raise ConfigError(f"Section {section!r} must be a table of settings, but it is {settings!r}.")
            names = [f.name for f in fields(known[section])]
            for name in settings:
                if name not in names:
                    raise ConfigError(f"There is no setting {name!r} in {section!r}; there are {', '.join(names)}.")
            parts[section] = known[section](**settings)
        return cls(**parts)
