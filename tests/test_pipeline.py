"""The sorter from end to end: it finds the cells, says the same twice, and what it learned works by itself."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import fftconvolve

import sortcore as sc
from sortcore.errors import ConfigError, ProbeError, RecordingError
from sortcore.export import load_model, save_model
from sortcore.metrics import compare, match_spikes
from sortcore.recording import array_recording
from sortcore.simulate import simulate

ARRAYS = ("samples", "shifts", "units", "amplitudes", "scores")


def sort(simulation, data=None, **more):
    data = simulation.data if data is None else data
    return sc.sort(array_recording(data, simulation.fs, simulation.gain_uv), simulation.probe, device="cpu", progress=False, **more)


def trains(spikes, n_units):
    return [spikes.samples[spikes.units == u] for u in range(n_units)]


def agreement(a, b, n_units, tolerance=2):
    """Share of all spikes of two lists that are in both, unit by unit."""
    hit = sum(match_spikes(x, y, tolerance) for x, y in zip(trains(a, n_units), trains(b, n_units), strict=True))
    return 2 * hit / (len(a) + len(b))


@pytest.fixture(scope="module")
def sorted_small(small_simulation):
    return sort(small_simulation)


def test_every_cell_is_found(sorted_small, small_simulation):
    result = sorted_small
    found = compare([small_simulation.spike_train(k) for k in range(6)], trains(result.spikes, result.n_units), 12)
    assert (found.accuracy > 0.9).all(), found.accuracy
    assert found.accuracy.mean() > 0.96 and result.n_units <= 7
    good = np.flatnonzero(result.units.label == "good")
    assert set(found.match) <= set(good.tolist())


def test_the_result_fits_together(sorted_small, small_simulation):
    r = sorted_small
    k, s = r.n_units, r.spikes
    assert r.fs == 30000 and r.segment_lengths == (len(small_simulation.data),) and r.seed == 0
    assert (np.diff(s.samples) >= 0).all() and s.samples.min() >= 0 and s.samples.max() < len(small_simulation.data)
    assert np.array_equal(np.bincount(s.units, minlength=k), r.units.n_spikes)
    assert r.model.templates.n_units == len(r.model.scale_uv) == len(r.model.templates_uv) == len(r.model.priors.amp_mean) == k
    np.testing.assert_allclose(np.linalg.norm(r.model.templates.dense(), axis=(1, 2)), 1, atol=0.02)
    assert (s.scores > 0).all() and (np.abs(s.shifts) <= 0.5).all()
    assert sc.SortConfig.from_dict(r.config) == sc.SortConfig()
    assert {"sortcore", "numpy", "torch"} <= set(r.versions) and all(t >= 0 for t in r.timings_s.values())
    assert len(r.log.log_joint) >= 1


def test_spike_times_are_troughs(sorted_small, small_simulation):
    r = sorted_small
    for u in np.flatnonzero(r.units.label == "good"):
        wave = r.model.templates_uv[u]
        best = np.ptp(wave, axis=1).argmax()
        assert np.abs(wave[best]).argmax() == r.model.trough_uv
        truth = min((small_simulation.spike_train(k) for k in range(6)), key=lambda t: -match_spikes(t, r.spike_train(u), 12))
        lag = r.spike_train(u)[:, None] - truth
        assert abs(np.median(lag[np.abs(lag) < 15])) <= 1


def test_amplitudes_agree_with_the_band_passed_data(sorted_small, small_simulation):
    r = sorted_small
    p = r.model.preprocessing
    uv = fftconvolve(small_simulation.data.T * np.float64(small_simulation.gain_uv), p.bandpass_taps[None].astype(float), "same", axes=1)
    for u in np.flatnonzero(r.units.label == "good"):
        mine = r.spikes.units == u
        wave = r.model.templates_uv[u]
        c = np.abs(wave[:, r.model.trough_uv]).argmax()
        sign = -np.sign(wave[c, r.model.trough_uv])
        measured = -sign * uv[p.channels[c], r.spikes.samples[mine]]
        claimed = r.amplitudes_uv[mine]
        assert np.median(claimed) == pytest.approx(np.median(measured), rel=0.08)
        assert np.std(claimed - measured) < 15 + 0.1 * np.median(measured)


def test_templates_in_microvolts_are_those_of_the_simulation(sorted_small, small_simulation):
    r = sorted_small
    found = compare([small_simulation.spike_train(k) for k in range(6)], trains(r.spikes, r.n_units), 12)
    for k, u in enumerate(found.match):
        depth = -small_simulation.templates_uv[k].min()
        assert r.units.channel[u] == small_simulation.best_channels[k] or r.units.amplitude_uv[u] > depth
        assert -r.model.templates_uv[u].min() == pytest.approx(depth, rel=0.35), "the band-pass takes some away"


def test_the_same_seed_gives_the_same_bytes(sorted_small, small_simulation, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # and as many threads as they like: one here, all cores there
    again = sort(small_simulation)
    for name in ARRAYS:
        assert getattr(again.spikes, name).tobytes() == getattr(sorted_small.spikes, name).tobytes(), name
    assert again.model.templates_uv.tobytes() == sorted_small.model.templates_uv.tobytes()
    assert again.model.templates.footprints.tobytes() == sorted_small.model.templates.footprints.tobytes()
    assert again.units.label.tolist() == sorted_small.units.label.tolist()


def test_the_model_alone_finds_the_same_spikes(sorted_small, small_simulation, tmp_path):
    r = sorted_small
    recording = array_recording(small_simulation.data, small_simulation.fs, small_simulation.gain_uv)
    spikes = sc.deconvolve(recording, r.model, device="cpu", progress=False)
    assert agreement(spikes, r.spikes, r.n_units) > 0.99
    path = tmp_path / "model.npz"
    save_model(r.model, path)
    again = sc.deconvolve(recording, load_model(path), device="cpu", progress=False)
    for name in ARRAYS:
        assert getattr(again, name).tobytes() == getattr(spikes, name).tobytes(), name


def test_the_model_works_on_another_recording_of_the_same_cells():
    from sortcore.probes import load_probe

    probe = load_probe("neuropixels1").select(np.arange(10))
    both = simulate(probe, 16.0, 4, snr=(10.0, 18.0), rate_hz=(6.0, 12.0), seed=8)
    half = len(both.data) // 2
    first, second = both.data[:half], both.data[half:]
    r = sort(both, first)
    spikes = sc.deconvolve(array_recording(second, both.fs, both.gain_uv), r.model, device="cpu", progress=False)
    later = [both.spike_train(k)[both.spike_train(k) >= half] - half for k in range(4)]
    found = compare(later, trains(spikes, r.n_units), 12)
    assert (found.accuracy > 0.9).all(), found.accuracy
    own = sort(both, second)
    theirs = compare(trains(own.spikes, own.n_units), trains(spikes, r.n_units), 12)
    assert (theirs.accuracy[own.units.label == "good"] > 0.9).all()


def test_the_model_refuses_another_probe(sorted_small, small_simulation):
    with pytest.raises(RecordingError, match="12 channels"):
        sc.deconvolve(small_simulation.data[:, :5], sorted_small.model, progress=False)
    with pytest.raises(RecordingError, match="20000 Hz"):
        sc.deconvolve(array_recording(small_simulation.data, 20000.0, 0.195), sorted_small.model, progress=False)


def test_without_a_probe_it_warns_and_sorts_every_channel_by_itself(small_simulation):
    data = small_simulation.data[:120_000, [2, 6, 10]]
    with pytest.warns(UserWarning, match="No probe"):
        r = sc.sort(data, fs=30000.0, gain_uv=0.195, device="cpu", progress=False)
    assert r.n_units >= 1 and ((r.model.templates.footprints != 0).any(axis=2).sum(axis=1) == 1).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sc.sort(data[:, :1], fs=30000.0, gain_uv=0.195, device="cpu", progress=False)


def test_footprints_are_zero_where_a_unit_does_not_reach(sorted_small):
    reach = (sorted_small.model.templates.footprints != 0).any(axis=2)
    energy = (sorted_small.model.templates.dense() ** 2).sum(axis=2)
    assert (energy[reach] > 1e-9).all(), "rounding that is left there makes units neighbours that are none"


def test_no_template_spans_two_shanks(small_simulation):
    probe = replace(small_simulation.probe, shank=np.arange(12) // 6)
    r = sc.sort(array_recording(small_simulation.data[:150_000], 30000.0, 0.195), probe, device="cpu", progress=False)
    reach = (r.model.templates.footprints != 0).any(axis=2)
    assert r.n_units >= 2 and not (reach[:, :6].any(axis=1) & reach[:, 6:].any(axis=1)).any()


def test_segments_are_sorted_together_and_kept_apart(sorted_small, small_simulation):
    whole = array_recording(small_simulation.data, small_simulation.fs, small_simulation.gain_uv)
    spike = int(small_simulation.spike_samples[len(small_simulation.spike_samples) // 2])  # cut in the middle of a spike

    class Segments:
        fs, n_channels, gain_uv, offset = whole.fs, whole.n_channels, whole.gain_uv, whole.offset
        segment_lengths = (spike, len(small_simulation.data) - spike)

        def read(self, start, stop):
            assert (start < spike) == (stop <= spike), "a read that straddles two segments"
            return whole.read(start, stop)

    r = sc.sort(Segments(), small_simulation.probe, device="cpu", progress=False)
    assert r.segment_lengths == Segments.segment_lengths
    found = compare([small_simulation.spike_train(k) for k in range(6)], trains(r.spikes, r.n_units), 12)
    assert (found.accuracy > 0.9).all(), found.accuracy
    inside = np.abs(r.spikes.samples - spike)
    assert inside.min() > 5, "no spike stands on the cut"


def test_bad_channels_are_left_out_of_the_model(small_simulation):
    data = small_simulation.data[:150_000].copy()
    data[:, 5] = 0
    r = sort(small_simulation, data)
    p = r.model.preprocessing
    assert p.bad_channels == {5: "constant"} and len(p.channels) == 11 and r.model.templates_uv.shape[1] == 11
    assert 5 not in r.units.channel and r.n_units >= 4


def test_progress_is_reported_by_stage(small_simulation):
    stages = []

    def track(items, stage, total):
        stages.append(stage)
        done = 0
        for item in items:
            done += 1
            yield item
        assert done == total

    r = sort_quick(small_simulation.data[:60_000], small_simulation, track)
    assert stages[:2] == ["preprocess", "detect"] and stages[-1] == "deconvolve"
    assert r.duration_s == 2.0


def sort_quick(data, simulation, progress=False):
    config = sc.SortConfig.from_dict({"fit": {"iterations": 1}})
    return sc.sort(array_recording(data, simulation.fs, simulation.gain_uv), simulation.probe, config, device="cpu", progress=progress)


def test_the_amplitude_prior_can_be_left_out(small_simulation):
    config = replace(sc.SortConfig(), pursuit=replace(sc.SortConfig().pursuit, amplitude_prior=False))
    r = sort(small_simulation, config=config)
    found = compare([small_simulation.spike_train(k) for k in range(6)], trains(r.spikes, r.n_units), 12)
    assert (found.recall > 0.9).sum() >= 5, "what it costs is precision"


def test_wrong_input_is_refused_before_any_work(small_simulation):
    data = small_simulation.data
    with pytest.raises(RecordingError, match="sampling rate"):
        sc.sort(data, small_simulation.probe, progress=False)
    with pytest.raises(ProbeError, match="12 contacts, but the recording has 5"):
        sc.sort(data[:, :5], small_simulation.probe, fs=30000.0, progress=False)
    with pytest.raises(RecordingError, match="0.05 s"):
        sc.sort(data[:100], small_simulation.probe, fs=30000.0, progress=False)
    with pytest.raises(ConfigError, match="device"):
        sc.sort(data, small_simulation.probe, fs=30000.0, device="abacus", progress=False)
