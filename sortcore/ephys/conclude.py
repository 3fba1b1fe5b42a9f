"""From matched spikes to a result: times at the trough, waveforms in microvolts, the unit table and the model."""

from __future__ import annotations

import platform
from dataclasses import replace

import numpy as np
import torch

from sortcore import background
from sortcore.ephys import curate
from sortcore.ephys.config import SortConfig
from sortcore.ephys.waveforms import mean_waveforms
from sortcore.matching import Matcher
from sortcore.moving import MovingMatcher
from sortcore.numerics import moved_by, shift
from sortcore.recording import Recording
from sortcore.types import FitLog, Model, MovingTemplates, Preprocessing, Priors, Probe, SortingResult, Spikes, Templates
from sortcore.version import __version__

PEAK_OVER_TROUGH = 1.3
TROUGH_REACH_MS = 0.9  # a spike's time is moved no further than this
AT_HOME = 30  # spikes with the tissue nearest to its median place that a mean waveform is made of at least
HOME_UM = 2.0


def conclude(recording: Recording, learned: Preprocessing, matcher: Matcher | MovingMatcher, priors: Priors, spikes: Spikes, log: FitLog,
             config: SortConfig, seed: int, trough: int) -> SortingResult:
    """Waveforms in microvolts, the unit table and the model, from the spikes that were found, at samples of the recording; timings
    are left open. trough: the sample of the matcher's templates that these times are of."""
    n_samples = sum(recording.segment_lengths)
    k, still = len(priors.amp_mean), matcher.reference
    spikes = spikes.select(background.own(spikes, still, recording.fs, config.curate.min_probability))
    before, after = (learned.every * n for n in (trough, still.n_samples - 1 - trough))
    slack = int(TROUGH_REACH_MS * recording.fs / 1000)
    largest = (still.coefficients**2).sum(axis=2).argmax(axis=1)
    averages = mean_waveforms(recording, learned, at_home(spikes, matcher, recording.fs), largest, before + slack, after + slack)
    shifts, templates_uv = at_trough(averages, before, after, slack)
    spikes = shifted(spikes, shifts, recording.segment_lengths)
    used, places = (still.coefficients != 0).any(axis=2), learned.probe.positions_um[largest]
    keep = ~curate.duplicates(spikes, used, priors.amp_mean, recording.fs, places)
    order = np.flatnonzero(keep)
    order = order[np.argsort(depth(templates_uv[order], learned.probe), kind="stable")]
    spikes = renumbered(spikes, order, k)
    priors = Priors(*(getattr(priors, f)[order] for f in ("amp_mean", "amp_std", "rate_hz")))
    units = curate.measure(spikes, templates_uv[order], priors, still.threshold[order], still.parameters()[order], learned, n_samples,
                           config.curate)
    scale = np.abs(templates_uv[order, :, before]).max(axis=1, initial=0) / np.maximum(priors.amp_mean, 1e-9)
    late = shifts / learned.every
    waveforms = brought_to_trough(still.waveforms(), order, late)
    moving = moving_templates(matcher, order, late, config.fit.rank) if isinstance(matcher, MovingMatcher) else None
    model = Model(learned, Templates(*low_rank(waveforms, config.fit.rank), trough), priors, scale.astype(np.float32), templates_uv[order],
                  moving)
    motion = matcher.motion if isinstance(matcher, MovingMatcher) else None
    lengths = tuple(recording.segment_lengths)
    return SortingResult(spikes, units, model, float(recording.fs), lengths, config.to_dict(), seed, versions(), {}, log, motion)


def at_home(spikes: Spikes, matcher: Matcher | MovingMatcher, fs: float) -> Spikes:
    """The spikes that fell while the tissue was near its median place, or nearest where those are few."""
    if not isinstance(matcher, MovingMatcher):
        return spikes
    away = np.abs(matcher.displacement(spikes.samples / fs, spikes.units))
    order = np.lexsort((away, spikes.units))
    rank = np.empty(len(spikes), np.int64)
    rank[order] = np.arange(len(spikes)) - np.searchsorted(spikes.units[order], spikes.units[order])
    return spikes.select((away <= HOME_UM) | (rank < AT_HOME))


def moving_templates(matcher: MovingMatcher, order: np.ndarray, shifts: np.ndarray, rank: int) -> MovingTemplates:
    """Waveforms of the units in `order` at each knot, each moved back by its shift (K,)."""
    at_knots = (low_rank(brought_to_trough(there, order, shifts), rank) for there in matcher.waveforms)
    footprints, profiles = zip(*at_knots, strict=True)
    return MovingTemplates(matcher.knots_um, matcher.depths_um[order], np.array(footprints), np.array(profiles))


def brought_to_trough(waveforms: np.ndarray, order: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Waveforms (K, N, D) of the units in `order`, each moved back by its shift (K,), which may be of less than a sample."""
    whole = np.rint(shifts).astype(int)
    rest = shifts - whole
    moved = (moved_by(waveforms[u], -whole[u]) if rest[u] == 0 else shift(moved_by(waveforms[u], -whole[u]), -rest[u]) for u in order)
    return np.array(list(moved)).reshape(-1, *waveforms.shape[1:])


def at_trough(averages: np.ndarray, before: int, after: int, slack: int) -> tuple[np.ndarray, np.ndarray]:
    """(K,) samples from where a unit's times are to the trough of its mean waveform, and the waveforms (K, N, before + after + 1)
    around it, from averages (K, N, before + after + 1 + 2 slack)."""
    shifts = np.zeros(len(averages), np.int64)
    templates = np.zeros((*averages.shape[:2], before + after + 1), np.float32)
    for u, average in enumerate(averages):
        best = np.ptp(average, axis=1).argmax()
        around = average[best, before : before + 2 * slack + 1]
        # spikes are negative as a rule: a peak counts only where it clearly outdoes the trough
        shifts[u] = (around.argmax() if around.max() > PEAK_OVER_TROUGH * -around.min() else around.argmin()) - slack
        templates[u] = average[:, slack + shifts[u] : slack + shifts[u] + before + after + 1]
    return shifts, templates


def shifted(spikes: Spikes, shifts: np.ndarray, segment_lengths: tuple[int, ...]) -> Spikes:
    """Spikes later by their unit's shift (K,), none of them moved out of its segment."""
    edges = np.r_[0, np.cumsum(segment_lengths)]
    segment = np.searchsorted(edges, spikes.samples, side="right") - 1
    samples = np.clip(spikes.samples + shifts[spikes.units], edges[segment], edges[segment + 1] - 1)
    return replace(spikes, samples=samples).select(np.lexsort((spikes.units, samples)))


def depth(templates_uv: np.ndarray, probe: Probe) -> np.ndarray:
    """(K,) order of units along the probe, shank by shank."""
    if not len(templates_uv):
        return np.zeros(0)
    best = np.ptp(templates_uv, axis=2).argmax(axis=1)
    return probe.shank[best] * 1e7 + probe.positions_um[best, 1]


def renumbered(spikes: Spikes, order: np.ndarray, n_units: int) -> Spikes:
    """Spikes of the units in `order`, which become 0, 1, ..."""
    new = np.full(n_units, -1, np.int64)
    new[order] = np.arange(len(order))
    spikes = replace(spikes, units=new[spikes.units])
    spikes = spikes.select(spikes.units >= 0)
    return spikes.select(np.lexsort((spikes.units, spikes.samples)))


def low_rank(waveforms: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Footprints (K, N, R) and profiles (K, R, D) of waveforms (K, N, D)."""
    u, s, v = np.linalg.svd(waveforms, full_matrices=False)
    r = min(rank, s.shape[1]) if len(s) else rank
    touched = (waveforms != 0).any(axis=2)[:, :, None]  # no rounding on the channels a unit does not touch
    return (u[:, :, :r] * s[:, None, :r] * touched).astype(np.float32), v[:, :r].astype(np.float32)


def versions() -> dict[str, str]:
    import numba
    import scipy

    return {"sortcore": __version__, "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
            "scipy": scipy.__version__, "numba": numba.__version__}
