"""Whitening: band-pass, reference, whitening in time and space, so that noise is white with sigma = 1.

`learn` looks at stretches spread over the recording and returns a `Preprocessing`; `Whitener` applies it to any chunk.
Both noise statistics are taken from spike-free samples: a covariance that includes the spikes would shrink them and
leave the noise below sigma = 1, and then no threshold means what it says.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import solve_toeplitz
from scipy.ndimage import maximum_filter1d
from scipy.signal import butter, freqz_sos, windows

from sortcore.ephys.config import PreprocessConfig
from sortcore.errors import RecordingError
from sortcore.medians import channel_median
from sortcore.numerics import fft_filter, mad, scaled_rows
from sortcore.recording import Chunk, Recording, Thinned, chunks, read_padded
from sortcore.types import Preprocessing, Probe
from sortcore.workers import in_order

AR_MS = 0.4  # span of the model of the noise's spectrum
SPIKE_SD = 4.0  # a sample beyond this many standard deviations is taken for a spike when noise is estimated
ARTIFACT_MS = 1.5  # masked on either side of an artefact
SHANK_WIDE_SD = 8.0  # beyond this on most of a shank at one sample is no spike
SHANK_WIDE_FROM = 16  # contacts a shank must have for that test
BAND = 64  # channels whitened in space by one product
THIN = 5  # every fifth sample is enough for a median
EDGE_WIDTH = 0.03  # share of the band over which the filter falls off where samples are thinned
MEDIAN_FROM_CHANNELS = 32  # below that a common median takes away too much of a spike


def learn(recording: Recording, probe: Probe, config: PreprocessConfig) -> Preprocessing:
    """Learn the noise of a recording.

    Raises RecordingError where no channel can be used.
    """
    every = thinning(recording.fs, config.least_rate_hz)
    everything, bandpass = (bandpass_taps(recording.fs, config.highpass_hz, config.lowpass_hz, e) for e in (1, every))
    stretches = noise_stretches(recording, config.noise_seconds, len(bandpass) // 2)
    channels, bad = usable_channels(stretches, bandpass, every, recording)
    probe = probe.select(channels)
    base = Preprocessing(
        channels=channels, n_recorded=recording.n_channels, fs=recording.fs, gain_uv=recording.gain_uv[channels],
        offset=recording.offset[channels], probe=probe, reference=pick_reference(config.reference, probe), taps=bandpass,
        bandpass_taps=everything, whitening=np.eye(len(channels), dtype=np.float32),
        artifact_sd=np.full(len(channels), float(config.artifact_sd)), bad_channels=bad, every=every,
    )
    banded = list(in_order(lambda s: banded_stretch(base, s), stretches))
    sd = np.median(list(in_order(lambda b: mad(b[:, ::THIN]), banded)), axis=0)
    free = list(in_order(lambda b: spike_free(b, sd, probe, config.whitening_um, base.whitened_fs), banded))
    taps = whitening_taps(bandpass, banded, free, sd, base.whitened_fs, every) if config.whiten_time else bandpass
    timed = list(in_order(lambda s: banded_stretch(base, s, taps), stretches))
    whitening = spatial_whitening(timed, free, probe, config.whitening_um)
    return Preprocessing(**{**vars(base), "taps": taps, "whitening": whitening})


def thinning(fs: float, least_hz: float) -> int:
    """Every how-manyth sample is kept for at least so many a second."""
    return max(1, int(fs / least_hz + 1e-6)) if least_hz else 1


def bandpass_taps(fs: float, low_hz: float, high_hz: float, every: int = 1) -> np.ndarray:
    """Zero-phase FIR with the squared magnitude of a third-order Butterworth band-pass (or high-pass where high_hz is 0), and
    nothing beyond what every so-manyth sample can hold."""
    half = every * int(3.0 * fs / low_hz / every)
    n = 16 * half
    frequency = np.fft.rfftfreq(n, 1 / fs)
    if high_hz and high_hz < 0.49 * fs:
        sos = butter(3, [low_hz, high_hz], "bandpass", fs=fs, output="sos")
    else:
        sos = butter(3, low_hz, "highpass", fs=fs, output="sos")
    _, response = freqz_sos(sos, frequency, fs=fs)
    highest = 0.5 * fs / every
    inside = np.clip((highest - frequency) / (EDGE_WIDTH * highest), 0, 1) if every > 1 else 1.0
    return windowed_taps(np.abs(response) ** 2 * np.sin(0.5 * np.pi * inside) ** 2, half)


def windowed_taps(magnitude: np.ndarray, half: int) -> np.ndarray:
    """(2 half + 1,) zero-phase taps of a frequency response, tapered by a Hann window."""
    kernel = np.roll(np.fft.irfft(magnitude), half)[: 2 * half + 1]
    return (kernel * windows.hann(2 * half + 3)[1:-1]).astype(np.float32)


def noise_stretches(recording: Recording, seconds: float, margin: int) -> list[np.ndarray]:
    """Stored values (T + 2 margin, N) of half-second stretches spread evenly over the recording."""
    size = int(0.5 * recording.fs)
    pieces = list(chunks(recording.segment_lengths, size))
    pieces = [p for p in pieces if p.stop - p.start == size] or pieces
    wanted = min(len(pieces), max(1, int(seconds / 0.5)))
    chosen = np.unique(np.linspace(0, len(pieces) - 1, wanted).round().astype(int))
    return [read_padded(recording, pieces[i], margin) for i in chosen]


def usable_channels(stretches: list[np.ndarray], bandpass: np.ndarray, every: int,
                    recording: Recording) -> tuple[np.ndarray, dict[int, str]]:
    """Channels worth sorting, and the reason for each of the others: NaN, constant, duplicate or far noisier than the rest."""
    n = recording.n_channels
    bad: dict[int, str] = {}
    finite = np.mean([np.isfinite(s).all(axis=0) for s in stretches], axis=0) if stretches[0].dtype.kind == "f" else np.ones(n)

    def level(stored: np.ndarray) -> np.ndarray:
        microvolts = np.nan_to_num(stored.astype(np.float32)).T * recording.gain_uv[:, None].astype(np.float32)
        x = torch.from_numpy(np.ascontiguousarray(microvolts))
        return mad(fft_filter(x - x.mean(dim=1, keepdim=True), torch.from_numpy(bandpass), every).numpy()[:, ::THIN])

    constant = np.all([(s == s[0]).all(axis=0) for s in stretches], axis=0)
    noise = np.median(list(in_order(level, stretches)), axis=0)
    typical = np.median(noise[(noise > 0) & (finite > 0.5)]) if ((noise > 0) & (finite > 0.5)).any() else 0.0
    seen: dict[bytes, int] = {}
    for c in range(n):
        if finite[c] < 0.5:
            bad[c] = "NaN or infinite"
        elif constant[c] or noise[c] == 0:
            bad[c] = "constant"
        elif noise[c] < 0.05 * typical:
            bad[c] = "dead: noise below a twentieth of the other channels'"
        elif noise[c] > 8 * typical:
            bad[c] = "noisy: noise over eight times the other channels'"
        else:
            twin = seen.setdefault(np.ascontiguousarray(stretches[0][:, c]).tobytes(), c)
            if twin != c:
                bad[c] = f"the same data as channel {twin}"
    channels = np.array([c for c in range(n) if c not in bad], dtype=np.int64)
    if not len(channels):
        reasons = ", ".join(sorted(set(bad.values())))
        raise RecordingError(f"None of the {n} channels can be sorted ({reasons}). Check the file, its dtype and the number of channels.")
    return channels, bad


def pick_reference(reference: str, probe: Probe) -> str:
    if reference != "auto":
        return reference
    return "median" if np.bincount(probe.shank - probe.shank.min()).max() >= MEDIAN_FROM_CHANNELS else "none"


def banded_stretch(preprocessing: Preprocessing, stored: np.ndarray, taps: np.ndarray | None = None) -> np.ndarray:
    """(N, T) referenced and filtered stretch in microvolts, of stored values with the filter's margin."""
    whitener = Whitener(preprocessing, torch.device("cpu"))
    x = fft_filter(whitener.microvolts(stored), torch.from_numpy(preprocessing.taps if taps is None else taps), preprocessing.every)
    return whitener.referenced(x).numpy()


def spike_free(x: np.ndarray, sd: np.ndarray, probe: Probe, radius_um: float, fs: float) -> np.ndarray:
    """(N, T) where no channel within the radius holds a spike."""
    spiking = np.abs(x) > SPIKE_SD * sd[:, None]
    spiking = maximum_filter1d(spiking.astype(np.uint8), 2 * int(0.001 * fs) + 1, axis=1)
    near = (neighbours(probe, radius_um)).astype(np.float32)
    free = (near @ spiking.astype(np.float32)) < 0.5
    scarce = free.mean(axis=1) < 0.05  # no silence on that channel: better all samples than none
    free[scarce] = True
    return free


def neighbours(probe: Probe, radius_um: float) -> np.ndarray:
    """(N, N) contacts of the same shank within the radius, itself among them."""
    distance = np.linalg.norm(probe.positions_um[:, None] - probe.positions_um[None], axis=2)
    return (distance <= radius_um) & (probe.shank[:, None] == probe.shank[None])


def whitening_taps(bandpass: np.ndarray, banded: list[np.ndarray], free: list[np.ndarray], sd: np.ndarray,
                   fs: float, every: int) -> np.ndarray:
    """The band-pass divided by the noise's amplitude spectrum, an autoregressive model of the spike-free samples of all channels."""

    order = max(2, round(AR_MS * fs / 1000))

    def sums(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        mask = pair[1].astype(np.float32)
        z = pair[0] / sd[:, None].astype(np.float32) * mask
        t = z.shape[1]
        return np.array([[np.einsum("nt,nt->", y[:, : t - lag], y[:, lag:]) for lag in range(order + 1)] for y in (z, mask)], float)

    total, count = np.sum(list(in_order(sums, list(zip(banded, free, strict=True)))), axis=0)
    covariance = total / count
    covariance[0] *= 1 + 1e-4
    ar = solve_toeplitz(covariance[:-1], covariance[1:])
    half = len(bandpass) // 2
    n = 16 * half
    error = np.zeros(1 + order * every)
    error[::every] = np.r_[1.0, -ar]
    inverse = np.abs(np.fft.rfft(error, n))  # 1 / sqrt(S): the prediction-error filter whitens
    response = np.abs(np.fft.rfft(bandpass, n))
    taps = windowed_taps(response * inverse, half)
    return taps / np.sqrt(np.sum(taps.astype(np.float64) ** 2)).astype(np.float32)


def spatial_whitening(timed: list[np.ndarray], free: list[np.ndarray], probe: Probe, radius_um: float) -> np.ndarray:
    """(N, N) local ZCA: each channel whitened by its neighbourhood's inverse square-root covariance."""
    n = len(timed[0])
    total, count = np.zeros((n, n)), np.zeros((n, n))
    for x, m in zip(timed, free, strict=True):
        mask = m.astype(np.float32)
        total += (x * mask) @ (x * mask).T
        count += mask @ mask.T
    covariance = total / np.maximum(count, 1)
    near = neighbours(probe, radius_um)
    whitening = np.zeros((n, n))
    for c in range(n):
        local = np.flatnonzero(near[c])
        values, vectors = np.linalg.eigh(covariance[np.ix_(local, local)])
        values = np.maximum(values, 1e-3 * np.median(values))
        root = (vectors / np.sqrt(values)) @ vectors.T
        whitening[c, local] = root[np.searchsorted(local, c)]
    noise = np.sqrt(np.einsum("ij,jk,ik->i", whitening, covariance, whitening))
    return (whitening / noise[:, None]).astype(np.float32)


class Whitener:
    """Applies a Preprocessing to chunks of a recording, on a torch device."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        p = preprocessing
        self.preprocessing, self.device = p, device
        self.margin = p.margin
        self.taps = torch.from_numpy(p.taps).to(device)
        self.bands = [(rows, columns, torch.from_numpy(p.whitening[rows, columns]).to(device)) for rows, columns in bands(p.whitening)]
        self.gain = torch.from_numpy(p.gain_uv.astype(np.float32)).to(device)[:, None]
        self.offset = torch.from_numpy(p.offset.astype(np.float32)).to(device)[:, None]
        self.artifact = torch.from_numpy(p.artifact_sd.astype(np.float32)).to(device)[:, None]
        self.reach = int(ARTIFACT_MS * p.whitened_fs / 1000)
        if p.reference == "local":
            self.local_reference = torch.from_numpy(ring(p.probe)).to(device)
        self.everything = bool(np.array_equal(p.channels, np.arange(p.n_recorded)))
        self.shanks = [torch.from_numpy(np.flatnonzero(p.probe.shank == s)).to(device) for s in np.unique(p.probe.shank)]

    def __call__(self, recording: Recording, chunk: Chunk) -> torch.Tensor:
        """(N, T) whitened samples of a chunk of the thinned recording, float32."""
        wide = Chunk(chunk.start - self.reach, chunk.stop + self.reach, chunk.first, chunk.last)
        wide = Thinned(recording.segment_lengths, self.preprocessing.every).recorded_chunk(wide)
        x = fft_filter(self.microvolts(read_padded(recording, wide, self.margin)), self.taps, self.preprocessing.every)
        return self.masked(self.in_space(self.referenced(x)))[:, self.reach : x.shape[1] - self.reach].contiguous()

    def in_space(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T) whitened in space; only neighbouring channels are multiplied, so that cost grows with N and not its square."""
        out = torch.empty_like(x)
        for rows, columns, product in self.bands:
            torch.mm(product, x[columns], out=out[rows])
        return out

    def microvolts(self, stored: np.ndarray) -> torch.Tensor:
        """(N, T) microvolts of the used channels, from stored values (T, n_recorded)."""
        p = self.preprocessing
        if not self.everything:
            stored = stored[:, p.channels]
        if self.device.type == "cpu":
            known = stored.dtype.isnative and stored.dtype.itemsize <= 8 and stored.dtype != np.float16
            stored = np.ascontiguousarray(stored if known else stored.astype(np.float32))
            return torch.from_numpy(scaled_rows(stored, self.offset[:, 0].numpy(), self.gain[:, 0].numpy()))
        if stored.dtype == np.int16:
            stored = np.require(stored, requirements=["C", "W"])
            x = torch.from_numpy(stored).to(self.device).to(torch.float32).T.contiguous()  # half the bytes travel
        else:  # a copy: torch neither takes read-only memory maps nor does arithmetic on most unsigned types
            x = torch.from_numpy(stored.astype(np.float32)).to(self.device).T.contiguous()
        if stored.dtype.kind == "f":
            x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
        x -= self.offset
        x *= self.gain
        return x

    def referenced(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, T) without the common reference, in place. x is filtered: a median over channels that drift apart would be that of
        the channel in the middle."""
        if self.preprocessing.reference == "median":
            for shank in self.shanks:
                part = slice(None) if len(self.shanks) == 1 else shank
                x[part] -= median_of_rows(x[part])
        elif self.preprocessing.reference == "local":
            x -= self.local_reference @ x
        return x

    def masked(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, T) whitened, with artefacts set to zero: a channel far beyond any spike, or most of a shank at once."""
        size = x.abs()
        wrong = size.amax(dim=1, keepdim=True) > self.artifact
        if bool(wrong.any()):
            wrong = size > self.artifact
        for shank in self.shanks:
            if len(shank) < SHANK_WIDE_FROM:
                continue
            own = size if len(self.shanks) == 1 else size[shank]
            at = torch.nonzero(own.mean(dim=0) > SHANK_WIDE_SD / 2)[:, 0]  # the only samples where it can be most of them
            at = at[(own[:, at] > SHANK_WIDE_SD).to(torch.float32).mean(dim=0) > 0.5]
            if len(at):
                wrong = wrong.expand_as(x).clone()
                wrong[shank[:, None], at] = True
        if not bool(wrong.any()):
            return x
        spread = torch.nn.functional.max_pool1d(wrong.to(torch.float32), 2 * self.reach + 1, stride=1, padding=self.reach)
        return torch.where(spread > 0, torch.zeros_like(x), x)


def bands(whitening: np.ndarray) -> list[tuple[slice, slice]]:
    """Runs of channels, and for each the range of channels that they are whitened by."""
    out = []
    for first in range(0, len(whitening), BAND):
        rows = slice(first, min(first + BAND, len(whitening)))
        used = np.flatnonzero(whitening[rows].any(axis=0))
        out.append((rows, slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)))
    return out


def median_of_rows(x: torch.Tensor) -> torch.Tensor:
    """(T,) median over the rows of x (N, T)."""
    return x.median(dim=0).values if x.is_cuda else torch.from_numpy(channel_median(x.cpu().numpy())).to(x.device)


def ring(probe: Probe) -> np.ndarray:
    """(N, N) mean over the contacts of the same shank 30 to 200 um away: the local reference."""
    distance = np.linalg.norm(probe.positions_um[:, None] - probe.positions_um[None], axis=2)
    around = (distance > 30) & (distance <= 200) & (probe.shank[:, None] == probe.shank[None])
    return (around / np.maximum(around.sum(axis=1, keepdims=True), 1)).astype(np.float32)
