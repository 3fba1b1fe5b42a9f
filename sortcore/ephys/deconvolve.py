"""Matching pursuit over a whole recording, chunk by chunk.

Each chunk is whitened and pursued with a margin on either side, and keeps the spikes whose trough it owns. The pursuit is
local, so what a chunk keeps does not depend on where the others begin; rounding may still put a spike at an edge one sample
to either side of it, so an edge is looked at from both chunks and a spike seen twice is kept once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from sortcore import matching
from sortcore.ephys.config import PursuitConfig
from sortcore.matching import Matcher
from sortcore.moving import MovingMatcher
from sortcore.progress import Track, silent
from sortcore.recording import Chunk, chunks, cut
from sortcore.types import Spikes
from sortcore.workers import over_recording

DEAD_MS = 0.5  # a unit fires at most once in this time
EDGE = 3  # samples beyond its own that a chunk reports


def deconvolve(whitened: Callable[[Chunk], torch.Tensor], segment_lengths: tuple[int, ...], matcher: Matcher | MovingMatcher, trough: int,
               fs: float, config: PursuitConfig, track: Track = silent, stage: str = "deconvolve") -> Spikes:
    """Spikes of a whole recording; `whitened` gives the (N, T) whitened samples of any chunk."""
    d = matcher.n_samples
    size = max(config.chunk_samples(fs, matcher.n_channels), 20 * d)
    pieces = list(cut(chunks(segment_lengths, size), np.rint(matcher.jumps_s * fs).astype(int)))
    dead = max(1, int(DEAD_MS * fs / 1000))
    found = over_recording(lambda c: chunk_spikes(whitened, c, matcher.at(0.5 * (c.start + c.stop) / fs), trough, dead), pieces)
    return once(Spikes.concatenate(list(track(found, stage, len(pieces)))), dead)


def chunk_spikes(whitened: Callable[[Chunk], torch.Tensor], chunk: Chunk, matcher: Matcher, trough: int, dead: int) -> Spikes:
    """Spikes of one chunk and EDGE samples around it."""
    if not len(matcher.coefficients):
        return Spikes.empty()
    margin = 4 * matcher.n_samples
    wide = Chunk(max(chunk.first, chunk.start - margin), min(chunk.last, chunk.stop + margin), chunk.first, chunk.last)
    x = whitened(wide)
    if x.shape[1] < matcher.n_samples:
        return Spikes.empty()
    spikes = matching.match(matcher, matching.scores(matcher, x).cpu().numpy(), dead)
    spikes = replace(spikes, samples=spikes.samples + wide.start + trough)
    before = EDGE if chunk.start > chunk.first else 0
    after = EDGE if chunk.stop < chunk.last else 0
    return spikes.select((spikes.samples >= chunk.start - before) & (spikes.samples < chunk.stop + after))


def once(spikes: Spikes, dead: int) -> Spikes:
    """Spikes in order of time, without those that two chunks both report."""
    order = np.lexsort((spikes.samples, spikes.units))
    spikes = spikes.select(order)
    twin = np.zeros(len(spikes), bool)
    twin[1:] = (np.diff(spikes.units) == 0) & (np.diff(spikes.samples) <= min(dead, 2 * EDGE))
    spikes = spikes.select(~twin)
    return spikes.select(np.lexsort((spikes.units, spikes.samples)))
