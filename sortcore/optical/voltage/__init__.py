"""Spikes and subthreshold potential of voltage imaging traces."""

from sortcore.optical.voltage.detect import VoltageResult, detect_voltage_spikes

__all__ = ["VoltageResult", "detect_voltage_spikes"]
