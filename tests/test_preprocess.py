"""Whitening: what comes out is white with sigma = 1 whatever went in, and channels that hold nothing are left out."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers_engine import FS, column
from scipy.signal import lfilter

from sortcore.ephys import preprocess
from sortcore.ephys.config import PreprocessConfig
from sortcore.ephys.preprocess import Whitener, bandpass_taps
from sortcore.errors import RecordingError
from sortcore.numerics import mad
from sortcore.recording import ArrayRecording, Chunk, Thinned, array_recording, chunks, cut

N, T = 10, 120_000
QUICK = PreprocessConfig(noise_seconds=4.0, least_rate_hz=0.0)
THIN = replace(QUICK, least_rate_hz=15000.0)
CPU = torch.device("cpu")


class Segments(ArrayRecording):
    """A recording in segments of some lengths."""

    lengths: tuple[int, ...]

    @property
    def segment_lengths(self):
        return self.lengths

    @classmethod
    def of(cls, data, lengths):
        out = cls(data, FS, 0.2, 0.0)
        object.__setattr__(out, "lengths", lengths)
        return out


def coloured(seed=0, n=N, t=T):
    """(T, N) microvolts: low-passed noise that neighbours share, some white noise, and a slow drift."""
    rng = np.random.default_rng(seed)
    shared = 0.6 ** np.abs(np.arange(n)[:, None] - np.arange(n))
    slow = lfilter([0.6], [1, -0.8], rng.standard_normal((t, n)), axis=0) @ np.linalg.cholesky(shared).T
    wave = 200 * np.sin(2 * np.pi * 8 * np.arange(t) / FS)[:, None]
    return 10 * slow + 4 * rng.standard_normal((t, n)) + wave


def spiking(x, rate=20.0, seed=1):
    """The same with spikes of 150 to 300 uV, `rate` a second on every other channel, and where they are (T, N)."""
    rng, x = np.random.default_rng(seed), x.copy()
    where = np.zeros(x.shape, bool)
    wave = -np.exp(-0.5 * (np.arange(-20, 31) / 4) ** 2) + 0.3 * np.exp(-0.5 * ((np.arange(-20, 31) - 14) / 6) ** 2)
    for c in range(0, x.shape[1], 2):
        for s in rng.integers(50, len(x) - 50, int(rate * len(x) / FS)):
            size = rng.uniform(150, 300)
            for d, share in ((-1, 0.4), (0, 1.0), (1, 0.4)):
                if 0 <= c + d < x.shape[1]:
                    x[s - 20 : s + 31, c + d] += size * share * wave
                    where[s - 50 : s + 61, c + d] = True
    # whitening carries a spike to all channels of the neighbourhood
    return x, where.any(axis=1)


def stored(x, gain=0.2):
    return np.rint(x / gain).astype(np.int16)


def whitened(data, gain=0.2, config=QUICK, probe=None, offset=0.0):
    """(N, T) of all of it, and the Preprocessing."""
    recording = array_recording(data, FS, gain, offset)
    learned = preprocess.learn(recording, probe or column(data.shape[1]), config)
    n = len(data) // learned.every
    return Whitener(learned, CPU)(recording, Chunk(0, n, 0, n)).numpy(), learned


def sure_white(x):
    """Standard deviation 1 within 3 %, hardly a correlation in time (the high-pass alone leaves some) or between channels."""
    np.testing.assert_allclose(x.std(axis=1), 1, atol=0.03)
    correlation = np.corrcoef(x)
    assert np.abs(correlation - np.eye(len(x))).max() < 0.05
    for lag in (1, 2, 3, 5, 10):
        across = (x[:, lag:] @ x[:, :-lag].T) / (x.shape[1] - lag)
        assert np.abs(np.diag(across)).max() < 0.1, f"lag {lag}"
        assert np.abs(across - np.diag(np.diag(across))).max() < 0.1, f"lag {lag}, between channels"


@pytest.mark.parametrize("config", [QUICK, THIN])
def test_white_noise_stays_white(config):
    x, _ = whitened(stored(8 * np.random.default_rng(0).standard_normal((T, N))), config=config)
    np.testing.assert_allclose(mad(x), 1, atol=0.03)
    sure_white(x)


@pytest.mark.parametrize("config", [QUICK, THIN])
def test_coloured_and_correlated_noise_becomes_white(config):
    x, _ = whitened(stored(coloured()), config=config)
    np.testing.assert_allclose(mad(x), 1, atol=0.03)
    sure_white(x)


def test_spikes_do_not_shrink_the_noise():
    quiet = coloured()
    loud, where = spiking(quiet)
    assert 0.2 < where.mean() < 0.8
    x, _ = whitened(stored(loud))
    np.testing.assert_allclose(x[:, ~where].std(axis=1), 1, atol=0.03)
    np.testing.assert_allclose(mad(x[:, ~where]), 1, atol=0.03)
    assert x.min() < -12, "the spikes are still there"


def test_channels_of_different_loudness_and_gain_become_equal():
    scale = np.linspace(0.5, 2, N)
    x, _ = whitened(stored(coloured() * scale))
    np.testing.assert_allclose(mad(x), 1, atol=0.03)
    same, _ = whitened(stored(coloured()), gain=np.full(N, 3.0))  # gain is only a unit
    np.testing.assert_allclose(same, whitened(stored(coloured()))[0], atol=2e-3)


@pytest.mark.parametrize("settings", [{"lowpass_hz": 6000.0}, {"reference": "median"}, {"reference": "none"}, {"reference": "local"},
                                      {"whiten_time": False}, {"whitening_um": 0.0}])
def test_other_settings_have_unit_noise_too(settings):
    x, learned = whitened(stored(coloured()), config=replace(QUICK, **settings))
    assert learned.reference == settings.get("reference", "none")
    np.testing.assert_allclose(x.std(axis=1), 1, atol=0.04)  # a median reference makes some samples zero, so that their MAD is smaller


def test_the_median_reference_takes_off_what_all_channels_share():
    rng = np.random.default_rng(0)
    common = 100 * lfilter([1], [1, -0.5], rng.standard_normal(T))[:, None] * (rng.random((T, 1)) < 0.01)
    noise = 8 * rng.standard_normal((T, N))
    x, _ = whitened(stored(noise + common), config=replace(QUICK, reference="median"))
    clean, _ = whitened(stored(noise), config=replace(QUICK, reference="median"))
    assert np.corrcoef(x.ravel(), clean.ravel())[0, 1] > 0.98


def test_auto_takes_a_median_on_many_channels_only():
    assert preprocess.pick_reference("auto", column(12)) == "none"
    assert preprocess.pick_reference("auto", column(64)) == "median"
    assert preprocess.pick_reference("none", column(64)) == "none"


def test_shanks_are_whitened_apart():
    probe = replace(column(N), shank=np.arange(N) // 5)
    _, learned = whitened(stored(coloured(t=60000)), probe=probe)
    assert not learned.whitening[:5, 5:].any() and not learned.whitening[5:, :5].any()
    far = replace(column(N), positions_um=np.stack([np.zeros(N), 30.0 * np.arange(N)], axis=1))
    _, learned = whitened(stored(coloured(t=60000)), probe=far)
    assert not learned.whitening[0, 4:].any() and learned.whitening[0, 1:4].all(), "neighbourhoods of 100 um"


def spoil(data, channel, how):
    rng = np.random.default_rng(9)
    if how == "constant":
        data[:, channel] = 7
    elif how == "nan":
        data = data.astype(np.float32)
        data[:, channel] = np.nan
    elif how == "infinite":
        data = data.astype(np.float32)
        data[:, channel] = np.inf
    elif how == "duplicate":
        data[:, channel] = data[:, 1]
    elif how == "noisy":
        data[:, channel] = np.rint(5000 * rng.standard_normal(len(data)))
    elif how == "dead":
        data = data.astype(np.float32)
        data[:, channel] = 0.5 * rng.standard_normal(len(data))
    return data


@pytest.mark.parametrize(("how", "reason"), [("constant", "constant"), ("nan", "NaN"), ("infinite", "infinite"), ("noisy", "noisy"),
                                             ("duplicate", "same data as channel 1"), ("dead", "dead")])
def test_bad_channels_are_left_out(how, reason):
    data = spoil(stored(coloured(t=60000)), 4, how)
    x, learned = whitened(data)
    assert list(learned.bad_channels) == [4] and reason in learned.bad_channels[4]
    assert learned.channels.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9] and x.shape[0] == 9
    assert learned.n_recorded == N and learned.probe.positions_um[4, 1] == 125.0
    np.testing.assert_allclose(mad(x), 1, atol=0.04)


def test_several_bad_channels_each_have_their_reason():
    data = stored(coloured(t=60000))
    for channel, how in ((0, "constant"), (3, "duplicate"), (9, "nan")):
        data = spoil(data, channel, how)
    _, learned = whitened(data)
    assert {c: r.split()[0] for c, r in learned.bad_channels.items()} == {0: "constant", 3: "the", 9: "NaN"}


def test_good_channels_are_all_kept():
    _, learned = whitened(stored(coloured(t=60000)))
    assert learned.bad_channels == {} and learned.channels.tolist() == list(range(N))


def test_nothing_to_sort_is_an_error_that_says_why():
    with pytest.raises(RecordingError, match="None of the 4 channels.*constant"):
        whitened(np.zeros((30000, 4), np.int16))
    with pytest.raises(RecordingError, match="NaN"):
        whitened(np.full((30000, 4), np.nan, np.float32))


def test_some_nan_samples_do_not_spread():
    data = stored(coloured(t=60000)).astype(np.float32)
    clean, _ = whitened(data)
    data[30000:30010, 3] = np.nan
    x, learned = whitened(data)
    assert np.isfinite(x).all() and not learned.bad_channels
    np.testing.assert_allclose(x[:, 33000:], clean[:, 33000:], atol=0.05)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_unsigned_and_offset_data_are_the_same_data(dtype):
    signed = stored(coloured(t=60000))
    expected, _ = whitened(signed)
    move = 32768 if dtype is np.uint16 else 1000
    moved = (signed.astype(np.int64) + move).astype(dtype)
    x, learned = whitened(moved, offset=float(move))
    np.testing.assert_allclose(x, expected, atol=2e-3)
    assert learned.offset.tolist() == [move] * N


def test_an_offset_that_nobody_told_of_does_no_harm():
    signed = stored(coloured(t=60000))
    expected, _ = whitened(signed)
    x, _ = whitened((signed.astype(np.int32) + 32768).astype(np.uint16))
    assert np.abs(x.mean(axis=1)).max() < 0.1, "the high-pass takes it off"
    np.testing.assert_allclose(x - x.mean(axis=1, keepdims=True), expected - expected.mean(axis=1, keepdims=True), atol=0.02)


@pytest.mark.parametrize("config", [QUICK, THIN])
@pytest.mark.parametrize("lengths", [(60_000,), (20_000, 33_000, 7_000)])
@pytest.mark.parametrize("size", [60_000, 7001, 1000, 64])
def test_one_chunk_equals_many(lengths, size, config):
    data = spiking(coloured(t=60_000))[0]
    recording = Segments.of(stored(data), lengths)
    learned = preprocess.learn(recording, column(N), config)
    whitener, kept = Whitener(learned, CPU), Thinned(lengths, learned.every).segment_lengths
    parts = [p for p in chunks(kept, size) if p.start < 12_000 or size > 5000]
    bounds = np.cumsum((0, *kept))
    whole = np.concatenate([whitener(recording, Chunk(a, b, a, b)).numpy() for a, b in pairwise(bounds)], axis=1)
    for part in parts:
        np.testing.assert_allclose(whitener(recording, part).numpy(), whole[:, part.start : part.stop], atol=1e-4)


def test_chunks_are_cut_where_asked():
    pieces = [Chunk(0, 10, 0, 15), Chunk(10, 15, 0, 15), Chunk(15, 20, 15, 20)]
    assert list(cut(pieces, np.zeros(0, int))) == pieces
    found = list(cut(pieces, np.array([4, 10, 7, 7, 19, 99])))
    assert [(c.start, c.stop) for c in found] == [(0, 4), (4, 7), (7, 10), (10, 15), (15, 19), (19, 20)]
    assert [(c.first, c.last) for c in found] == [(0, 15)] * 4 + [(15, 20)] * 2


@pytest.mark.parametrize("every", [1, 2, 3])
def test_thinned_samples_are_found_again_in_the_recording(every):
    lengths = (100, every - 1, 31, 58)
    thinned = Thinned(lengths, every)
    kept, first = [], 0
    for length in lengths:
        kept += [first + every * i for i in range(length // every)]
        first += length
    assert sum(thinned.segment_lengths) == len(kept)
    samples, shifts = thinned.recorded_samples(np.arange(len(kept)), np.zeros(len(kept), np.float32))
    assert samples.tolist() == kept and not shifts.any()
    for chunk in chunks(thinned.segment_lengths, 7):
        there = thinned.recorded_chunk(chunk)
        assert there.start == kept[chunk.start] and there.stop - there.start == every * (chunk.stop - chunk.start)
        assert there.first <= there.start < there.stop <= there.last and there.last - there.first in lengths
    moments = np.array([3 + 0.25, 5 - 0.5, len(kept) - 1 + 0.4])
    samples, shifts = thinned.recorded_samples(np.rint(moments).astype(int), (moments - np.rint(moments)).astype(np.float32))
    expected = [every * 3.25, every * 4.5, kept[-1] + every * 0.4]
    np.testing.assert_allclose(samples + shifts, expected, atol=1e-5)
    assert samples.max() < sum(lengths)


def test_thinning_keeps_the_noise_white_and_the_spikes_large():
    data, _ = spiking(coloured(t=60_000))
    (full, _), (thin, learned) = whitened(stored(data)), whitened(stored(data), config=THIN)
    assert learned.every == 2 and learned.whitened_fs == FS / 2 and thin.shape[1] == full.shape[1] // 2
    # half the noise is left out with the high frequencies, where spikes have nothing: as much energy in half as many samples
    assert np.quantile(np.abs(thin), 0.999) == pytest.approx(np.sqrt(2) * np.quantile(np.abs(full), 0.999), rel=0.1)
    assert preprocess.thinning(20000, 15000) == 1 and preprocess.thinning(50000, 15000) == 3 and preprocess.thinning(30000, 0) == 1


def test_whitening_is_repeatable_and_on_every_device(device):
    recording = array_recording(stored(coloured(t=60000)), FS, 0.2)
    one, two = (preprocess.learn(recording, column(N), QUICK) for _ in range(2))
    assert np.array_equal(one.taps, two.taps) and np.array_equal(one.whitening, two.whitening)
    part = Chunk(1000, 5000, 0, 60000)
    here, there = (Whitener(one, torch.device(d))(recording, part).cpu() for d in ("cpu", device))
    torch.testing.assert_close(here, there, atol=2e-4, rtol=0)


def test_the_band_pass_passes_its_band():
    taps = bandpass_taps(FS, 300.0, 6000.0)
    assert len(taps) % 2 == 1 and np.allclose(taps, taps[::-1], atol=1e-6)
    gain = np.abs(np.fft.rfft(taps, 30000))  # a Hertz a bin
    assert gain[0] < 0.01 and gain[50] < 0.03 and gain[14000] < 0.05
    np.testing.assert_allclose(gain[1000:3000], 1, atol=0.05)
    assert gain[300] == pytest.approx(0.5, abs=0.1) and gain[6000] == pytest.approx(0.5, abs=0.1)
    assert np.abs(np.fft.rfft(bandpass_taps(FS, 300.0, 0.0), 30000))[14000] == pytest.approx(1, abs=0.02)


def test_a_single_channel_and_a_short_recording():
    x, _ = whitened(stored(coloured(n=1, t=60000)), probe=column(1))
    np.testing.assert_allclose(mad(x), 1, atol=0.03)
    x, _ = whitened(stored(coloured(t=3000)))
    assert x.shape == (N, 3000) and np.isfinite(x).all()
