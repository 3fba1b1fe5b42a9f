"""Spikes and subthreshold potential of voltage imaging traces."""

from sortcore.optical.voltage.detect import VoltageResult, detect_voltage_spikes
from sortcore.optical.voltage.movie import VoltageMovie, sort_voltage_movie

__all__ = ["VoltageMovie", "VoltageResult", "detect_voltage_spikes", "sort_voltage_movie"]
