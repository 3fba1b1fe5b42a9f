from __future__ import annotations

import json

import matplotlib.pyplot as plt
import numpy as np
import probeinterface
import pytest

from sortcore.errors import ProbeError
from sortcore.plots_probe import draw_probe
from sortcore.probes import load_probe, match_probe, probe_folder, probe_from_dict, probe_names
from sortcore.types import Probe

WANTED = {"neuropixels1": (384, 1), "neuropixels2-1shank": (384, 1), "neuropixels2-4shank": (384, 4), "neuropixels-ultra": (384, 1),
          "neuronexus-a1x32-50": (32, 1), "neuronexus-a1x32-poly3": (32, 1), "cambridge-h2": (64, 2), "cambridge-h3": (64, 1),
          "tetrode": (4, 1), "utah-10x10": (96, 1), "linear-64": (64, 1)}


def one(positions, **fields) -> dict:
    return {"probes": [{"ndim": 2, "si_units": "um", "contact_positions": positions, **fields}]}


@pytest.mark.parametrize(("name", "size"), WANTED.items())
def test_the_probes_that_people_use_are_there(name, size):
    probe = load_probe(name)
    assert (probe.n_channels, len(np.unique(probe.shank))) == size
    assert probe.name == name


@pytest.mark.parametrize("name", probe_names())
def test_probeinterface_reads_the_same_from_the_same_file(name):
    probe = load_probe(name)
    group = probeinterface.read_probeinterface(probe_folder() / f"{name}.json")
    theirs = group.to_dataframe(complete=True)
    theirs = theirs[theirs.device_channel_indices >= 0].sort_values("device_channel_indices")
    np.testing.assert_allclose(probe.positions_um, theirs[["x", "y"]].to_numpy())
    np.testing.assert_array_equal(probe.shank, theirs.shank_ids.astype(int))
    assert theirs.device_channel_indices.tolist() == list(range(probe.n_channels))


@pytest.mark.parametrize("name", probe_names())
def test_a_probe_file_is_sound(name):
    probe = load_probe(name)
    assert len(np.unique(probe.positions_um, axis=0)) == probe.n_channels
    content = json.loads((probe_folder() / f"{name}.json").read_text(encoding="utf8"))
    assert {"model_name", "manufacturer", "source"} <= set(content["probes"][0]["annotations"])
    assert (probe_folder() / f"{name}.json").stat().st_size < 40_000


@pytest.mark.parametrize(("name", "spacing"), [("neuropixels1", np.hypot(16, 20)), ("neuropixels2-1shank", 15), ("neuropixels-ultra", 6),
                                               ("neuronexus-a1x32-50", 50), ("neuronexus-a1x32-poly3", 50), ("cambridge-h2", 25),
                                               ("cambridge-h3", 20), ("utah-10x10", 400), ("linear-64", 25)])
def test_nearest_contacts_are_as_far_apart_as_published(name, spacing):
    probe = load_probe(name)
    distance = np.linalg.norm(probe.positions_um[:, None] - probe.positions_um[None], axis=2)
    nearest = (distance + np.diag(np.full(probe.n_channels, np.inf))).min(axis=1)
    np.testing.assert_allclose(nearest, spacing)


def test_the_four_shank_neuropixels_records_channels_in_blocks_of_the_shanks():
    probe = load_probe("neuropixels2-4shank")
    blocks = probe.shank.reshape(8, 48)
    assert (blocks == blocks[:, :1]).all()
    assert blocks[:, 0].tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_names_may_be_written_as_people_write_them():
    assert load_probe("Neuropixels 1").n_channels == load_probe("NEUROPIXELS1").n_channels == 384


@pytest.mark.parametrize(("name", "message"), [("neuropixel-1", "Did you mean neuropixels1"), ("xyz", "There are cambridge-h2"),
                                               ("nowhere/probe.json", "no probe file"), ("gone.json", "no probe file")])
def test_an_unknown_probe_is_named_with_what_there_is(name, message):
    with pytest.raises(ProbeError, match=message):
        load_probe(name)


def test_a_file_written_by_probeinterface_is_read_in_the_order_of_the_channels(tmp_path):
    probe = probeinterface.generate_multi_shank(num_shank=3, num_columns=2, num_contact_per_column=4)
    wiring = np.random.default_rng(1).permutation(24)
    probe.set_device_channel_indices(wiring)
    probeinterface.write_probeinterface(tmp_path / "mine.json", probe)
    mine = load_probe(tmp_path / "mine.json")
    assert mine.name == "mine"
    np.testing.assert_allclose(mine.positions_um[wiring], probe.contact_positions)
    np.testing.assert_array_equal(mine.shank[wiring], probe.shank_ids.astype(int))


def test_contacts_without_a_channel_are_left_out():
    probe = probe_from_dict(one([[0, 0], [0, 20], [0, 40], [0, 60]], device_channel_indices=[2, -1, 0, 1]))
    assert probe.positions_um[:, 1].tolist() == [40, 60, 0]
    with pytest.raises(ProbeError, match="no wired contact"):
        probe_from_dict(one([[0, 0]], device_channel_indices=[-1]))


def test_probes_of_a_group_become_shanks_side_by_side():
    group = probeinterface.ProbeGroup()
    for i in range(3):
        tetrode = probeinterface.generate_tetrode()
        tetrode.set_device_channel_indices(4 * (2 - i) + np.arange(4))
        group.add_probe(tetrode)
    probe = probe_from_dict(group.to_dict(array_as_list=True))
    assert probe.shank.tolist() == [2] * 4 + [1] * 4 + [0] * 4
    assert len(np.unique(probe.positions_um, axis=0)) == 12
    for shank in range(3):  # within a shank nothing has moved
        mine = probe.positions_um[probe.shank == shank]
        np.testing.assert_allclose(mine - mine.mean(0), tetrode.contact_positions - tetrode.contact_positions.mean(0), atol=1e-9)


@pytest.mark.parametrize(("unit", "factor"), [("um", 1), ("mm", 1e3), ("m", 1e6)])
def test_positions_are_micrometres_whatever_the_file_has(unit, factor):
    np.testing.assert_allclose(probe_from_dict(one([[0, 0], [0, 3]], si_units=unit)).positions_um, [[0, 0], [0, 3 * factor]])


def test_a_flat_probe_in_three_dimensions_keeps_its_two():
    assert probe_from_dict(one([[1, 0, 2], [3, 0, 4]], ndim=3)).positions_um.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ProbeError, match="no plane"):
        probe_from_dict(one([[1, 0, 2], [3, 1, 4]], ndim=3))


@pytest.mark.parametrize(("content", "message"), [
    ({}, "no list of \"probes\""),
    ([], "no list of \"probes\""),
    ({"probes": []}, "no list of \"probes\""),
    ({"probes": ["a"]}, "cannot be read"),
    ({"probes": [{"ndim": 2}]}, "contact_positions"),
    (one([]), "shape"),
    (one([[0], [1]]), "shape"),
    (one([["a", 1]]), "cannot be read"),
    (one([[0, float("nan")]]), "NaN"),
    (one([[0, 0]], si_units="inch"), "inch"),
    (one([[0, 0], [0, 1]], shank_ids=["0"]), "1 shank_ids"),
    (one([[0, 0], [0, 1]], device_channel_indices=[0]), "1 device_channel_indices"),
    (one([[0, 0], [0, 1]], device_channel_indices=[3, 3]), "several contacts to channel 3"),
    ({"probes": one([[0, 0]])["probes"] + one([[0, 1]], device_channel_indices=[0])["probes"]}, "1 of its 2 probes"),
])
def test_what_is_wrong_with_a_file_is_said(content, message):
    with pytest.raises(ProbeError, match=message):
        probe_from_dict(content, "mine")


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "cut.json").write_text('{"probes": [{"ndim"')
    with pytest.raises(ProbeError, match="cut.json cannot be read as JSON"):
        load_probe(tmp_path / "cut.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProbeError, match="bytes.json cannot be read"):
        load_probe(tmp_path / "bytes.json")


def test_a_probe_must_have_as_many_contacts_as_the_recording_has_channels():
    probe = load_probe("tetrode")
    assert match_probe(probe, 4) is probe
    with pytest.raises(ProbeError, match="4 wired contacts.*32 channels"):
        match_probe(probe, 32)


@pytest.mark.parametrize("name", ["tetrode", "cambridge-h2", "neuropixels2-4shank"])
def test_a_drawing_shows_every_contact_and_shank(name):
    probe = load_probe(name)
    _, ax = plt.subplots()
    draw_probe(probe, ax)
    shown = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    assert {tuple(xy) for xy in shown} == {tuple(xy) for xy in probe.positions_um}
    assert len(ax.collections) == len(np.unique(probe.shank))
    assert len(ax.texts) == (probe.n_channels if probe.n_channels <= 128 else 0)
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    assert (left < shown[:, 0]).all() and (shown[:, 0] < right).all()
    assert (low < shown[:, 1]).all() and (shown[:, 1] < high).all()
    ax.figure.canvas.draw()
    plt.close(ax.figure)


def test_a_single_contact_is_drawn():
    _, ax = plt.subplots()
    draw_probe(Probe.independent(1), ax)
    ax.figure.canvas.draw()
    plt.close(ax.figure)
