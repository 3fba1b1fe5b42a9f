"""What the command `sortcore voltage` does: voltage traces from a file to spikes in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sortcore.optical.reading import read_traces, require_rate
from sortcore.optical.voltage.detect import detect_voltage_spikes
from sortcore.optical.voltage.plots import plot_voltage
from sortcore.optical.voltage.saving import save_voltage, voltage_to_nwb, write_estimates_csv, write_spikes_csv
from sortcore.progress import bars, silent
from sorters.outputs import output_folder

DRAWN, SHOWN_S = 8, 5.0


def detect_in_file(path: Path, fs: float | None, out: Path, *, method: str, polarity: str, false_alarms: float | None, nwb: bool,
                   overwrite: bool, quiet: bool) -> str:
    """Find the spikes in the traces of a file and write them into a folder; what to say of it.

    fs: frames per second, where the file does not say; method: "filter", "network" or "auto"; polarity: "up", "down" or "auto"
    false_alarms: rate in Hz at which noise alone may pass for a spike; None balances precision and recall
    """
    traces = read_traces(path, fs)
    fs = require_rate(traces)
    with output_folder(out, overwrite) as folder:
        result = detect_voltage_spikes(traces.values, fs, method=method, polarity=polarity, false_alarm_hz=false_alarms,
                                       track=silent if quiet else bars)
        save_voltage(result, folder / "voltage.npz")
        write_spikes_csv(result, folder / "spikes.csv")
        write_estimates_csv(result, folder / "estimates.csv")
        if nwb:
            voltage_to_nwb(result, folder / "voltage.nwb")
        busiest = np.argsort(-np.bincount(result.spikes.units, minlength=len(traces)), kind="stable")[:DRAWN]
        figure = plot_voltage(traces.values, result, shown=np.sort(busiest).tolist(), names=traces.names,
                              span_s=(0.0, min(SHOWN_S, traces.values.shape[1] / fs)))
        figure.savefig(folder / "traces.png", dpi=120)
    way = "up" if result.polarity > 0 else "down"
    found = f"{traces.values.shape[0]} traces of {traces.values.shape[1]} frames: {len(result.spikes)} spikes, which go {way}"
    if len(result.spikes):
        found += (f"; detectability {np.nanmedian(result.detectability):.1f}, expected precision {np.nanmedian(result.precision):.2f} and "
                  f"recall {np.nanmedian(result.recall):.2f} (medians)")
    return f"{found}. Results are in {out}."
