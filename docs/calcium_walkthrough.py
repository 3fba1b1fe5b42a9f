"""From fluorescence to spikes, step by step: python docs/calcium_walkthrough.py [folder for files and pictures]

Every cell (# %%) can be run by itself in an editor that knows cells. A test runs the whole.
"""

# %% [markdown]
# ## What is needed
# Traces here are simulated, so that the spikes are known. With traces of your own, `read_traces` takes the simulation's place:
# it reads .npy, .npz and .csv files, suite2p folders, CaImAn's HDF5 and NWB.

# %%
import sys
from pathlib import Path

import numpy as np

from sortcore.metrics import correlation, score_spikes, van_rossum
from sortcore.optical.ar1 import solve_ar1
from sortcore.optical.calcium import infer_calcium
from sortcore.optical.indicator import INDICATORS, Indicator
from sortcore.optical.neuropil import subtract_neuropil
from sortcore.optical.plots import plot_calcium
from sortcore.optical.reading import read_traces, require_rate
from sortcore.optical.saving import load_events, save_events, save_nwb, to_pynapple
from sortcore.optical.simulate import Baseline, Firing, Noise, ornstein_uhlenbeck, simulate_calcium
from sortcore.optical.spikes import Threshold, find_events

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "calcium_walkthrough")
folder.mkdir(parents=True, exist_ok=True)
fs = 30.0

# %% [markdown]
# ## 1. Kernels and convolution
# A spike lets calcium in, and the indicator lights up and fades. If the answer is the same each time and answers add up, the
# trace is the spike train convolved with the answer to one spike, the kernel. An exponential kernel is also a recursion,
# c_t = g c_{t-1} + s_t: this is what makes it fast to undo.

# %%
decay = Indicator("ar1", tau_decay_s=0.6, amplitude=1.0)
spikes = np.zeros(300)
spikes[[30, 90, 94, 200]] = 1
kernel = decay.response(np.zeros(1), 300, fs)
convolved = np.convolve(spikes, kernel)[:300]
recursive = np.zeros(300)
for t in range(300):
    recursive[t] = decay.g(fs)[0] * recursive[t - 1] + spikes[t]
print(f"convolution and recursion differ by {np.abs(convolved - recursive).max():.1e}")

# %% [markdown]
# Real indicators also need time to rise (`difference`), and more: they cooperate and saturate (`binding`).

# %%
for name in ("gcamp6f", "gcamp6s", "ogb1"):
    one, five = (INDICATORS[name].response(np.arange(n) / 50, 300, fs).max() for n in (1, 5))
    print(f"{name}: five spikes at 50 Hz give {five / one:.1f} times the peak of one")

# %% [markdown]
# ## 2. Deconvolution with g given
# If g is known, the spikes follow from the trace by c_t - g c_{t-1}; but that also turns noise into spikes. Spikes are not
# negative and sparse, and among all such trains there is one that fits best:
#
#     minimise 1/2 |y - c|^2 + penalty sum_t s_t,   s_t = c_t - g c_{t-1} >= 0

# %%
plain = simulate_calcium(1, 120.0, fs, indicator=Indicator("ar1", tau_decay_s=0.6, amplitude=1.0), noise=Noise(0.6), seed=3)
y, g = plain.traces[0], plain.indicators[0].g(fs)[0]
naive = y - g * np.append(0, y[:-1])
calcium, activity = solve_ar1(y, g, penalty=1.5)
for name, found in (("c_t - g c_{t-1} of the raw trace", naive), ("non-negative deconvolution", activity)):
    print(f"{name}: r = {correlation(found, plain.counts[0], fs):.3f}")

# %% [markdown]
# ## 3. Deconvolution with nothing given
# Noise, rise, decay, baseline and penalty are all estimated from the trace. Any of them may be fixed, in seconds and in the
# units of the trace.

# %%
simulation = simulate_calcium(6, 240.0, fs, indicator=Indicator("difference", 0.05, 0.6, 0.3), firing=Firing(0.4, bursting=0.2),
                              noise=Noise(0.05), baseline=Baseline(0.2, 120.0, 0.05, 40.0), seed=1)
result = infer_calcium(simulation.traces, fs)
fixed = infer_calcium(simulation.traces, fs, tau_rise_s=0.05, tau_decay_s=0.6)
for name, found in (("all estimated", result), ("times given", fixed)):
    print(f"{name}: r = {correlation(found.activity, simulation.counts, fs).mean():.3f}, decay {np.median(found.tau_decay_s):.2f} s")

# %% [markdown]
# ## 4. Baseline
# Traces bleach and drift. The baseline is part of the fit; what it is taken to be is in the result.

# %%
error = result.baseline - simulation.baseline
print(f"baseline: it moves by {np.ptp(simulation.baseline, axis=1).mean():.2f}, and is found within {np.sqrt((error**2).mean()):.3f} dF/F")

# %% [markdown]
# Raw fluorescence of a cell also holds light of the neuropil around it. How much is estimated for each cell.

# %%
rng = np.random.default_rng(0)
neuropil = 1 + 0.15 * np.array([ornstein_uhlenbeck(rng, simulation.traces.shape[1], 1 / fs) for _ in range(6)])
raw = 1 + simulation.traces + 0.6 * neuropil
cleaned = subtract_neuropil(raw, neuropil, fs)
print("neuropil coefficients, all of them 0.6:", np.round(cleaned.coefficients, 2))

# %% [markdown]
# ## 5. Thresholds
# Activity is a number each frame, and small values are mostly noise. Which are spikes is a matter of a threshold, and that of
# how many false ones are bearable.

# %%
rules = (Threshold("absolute", 0.15), Threshold("fraction", 0.2), Threshold("percentile", 99.0), Threshold("sigma", 3.0),
         Threshold("false_positives", 0.02))
for rule in rules:
    events = find_events(result.activity, fs, rule, min_distance_s=0.1)
    scores = [score_spikes(true, found, 0.1) for true, found in zip(simulation.spike_times_s, events.trains(), strict=True)]
    print(f"{rule.kind:16s}{rule.value:7.2f}: precision {np.mean([s.precision for s in scores]):.2f}, "
          f"recall {np.mean([s.recall for s in scores]):.2f}, F1 {np.mean([s.f1 for s in scores]):.2f}")

# %% [markdown]
# ## 6. Spike times
# In seconds from the first frame. Bursts are one event: its size tells how much there was.

# %%
events = find_events(result.activity, fs, Threshold("false_positives", 0.02))
trains = events.trains()
print(f"{len(events)} events; the first of cell 0 at", np.round(trains[0][:5], 2), "s")
distances = [van_rossum(true, found, 0.2) for true, found in zip(simulation.spike_times_s, trains, strict=True)]
print(f"van Rossum distance from the truth at 0.2 s: {np.mean(distances):.2f}")
figure = plot_calcium(simulation.traces, fs, fit=result.baseline + result.calcium, activity=result.activity, events=events,
                      truth=simulation.spike_times_s, cells=[0, 1, 2], span_s=(0.0, 60.0))
figure.savefig(folder / "calcium.png", dpi=110)

# %% [markdown]
# ## 7. Saving
# As .npz, which `load_events` reads back; as NWB, and as a pynapple object, with `pip install "sortcore[optical]"`.

# %%
save_events(events, folder / "spikes.npz")
save_nwb(events, folder / "spikes.nwb", fs=fs, activity=result.activity)
group = to_pynapple(events, seconds=240.0)
print(f"{len(load_events(folder / 'spikes.npz'))} events read back, {len(group)} cells in pynapple")
np.savez(folder / "traces.npz", traces=simulation.traces, fs=fs)
again = read_traces(folder / "traces.npz")
print(f"{len(again)} traces of {again.source} at {require_rate(again):g} frames per second")
