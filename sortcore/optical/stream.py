"""Deconvolution frame by frame: `push` takes a frame and gives the activity of the frame a stated lag before it.

AR(1), exactly: the pools of `sortcore.optical.ar1` are kept on a stack, and a frame is answered once it is lag frames old. Later
frames can only change pools that they reach by joining, so the answer is the batch's wherever no pool that grows afterwards
reaches back further than the lag; a pool that ends with an event is final. Nothing but the last frames' pools is kept.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from sortcore.errors import ModelError


class CalciumStream:
    """One cell, AR(1) with known parameters.

    g: decay per frame; penalty: L1 penalty, units of the trace; baseline: subtracted; lag: frames by which answers come late
    Raises ModelError for an unstable g or a number below zero.
    """

    def __init__(self, g: float, *, penalty: float = 0.0, baseline: float = 0.0, lag: int = 30) -> None:
        if not 0 <= g < 1:
            raise ModelError(f"The decay per frame is g = {g}, but a stable AR(1) process has 0 <= g < 1.")
        if not penalty >= 0 or lag < 1:
            raise ModelError(f"The penalty must not be negative and the lag at least one frame, but they are {penalty} and {lag}.")
        self.g, self.penalty, self.baseline, self.lag = g, penalty, baseline, lag
        self._pools: deque[tuple[float, float, int]] = deque()  # N, D, first frame
        self._frames, self._before = 0, 0.0

    def push(self, frame: float) -> float | None:
        """Take the next frame (NaN if it is missing); the activity of the frame `lag` before it, None while there is none."""
        missing = bool(np.isnan(frame))
        weight = 0.0 if missing else 1.0
        self._join(0.0 if missing else frame - self.baseline, weight, self.penalty * (1 - self.g))
        due = self._frames - 1 - self.lag
        return self._answer(due) if due >= 0 else None

    def finish(self) -> np.ndarray:
        """(at most lag,) activity of the frames not yet answered, the end of the trace known."""
        if self._frames and self._pools:
            N, D, start = self._pools[-1]
            self._pools.pop()  # the last frame's penalty is whole, not 1 - g of it
            self._settle(N - self.penalty * self.g * self.g ** (self._frames - 1 - start), D, start)
        return np.array([self._answer(t) for t in range(max(self._frames - self.lag, 0), self._frames)])

    def _join(self, value: float, weight: float, lower: float) -> None:
        t = self._frames
        self._frames += 1
        self._settle(weight * value - lower, weight, t)

    def _settle(self, N: float, D: float, start: int) -> None:
        while self._pools:
            N0, D0, start0 = self._pools[-1]
            decayed = self.g ** (start - start0)
            if D > 0 and N > 0 and (D0 == 0 or N0 * decayed * D <= N * D0):
                break
            self._pools.pop()
            N, D, start = N0 + decayed * N, D0 + decayed * decayed * D, start0
        self._pools.append((N, D, start))

    def _answer(self, t: int) -> float:
        """Activity of frame t, after which pools that end before it are forgotten."""
        while len(self._pools) > 1 and self._pools[1][2] <= t:
            self._pools.popleft()
        N, D, start = self._pools[0]
        calcium = max(N / D, 0.0) * self.g ** (t - start) if D > 0 else 0.0
        calcium = max(calcium, self.g * self._before)
        activity, self._before = calcium - self.g * self._before, calcium
        return activity
