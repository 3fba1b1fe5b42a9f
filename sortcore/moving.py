"""Templates that move with the tissue.

A unit that drifts along the probe has a waveform at each of a few displacements (knots). At any time every unit is matched
with the waveform of the knot that is nearest to where its tissue is then. Templates move and data stay: interpolating data
between contacts averages what makes small units differ, and colours the noise.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from sortcore import matching
from sortcore.matching import Matcher
from sortcore.numerics import unit_norm
from sortcore.types import Motion, Priors

MOST_BYTES = 400_000_000  # of tables of the latest displacements' matchers, kept ready
FEWEST = 2


@dataclass(frozen=True)
class MovingMatcher:
    """A Matcher for each time.

    reference: matcher of the waveforms in the tissue's median place
    knots_um: (Q,) displacements, evenly spaced; waveforms: (Q, K, N, D) at each, their norm the mean amplitude there
    depths_um: (K,) where units are; priors: in the median place
    """

    reference: Matcher
    motion: Motion
    knots_um: np.ndarray
    waveforms: np.ndarray
    depths_um: np.ndarray
    priors: Priors
    fs: float
    subsamples: int
    amplitude_prior: bool
    ready: OrderedDict[bytes, Matcher] = field(default_factory=OrderedDict, compare=False, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process is sent what was learned, and makes its own tables."""
        return MovingMatcher, tuple(getattr(self, f.name) for f in fields(self) if f.compare)

    @property
    def n_samples(self) -> int:
        return self.reference.n_samples

    @property
    def n_channels(self) -> int:
        return self.reference.n_channels

    @property
    def jumps_s(self) -> np.ndarray:
        """(J,) times at which the tissue jumps, on either side of which another Matcher is right."""
        return self.motion.jumps_s

    def knots(self, time_s: float) -> np.ndarray:
        """(K,) knot of each unit at a time."""
        return nearest_knot(self.motion.at(time_s, self.depths_um), self.knots_um)

    def displacement(self, times_s: np.ndarray, units: np.ndarray) -> np.ndarray:
        """(S,) um that the tissue had moved at spikes of units (S,)."""
        out = np.zeros(len(times_s))
        for u in np.unique(units):
            out[units == u] = self.motion.over(times_s[units == u], float(self.depths_um[u]))
        return out

    def at(self, time_s: float) -> Matcher:
        """The matcher for where the units are at a time."""
        knots = self.knots(time_s)
        key = knots.tobytes()
        with self.lock:
            if key not in self.ready:
                self.ready[key] = self.made(knots)
                while len(self.ready) > FEWEST and sum(m.overlaps.nbytes for m in self.ready.values()) > MOST_BYTES:
                    self.ready.popitem(last=False)
            self.ready.move_to_end(key)
            return self.ready[key]

    def made(self, knots: np.ndarray) -> Matcher:
        here = self.waveforms[knots, np.arange(len(knots))]
        norm = np.maximum(np.linalg.norm(here, axis=(1, 2)), 1e-6)
        p = self.priors
        priors = Priors(norm, np.maximum(p.amp_std * norm / np.maximum(p.amp_mean, 1e-6), 1.0), p.rate_hz)
        return matching.prepare(unit_norm(here), priors, self.fs, self.subsamples, self.amplitude_prior, self.reference.basis)


def moving_matcher(reference: np.ndarray, waveforms: np.ndarray, knots_um: np.ndarray, priors: Priors, motion: Motion,
                   depths_um: np.ndarray, fs: float, subsamples: int = 8, amplitude_prior: bool = True) -> MovingMatcher:
    """Make unit-norm waveforms (K, N, D) in the median place, and those at each knot (Q, K, N, D), ready for matching."""
    size = np.linalg.norm(waveforms, axis=(2, 3), keepdims=True)
    every = np.concatenate([reference, *(waveforms / np.maximum(size, 1e-12))])
    basis = matching.shared_basis(every, np.tile(priors.amp_mean, 1 + len(knots_um)))
    still = matching.prepare(reference, priors, fs, subsamples, amplitude_prior, basis)
    return MovingMatcher(still, motion, knots_um, waveforms, depths_um, priors, fs, subsamples, amplitude_prior)


def nearest_knot(displacement_um: np.ndarray, knots_um: np.ndarray) -> np.ndarray:
    """Index of the knot nearest to each displacement."""
    step = knots_um[1] - knots_um[0] if len(knots_um) > 1 else 1.0
    return np.clip(np.rint((displacement_um - knots_um[0]) / step), 0, len(knots_um) - 1).astype(np.int64)
