"""Scores of many templates at every sample: cross-correlation through the Fourier transform, for all channels at once.

The data are cut into windows that overlap by a template (overlap-save; Oppenheim and Schafer, ch. 8). Each window of a channel
is transformed once for all templates; at every frequency the templates' conjugate spectra are one matrix product over
channels; and each template's sum over channels is transformed back once. That is some eight times less arithmetic than
correlating every channel with a temporal basis, and the templates need no basis.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import torch

TOGETHER = 32  # units in a matrix product: the more, the wider the range of channels that they touch
WINDOWS, FEWEST = 2048, 24  # windows times channels worked on at once, to stay in a core's cache; and windows, for a fast product
ON_CARD = 64  # times as many where there is no such cache but much to keep busy


@dataclass(frozen=True)
class Spectra:
    """Templates of n_units, n_samples long, ready to be scored in windows of `size` samples.

    parts: (first unit, lowest channel, channel after the highest, product), neighbouring units together; the product
    (size / 2 + 1, 2 channels, 2 units) takes the real and imaginary parts of each channel to those of each unit
    """

    n_units: int
    n_samples: int
    size: int
    parts: tuple[tuple[int, int, int, torch.Tensor], ...]
    elsewhere: dict[tuple[torch.device, torch.dtype], tuple[tuple[int, int, int, torch.Tensor], ...]] = field(default_factory=dict)

    def like(self, x: torch.Tensor) -> tuple[tuple[int, int, int, torch.Tensor], ...]:
        """`parts` on the device and in the precision of x; they are brought there once."""
        place = (x.device, x.dtype)
        if place not in self.elsewhere:
            self.elsewhere[place] = tuple((first, low, high, product.to(x)) for first, low, high, product in self.parts)
        return self.elsewhere[place]

    def __reduce__(self) -> tuple[type[Spectra], tuple[int, int, int, tuple[tuple[int, int, int, torch.Tensor], ...]]]:
        return Spectra, (self.n_units, self.n_samples, self.size, self.parts)  # what another process is sent


def make_spectra(waveforms: np.ndarray) -> Spectra:
    """Make waveforms (K, N, D) ready; fastest where units that touch the same channels stand together."""
    k, _, d = waveforms.shape
    size = 1 << int(np.ceil(np.log2(4 * d)))
    used = (waveforms != 0).any(axis=2)
    parts = []
    for first in range(0, k, TOGETHER):
        touched = np.flatnonzero(used[first : first + TOGETHER].any(axis=0))
        low, high = (int(touched[0]), int(touched[-1]) + 1) if len(touched) else (0, 1)
        w = torch.fft.rfft(torch.from_numpy(waveforms[first : first + TOGETHER, low:high].astype(np.float32)), size)
        # x conj(w) for rows (re x, im x): re = re x re w + im x im w, im = im x re w - re x im w
        real, imaginary = torch.stack([w.real, w.imag]), torch.stack([-w.imag, w.real])  # (2 of x, units, channels, F)
        product = torch.stack([real, imaginary]).permute(4, 3, 1, 2, 0)  # (F, channels, 2 of x, units, 2 of the score)
        parts.append((first, low, high, product.reshape(size // 2 + 1, 2 * (high - low), -1).contiguous()))
    return Spectra(k, d, size, tuple(parts))


def correlation(templates: Spectra, x: torch.Tensor) -> torch.Tensor:
    """(K, T - D + 1) <x[:, t : t + D], W_k> for x (N, T)."""
    size = templates.size
    hop, f = size - templates.n_samples + 1, size // 2 + 1
    valid = max(0, x.shape[1] - templates.n_samples + 1)
    out = torch.empty((templates.n_units, valid), dtype=x.dtype, device=x.device)
    parts = templates.like(x)
    n_windows, at_once = -(-valid // hop), WINDOWS if x.device.type == "cpu" else ON_CARD * WINDOWS
    n_pieces = -(-n_windows // max(FEWEST, at_once // max(1, len(x))))
    for first_window, last_window in itertools.pairwise(round(i * n_windows / max(1, n_pieces)) for i in range(n_pieces + 1)):
        n, start = last_window - first_window, first_window * hop
        piece = x[:, start : start + (n - 1) * hop + size]
        piece = torch.nn.functional.pad(piece, (0, (n - 1) * hop + size - piece.shape[1]))
        windows = torch.fft.rfft(piece.unfold(1, size, hop).transpose(0, 1))  # (n, N, F)
        rows = torch.view_as_real(windows.reshape(-1, f).T.contiguous()).view(f, n, -1)  # (F, n, 2 N)
        whole = min(n, (valid - start) // hop)  # all but perhaps the very last
        for first, low, high, product in parts:
            spectrum = torch.bmm(rows[:, :, 2 * low : 2 * high], product).view(f, -1, 2)
            found = torch.fft.irfft(torch.view_as_complex(spectrum).T.contiguous(), size).view(n, -1, size)  # (n, units, size)
            place = out[first : first + found.shape[1], start : start + n * hop]
            place[:, : whole * hop].unflatten(1, (whole, hop)).copy_(found[:whole, :, :hop].transpose(0, 1))
            place[:, whole * hop :] = found[-1, :, : place.shape[1] - whole * hop]
    return out
