"""The model: convolutive semi-non-negative matrix factorisation, stated once.

    X = sum_k a_k * W_k + E        W_k = U_k V_k,  ||W_k||_F = 1,  a_k >= 0,  E ~ N(0, sigma^2)

and written out for channel n and sample t

    x[n, t] = sum_k sum_d a[k, t - d] w[k, n, d] + e[n, t],        w[k, n, d] = sum_r u[k, n, r] v[k, r, d]
    p(a[k, t]) = lambda exp(-lambda a[k, t])

In words: a[k, t] is the amplitude of a spike of unit k whose waveform *starts* at sample t, so that sample 0 of the
template falls on t and the last one on t + D - 1. (A spike time that refers to the trough is t + trough.) What runs off
the end of the data is cut off.

    data         (N, T)     X, channels by samples
    footprints   (K, N, R)  U, where on the probe a waveform is seen
    profiles     (K, R, D)  V, how it goes in time
    amplitudes   (K, T)     a, zero but for spikes
    amp_rate                lambda, rate of the exponential prior of the amplitudes
    noise_std               sigma, standard deviation of the noise

Everything takes and returns torch tensors of one floating dtype on one device. On a GPU, torch's convolutions round
float32 to TensorFloat-32 unless `torch.backends.cudnn.allow_tf32` is False.

Source: S. Linderman, Machine Learning Methods for Neural Data Analysis, chapters 4 and 5, after Kilosort (Pachitariu,
Sridhar, Pennington and Stringer, Nature Methods 2024).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from sortcore.errors import ModelError


def reconstruct(footprints: Tensor, profiles: Tensor, amplitudes: Tensor) -> Tensor:
    """The data that the model expects, sum_k a_k * W_k.

    footprints (K, N, R), profiles (K, R, D), amplitudes (K, T) -> (N, T)

    The amplitudes are convolved with the R profiles of their unit and the result is spread over the channels by the
    footprints: K R D T + K N R T products, where dense waveforms would take K N D T.

    Raises ModelError where the shapes do not fit together.
    """
    K, N, R, D = _sizes(footprints, profiles)
    T = _length(amplitudes, "amplitudes", "units", K)
    if 0 in (K, T):
        return footprints.new_zeros(N, T)
    # torch's conv1d is a cross-correlation: turned profiles and zeros before the data make it a causal convolution.
    kernels = profiles.flip(-1).reshape(K * R, 1, D)
    currents = conv1d(pad(amplitudes, (D - 1, 0))[None], kernels, groups=K)  # (1, K R, T)
    return torch.einsum("knr,krt->nt", footprints, currents.view(K, R, T))  # (N, T)


def residual(data: Tensor, footprints: Tensor, profiles: Tensor, amplitudes: Tensor) -> Tensor:
    """What the model leaves unexplained, R = X - sum_k a_k * W_k, (N, T). Raises ModelError where shapes do not fit."""
    reconstruction = reconstruct(footprints, profiles, amplitudes)  # (N, T)
    if data.shape != reconstruction.shape:
        raise ModelError(f"The model explains {tuple(reconstruction.shape)} channels and samples, but the data are {tuple(data.shape)}.")
    return data - reconstruction


def score(residual: Tensor, footprints: Tensor, profiles: Tensor) -> Tensor:
    """The matched filter: how well each waveform fits the residual at each sample.

        score[k, t] = sum_n sum_d w[k, n, d] r[n, t + d] = <R[:, t : t + D], W_k>

    residual (N, T), footprints (K, N, R), profiles (K, R, D) -> (K, T); the residual counts as zero after its end.

    For ||W_k|| = 1 it is the amplitude that a spike at t would have by least squares, and in noise alone it has
    standard deviation sigma. The residual is projected on the footprints first and correlated with the profiles then,
    which is `reconstruct` transposed.

    Raises ModelError where the shapes do not fit together.
    """
    K, N, R, D = _sizes(footprints, profiles)
    T = _length(residual, "residual", "channels", N)
    if 0 in (K, T):
        return footprints.new_zeros(K, T)
    projections = torch.einsum("knr,nt->krt", footprints, residual)  # (K, R, T)
    padded = pad(projections.reshape(1, K * R, T), (0, D - 1))
    return conv1d(padded, profiles, groups=K)[0]  # (K, T)


def cross_correlation(residual: Tensor, amplitudes: Tensor, n_samples: int) -> Tensor:
    """The spike-triggered sum of the residual, from which a waveform is learned.

        C[k, n, d] = sum_t a[k, t] r[n, t + d],   d = 0, ..., D - 1

    residual (N, T), amplitudes (K, T), n_samples D -> (K, N, D)

    Raises ModelError where the shapes do not fit together.
    """
    if residual.ndim != 2 or amplitudes.ndim != 2 or amplitudes.shape[1] != residual.shape[1]:
        shapes = f"{tuple(residual.shape)} and {tuple(amplitudes.shape)}"
        raise ModelError(f"Residual and amplitudes must be (channels, samples) and (units, samples) of one length, but they are {shapes}.")
    N, T = residual.shape
    C = residual.new_zeros(len(amplitudes), N, n_samples)
    for d in range(min(n_samples, T)):
        C[:, :, d] = amplitudes[:, : T - d] @ residual[:, d:].T
    return C  # (K, N, D)


def log_joint(data: Tensor, footprints: Tensor, profiles: Tensor, amplitudes: Tensor, *, amp_rate: float, noise_std: float) -> Tensor:
    """log p(X, a | W) in nats, a scalar tensor: what coordinate ascent climbs.

        - N T / 2 log(2 pi sigma^2) - ||X - sum_k a_k * W_k||^2 / (2 sigma^2) + sum_k sum_t (log lambda - lambda a[k, t])

    It is -inf where an amplitude is negative. amp_rate = 0 stands for the flat prior a >= 0, without its constant.

    Raises ModelError where the shapes do not fit, noise_std is not positive or amp_rate is negative.
    """
    check_rates(amp_rate, noise_std)
    R = residual(data, footprints, profiles, amplitudes)  # (N, T)
    if (amplitudes < 0).any():
        return R.new_tensor(-math.inf)
    log_likelihood = -0.5 * R.numel() * math.log(2 * math.pi * noise_std**2) - 0.5 * R.square().sum() / noise_std**2
    log_normaliser = amplitudes.numel() * math.log(amp_rate) if amp_rate > 0 else 0.0
    return log_likelihood + log_normaliser - amp_rate * amplitudes.sum()


def dense(footprints: Tensor, profiles: Tensor) -> Tensor:
    """The waveforms themselves, W_k = U_k V_k: (K, N, R), (K, R, D) -> (K, N, D)."""
    return torch.einsum("knr,krd->knd", footprints, profiles)


def unit_norm_low_rank(waveforms: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The unit-norm waveforms of rank R that lie closest to the given ones.

        argmax <W, C>   over   ||W||_F = 1, rank W <= R

    waveforms (..., N, D) -> footprints (..., N, R), profiles (..., R, D)

    The solution is the singular value decomposition cut after R terms and divided by its norm (Eckart and Young). The
    profiles are orthonormal, and the footprints carry the weights. Where R exceeds N or D, zeros fill up the rank; a
    waveform of zeros, which has no direction, stays zero.

    Raises ModelError for a rank below one.
    """
    if rank < 1:
        raise ModelError(f"The rank of a waveform must be at least 1, but it is {rank}.")
    U, s, Vh = torch.linalg.svd(waveforms, full_matrices=False)  # (..., N, M), (..., M), (..., M, D), M = min(N, D)
    U, s, Vh = U[..., :rank], s[..., :rank], Vh[..., :rank, :]
    norm = torch.linalg.vector_norm(s, dim=-1, keepdim=True)
    weights = torch.where(norm > 0, s / norm.clamp(min=torch.finfo(s.dtype).tiny), torch.zeros_like(s))
    missing = rank - s.shape[-1]
    footprints = pad(U * weights[..., None, :], (0, missing))  # (..., N, R)
    profiles = pad(Vh, (0, 0, 0, missing))  # (..., R, D)
    return footprints, profiles


def check_rates(amp_rate: float, noise_std: float) -> None:
    """Raise ModelError unless sigma > 0 and lambda >= 0, both finite."""
    if not (math.isfinite(noise_std) and noise_std > 0):
        raise ModelError(f"noise_std, the standard deviation of the noise, must be positive, but it is {noise_std}.")
    if not (math.isfinite(amp_rate) and amp_rate >= 0):
        raise ModelError(f"amp_rate, the rate of the amplitudes' prior, must not be negative, but it is {amp_rate}.")


def _sizes(footprints: Tensor, profiles: Tensor) -> tuple[int, int, int, int]:
    """K, N, R and D, checked."""
    fits = footprints.ndim == profiles.ndim == 3 and footprints.shape[0] == profiles.shape[0] and footprints.shape[2] == profiles.shape[1]
    if not fits or 0 in profiles.shape[1:]:
        raise ModelError(
            "Footprints must be (units, channels, rank) and profiles (units, rank, samples) with rank and samples at least 1, "
            f"but they are {tuple(footprints.shape)} and {tuple(profiles.shape)}."
        )
    K, N, R = footprints.shape
    return K, N, R, profiles.shape[2]


def _length(array: Tensor, name: str, rows: str, n_rows: int) -> int:
    """T of an array that must be (rows, T) with so many rows."""
    if array.ndim != 2 or array.shape[0] != n_rows:
        raise ModelError(f"The {name} must be ({n_rows} {rows}, samples), but the shape is {tuple(array.shape)}.")
    return array.shape[1]
