"""Small numerical tools that several stages share: devices, FFT filtering, sub-sample shifts, robust scale."""

from __future__ import annotations

import numba
import numpy as np
import torch
from scipy.fft import next_fast_len

from sortcore.errors import ConfigError
from sortcore.types import Probe

STRETCH = 7  # times the filter's length: longer leaves the cache, shorter overlaps more
MAD_TO_SD = 1.4826  # standard deviation of a Gaussian over its median absolute deviation


def pick_device(name: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda" or "mps"; auto takes a CUDA card when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"The device must be auto, cpu, cuda or mps, but it is {name!r}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("Device cuda was asked for, but torch sees no CUDA card; use --device cpu, or install a CUDA build of torch.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("Device mps was asked for, but this is no Apple machine with Metal; use --device cpu.")
    return torch.device(name)


def fft_filter(x: torch.Tensor, taps: torch.Tensor, every: int = 1) -> torch.Tensor:
    """Correlate every row of x (N, T + L - 1) with symmetric taps (L,), keeping every so-manyth of the T valid samples.

    Overlap-save in stretches that stay in a core's cache. Samples that are not kept are never computed: keeping every
    so-manyth folds the spectrum (Oppenheim and Schafer, ch. 4). L - 1 must be a multiple of `every`.
    """
    valid, over = x.shape[-1] - len(taps) + 1, (len(taps) - 1) // every
    size = every * next_fast_len(-(-min(x.shape[-1], STRETCH * len(taps)) // every), real=True)
    hop = size - len(taps) + 1
    response = torch.fft.rfft(taps, size) / every
    out = torch.empty((*x.shape[:-1], -(-valid // every)), dtype=x.dtype, device=x.device)
    for start in range(0, valid, hop):
        spectrum = torch.fft.rfft(x[..., start : start + size], size)
        spectrum *= response
        kept = out[..., start // every : (start + hop) // every]
        kept.copy_(torch.fft.irfft(folded(spectrum, size, every), size // every)[..., over : over + kept.shape[-1]])
    return out


def folded(spectrum: torch.Tensor, size: int, every: int) -> torch.Tensor:
    """Spectrum (..., size / (2 every) + 1) of every so-manyth of `size` real samples, from theirs (..., size / 2 + 1); not divided."""
    if every == 1:
        return spectrum
    length, middle = size // every, size // 2
    bins = length // 2 + 1
    out = spectrum[..., :bins].clone()
    for first in range(length, size, length):
        direct = max(0, min(bins, middle - first + 1))
        out[..., :direct] += spectrum[..., first : first + direct]
        # frequencies beyond the middle are the conjugates of those as far before it
        beyond = spectrum[..., size - first - bins + 1 : size - first - direct + 1]
        out[..., direct:] += beyond.conj().flip(-1)
    return out


def shift(waveforms: np.ndarray, samples: float | np.ndarray) -> np.ndarray:
    """Delay waveforms (..., D) by a fraction of a sample, band-limited, with zeros beyond the ends.

    samples: scalar, or (M,) to get (M, ..., D)
    """
    d = waveforms.shape[-1]
    n = 2 * d
    frequency = np.fft.rfftfreq(n)
    delays = np.asarray(samples, dtype=np.float64)
    phase = np.exp(-2j * np.pi * frequency * delays[..., None])
    spectrum = np.fft.rfft(waveforms, n)
    if delays.ndim:
        phase = phase.reshape(len(delays), *([1] * (waveforms.ndim - 1)), -1)
    return np.fft.irfft(spectrum * phase, n)[..., :d].astype(waveforms.dtype)


def moved_by(w: np.ndarray, lag: int) -> np.ndarray:
    """Waveforms (..., D) delayed by whole samples, zero-filled."""
    out = np.zeros_like(w)
    d = w.shape[-1]
    if lag == 0:
        return w
    if lag > 0:
        out[..., lag:] = w[..., : d - lag]
    else:
        out[..., :lag] = w[..., -lag:]
    return out


def subsample_shifts(n: int) -> np.ndarray:
    """(n,) shifts in [-1/2, 1/2) of a sample, evenly spaced, zero among them."""
    return (np.arange(n) - n // 2) / n


def mad(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Standard deviation from the median absolute deviation."""
    centre = np.median(x, axis=axis, keepdims=True)
    return MAD_TO_SD * np.median(np.abs(x - centre), axis=axis)


def unit_norm(waveforms: np.ndarray) -> np.ndarray:
    """Waveforms (K, N, D) scaled to Frobenius norm one; zero stays zero."""
    norm = np.linalg.norm(waveforms, axis=(1, 2))
    return waveforms / np.maximum(norm, 1e-12)[:, None, None]


ROWS = 64  # samples that are turned at once, to stay in a core's cache
BLOCK = 48  # samples of an output block: a larger one multiplies more zeros, a smaller one copies more of the input
PIECE = 4096  # blocks times channels worked on at once: few enough to stay in a core's cache


def correlate(x: torch.Tensor, kernels: torch.Tensor, space: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-correlation of every row of x (N, T) with every kernel (P, L), in blocks of samples: (n_blocks, N, P, BLOCK).

    out[j, n, p, i] = sum_d kernels[p, d] x[n, BLOCK j + i + d], zeros beyond the end. `unblocked` gives the plain
    (P, N, T - L + 1). Each piece is one product with a block-Toeplitz matrix: more arithmetic than conv1d does, but at the
    speed of a large matrix product. space: memory to work in, where it is large enough; the system takes long to give new.
    """
    (n, t), (p, length) = x.shape, kernels.shape
    n_blocks, width = -(-max(t - length + 1, 0) // BLOCK), BLOCK + length - 1
    shape = (n_blocks, n, p, BLOCK)
    if space is None or space.numel() < n_blocks * n * p * BLOCK:
        out = torch.empty(shape, dtype=x.dtype, device=x.device)
    else:
        out = space[: n_blocks * n * p * BLOCK].view(shape)
    matrix, most = toeplitz(kernels), max(1, PIECE // max(1, n))
    for start in range(0, n_blocks, most):
        piece = out[start : start + most]
        wanted = (len(piece) - 1) * BLOCK + width
        stretch = x[:, start * BLOCK : start * BLOCK + wanted]
        stretch = torch.nn.functional.pad(stretch, (0, wanted - stretch.shape[1]))
        torch.mm(stretch.unfold(1, width, BLOCK).transpose(0, 1).reshape(-1, width), matrix, out=piece.view(-1, p * BLOCK))
    return out


def toeplitz(kernels: torch.Tensor) -> torch.Tensor:
    """(BLOCK + L - 1, P BLOCK) matrix whose product with a window of samples is its correlation with kernels (P, L)."""
    padded = torch.nn.functional.pad(kernels.flip(1), (BLOCK - 1, BLOCK - 1))
    return padded.unfold(1, BLOCK, 1).flip(1).transpose(0, 1).reshape(-1, len(kernels) * BLOCK)


def unblocked(blocks: torch.Tensor, n_valid: int) -> torch.Tensor:
    """(P, N, n_valid) from the blocks of `correlate`."""
    n_blocks, n, p, size = blocks.shape
    return blocks.permute(2, 1, 0, 3).reshape(p, n, n_blocks * size)[..., :n_valid]


def nearest_channels(probe: Probe, channel: int, radius_um: float) -> np.ndarray:
    """Channels of the same shank within the radius of a channel, itself among them, in order of number."""
    distance = np.linalg.norm(probe.positions_um - probe.positions_um[channel], axis=1)
    return np.flatnonzero((distance <= radius_um) & (probe.shank == probe.shank[channel]))


def leading(centred: np.ndarray, n: int, rounds: int = 6) -> np.ndarray:
    """(F, n) orthonormal leading principal directions of centred rows (S, F), by subspace iteration (Halko et al. 2011).

    Some ten times faster than all eigenvectors where F is some hundreds; the start is fixed, so the result repeats.
    """
    n = min(n, *centred.shape)
    wide = min(n + 6, *centred.shape)
    start = np.random.default_rng(0).standard_normal((centred.shape[1], wide)).astype(centred.dtype)
    return subspace(np.ascontiguousarray(centred), start, rounds)[:, :n]


@numba.njit(cache=True, nogil=True)
def subspace(centred, q, rounds):
    """(F, W) leading principal directions of centred rows (S, F), in order, from directions (F, W)."""
    turned = np.ascontiguousarray(centred.T)
    for _ in range(rounds):
        q, _ = np.linalg.qr(turned @ (centred @ np.ascontiguousarray(q)))
    projected = centred @ np.ascontiguousarray(q)
    _, _, turn = np.linalg.svd(projected, False)
    return np.ascontiguousarray(q) @ np.ascontiguousarray(turn.T)


@numba.njit(cache=True, nogil=True)
def scaled_rows(stored, offset, gain):
    """(N, T) float32 (x - offset) gain of stored values x (T, N), what is not finite as zero; offset and gain (N,)."""
    n_samples, n = stored.shape
    out = np.empty((n, n_samples), np.float32)
    for first in range(0, n_samples, ROWS):
        last = min(first + ROWS, n_samples)
        for c in range(n):
            for t in range(first, last):
                value = np.float32(stored[t, c])
                out[c, t] = (value - offset[c]) * gain[c] if np.isfinite(value) else -offset[c] * gain[c]
    return out
