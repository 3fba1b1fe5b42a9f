"""The sample of a recording on which templates are learned: whitened stretches spread over it, held in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from sortcore.ephys.config import SortConfig
from sortcore.progress import Track
from sortcore.recording import Chunk, chunks
from sortcore.workers import over_recording

Whitened = Callable[[Chunk], torch.Tensor]  # (N, T) whitened samples of a chunk of a recording

STRETCH_SECONDS = 5.0  # without a break
MOST_VALUES = 700_000_000  # held in memory at once: 1.4 GB, and as much for the residual


@dataclass(frozen=True)
class Sample:
    """Whitened stretches end to end.

    x: (N, T) half precision; times_s: (T,) of each sample; whole: whether they are the whole recording, of duration_s
    """

    x: torch.Tensor
    whole: bool
    times_s: np.ndarray
    duration_s: float

    def source(self, whitened: Whitened, device: torch.device) -> Whitened:
        """A function that gives the whitened samples of any chunk, from memory where they are there."""
        if self.whole:
            return lambda c: self.x[:, c.start : c.stop].to(device, torch.float32)
        return whitened


@dataclass(frozen=True)
class Stretches:
    """The chunks that a sample is made of, and whether they are the whole recording."""

    chunks: tuple[Chunk, ...]
    whole: bool


def stretches(n_channels: int, segment_lengths: tuple[int, ...], fs: float, config: SortConfig) -> Stretches:
    """Chunks spread evenly over a recording, as many as are asked for and fit in memory."""
    size = config.pursuit.chunk_samples(fs, n_channels)
    pieces = tuple(chunks(segment_lengths, size))
    wanted = int(min(config.fit.sample_seconds * fs, MOST_VALUES / n_channels) // size)
    if len(pieces) <= max(1, wanted):
        return Stretches(pieces, True)
    block = max(1, int(STRETCH_SECONDS * fs / size))  # so that few templates are cut at their ends
    starts = np.linspace(0, len(pieces) - block, max(1, wanted // block)).astype(int)
    chosen = np.unique((starts[:, None] + np.arange(block)).ravel())
    return Stretches(tuple(pieces[i] for i in chosen), len(chosen) == len(pieces))


def take_sample(whitened: Whitened, n_channels: int, segment_lengths: tuple[int, ...], fs: float, config: SortConfig,
                track: Track) -> Sample:
    """Whiten stretches spread evenly over a recording."""
    chosen = stretches(n_channels, segment_lengths, fs, config)
    places = np.r_[0, np.cumsum([c.stop - c.start for c in chosen.chunks])].tolist()
    x = torch.empty((n_channels, places[-1]), dtype=torch.float16)  # noise is 1, so half precision is plenty
    found = over_recording(lambda c: whitened(c).to(torch.float16).numpy(force=True), chosen.chunks)
    for i, piece in enumerate(track(found, "preprocess", len(chosen.chunks))):
        x[:, places[i] : places[i + 1]] = torch.from_numpy(piece)
    times = np.concatenate([np.arange(c.start, c.stop, dtype=np.float32) for c in chosen.chunks]) / np.float32(fs)
    return Sample(x, chosen.whole, times, sum(segment_lengths) / fs)
