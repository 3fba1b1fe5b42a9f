"""Small numerical tools that several stages share: devices, FFT filtering, sub-sample shifts, robust scale."""

from __future__ import annotations

import numpy as np
import torch
from scipy.fft import next_fast_len

from sortcore.errors import ConfigError
from sortcore.types import Probe

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


def fft_filter(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Correlate every row of x (N, T + L - 1) with symmetric taps (L,), keeping the T valid samples."""
    valid = x.shape[-1] - len(taps) + 1
    n = next_fast_len(x.shape[-1], real=True)
    spectrum = torch.fft.rfft(x, n)
    spectrum *= torch.fft.rfft(taps, n)
    return torch.fft.irfft(spectrum, n)[..., len(taps) - 1 : len(taps) - 1 + valid]


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


def subsample_shifts(n: int) -> np.ndarray:
    """(n,) shifts in [-1/2, 1/2) of a sample, evenly spaced, zero among them."""
    return (np.arange(n) - n // 2) / n


def mad(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Standard deviation from the median absolute deviation."""
    centre = np.median(x, axis=axis, keepdims=True)
    return MAD_TO_SD * np.median(np.abs(x - centre), axis=axis)


def unit_norm(waveforms: np.ndarray) -> np.ndarray:
    """Waveforms (K, N, D) scaled to Frobenius norm one; zero stays zero."""
    norm = np.linalg.norm(waveforms.reshape(len(waveforms), -1), axis=1)
    return waveforms / np.maximum(norm, 1e-12)[:, None, None]


def correlate(x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """(P, N, T - L + 1) cross-correlation of every row of x (N, T) with every kernel (P, L).

    out[p, n, t] = sum_d kernels[p, d] x[n, t + d], as one product with a block-Toeplitz matrix: on a CPU about twice the
    arithmetic of conv1d, but at the speed of a large matrix product.
    """
    (n, t), (p, length) = x.shape, kernels.shape
    valid = t - length + 1
    block = 2 * length
    n_blocks = -(-valid // block)
    width = block + length - 1
    padded = torch.nn.functional.pad(x, (0, n_blocks * block + length - 1 - t)) if n_blocks * block + length - 1 > t else x
    windows = padded.unfold(1, width, block)  # (N, n_blocks, width), overlapping views
    toeplitz = torch.zeros(p, block, width, dtype=x.dtype, device=x.device)
    for shift_by in range(block):
        toeplitz[:, shift_by, shift_by : shift_by + length] = kernels
    flat = windows.reshape(-1, width).T  # (width, N n_blocks)
    out = torch.matmul(toeplitz.reshape(p * block, width), flat)  # (P block, N n_blocks)
    out = out.reshape(p, block, n, n_blocks).permute(0, 2, 3, 1).reshape(p, n, n_blocks * block)
    return out[..., :valid]


def nearest_channels(probe: Probe, channel: int, radius_um: float) -> np.ndarray:
    """Channels of the same shank within the radius of a channel, itself among them, in order of number."""
    distance = np.linalg.norm(probe.positions_um - probe.positions_um[channel], axis=1)
    return np.flatnonzero((distance <= radius_um) & (probe.shank == probe.shank[channel]))
