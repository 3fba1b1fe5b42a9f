"""The textbook algorithms, slow and plain: to be read, and to test the fast ones against.

`simple_ascent` is the model without time, `convolutive_ascent` the model of `sortcore.model`; both climb the log joint
one block of unknowns at a time. `pursuit_reference` finds the spikes of known waveforms one by one, `merge_reference` joins parcels
of points into clusters.

Source: S. Linderman, Machine Learning Methods for Neural Data Analysis, chapters 4 to 6, after Kilosort (Pachitariu,
Sridhar, Pennington and Stringer, Nature Methods 2024); S. Mallat and Z. Zhang, Matching pursuits with time-frequency
dictionaries, IEEE Transactions on Signal Processing 1993.
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
from sortcore.pursuit import MOST_ROUNDS, SETTLED

Real = float | np.ndarray


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


@dataclass(frozen=True)
class PursuitReference:
    """Spikes found by `pursuit_reference`, in the order in which they were found.

    samples: (S,) int64 sample at which the template starts
    shifts: (S,) sub-sample shift to be added to `samples`
    units: (S,) int64
    amplitudes: (S,) in noise standard deviations
    gains: (S,) what each added to the log joint, in nats
    residual: (N, T) what is left of the data
    """

    samples: np.ndarray
    shifts: np.ndarray
    units: np.ndarray
    amplitudes: np.ndarray
    gains: np.ndarray
    residual: np.ndarray


def shifted(waveforms: np.ndarray, shift: float) -> np.ndarray:
    """Waveforms (..., D) moved later by a part of a sample: band-limited, zero outside, and of the norm they had.

    Zeros on either side keep the end of a waveform from coming back at its start. Raises ModelError from a shift of
    one sample on.
    """
    if abs(shift) >= 1:
        raise ModelError(f"A sub-sample shift must be smaller than one sample, but it is {shift}.")
    D = waveforms.shape[-1]
    L = 3 * D + 1 - D % 2  # odd, so that no frequency is its own mirror image
    phase = np.exp(-2j * np.pi * np.fft.rfftfreq(L) * shift)
    moved = np.fft.irfft(np.fft.rfft(waveforms, L) * phase, L)[..., :D]
    norm, norm_moved = (np.sqrt(np.square(w).sum(-1).sum(-1))[..., None, None] for w in (waveforms, moved))
    return moved * np.divide(norm, norm_moved, out=np.ones_like(norm), where=norm_moved > 0)


def spike_gain(x: Real, amp_mean: Real, amp_precision: Real, log_odds: Real) -> Real:
    """What a spike of score x adds to the log joint at its best amplitude, in nats.

        max over a >= 0 of   a x - a^2 / 2 - p (a - mu)^2 / 2 + log_odds
        = max(0, x + p mu)^2 / (2 (1 + p)) - p mu^2 / 2 + log_odds      at   a = max(0, x + p mu) / (1 + p)

    for a waveform of unit norm in noise of sigma = 1; p = 1 / s^2 is the precision of the amplitude's Gaussian prior,
    zero for none. The log normaliser of the prior, where one wants it, belongs to log_odds.
    """
    p, mu = amp_precision, amp_mean
    return np.maximum(0, x + p * mu) ** 2 / (2 * (1 + p)) - p * mu**2 / 2 + log_odds


def pursuit_reference(data: np.ndarray, waveforms: np.ndarray, *, log_odds: np.ndarray, amp_mean: np.ndarray | None = None,
                      amp_std: np.ndarray | None = None, subsamples: int = 1, dead: int = 0) -> PursuitReference:
    """Matching pursuit: add the one spike that raises the log joint most, take it off the data, and start again.

    The amplitudes of a new spike and of those it overlaps with in time are settled by coordinate ascent before the next is sought,
    each as the best one given the others, until none is off by more than `SETTLED`.

    The noise has sigma = 1. Every unit is tried at every sample at which its waveform fits into the data; the best is
    then tried at the shifts m / subsamples, |m| <= subsamples // 2, and takes the one of the highest score. It ends when
    no spike has a gain above zero (see `spike_gain`).

    data: (N, T) whitened
    waveforms: (K, N, D), divided by their norm before use
    log_odds: (K,) log prior odds that a spike of that unit starts at a given sample; below zero
    amp_mean, amp_std: (K,) Gaussian prior of the amplitudes; both or neither
    dead: samples on either side of a spike at which its unit fires no second one
    Raises ModelError where the shapes do not fit, log odds are not below zero, or only half a prior is given.
    """
    X, W, odds, mu, p = _pursuit_input(data, waveforms, log_odds, amp_mean, amp_std)
    (K, N, D), T = W.shape, X.shape[1]
    R = X.copy()
    found: list[list] = []  # sample, shift, unit, amplitude, gain
    if K == 0 or T < D:
        return _pursuit_record(found, R)

    def score(part: np.ndarray) -> np.ndarray:  # (N, L) -> (K, L - D + 1), <part[:, t : t + D], W_k>
        return np.stack([sum(np.correlate(part[n], W[k, n], "valid") for n in range(N)) for k in range(K)])

    x = score(R)  # (K, T - D + 1)
    free = np.ones(x.shape, bool)
    shifts = np.arange(-(subsamples // 2), subsamples // 2 + 1) / subsamples
    while True:
        gain = np.where(free, spike_gain(x, mu[:, None], p[:, None], odds[:, None]), -np.inf)  # (K, T - D + 1)
        k, t = np.unravel_index(gain.argmax(), gain.shape)
        if not gain[k, t] > 0:
            return _pursuit_record(found, R)
        tries = [shifted(W[k], s) for s in shifts]
        fits = [float((R[:, t : t + D] * w).sum()) for w in tries]
        m = int(np.argmax(fits))
        found.append([int(t), float(shifts[m]), int(k), 0.0, float(spike_gain(fits[m], mu[k], p[k], odds[k]))])
        free[k, max(0, t - dead) : t + dead + 1] = False
        together = [i for i in reversed(range(len(found))) if abs(found[i][0] - t) <= D]
        for _ in range(MOST_ROUNDS):
            before = [found[i][3] for i in together]
            for i in together:
                s, by, u, a, _ = found[i]
                w = shifted(W[u], by)
                more = max(((R[:, s : s + D] * w).sum() - p[u] * (a - mu[u])) / (1 + p[u]), -a)
                if abs(more) > SETTLED:
                    R[:, s : s + D] -= more * w
                    found[i][3] += float(more)
                    found[i][4] += 0.5 * (1 + p[u]) * float(more) ** 2 if a else 0.0  # the first time is in its gain already
            if before == [found[i][3] for i in together]:
                break
        low, high = max(0, t - 2 * D + 1), min(T - D + 1, t + 2 * D)  # only there have scores changed
        x[:, low:high] = score(R[:, low : high + D - 1])


def _pursuit_input(data: np.ndarray, waveforms: np.ndarray, log_odds: np.ndarray, amp_mean: np.ndarray | None,
                   amp_std: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """data (N, T), unit-norm waveforms (K, N, D), log odds, amplitude means and precisions (K,), in float64 and checked."""
    X, W, odds = (np.asarray(v, dtype=np.float64) for v in (data, waveforms, log_odds))
    if X.ndim != 2 or W.ndim != 3 or W.shape[1] != X.shape[0] or odds.shape != (len(W),):
        raise ModelError(f"Data (N, T), waveforms (K, N, D) and log odds (K,) do not fit together: {X.shape}, {W.shape}, {odds.shape}.")
    if not (odds < 0).all():
        raise ModelError("The log odds of a spike must be below zero, or the pursuit would never end; give those of its rate per sample.")
    norm = np.sqrt(np.square(W).sum((1, 2), keepdims=True))
    if not (norm > 0).all():
        raise ModelError("A waveform is zero, so that it fits nothing; leave its unit out.")
    if (amp_mean is None) != (amp_std is None):
        raise ModelError("The prior of the amplitudes needs both amp_mean and amp_std, or neither for free amplitudes.")
    if amp_mean is None or amp_std is None:
        return X, W / norm, odds, np.zeros(len(W)), np.zeros(len(W))
    mu, s = np.broadcast_to(amp_mean, odds.shape).astype(float), np.broadcast_to(amp_std, odds.shape).astype(float)
    if not (s > 0).all():
        raise ModelError(f"The spread of the amplitudes, amp_std, must be positive, but its smallest value is {s.min()}.")
    return X, W / norm, odds, mu, 1 / s**2


def _pursuit_record(found: list[list], residual: np.ndarray) -> PursuitReference:
    samples, shifts, units, amplitudes, gains = zip(*found, strict=True) if found else ((), (), (), (), ())
    return PursuitReference(np.array(samples, dtype=np.int64), np.array(shifts, dtype=float), np.array(units, dtype=np.int64),
                            np.array(amplitudes, dtype=float), np.array(gains, dtype=float), residual)


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
