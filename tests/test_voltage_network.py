"""The network that corrects the filter: windows, picking, weights, and training."""

import numpy as np
import pytest
import torch

import sortcore as sc
from benchmarks import train_voltage
from sortcore.errors import ConfigError, ModelError
from sortcore.optical.voltage import fit
from sortcore.optical.voltage.fit import filter_view, fit_trace
from sortcore.optical.voltage.network import (
    CHANNELS,
    TRUST,
    WEIGHTS,
    FilterView,
    VoltageNetwork,
    channels_of,
    filter_logit,
    load_voltage_network,
    network_expected,
    picked,
    save_voltage_network,
)
from sortcore.optical.voltage.simulate import VoltageFiring, VoltageNoise, simulate_voltage
from sortcore.optical.voltage.waveform import grid_at


def view_of(T: int, seed: int = 0) -> FilterView:
    rng = np.random.default_rng(seed)
    expected = 0.2 * rng.random(T) ** 4
    return FilterView(rng.standard_normal(T), 1.0, 4.0, rng.standard_normal(T) - 4, np.full(T, -5.0), expected)


@pytest.mark.parametrize("fs", [100.0, 250.0, 400.0, 1000.0, 5000.0])
@pytest.mark.parametrize("T", [32, 33, 100, 1234])
def test_every_frame_is_answered_by_windows_however_many(fs, T):
    network = VoltageNetwork().eval()
    view = view_of(T)
    p = np.clip(view.expected, 1e-5, None)
    np.testing.assert_allclose(network_expected(view, fs, network), p, rtol=1e-5)  # an untrained network adds nothing
    with torch.no_grad():
        network.out.bias.fill_(1.0)
    np.testing.assert_allclose(network_expected(view, fs, network), 1 / (1 + np.exp(-TRUST) * (1 - p) / p), rtol=1e-5)


def test_windows_agree_with_the_whole_trace_but_for_their_ends():
    torch.manual_seed(0)
    network, view = load_voltage_network(), view_of(2000)
    change = np.log(network_expected(view, 400.0, network) / (1 - network_expected(view, 400.0, network))) - filter_logit(view)
    with torch.no_grad():
        whole = network(torch.from_numpy(channels_of(view, 400.0)[None]))[0].numpy()
    assert np.corrcoef(change[20:-20], whole[20:-20])[0, 1] > 0.95


def test_the_channels_are_finite_and_say_what_they_should():
    view = view_of(500)
    channels = channels_of(view, 500.0)
    assert channels.shape == (CHANNELS, 500) and channels.dtype == np.float32 and np.isfinite(channels).all()
    np.testing.assert_allclose(channels[0], view.x / 4, rtol=1e-5)
    assert channels[1].std() < channels[0].std() and abs(channels[2].mean()) < abs(channels[0]).max()
    np.testing.assert_allclose(channels[9], np.log(500 / 500), atol=1e-6)


def test_the_most_probable_comes_first_and_keeps_the_others_away():
    expected = np.zeros(300)
    expected[[50, 51, 100, 103, 200]] = 0.5, 0.3, 0.9, 0.4, 0.01
    frames, p = picked(expected, 1000.0, np.ones(300, bool))
    np.testing.assert_array_equal(frames, [50, 100, 103])  # 2 frames are held at 1000 frames a second
    np.testing.assert_allclose(p, [0.8, 0.9, 0.4], atol=1e-9)
    possible = np.ones(300, bool)
    possible[100] = False
    assert 100 not in picked(expected, 1000.0, possible)[0]
    assert len(picked(np.zeros(10), 400.0, np.ones(10, bool))[0]) == 0


def test_the_weights_are_small_and_other_files_are_refused(tmp_path):
    assert WEIGHTS.stat().st_size < 3e6
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ModelError, match="train"):
        load_voltage_network(tmp_path / "other.npz")
    network = load_voltage_network()
    save_voltage_network(network, tmp_path / "again.npz")
    for name, value in load_voltage_network(tmp_path / "again.npz").state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_the_network_does_what_it_was_trained_for():
    """On traces of many kinds the probabilities of frames are better than the filter's."""
    gain = []
    for seed in range(4):
        firing = VoltageFiring(2.0 + 4 * seed, plateau_hz=0.1)
        made = simulate_voltage(1, 20.0, 300.0 + 200 * seed, firing=firing, noise=VoltageNoise(snr=4, artefact_hz=0.05), seed=seed)
        view = filter_view(fit_trace(made.traces[0].astype(np.float64), grid_at(made.fs)))
        truth = np.zeros(len(view.x))
        frames = np.floor((made.spike_times_s[0] + 0.0006) * made.fs).astype(int)
        truth[frames[frames < len(truth)]] = 1
        both = (np.clip(p, 1e-5, 1 - 1e-4) for p in (view.expected, network_expected(view, made.fs, load_voltage_network())))
        loss = [-(truth * np.log(p) + (1 - truth) * np.log1p(-p)).sum() / truth.sum() for p in both]
        gain.append(loss[0] - loss[1])
    assert min(gain) > -0.05 and np.mean(gain) > 0.05


def test_the_network_does_not_know_what_noise_does():
    with pytest.raises(ConfigError, match="false_alarm_hz"):
        sc.detect_voltage_spikes(np.zeros(100), 400.0, method="network", false_alarm_hz=0.1)


def test_training_runs_and_its_weights_can_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(train_voltage, "SECONDS", 4.0)
    monkeypatch.setattr(train_voltage, "LEFT_OUT", 1)
    monkeypatch.setattr(train_voltage, "BATCH", 8)
    out = tmp_path / "weights.npz"
    monkeypatch.setattr("sys.argv", ["train_voltage", str(out), "--recordings", "2", "--steps", "3"])
    train_voltage.main()
    network = load_voltage_network(out)
    monkeypatch.setattr(fit, "load_voltage_network", lambda: network)
    made = simulate_voltage(1, 10.0, 400.0, noise=VoltageNoise(snr=8), seed=1)
    result = sc.detect_voltage_spikes(made.traces, 400.0, method="network")
    assert result.method == "network" and len(result.spikes) > 20
