"""sortcore: spike sorting as convolutive semi-non-negative matrix factorisation."""

from sortcore.ephys.config import SortConfig
from sortcore.ephys.pipeline import deconvolve, sort
from sortcore.errors import ConfigError, OutputError, ProbeError, RecordingError, SortcoreError
from sortcore.recording import ArrayRecording, Recording, array_recording, binary_recording
from sortcore.types import Model, Preprocessing, Priors, Probe, SortingResult, Spikes, Templates, Units

__version__ = "0.1.0"
