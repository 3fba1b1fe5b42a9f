"""The textbook algorithms, slow and plain: to be read, and to test the fast ones against.

`simple_ascent` is the model without time, `convolutive_ascent` the model of `sortcore.model`; both climb the log joint
one block of unknowns at a time. `merge_reference` joins parcels of points into clusters; `reference_pursuit` finds the spikes of known
waveforms.

Source: S. Linderman, Machine Learning Methods for Neural Data Analysis, chapters 4 to 6, after Kilosort (Pachitariu,
Sridhar, Pennington and Stringer, Nature Methods 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sortcore import model
from sortcore.cluster import NEAREST, separation
from sortcore.errors import ModelError


@dataclass(frozen=True)
class SimpleAscent:
    """What `simple_ascent` found.

    waveforms: (K, N) one column of the data a unit, of norm one
    amplitudes: (K, T)
    log_joint: (I + 1,) before the first iteration and after each
    """

    waveforms: Tensor
    amplitudes: Tensor
    log_joint: Tensor


@dataclass(frozen=True)
class ConvolutiveAscent:
    """What `convolutive_ascent` found.

    footprints: (K, N, R)
    profiles: (K, R, D)
    amplitudes: (K, T)
    log_joint: (I + 1,) before the first iteration and after each
    """

    footprints: Tensor
    profiles: Tensor
    amplitudes: Tensor
    log_joint: Tensor


def simple_ascent(data: Tensor, waveforms: Tensor, *, amp_rate: float, noise_std: float, iterations: int = 20) -> SimpleAscent:
    """Semi-NMF without convolution, for data in which a spike takes a single sample.

        X = sum_k w_k a_k' + E,   ||w_k|| = 1,   a_k >= 0

    One unit at a time, with the residual R_k = X - sum_{j != k} w_j a_j' and from amplitudes of zero:

        a_k <- max(0, R_k' w_k - lambda sigma^2)
        w_k <- R_k a_k / ||R_k a_k||

    Each is the maximum of the log joint in that unknown, so the log joint never falls.

    data (N, T); waveforms (K, N), where to start from, of any norm but zero (see `start_waveforms`).
    Raises ModelError where the shapes do not fit, a waveform is zero, or a rate is out of range.
    """
    model.check_rates(amp_rate, noise_std)
    X = data  # (N, T)
    W = _unit_norm(waveforms)  # (K, N)
    A = X.new_zeros(len(W), X.shape[1])  # (K, T)

    def log_joint() -> Tensor:  # the convolutive one, with templates of one sample
        return model.log_joint(X, W[:, :, None], X.new_ones(len(W), 1, 1), A, amp_rate=amp_rate, noise_std=noise_std)

    path = [log_joint()]
    for _ in range(iterations):
        for k in range(len(W)):
            R_k = X - W.T @ A + torch.outer(W[k], A[k])  # (N, T)
            A[k] = (R_k.T @ W[k] - amp_rate * noise_std**2).clamp(min=0)
            if A[k].any():  # without a spike there is nothing to learn the waveform from
                W[k] = _unit_norm(R_k @ A[k])
        path.append(log_joint())
    return SimpleAscent(W, A, torch.stack(path))


def separate_greedily(amplitudes: Tensor, n_samples: int) -> Tensor:
    """Keep the largest amplitude, strike out all within a template's length of it, and go on with what is left.

    amplitudes (T,), n_samples D -> (T,), non-zero only at samples that lie D or more apart. This is non-maximum
    suppression, and what sorters do. The choice is the best one where spikes lie apart anyway, not where they crowd.
    """
    left, kept = amplitudes.clone(), torch.zeros_like(amplitudes)
    while left.numel() and left.max() > 0:
        t = int(left.argmax())
        kept[t] = amplitudes[t]
        left[max(0, t - n_samples + 1) : t + n_samples] = 0
    return kept


def separate_exactly(amplitudes: Tensor, n_samples: int) -> Tensor:
    """Of all choices of samples that lie D or more apart, the one that gains most log joint.

    amplitudes (T,), n_samples D -> (T,). A spike of amplitude a gains a^2 / (2 sigma^2), so this is the scheduling of
    weighted intervals, solved by dynamic programming over the best gain f[t] of the samples before t:

        f[t + 1] = max(f[t], f[t + 1 - D] + a[t]^2 / 2)
    """
    a, T, D = amplitudes.tolist(), len(amplitudes), n_samples
    f = [0.0] * (T + 1)
    for t in range(T):
        f[t + 1] = max(f[t], f[max(0, t + 1 - D)] + a[t] ** 2 / 2)
    kept, t = torch.zeros_like(amplitudes), T
    while t > 0:
        if f[t] > f[t - 1]:
            kept[t - 1] = amplitudes[t - 1]
            t -= D
        else:
            t -= 1
    return kept


def convolutive_ascent(data: Tensor, waveforms: Tensor, *, rank: int, amp_rate: float, noise_std: float, iterations: int = 10,
                       separate: Callable[[Tensor, int], Tensor] = separate_greedily) -> ConvolutiveAscent:
    """Convolutive semi-NMF of rank R (see `sortcore.model`), for unknown waveforms and unknown spikes.

    One unit at a time, with the residual R_k = X - sum_{j != k} a_j * W_j and from amplitudes of zero:

        a_k <- separate(max(0, score(R_k, W_k) - lambda sigma^2))
        W_k <- the unit-norm waveform of rank R closest to the cross-correlation of R_k with a_k

    `separate` keeps amplitudes that lie a template or more apart. Then no two waveforms of one unit overlap, ||a_k *
    W_k|| is ||a_k|| whatever W_k is, and both steps are the maximum of the log joint in that unknown. With
    `separate_exactly` the log joint never falls; with `separate_greedily` it never falls where spikes of one unit lie
    apart. Spikes start at samples 0 to T - D, so that none is cut off.

    data (N, T); waveforms (K, N, D), where to start from, of any norm but zero (see `start_waveforms`).
    Raises ModelError where the shapes do not fit, a waveform is zero, or a rate is out of range.
    """
    model.check_rates(amp_rate, noise_std)
    X, D = data, waveforms.shape[-1]
    U, V = model.unit_norm_low_rank(_unit_norm(waveforms), rank)  # (K, N, R), (K, R, D)
    A = X.new_zeros(len(U), X.shape[1])  # (K, T)
    path = [model.log_joint(X, U, V, A, amp_rate=amp_rate, noise_std=noise_std)]
    for _ in range(iterations):
        for k in range(len(U)):
            U_k, V_k, A_k = U[k : k + 1], V[k : k + 1], A[k : k + 1]  # views, with a leading one
            R_k = model.residual(X, U, V, A) + model.reconstruct(U_k, V_k, A_k)  # (N, T)
            threshed = (model.score(R_k, U_k, V_k)[0] - amp_rate * noise_std**2).clamp(min=0)  # (T,)
            threshed[max(0, len(threshed) - D + 1) :] = 0
            A_k[0] = separate(threshed, D)
            if A_k.any():  # without a spike there is nothing to learn the waveform from
                U_k[:], V_k[:] = model.unit_norm_low_rank(model.cross_correlation(R_k, A_k, D), rank)
        path.append(model.log_joint(X, U, V, A, amp_rate=amp_rate, noise_std=noise_std))
    return ConvolutiveAscent(U, V, A, torch.stack(path))


def start_waveforms(data: Tensor, n_units: int, n_samples: int, *, rank: int, amp_rate: float, noise_std: float) -> Tensor:
    """Waveforms from which coordinate ascent can start: one unit is fitted to what the units before it leave over.

    Each starts as the stretch of D samples that holds most energy and is centred there.

    data (N, T), n_units K, n_samples D -> (K, N, D)
    Raises ModelError where the data are shorter than a template, or are explained completely by fewer units.
    """
    if data.shape[1] < n_samples:
        raise ModelError(f"A template of {n_samples} samples does not fit into data of {data.shape[1]} samples.")
    R, found = data, []
    for k in range(n_units):
        power = torch.nn.functional.avg_pool1d(R.square().sum(0)[None], n_samples, stride=1)[0]  # (T - D + 1,)
        t = int(power.argmax())
        if power[t] == 0:
            raise ModelError(f"There is nothing left to start from after {k} of {n_units} units; ask for fewer.")
        one = convolutive_ascent(R, R[None, :, t : t + n_samples], rank=rank, amp_rate=amp_rate, noise_std=noise_std, iterations=3)
        found.append(model.dense(one.footprints, one.profiles)[0])
        R = model.residual(R, one.footprints, one.profiles, one.amplitudes)
    return torch.stack(found) if found else data.new_zeros(0, len(data), n_samples)


def _unit_norm(waveforms: Tensor) -> Tensor:
    """Waveforms (N,), (K, N) or (K, N, D) divided by their norm."""
    dims = tuple(range(min(1, waveforms.ndim - 1), waveforms.ndim))
    norm = waveforms.square().sum(dims, keepdim=True).sqrt()
    if not ((norm > 0) & norm.isfinite()).all():
        raise ModelError("A waveform is zero or not finite, so that it has no direction; start from other waveforms.")
    return waveforms / norm


def merge_reference(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(S,) labels of points x (S, P) after joining clusters, the least separated pair first, until a significant valley lies between
    every cluster and those nearest to it: the slow form of `sortcore.cluster.merge`."""
    members = {int(k): np.flatnonzero(labels == k) for k in np.unique(labels)}
    gaps: dict[tuple[int, int], float] = {}

    def test(a: int) -> None:
        centres = {k: x[index].mean(axis=0, dtype=np.float64) for k, index in members.items()}
        others = sorted((k for k in members if k != a), key=lambda k: float(((centres[k] - centres[a]) ** 2).sum()))
        for b in others[:NEAREST]:
            pair = (min(a, b), max(a, b))
            if pair not in gaps:
                gaps[pair] = separation(x[members[pair[0]]], x[members[pair[1]]])

    for k in members:
        test(k)
    while gaps and min(gaps.values()) < 1:
        a, b = min(gaps, key=lambda pair: (gaps[pair], pair))
        members[a] = np.concatenate([members[a], members.pop(b)])
        gaps = {pair: gap for pair, gap in gaps.items() if a not in pair and b not in pair}
        test(a)
    out = np.zeros(len(x), np.int64)
    for k, index in enumerate(sorted(members.values(), key=len, reverse=True)):
        out[index] = k
    return out
