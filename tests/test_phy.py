"""The phy folder, read by phylib and by SpikeInterface."""

import dataclasses

import numpy as np
import pytest
from helpers_result import planted

from sortcore.errors import OutputError
from sortcore.phy import distinct, export_phy, similarity

phylib_model = pytest.importorskip("phylib.io.model")
extractors = pytest.importorskip("spikeinterface.extractors")
pytestmark = pytest.mark.filterwarnings("ignore")  # the readers' own

CASES = {
    "six units": {},
    "one unit": {"n_units": 1},
    "one channel": {"n_units": 1, "n_channels": 1},
    "two units, one channel": {"n_units": 2, "n_channels": 1},
    "four shanks": {"n_units": 8, "n_channels": 16, "n_shanks": 4},
    "two segments": {"seconds": (3.0, 4.0)},
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def exported(request, tmp_path):
    """(recording and result, phy folder)"""
    data = planted(**request.param)
    data.data.tofile(tmp_path / "raw.dat")
    return data, export_phy(data.result, tmp_path / "phy", tmp_path / "raw.dat")


def test_phylib_reads_the_spikes_templates_and_amplitudes_of_the_result(exported):
    data, folder = exported
    result = data.result
    model = phylib_model.load_model(folder / "params.py")
    np.testing.assert_array_equal(model.spike_samples, result.spikes.samples)
    np.testing.assert_array_equal(model.spike_clusters, result.spikes.units)
    np.testing.assert_array_equal(model.spike_templates, result.spikes.units)
    np.testing.assert_array_equal(model.channel_positions, np.atleast_2d(result.model.preprocessing.probe.positions_um))
    np.testing.assert_array_equal(model.channel_shanks, result.model.preprocessing.probe.shank)
    assert model.sample_rate == result.fs and model.n_channels_dat == data.data.shape[1]
    np.testing.assert_array_equal(model.traces[0:100], data.data[:100])
    for k in range(result.n_units):
        template = model.get_template(k)
        np.testing.assert_allclose(template.template, result.model.templates_uv[k, template.channel_ids].T, rtol=1e-6)
        assert result.model.preprocessing.channels[template.best_channel] == result.units.channel[k]
    np.testing.assert_allclose(model.spike_attributes["amplitudes_uv"], result.amplitudes_uv)
    np.testing.assert_allclose(model.spike_attributes["scores"], result.spikes.scores)
    assert model.metadata["group"] == dict(enumerate(result.units.label))
    np.testing.assert_allclose([model.metadata["snr"][k] for k in range(result.n_units)], result.units.snr, atol=0.006)


def test_template_times_amplitude_is_the_spike_in_microvolts(exported):
    data, folder = exported
    result = data.result
    model = phylib_model.load_model(folder / "params.py")
    trough = result.model.templates.trough
    for k in range(result.n_units):
        mine = np.flatnonzero(result.spikes.units == k)
        channel = np.flatnonzero(result.model.preprocessing.channels == result.units.channel[k])[0]
        drawn = model.amplitudes[mine] * model.sparse_templates.data[k, trough, channel]
        measured = data.filtered_uv[channel, result.spikes.samples[mine]]
        assert drawn.mean() == pytest.approx(measured.mean(), rel=0.01)
        np.testing.assert_allclose(-drawn, result.amplitudes_uv[mine], rtol=1e-4)
    true_uv = model.get_amplitudes_true()[2][: result.n_units]  # phylib's own way from its numbers to the raw data's unit
    np.testing.assert_allclose(true_uv, result.units.amplitude_uv, rtol=0.01)


def test_spikeinterface_reads_the_same_trains(exported):
    data, folder = exported
    result = data.result
    for read in (extractors.read_phy, extractors.read_kilosort):
        sorting = read(folder)
        assert sorting.get_num_segments() == 1 and sorting.sampling_frequency == result.fs
        assert list(sorting.unit_ids) == list(range(result.n_units))
        for k in sorting.unit_ids:
            np.testing.assert_array_equal(sorting.get_unit_spike_train(k, segment_index=0), result.spike_train(k))
    assert list(extractors.read_phy(folder).get_property("quality")) == list(result.units.label)
    good = extractors.read_kilosort(folder, keep_good_only=True)
    assert list(good.unit_ids) == list(np.flatnonzero(result.units.label == "good"))


def test_spikeinterface_reads_an_analyzer_with_the_templates_in_microvolts(exported):
    data, folder = exported
    result = data.result
    if result.n_units == 1 and data.data.shape[1] > 1:
        # phylib cannot load one template on several channels, this reader wants as many templates as units: phylib has its way
        assert len(np.load(folder / "templates.npy")) == 2
        return
    analyzer = extractors.read_kilosort_as_analyzer(folder, gain_to_uV=1.0, offset_to_uV=0.0)
    templates = analyzer.get_extension("templates")
    np.testing.assert_allclose(templates.get_data(), result.model.templates_uv.transpose(0, 2, 1), rtol=1e-6)
    assert templates.nbefore == result.model.templates.trough
    vector = analyzer.sorting.to_spike_vector()
    np.testing.assert_array_equal(np.sort(vector["sample_index"]), result.spikes.samples)
    np.testing.assert_array_equal(analyzer.sparsity.mask, (result.model.templates_uv != 0).any(axis=2))


def test_no_unit_at_all(tmp_path):
    folder = export_phy(planted(n_units=0).result, tmp_path / "phy")
    assert len(extractors.read_phy(folder).unit_ids) == 0
    assert len(extractors.read_kilosort(folder).unit_ids) == 0
    assert np.load(folder / "templates.npy").shape == (0, 42, 16)
    assert phylib_model.get_template_params(folder / "params.py")["dat_path"] == []


def test_a_unit_that_never_fires_keeps_its_place(tmp_path):
    """A model may know units that are silent in the recording at hand."""
    result = planted().result
    kept = np.flatnonzero(result.spikes.units != 2)
    result = dataclasses.replace(result, spikes=result.spikes.select(kept))
    folder = export_phy(result, tmp_path / "phy")
    model = phylib_model.load_model(folder / "params.py")
    assert model.n_templates == 6 and list(model.cluster_ids) == [0, 1, 3, 4, 5]
    sorting = extractors.read_phy(folder)
    assert list(sorting.unit_ids) == list(range(6)) and len(sorting.get_unit_spike_train(2, segment_index=0)) == 0


def test_channels_left_out_are_mapped_to_the_file(tmp_path):
    data = planted()
    used = np.delete(np.arange(18), [4, 9])
    preprocessing = dataclasses.replace(data.result.model.preprocessing, channels=used, n_recorded=18)
    result = dataclasses.replace(data.result, model=dataclasses.replace(data.result.model, preprocessing=preprocessing))
    wide = np.zeros((len(data.data), 18), np.int16)
    wide[:, used] = data.data
    wide.tofile(tmp_path / "raw.dat")
    model = phylib_model.load_model(export_phy(result, tmp_path / "phy", tmp_path / "raw.dat") / "params.py")
    np.testing.assert_array_equal(model.traces[50:90], data.data[50:90])


def test_two_files_stand_end_to_end(tmp_path):
    data = planted(seconds=(3.0, 4.0))
    cut = data.result.segment_lengths[0]
    data.data[:cut].tofile(tmp_path / "a.dat")
    data.data[cut:].tofile(tmp_path / "b.dat")
    model = phylib_model.load_model(export_phy(data.result, tmp_path / "phy", [tmp_path / "a.dat", tmp_path / "b.dat"]) / "params.py")
    assert model.duration == pytest.approx(7.0)
    np.testing.assert_array_equal(model.traces[cut - 20 : cut + 20], data.data[cut - 20 : cut + 20])


def test_similarity_is_the_largest_cosine_over_lags():
    rng = np.random.default_rng(0)
    wave = np.zeros((3, 4, 60), np.float32)
    wave[0, :, 20:30] = rng.normal(size=(4, 10))
    wave[1, :, 24:34] = 3 * wave[0, :, 20:30]
    wave[2, 0, 50] = 1
    similar = similarity(wave, 4)
    np.testing.assert_allclose(np.diag(similar), 1, rtol=1e-5)
    np.testing.assert_allclose(similar, similar.T)
    assert similar[0, 1] == pytest.approx(1, rel=1e-5) and similar[0, 2] == similar[1, 2] == 0
    assert similarity(np.zeros((2, 3, 10), np.float32), 4).max() == 0


def test_contacts_in_one_place_are_told_apart():
    places = distinct(np.array([[0.0, 0], [0, 0], [1, 0], [5, 5]]))
    assert len({tuple(p) for p in places}) == 4 and np.abs(places - [[0, 0], [0, 0], [1, 0], [5, 5]]).max() <= 2


def test_a_folder_in_use_is_left_alone(tmp_path):
    result = planted().result
    (tmp_path / "phy").mkdir()
    (tmp_path / "phy" / "cluster_group.tsv").write_text("hours of work")
    with pytest.raises(OutputError, match="not empty"):
        export_phy(result, tmp_path / "phy")
    assert (tmp_path / "phy" / "cluster_group.tsv").read_text() == "hours of work"
    with pytest.raises(OutputError, match="cannot be written"):
        export_phy(result, tmp_path / "phy" / "cluster_group.tsv" / "deeper")
    export_phy(result, tmp_path / "phy", overwrite=True)
    assert phylib_model.load_model(tmp_path / "phy" / "params.py").n_spikes == len(result.spikes)
