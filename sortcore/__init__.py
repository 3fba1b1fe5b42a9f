"""sortcore: spike sorting as convolutive semi-non-negative matrix factorisation.

    import sortcore as sc

    recording = sc.binary_recording("recording.bin", n_channels=384, fs=30000, gain_uv=0.195)
    result = sc.sort(recording, sc.load_probe("neuropixels1"))
    sc.save_result(result, "sorted")

`sortcore.model` states the model and `sortcore.reference` its textbook algorithms; `sortcore.plots` draws results,
`sortcore.metrics` scores them. Nothing here imports SpikeInterface: that is what the package `sorters` is for.
"""

from sortcore.ephys.config import SortConfig
from sortcore.ephys.pipeline import deconvolve, sort
from sortcore.errors import ConfigError, OutputError, ProbeError, RecordingError, SortcoreError
from sortcore.export import load_model, load_result, save_model, save_result
from sortcore.optical.calcium import CalciumResult, infer_ar1, infer_calcium
from sortcore.optical.combined import CombinedActivity, infer_combined
from sortcore.optical.movie.demix import DemixConfig, demix
from sortcore.optical.movie.reading import open_movie
from sortcore.optical.movie.records import Demixed, MovieResult
from sortcore.optical.movie.saving import load_movie, save_movie
from sortcore.optical.movie.sort import MovieConfig, sort_movie
from sortcore.optical.network import NetworkActivity, infer_network
from sortcore.optical.stream import CalciumStream
from sortcore.optical.voltage.detect import VoltageResult, detect_voltage_spikes
from sortcore.optical.voltage.movie import VoltageMovie, sort_voltage_movie
from sortcore.phy import export_phy
from sortcore.probes import load_probe, probe_names
from sortcore.recording import ArrayRecording, Recording, array_recording, binary_recording
from sortcore.simulate import Simulation, demo_simulation, simulate
from sortcore.types import Model, Preprocessing, Priors, Probe, SortingResult, Spikes, Templates, Units
from sortcore.version import __version__ as __version__

__all__ = [
    "ArrayRecording", "CalciumResult", "CalciumStream", "CombinedActivity", "ConfigError", "DemixConfig", "Demixed", "Model",
    "MovieConfig", "MovieResult", "NetworkActivity", "OutputError", "Preprocessing", "Priors", "Probe", "ProbeError", "Recording",
    "RecordingError", "Simulation", "SortConfig", "SortcoreError", "SortingResult", "Spikes", "Templates", "Units", "VoltageMovie",
    "VoltageResult", "array_recording", "binary_recording", "deconvolve", "demix", "demo_simulation", "detect_voltage_spikes",
    "export_phy", "infer_ar1", "infer_calcium", "infer_combined", "infer_network", "load_model", "load_movie", "load_probe",
    "load_result", "open_movie", "probe_names", "save_model", "save_movie", "save_result", "simulate", "sort", "sort_movie",
    "sort_voltage_movie",
]
