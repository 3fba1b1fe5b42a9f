"""Spikes of voltage imaging, from traces to result: planted data, what the numbers promise, and bad input."""

import numpy as np
import pytest

import sortcore as sc
from sortcore.errors import ConfigError, ModelError
from sortcore.metrics import match_spikes, score_spikes, spike_trains
from sortcore.optical.voltage.simulate import SpikeShape, VoltageFiring, VoltageNoise, simulate_voltage

PEAK_S = 0.0008  # of the usual shape, after the onset
METHODS = ("filter", "network")


@pytest.fixture(scope="module", params=[400.0, 1000.0])
def recording(request):
    return simulate_voltage(4, 30.0, request.param, noise=VoltageNoise(snr=6), seed=1)


def f1(made, result) -> float:
    right = sum(match_spikes(t, f, 0.005) for t, f in zip(made.spike_times_s, result.trains(), strict=True))
    return 2 * right / (sum(map(len, made.spike_times_s)) + len(result.spikes))


@pytest.mark.parametrize("method", METHODS)
def test_spikes_are_found_and_what_is_expected_of_them_is_so(recording, method):
    result = sc.detect_voltage_spikes(recording.traces, recording.fs, method=method)
    assert f1(recording, result) > {400.0: 0.76, 1000.0: 0.93}[recording.fs]
    for k, (true, found) in enumerate(zip(recording.spike_times_s, result.trains(), strict=True)):
        score = score_spikes(true, found, 0.005)
        assert result.precision[k] == pytest.approx(score.precision, abs=0.1)
        assert result.recall[k] == pytest.approx(score.recall, abs=0.12)
    pairs = list(zip(recording.spike_times_s, result.trains(), strict=True))
    right = np.concatenate([np.abs(f[:, None] - t).min(axis=1) < 0.005 for t, f in pairs])
    p = np.concatenate([result.probabilities[result.spikes.units == k] for k in range(4)])
    for low, high in ((0.0, 0.8), (0.8, 1.0)):
        inside = (p >= low) & (p <= high)
        assert right[inside].mean() == pytest.approx(p[inside].mean(), abs=0.13)


def test_the_result_says_what_a_trace_is_like(recording):
    result = sc.detect_voltage_spikes(recording.traces, recording.fs)
    np.testing.assert_allclose(result.rate_hz, [len(t) / 30 for t in recording.spike_times_s], rtol=0.3)
    np.testing.assert_allclose(result.noise, 1 / 6, rtol=0.15)
    assert result.polarity == 1 and result.n_traces == 4
    assert result.waveforms.shape == (4, len(result.waveform_times_s))
    assert np.abs(result.waveform_times_s[result.waveforms.argmax(axis=1)]).max() < 1e-3
    below = recording.subthreshold
    for k in range(4):
        assert np.corrcoef(result.subthreshold[k], below[k])[0, 1] > 0.85
    t = np.arange(below.shape[1]) / recording.fs
    assert np.abs(result.baseline - 8 * (1 - 0.2 * -np.expm1(-t / 40))).mean() < 0.08
    spikes = result.spikes
    assert spikes.samples.dtype == np.int64 and (np.diff(spikes.samples) >= 0).all()
    assert ((spikes.shifts >= 0) & (spikes.shifts < 1)).all()
    np.testing.assert_allclose(result.probabilities, 1 / (1 + np.exp(-spikes.scores.astype(float))), atol=1e-4)


def test_spike_times_are_those_of_the_peak_and_finer_than_frames(recording):
    result = sc.detect_voltage_spikes(recording.traces, recording.fs)
    pairs = zip(recording.spike_times_s, result.trains(), strict=True)
    late = np.concatenate([f - t[np.abs(f[:, None] - t).argmin(axis=1)] for t, f in pairs])
    late = late[np.abs(late) < 0.005]
    assert np.median(late) == pytest.approx(PEAK_S, abs=2e-4)
    assert np.median(np.abs(late - np.median(late))) < 0.25 / recording.fs


def test_the_spikes_are_the_records_that_probes_give(recording):
    result = sc.detect_voltage_spikes(recording.traces, recording.fs)
    true = [np.floor(t * recording.fs).astype(np.int64) for t in recording.spike_times_s]
    scores = sc.metrics.compare(true, spike_trains(result.spikes.samples, result.spikes.units, 4), 0.005 * recording.fs)
    np.testing.assert_array_equal(scores.match, np.arange(4))


def test_doublets_are_two_spikes():
    firing = VoltageFiring(3.0, bursting=0.5, burst_interval_s=0.008)
    made = simulate_voltage(3, 30.0, 1000.0, firing=firing, noise=VoltageNoise(snr=9), seed=2)
    result = sc.detect_voltage_spikes(made.traces, 1000.0)
    assert f1(made, result) > 0.95


@pytest.mark.parametrize("decay_s", [0.0008, 0.003])
def test_spikes_of_other_widths_are_found(decay_s):
    made = simulate_voltage(2, 30.0, 800.0, shape=SpikeShape(decay_s=decay_s), noise=VoltageNoise(snr=6), seed=3)
    assert f1(made, sc.detect_voltage_spikes(made.traces, 800.0)) > 0.88


def test_plateaus_and_artefacts_cost_little():
    plain = simulate_voltage(3, 30.0, 500.0, noise=VoltageNoise(snr=6), seed=4)
    firing = VoltageFiring(plateau_hz=0.15)
    hard = simulate_voltage(3, 30.0, 500.0, firing=firing, noise=VoltageNoise(snr=6, artefact_hz=0.07), seed=4)
    easy, difficult = (f1(made, sc.detect_voltage_spikes(made.traces, 500.0)) for made in (plain, hard))
    assert difficult > easy - 0.1


@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_false_alarms_come_at_the_stated_rate(rate):
    silent = simulate_voltage(6, 50.0, 500.0, firing=VoltageFiring(0.0), seed=5)
    found = sc.detect_voltage_spikes(silent.traces, 500.0, polarity="up", false_alarm_hz=rate)
    assert len(found.spikes) == pytest.approx(300 * rate, rel=0.3, abs=12)


def test_a_silent_trace_has_hardly_any_spikes():
    silent = simulate_voltage(4, 30.0, 500.0, firing=VoltageFiring(0.0), seed=6)
    assert len(sc.detect_voltage_spikes(silent.traces, 500.0).spikes) < 0.1 * 120


def test_probability_thresholds_are_kept(recording):
    found = [sc.detect_voltage_spikes(recording.traces[:1], recording.fs, min_probability=p) for p in (0.1, 0.5, 0.95)]
    for p, result in zip((0.1, 0.5, 0.95), found, strict=True):
        assert result.probabilities.min() >= p - 1e-6
    assert len(found[0].spikes) > len(found[1].spikes) > len(found[2].spikes)


def test_spikes_that_go_down_are_found_alike(recording):
    up = sc.detect_voltage_spikes(recording.traces, recording.fs)
    for polarity in ("auto", "down"):
        down = sc.detect_voltage_spikes(-recording.traces, recording.fs, polarity=polarity)
        assert down.polarity == -1
        np.testing.assert_array_equal(down.spikes.samples, up.spikes.samples)
        np.testing.assert_allclose(down.subthreshold, -up.subthreshold, atol=1e-4)
        np.testing.assert_allclose(down.waveforms, -up.waveforms)


def test_results_do_not_depend_on_units_or_on_other_traces(recording):
    all_of_them = sc.detect_voltage_spikes(recording.traces, recording.fs)
    alone = sc.detect_voltage_spikes(100 * recording.traces[2].astype(np.float64) + 7, recording.fs)
    mine = all_of_them.spikes.units == 2
    assert alone.subthreshold.ndim == 1
    np.testing.assert_array_equal(alone.spikes.samples, all_of_them.spikes.samples[mine])
    np.testing.assert_allclose(alone.probabilities, all_of_them.probabilities[mine], atol=2e-3)
    np.testing.assert_allclose(alone.subthreshold, 100 * all_of_them.subthreshold[2], atol=0.05)


def test_integers_serve(recording):
    counts = (300 * recording.traces).astype(np.uint16)
    assert f1(recording, sc.detect_voltage_spikes(counts, recording.fs)) > {400.0: 0.76, 1000.0: 0.93}[recording.fs]


def test_missing_frames_hold_no_spikes(recording):
    y = recording.traces.copy()
    y[0, 3000:3500] = np.nan
    y[1, ::101] = np.nan
    result = sc.detect_voltage_spikes(y, recording.fs)
    assert f1(recording, result) > {400.0: 0.72, 1000.0: 0.9}[recording.fs]
    missing = np.isnan(y)
    assert not missing[result.spikes.units, result.spikes.samples].any()
    np.testing.assert_array_equal(np.isnan(result.subthreshold), missing)


NOTHING = [np.zeros(0), np.ones(1), np.arange(20.0), np.full(500, 3), np.full(500, np.nan), np.full(500, 7, np.int16)]


@pytest.mark.parametrize("trace", NOTHING)
def test_traces_that_say_nothing_have_no_spikes(trace):
    result = sc.detect_voltage_spikes(trace, 400.0)
    assert len(result.spikes) == 0 and np.isnan(result.noise).all() and result.n_traces == 1
    assert result.subthreshold.shape == trace.shape
    assert len(sc.detect_voltage_spikes(np.stack([trace, trace]), 400.0).trains()) == 2


@pytest.mark.parametrize("n", [32, 60, 150, 400])
def test_short_traces_serve(n):
    trace = np.random.default_rng(n).standard_normal(n)
    trace[n // 2] += 30
    result = sc.detect_voltage_spikes(trace, 500.0, polarity="up")
    assert np.isfinite(result.noise).all()
    assert np.isfinite(result.subthreshold).all()


def test_steps_without_noise_do_no_harm():
    trace = np.zeros(2000)
    trace[::100] = 1
    result = sc.detect_voltage_spikes(trace, 500.0)
    assert np.isfinite(result.probabilities).all()


def test_no_traces_give_no_spikes():
    result = sc.detect_voltage_spikes(np.zeros((0, 100)), 400.0)
    assert result.n_traces == 0 and len(result.spikes) == 0


@pytest.mark.parametrize("fs", [0, -1, np.nan, np.inf, None, "400"])
def test_a_frame_rate_that_cannot_be_is_refused(fs):
    with pytest.raises(ConfigError, match="frame rate"):
        sc.detect_voltage_spikes(np.zeros(100), fs)


def test_frames_too_long_for_spikes_are_refused():
    with pytest.raises(ConfigError, match="infer_calcium"):
        sc.detect_voltage_spikes(np.zeros(100), 30.0)


@pytest.mark.parametrize("traces", [np.zeros((2, 3, 4)), np.zeros(10, complex), np.array(["a", "b"]), np.array(3.0)])
def test_what_is_no_trace_is_refused(traces):
    with pytest.raises(ModelError, match="real numbers"):
        sc.detect_voltage_spikes(traces, 400.0)


def test_infinite_frames_are_refused():
    with pytest.raises(ModelError, match="infinite"):
        sc.detect_voltage_spikes(np.array([1.0, np.inf] * 50), 400.0)


@pytest.mark.parametrize("settings", [{"polarity": "sideways"}, {"false_alarm_hz": 0.0}, {"min_probability": 1.5}, {"method": "guess"},
                                      {"false_alarm_hz": 0.1, "min_probability": 0.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError):
        sc.detect_voltage_spikes(np.zeros(100), 400.0, **settings)
