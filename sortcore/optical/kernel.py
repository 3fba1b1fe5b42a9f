"""Deconvolution by any kernel: accelerated proximal gradient, the convolutions by FFT.

    minimise  1/2 sum_t w_t (y_t - (k * s)_t)^2 + penalty sum_t s_t    subject to  s >= 0

Beck and Teboulle's FISTA with O'Donoghue and Candes' restart: the momentum is dropped whenever it points uphill. The step is
1 / L, L = max_t w_t max_f |k(f)|^2. All traces of a batch are solved at once, on any device of torch.
"""

from __future__ import annotations

import numpy as np
import torch

from sortcore.errors import ModelError
from sortcore.optical.kernels import kkt_residual


def solve_kernel(y: np.ndarray, kernel: np.ndarray, penalty: float | np.ndarray = 0.0, *, weights: np.ndarray | None = None,
                 tolerance: float = 1e-6, most_steps: int = 5000, device: str = "cpu") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activity and fit for traces whose baseline is zero.

    y: (T,) or (N, T), NaN where missing; kernel: (L,) response to one unit of activity from its frame on
    penalty: one, or (N,); weights: like y; tolerance: KKT residual (see `kernels.kkt_residual`) at which to stop
    Returns s, k * s, both like y and float64, and the KKT residuals, () or (N,).
    Raises ModelError for a kernel that is empty, not finite or zero, or a penalty below zero.
    """
    kernel = np.asarray(kernel, dtype=np.float64)
    if kernel.ndim != 1 or not len(kernel) or not np.isfinite(kernel).all() or not kernel.any():
        raise ModelError(f"The kernel must be a finite series of numbers that are not all zero, but its shape is {kernel.shape}.")
    if not (np.asarray(penalty) >= 0).all():
        raise ModelError(f"The penalty must not be negative, but it is {penalty}.")
    x = torch.from_numpy(np.atleast_2d(np.asarray(y, dtype=np.float64)).copy()).to(device)
    w = torch.ones_like(x) if weights is None else torch.from_numpy(np.broadcast_to(np.asarray(weights, float), x.shape).copy()).to(device)
    w[~torch.isfinite(x)] = 0
    x = torch.nan_to_num(x, posinf=0.0, neginf=0.0)
    N, T = x.shape
    if not T:
        return np.zeros(np.shape(y)), np.zeros(np.shape(y)), np.zeros(np.shape(y)[:-1])
    lam = torch.as_tensor(np.broadcast_to(np.asarray(penalty, float), N).copy(), device=device)[:, None]
    n = 1 << int(np.ceil(np.log2(T + len(kernel))))
    k = torch.fft.rfft(torch.from_numpy(kernel).to(device), n)
    lipschitz = (k.abs() ** 2).max() * w.amax(1, keepdim=True).clamp_min(1e-12)

    def convolve(s: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft(torch.fft.rfft(s, n) * k, n)[:, :T]

    def gradient(s: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft(torch.fft.rfft(w * (convolve(s) - x), n) * k.conj(), n)[:, :T] + lam

    s, ahead, momentum = torch.zeros_like(x), torch.zeros_like(x), torch.ones(N, 1, dtype=x.dtype, device=device)
    for step in range(most_steps):
        slope = gradient(ahead)
        new = (ahead - slope / lipschitz).clamp_min(0)
        moved = (ahead - new).abs().amax(1) * lipschitz[:, 0]
        if step % 10 == 9 and bool((moved <= 0.3 * tolerance * (slope.abs().amax(1) + lipschitz[:, 0] * new.amax(1))).all()):
            s = new
            break
        uphill = ((ahead - new) * (new - s)).sum(1, keepdim=True) > 0
        after = torch.where(uphill, 1.0, (1 + torch.sqrt(1 + 4 * momentum**2)) / 2)
        ahead = torch.where(uphill, new, new + (momentum - 1) / after * (new - s))
        s, momentum = new, after
    g, fit = gradient(s).cpu().numpy(), convolve(s).cpu().numpy()
    found, norm2 = s.cpu().numpy(), float((kernel**2).sum()) * w.amax(1).clamp_min(1e-12).cpu().numpy()
    residual = np.array([kkt_residual(found[i], g[i], norm2[i]) for i in range(N)])
    return (found, fit, residual) if np.ndim(y) == 2 else (found[0], fit[0], residual[0])


def boxcar(n_frames: int) -> np.ndarray:
    """(n_frames,) ones."""
    return np.ones(n_frames)


def triangle(rise_frames: int, decay_frames: int) -> np.ndarray:
    """Linear rise to 1 at frame rise_frames, linear decay to 0 decay_frames later: (rise_frames + decay_frames,)."""
    return np.interp(np.arange(rise_frames + decay_frames), [-1, rise_frames, rise_frames + decay_frames], [0, 1, 0])
