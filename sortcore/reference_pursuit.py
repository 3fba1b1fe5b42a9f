"""Matching pursuit, slow and plain: to be read, and to test `sortcore.pursuit` against.

Source: S. Mallat and Z. Zhang, Matching pursuits with time-frequency dictionaries, IEEE Transactions on Signal Processing 1993; B. Sturm
and M. Christensen, Comparison of orthogonal matching pursuit implementations and cyclic matching pursuit, EUSIPCO 2012.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sortcore.errors import ModelError
from sortcore.pursuit import BETTER, MOST_LOOKS, MOST_ROUNDS, SETTLED

Real = float | np.ndarray


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

    When no spike has a gain above zero (see `spike_gain`), each that overlaps with others is looked at again, all others held: one that
    adds more by `BETTER`, of any unit and up to half a template away, takes its place, or that of it and of one beside it, and those that
    then add less than nothing go.
    What this leaves is searched for further spikes; it ends when there are none, or after so many looks.

    The noise has sigma = 1. Every unit is tried at every sample at which its waveform fits into the data; the best is
    then tried at the shifts m / subsamples, |m| <= subsamples // 2, and takes the one of the highest score.

    data: (N, T) whitened
    waveforms: (K, N, D), divided by their norm before use
    log_odds: (K,) log prior odds that a spike of that unit starts at a given sample; below zero
    amp_mean, amp_std: (K,) Gaussian prior of the amplitudes; both or neither
    dead: samples on either side of a spike at which its unit fires no second one
    Raises ModelError where the shapes do not fit, log odds are not below zero, or only half a prior is given.
    """
    X, W, odds, mu, p = _pursuit_input(data, waveforms, log_odds, amp_mean, amp_std)
    pursuit = _Pursuit(X.copy(), W, odds, mu, p, np.arange(-(subsamples // 2), subsamples // 2 + 1) / subsamples, dead, [])
    again: list[_Spike] = []
    looked = 0  # spikes
    for look in range(MOST_LOOKS + 1 if len(W) and X.shape[1] >= W.shape[2] else 0):
        pursuit.take_all()
        again += pursuit.found[looked:]
        looked = len(pursuit.found)
        if look < MOST_LOOKS:
            again = pursuit.look_again(again)
        if len(pursuit.found) == looked:
            break
    return pursuit.record()


@dataclass(eq=False)
class _Spike:
    sample: int
    shift: float
    unit: int
    waveform: np.ndarray  # (N, D), shifted
    amplitude: float = 0.0
    gain: float = 0.0
    gone: bool = False


@dataclass
class _Pursuit:
    """Residual (N, T), waveforms (K, N, D), log odds, amplitude means and precisions (K,), shifts to try, dead time, spikes."""

    R: np.ndarray
    W: np.ndarray
    odds: np.ndarray
    mu: np.ndarray
    p: np.ndarray
    shifts: np.ndarray
    dead: int
    found: list[_Spike]

    def __post_init__(self) -> None:
        self.x = self.scores(self.R)  # (K, T - D + 1)
        self.asleep = np.zeros(self.x.shape, int)  # spikes within whose dead time

    def scores(self, part: np.ndarray) -> np.ndarray:
        """(K, L - D + 1) <part[:, t : t + D], W_k> for part (N, L)."""
        K, N, D = self.W.shape
        out = np.zeros((K, max(0, part.shape[1] - D + 1)))
        for k in range(K if out.shape[1] else 0):
            out[k] = sum(np.correlate(part[n], self.W[k, n], "valid") for n in range(N))
        return out

    def gain(self, x: Real, k: int) -> float:
        return float(spike_gain(x, self.mu[k], self.p[k], self.odds[k]))

    def best_shift(self, R: np.ndarray, k: int, t: int) -> tuple[float, np.ndarray, float]:
        """The shift at which unit k fits best at sample t, its waveform there, and its score."""
        tries = [shifted(self.W[k], s) for s in self.shifts]
        fits = [float((R[:, t : t + w.shape[1]] * w).sum()) for w in tries]
        m = int(np.argmax(fits))
        return float(self.shifts[m]), tries[m], fits[m]

    def take_all(self) -> None:
        """Take the best spike, and again, until none has a gain."""
        while True:
            gain = spike_gain(self.x, self.mu[:, None], self.p[:, None], self.odds[:, None])  # (K, T - D + 1)
            gain = np.where(self.asleep > 0, -np.inf, gain)
            k, t = (int(i) for i in np.unravel_index(gain.argmax(), gain.shape))
            if not gain[k, t] > 0:
                return
            shift, waveform, x = self.best_shift(self.R, k, t)
            self.take(_Spike(t, shift, k, waveform), x, self.gain(x, k))

    def take(self, spike: _Spike, x: float, gain: float) -> None:
        k = spike.unit
        self.found.append(spike)
        self.sleep(spike, 1)
        self.change(spike, max(0.0, x + self.p[k] * self.mu[k]) / (1 + self.p[k]))
        spike.gain = gain
        self.settle(spike)

    def leave(self, spike: _Spike) -> None:
        self.change(spike, -spike.amplitude)
        self.sleep(spike, -1)
        spike.gone = True

    def settle(self, new: _Spike) -> None:
        """Coordinate ascent over the amplitudes of a spike and those beside it."""
        for _ in range(MOST_ROUNDS):
            settled = True
            for s in reversed(self.beside(new)):
                more = max((self.left(s) - self.p[s.unit] * (s.amplitude - self.mu[s.unit])) / (1 + self.p[s.unit]), -s.amplitude)
                if abs(more) > SETTLED:
                    s.gain += 0.5 * (1 + self.p[s.unit]) * more**2
                    self.change(s, more)
                    settled = False
            if settled:
                return

    def change(self, spike: _Spike, more: float) -> None:
        D, t = self.W.shape[2], spike.sample
        self.R[:, t : t + D] -= more * spike.waveform
        spike.amplitude += more
        low, high = max(0, t - D + 1), min(self.x.shape[1], t + D)  # only there have scores changed
        self.x[:, low:high] = self.scores(self.R[:, low : high + D - 1])

    def sleep(self, spike: _Spike, more: int) -> None:
        self.asleep[spike.unit, max(0, spike.sample - self.dead) : spike.sample + self.dead + 1] += more

    def beside(self, spike: _Spike) -> list[_Spike]:
        """Those that overlap with it in time, itself among them."""
        return [s for s in self.found if not s.gone and abs(s.sample - spike.sample) <= self.W.shape[2]]

    def left(self, spike: _Spike) -> float:
        """Inner product of a spike's waveform with what is left of the data."""
        return float((self.R[:, spike.sample : spike.sample + self.W.shape[2]] * spike.waveform).sum())

    def worth(self, spike: _Spike) -> float:
        """What a spike of this amplitude adds to the log joint, given all others."""
        a, k = spike.amplitude, spike.unit
        return a * (self.left(spike) + a) - a**2 / 2 - self.p[k] * (a - self.mu[k]) ** 2 / 2 + self.odds[k]

    def look_again(self, again: list[_Spike]) -> list[_Spike]:
        """Put in place of each of the spikes that overlaps with others, or of it and one of those, what adds more, if there is anything.
        Returns the spikes that stand beside a change."""
        touched: list[_Spike] = []
        for spike in sorted(again, key=lambda s: (s.sample, s.unit)):
            beside = [] if spike.gone else [s for s in self.beside(spike) if s is not spike]
            if not beside:
                continue
            tries = [([spike], *self.instead([spike]))] + [([spike, s], *self.instead([spike, s])) for s in beside if self.meet(spike, s)]
            old, more, x, new = max(tries, key=lambda found: found[1])
            if new is None or more <= BETTER:
                continue
            for s in old:
                self.leave(s)
            self.take(new, x, sum(s.gain for s in old) + more)
            for other in self.beside(new):
                if other is not new and (lost := self.worth(other)) < 0:
                    self.leave(other)
                    new.gain += other.gain - lost
            touched += self.beside(new)
        return [s for s in self.found if s in touched and not s.gone]

    def meet(self, a: _Spike, b: _Spike) -> bool:
        """Whether two spikes share a sample of a channel."""
        return abs(a.sample - b.sample) < self.W.shape[2] and bool(((a.waveform != 0).any(1) & (b.waveform != 0).any(1)).any())

    def instead(self, spikes: list[_Spike]) -> tuple[float, float, _Spike | None]:
        """The best spike in place of some, near the first of them, all others held: how much more it adds, its score and itself.
        Every unit and every spike beside is tried; `sortcore.pursuit` leaves out those that overlap too little to matter."""
        D, t = self.W.shape[2], spikes[0].sample
        R, asleep, worth = self.R, self.asleep, 0.0
        before = R.copy(), asleep.copy()
        for s in spikes:  # taken off one after another, so that each is worth what it is without those before
            worth += self.worth(s)
            R[:, s.sample : s.sample + D] += s.amplitude * s.waveform
            self.sleep(s, -1)
        low, high = max(0, t - D + 1), min(self.x.shape[1], t + D)
        x = np.where(asleep[:, low:high] > 0, -np.inf, self.scores(R[:, low : high + D - 1]))
        best: tuple[float, float, _Spike | None] = (0.0, 0.0, None)
        for k in range(len(x)):
            for i in range(max(1, t - low - (D - 1) // 2), min(high - low - 1, t - low + (D - 1) // 2 + 1)):
                if x[k, i - 1] <= x[k, i] > x[k, i + 1]:
                    shift, waveform, fit = self.best_shift(R, k, low + i)
                    more = self.gain(fit, k) - worth
                    if more > best[0]:
                        best = more, fit, _Spike(low + i, shift, k, waveform)
        R[:], asleep[:] = before
        return best

    def record(self) -> PursuitReference:
        kept = [s for s in self.found if not s.gone]
        return PursuitReference(np.array([s.sample for s in kept], dtype=np.int64), np.array([s.shift for s in kept], dtype=float),
                                np.array([s.unit for s in kept], dtype=np.int64), np.array([s.amplitude for s in kept], dtype=float),
                                np.array([s.gain for s in kept], dtype=float), self.R)


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
