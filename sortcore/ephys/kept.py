"""What is kept of each stage's result: the least that it can be made again from, to the bit."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sortcore import matching
from sortcore.ephys.detect import Bank
from sortcore.follow import Follower
from sortcore.matching import Matcher
from sortcore.moving import MovingMatcher
from sortcore.steps import Form
from sortcore.types import Detections, FitLog, Motion, Preprocessing, Priors, Spikes

Fit = tuple[Matcher | MovingMatcher, Priors, FitLog]


def named_alike(kept: type, whole: Matcher | MovingMatcher) -> tuple[Any, ...]:
    """What the record `whole` has under the names of the fields of `kept`."""
    return tuple(getattr(whole, f.name) for f in fields(kept))


@dataclass(frozen=True)
class Detected:
    """The detector, and the events of the sample."""

    bank: Bank
    threshold: float
    events: Detections


@dataclass(frozen=True)
class Moved:
    """The motion that was found, or None."""

    motion: Motion | None

    @classmethod
    def of(cls, found: Follower | Motion | None) -> Moved:
        return cls(found.motion if isinstance(found, Follower) else found)


@dataclass(frozen=True)
class Clusters:
    """Mean waveforms (K, N, D) and events of each (K,)."""

    waveforms: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class StillFit:
    """A Matcher without its tables, which are made of these."""

    basis: np.ndarray
    coefficients: np.ndarray
    shifts: np.ndarray
    interpolator: np.ndarray
    amp_mean: np.ndarray
    amp_precision: np.ndarray
    log_odds: np.ndarray
    threshold: np.ndarray

    @classmethod
    def of(cls, m: Matcher) -> StillFit:
        return cls(*named_alike(cls, m))

    def matcher(self) -> Matcher:
        first, other = matching.sharing(self.coefficients)
        overlaps = matching.overlap_table(self.coefficients, self.basis, self.shifts, first, other)
        return Matcher(first=first, other=other, overlaps=overlaps, **vars(self))


@dataclass(frozen=True)
class MovingFit:
    """A MovingMatcher without its reference and its tables."""

    motion: Motion
    knots_um: np.ndarray
    waveforms: np.ndarray
    depths_um: np.ndarray
    priors: Priors
    fs: float
    subsamples: int
    amplitude_prior: bool

    @classmethod
    def of(cls, m: MovingMatcher) -> MovingFit:
        return cls(*named_alike(cls, m))


@dataclass(frozen=True)
class Fitted:
    """What the fit learned."""

    still: StillFit
    moving: MovingFit | None
    priors: Priors
    log: FitLog

    @classmethod
    def of(cls, fit: Fit) -> Fitted:
        matcher, priors, log = fit
        return cls(StillFit.of(matcher.reference), MovingFit.of(matcher) if isinstance(matcher, MovingMatcher) else None, priors, log)

    def fit(self) -> Fit:
        still = self.still.matcher()
        return still if self.moving is None else MovingMatcher(reference=still, **vars(self.moving)), self.priors, self.log


NOISE: Form[Preprocessing] = Form(Preprocessing)
DETECTED: Form[Detected] = Form(Detected)
MOTION: Form[Follower | Motion | None] = Form(Moved, Moved.of, lambda kept: kept.motion)
CLUSTERS: Form[tuple[np.ndarray, np.ndarray]] = Form(Clusters, lambda found: Clusters(*found), lambda kept: (kept.waveforms, kept.counts))
FIT: Form[Fit] = Form(Fitted, Fitted.of, Fitted.fit)
SPIKES: Form[Spikes] = Form(Spikes)
