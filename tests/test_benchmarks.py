"""The harness: scores are right, and every planted failure is called by its name."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("spikeinterface")
pytest.importorskip("psutil", reason='the harness needs the packages of pip install ".[bench]"')

from helpers_result import planted as planted_result

from benchmarks import ablations, bursts, cluster, collisions, false_alarms, gpu, operations, rates, repeat, scaling
from benchmarks.__main__ import main, score_line, write_report
from benchmarks.causes import diagnose
from benchmarks.ceiling import run_ceiling
from benchmarks.diagnose import main as diagnose_main
from benchmarks.diagnose import summarise
from benchmarks.matching import near
from benchmarks.measure import run_measured
from benchmarks.recordings import Generated, contacts_of, measure_snr, open_recording, parse_spec, resolve, write_folder
from benchmarks.report import read_lines, table
from benchmarks.score import score
from benchmarks.stages import main as stages_main
from benchmarks.trains import Truth, load_sorted, load_truth, make_trains, save_trains, to_spikeinterface, without
from sortcore import matching
from sortcore.ephys.pipeline import sort
from sortcore.export import save_result
from sortcore.probes import load_probe
from sortcore.recording import array_recording
from sortcore.simulate import simulate
from sortcore.spectra import make_spectra
from sortcore.types import Probe

FS, SECONDS = 30000.0, 60.0
N = int(FS * SECONDS)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def true_spikes(seed=0, n_units=12, rate=6.0):
    """{unit: samples}: independent trains with 3 ms between spikes."""
    rng = np.random.default_rng(seed)
    trains = {}
    for unit in range(n_units):
        intervals = 0.003 + rng.exponential(1 / rate, int(2 * rate * SECONDS))
        samples = np.round(np.cumsum(intervals) * FS).astype(np.int64)
        trains[unit] = samples[samples < N - 100]
    return trains


def from_dict(trains, **more):
    samples, units = np.concatenate(list(trains.values())), np.concatenate([np.full(len(t), k) for k, t in trains.items()])
    return make_trains(samples, units, FS, np.array(list(trains)), **more)


def truth_of(trains, **more):
    return Truth("planted", from_dict(trains, **more), N, np.linspace(4, 20, len(trains)))


def jittered(trains, rng, reach=4):
    """The trains as a sorter would report them: some samples beside the truth."""
    return {k: np.sort(t + rng.integers(-reach, reach + 1, len(t))) for k, t in trains.items()}


@pytest.fixture(scope="module")
def planted():
    """Twelve true units of which nine are failed in nine ways, and what was made of it."""
    trains, rng = true_spikes(), np.random.default_rng(1)
    found = {k: t.copy() for k, t in trains.items()}
    del found[0]
    part = rng.random(len(trains[1])) < 0.6
    found[1], found[101] = trains[1][part], trains[1][~part]
    found[2] = np.sort(np.concatenate([found[2], found.pop(3)]))
    found[4] = trains[4][rng.random(len(trains[4])) < 0.55]
    taken = rng.random(len(trains[5])) < 0.5
    found[5], found[6] = trains[5][~taken], np.sort(np.concatenate([trains[6], trains[5][taken]]))
    found[7] = np.sort(np.concatenate([trains[7], rng.integers(0, N, 2 * len(trains[7]) // 3)]))
    found[8] = trains[8][trains[8] < 0.5 * N]
    found[9] = trains[9] + 30
    found = jittered(found, rng)
    found[10] = np.sort(np.concatenate([found[10], trains[10] + 7]))
    found[102] = np.sort(rng.integers(0, N, 300))
    truth = truth_of(trains)
    return truth, diagnose(truth, from_dict(found))


@pytest.mark.parametrize(("unit", "reason"), [
    (0, "never detected"), (1, "split"), (2, "merged"), (3, "merged"), (4, "missed below threshold"), (5, "stolen"), (7, "contaminated"),
    (8, "drifted"), (9, "shifted in time"), (10, "doubled"), (11, "found"),
])
def test_planted_failure_is_named(planted, unit, reason):
    _, (_, units, _) = planted
    assert units[unit].reason == reason


def test_rivals_and_sharing_are_named(planted):
    _, (_, units, _) = planted
    assert (units[2].rival, units[3].rival, units[5].rival) == (3, 2, 6)
    assert {s.sorted_id: s.owner for s in units[1].sharing} == {1: 1, 101: 1}
    assert units[1].best == 1
    assert sum(s.coverage for s in units[1].sharing) == pytest.approx(1, abs=0.02)
    assert {s.sorted_id: s.owner for s in units[5].sharing} == {5: 5, 6: 6}
    assert units[8].thirds[0] > 0.99
    assert units[8].thirds[2] == 0


def test_errors_are_counted_in_spikes(planted):
    truth, (_, units, _) = planted
    counts = truth.trains.counts()
    assert units[0].errors["missed"] == counts[0]
    assert units[1].errors["split"] == pytest.approx(0.4 * counts[1], rel=0.15)
    assert units[3].errors["merged"] == pytest.approx(counts[2], rel=0.05)
    assert units[10].errors["doubled"] == pytest.approx(counts[10], rel=0.02)
    assert not any(units[11].errors.values())


def test_extra_units_are_explained(planted):
    _, (result, _, extras) = planted
    kinds = {e.sorted_id: (e.kind, e.owner) for e in extras}
    assert kinds[101] == ("fragment", 1)
    assert kinds[102] == ("mostly noise", -1)
    assert result.summary()["extra"] == len(extras)


def test_a_second_report_of_a_unit_is_a_duplicate():
    trains = true_spikes(n_units=3)
    _, units, extras = diagnose(truth_of(trains), from_dict({**trains, 9: trains[1][::2]}))
    assert [(e.sorted_id, e.kind, e.owner) for e in extras] == [(9, "duplicate of unit 1", 1)]
    assert units[1].accuracy == 1


def test_independent_trains_share_nothing():
    truth, other = truth_of(true_spikes(0, rate=20.0)), from_dict(true_spikes(1, rate=20.0))
    result, units, extras = diagnose(truth, other)
    assert {d.reason for d in units} == {"never detected"}
    assert all(not d.sharing for d in units)
    assert {e.kind for e in extras} == {"mostly noise"}
    assert result.accuracy.max() == 0


def test_synchronous_cells_do_not_steal_from_each_other():
    trains = true_spikes(n_units=4)
    trains[1] = np.unique(np.concatenate([trains[1], trains[0][::2]]))  # fires with unit 0
    found = {**trains, 0: trains[0][::2]}  # half of unit 0 is lost, just the half that unit 1 fires with is kept
    _, units, _ = diagnose(truth_of(trains), from_dict(found))
    assert units[0].reason == "missed below threshold"
    assert units[0].errors["stolen"] == 0


def test_missed_small_spikes_are_noted():
    trains, rng = true_spikes(n_units=2), np.random.default_rng(0)
    truth = truth_of(trains)
    amplitudes = rng.normal(10, 2, len(truth.trains.samples))
    truth = truth_of(trains, amplitudes=amplitudes[np.argsort(np.argsort(np.concatenate(list(trains.values())), kind="stable"))])
    mine = truth.trains.units == 0
    kept = truth.trains.samples[mine & (truth.trains.amplitudes > 9.5)]
    _, units, _ = diagnose(truth, from_dict({0: kept, 1: trains[1]}))
    assert units[0].reason == "missed below threshold"
    assert any("lowest quarter of amplitudes" in note for note in units[0].notes)


def test_score_counts_by_hand():
    trains = {0: np.arange(1000, 101000, 1000), 1: np.arange(200500, 300500, 1000)}
    found = {5: np.concatenate([trains[0][:90], [500000, 510000]]), 6: trains[1], 7: np.arange(600000, 610000, 1000)}
    result = score(truth_of(trains), from_dict(found, labels={5: "good", 6: "good", 7: "mua"}))
    assert result.accuracy == pytest.approx([90 / 102, 1])
    assert result.precision == pytest.approx([90 / 92, 1])
    assert result.recall == pytest.approx([0.9, 1])
    assert result.match.tolist() == [0, 1]
    summary = result.summary()
    assert (summary["n80"], summary["n95"], summary["extra"], summary["extra_good"]) == (2, 1, 1, 0)


def test_tolerance_decides():
    trains = true_spikes(n_units=3)
    late = from_dict({k: t + 20 for k, t in trains.items()})  # 0.67 ms
    assert score(truth_of(trains), late, 0.4).accuracy.max() == 0
    assert score(truth_of(trains), late, 1.0).accuracy.min() == 1


def test_empty_sorting_is_all_missed():
    truth = truth_of(true_spikes(n_units=3))
    empty = make_trains(np.zeros(0), np.zeros(0), FS)
    result, units, extras = diagnose(truth, empty)
    assert result.summary()["accuracy"] == 0
    assert [d.reason for d in units] == ["never detected"] * 3
    assert "never detected" in summarise(truth, result, units, extras)


def test_near_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    a, b = np.sort(rng.integers(0, 3000, 100)), np.sort(rng.integers(0, 3000, 80))
    assert near(a, b, 5).tolist() == [bool((np.abs(b - x) <= 5).any()) for x in a]
    assert not near(a, b[:0], 5).any()


def test_trains_are_stored_and_read(tmp_path):
    trains = from_dict(true_spikes(n_units=3), labels={0: "good", 1: "noise", 2: "mua"})
    save_trains(tmp_path / "sorting.npz", trains)
    back = load_sorted(tmp_path, FS, keep_noise=True)
    assert np.array_equal(back.samples, trains.samples)
    assert np.array_equal(back.units, trains.units)
    assert back.labels == trains.labels
    kept = load_sorted(tmp_path / "sorting.npz", FS)
    assert kept.ids.tolist() == [0, 2]
    assert np.array_equal(kept.samples, without(trains, [1]).samples)
    np.savez(tmp_path / "other.npz", times=trains.samples)
    with pytest.raises(KeyError, match="expected spike_samples and spike_units"):
        load_sorted(tmp_path / "other.npz", FS)
    with pytest.raises(FileNotFoundError, match="There is no sorting"):
        load_sorted(tmp_path / "nowhere", FS)


def test_phy_folder_is_read(tmp_path):
    trains = from_dict(true_spikes(n_units=2))
    np.save(tmp_path / "spike_times.npy", trains.samples[:, None])
    np.save(tmp_path / "spike_clusters.npy", trains.units.astype(np.int32))
    (tmp_path / "cluster_group.tsv").write_text("cluster_id\tgroup\n0\tgood\n1\tmua\n")
    back = load_sorted(tmp_path, FS)
    assert np.array_equal(back.samples, trains.samples)
    assert back.labels == {0: "good", 1: "mua"}


def test_result_folder_of_sortcore_is_read(tmp_path):
    result = planted_result(n_units=4).result
    save_result(result, tmp_path / "result")
    back = load_sorted(tmp_path, result.fs, keep_noise=True)  # the folder around it will do
    assert np.array_equal(back.samples, result.spikes.samples)
    assert np.array_equal(back.ids[back.units], result.spikes.units)
    assert np.array_equal(back.amplitudes, result.spikes.amplitudes)
    assert [back.labels[k] for k in range(4)] == list(result.units.label)
    noise = dataclasses.replace(result, units=dataclasses.replace(result.units, label=np.array(["good", "noise", "mua", "good"])))
    save_result(noise, tmp_path / "noisy")
    assert load_sorted(tmp_path / "noisy", result.fs).ids.tolist() == [0, 2, 3]


@pytest.mark.parametrize(("text", "message"), [
    ("nowhere", "neither a folder nor a generator"), ("si-still:contacts=4", "'contacts'"), ("si-still:channels=four", "four"),
])
def test_wrong_recording_names_are_explained(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        resolve(text, tmp_path)


def test_spec_is_read():
    spec = parse_spec("si-still:channels=8,seconds=2.5,seed=3")
    assert (spec.channels, spec.units, spec.seconds, spec.seed) == (8, 20, 2.5, 3)
    assert parse_spec("si-tetrode").channels == 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four channels, one large slow unit and one small one, in a recording folder."""
    from probeinterface import generate_tetrode
    from spikeinterface.core import NumpyRecording

    n, rng = int(4 * FS), np.random.default_rng(0)
    data = rng.normal(0, 10, (n, 4)).astype(np.float32)
    wave = -np.exp(-0.5 * (np.arange(-15, 16) / 4.0) ** 2)
    trains = {0: np.arange(2000, n - 2000, 1500), 1: np.arange(2700, n - 2000, 1500)}
    for unit, size in ((0, 200.0), (1, 100.0)):
        for t in trains[unit]:
            data[t - 15 : t + 16, unit] += size * wave
    recording = NumpyRecording([data], FS)
    probe = generate_tetrode()
    probe.set_device_channel_indices(np.arange(4))
    spikes = from_dict(trains)
    place = tmp_path_factory.mktemp("recordings") / "two-units"
    write_folder(place, Generated(recording.set_probe(probe) or recording, spikes.samples, spikes.units, 2, np.ones(len(spikes.samples))))
    return place


def test_recording_folder_keeps_data_and_truth(folder):
    truth, recording = load_truth(folder), open_recording(folder)
    assert truth.seconds == pytest.approx(4)
    assert truth.trains.amplitudes is not None
    assert recording.get_num_channels() == 4
    assert recording.get_channel_locations().shape == (4, 2)
    uv = recording.get_traces(start_frame=2000, end_frame=2001, return_in_uV=True)[0]
    assert uv[0] == pytest.approx(-200, abs=45)


def test_snr_is_that_of_the_planted_units(folder):
    truth = load_truth(folder)
    snr, channel = measure_snr(folder, truth.trains.samples, truth.trains.units, 3)
    assert channel[:2].tolist() == [0, 1]
    assert snr[0] / snr[1] == pytest.approx(2, rel=0.15)
    assert np.isnan(snr[2])


def test_report_of_a_perturbed_truth(folder, tmp_path):
    truth = load_truth(folder)
    half = truth.trains.samples[(truth.trains.units == 0) | (np.arange(len(truth.trains.samples)) % 4 == 1)]
    units = truth.trains.units[np.isin(truth.trains.samples, half)]
    place = tmp_path / truth.name / "planted"
    place.mkdir(parents=True)
    line = score_line(truth, make_trains(half, units, FS), place, 0.8)
    assert line["units"]["recall"][0] == 1
    assert "MISSED" in (place / "diagnosis.txt").read_text()
    assert (place / "confusion.png").stat().st_size > 1000
    about = {"recording": truth.name, "duration_s": 4.0, "channels": 4, "n_true": 2}
    done = {**about, "sorter": "planted", "seconds": 0.5, "x_real_time": 8.0, "peak_mb": 100, **line}
    failed = {**about, "sorter": "broken", "error": "no spikes"}
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(x) + "\n" for x in (failed, done, {**done, "seconds": 0.25})))
    text = write_report(tmp_path, [truth.name])
    row = next(x for x in text.splitlines() if x.startswith("| planted"))
    assert [cell.strip() for cell in row.split("|")][-4:-1] == ["0.25", "8.0", "100"]  # of the later run
    assert "failed: no spikes" in text
    assert len(read_lines(tmp_path / "results.jsonl")) == 2
    rows = list(csv.DictReader((tmp_path / truth.name / "units.csv").read_text().splitlines()))
    assert [float(r["planted recall"]) for r in rows] == line["units"]["recall"]
    assert (tmp_path / truth.name / "units.png").stat().st_size > 1000
    assert table([failed]).count("failed") == 1


def test_diagnose_from_the_command_line(folder, tmp_path, capsys):
    truth = load_truth(folder)
    save_trains(tmp_path / "sorting.npz", without(truth.trains, [1]))
    diagnose_main([str(folder), str(tmp_path / "sorting.npz")])
    said = capsys.readouterr().out
    assert "accuracy 0.5000" in said
    assert "NEVER DETECTED" in said
    with pytest.raises(SystemExit):
        diagnose_main([str(tmp_path), str(tmp_path / "sorting.npz")])


def test_process_is_timed_and_its_children_weighed(tmp_path):
    grow = "import time; x = bytearray(200 * 2**20); time.sleep(0.6)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grow!r}])"
    measured = run_measured([sys.executable, "-c", code], tmp_path / "log.txt", 60.0)
    assert measured.code == 0
    assert 200 < measured.peak_mb < 400
    slow = run_measured([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log.txt", 0.3)
    assert slow.timed_out
    assert slow.seconds < 10


def test_rates_count_who_is_found_by_rate_and_size(tmp_path, capsys):
    units = {"rate_hz": [0.2, 0.2, 20.0, 0.0], "snr": [9.0, 12.0, 4.0, 9.0], "n_spikes": [24, 24, 2400, 0],
             "accuracy": [0.95, 0.3, 0.9, 0.0]}
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps({"recording": "one", "sorter": "sortcore", "units": units}) + "\n")
    rates.main([str(file)])
    rows = {row[1].strip(): row[2:] for row in (line.split("|") for line in capsys.readouterr().out.splitlines()) if len(row) > 2}
    assert [c.strip() for c in rows["0.1 to 0.3 Hz"]] == ["", "", "", "1 of 2", ""]
    assert [c.strip() for c in rows["10 to 30 Hz"]] == ["", "1 of 1", "", "", ""]
    assert [c.strip() for c in rows["10 to 29 spikes"]] == ["", "", "", "1 of 2", ""]
    with pytest.raises(SystemExit):
        rates.main([str(file), "--sorters", "lupin"])


def test_stages_table(tmp_path, capsys):
    (tmp_path / "result.json").write_text(json.dumps({"timings_s": {"detect": 1.0, "deconvolve": 3.0}}))
    stages_main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "1.00 (25%)" in said
    assert "4.00" in said
    with pytest.raises(SystemExit):
        stages_main([str(tmp_path / "nothing")])


def test_one_command_runs_keeps_and_reports(folder, tmp_path, capsys):
    """A failing sorter and the true-template matcher, each in its own process; what is done is not done again."""
    arguments = [str(folder), "--sorters", "oracle,no_such_sorter", "--out", str(tmp_path), "--jobs", "1"]
    assert main(arguments) == 1
    lines = {line["sorter"]: line for line in read_lines(tmp_path / "results.jsonl")}
    assert lines["oracle"]["accuracy"] > 0.95
    assert lines["oracle"]["seconds"] > 0
    assert lines["oracle"]["peak_mb"] > 50
    assert "no_such_sorter" in lines["no_such_sorter"]["error"]
    assert "oracle" in capsys.readouterr().out
    sorting = load_sorted(tmp_path / folder.name / "oracle", FS)
    assert to_spikeinterface(sorting).get_num_units() == 2
    assert main([str(folder), "--sorters", "oracle", "--out", str(tmp_path)]) == 1  # the failure is still in the table
    assert sum("oracle" in text for text in (tmp_path / "results.jsonl").read_text().splitlines()) == 1


def test_module_says_what_it_does():
    root = Path(__file__).parents[1]
    said = subprocess.run([sys.executable, "-m", "benchmarks", "--help"], cwd=root, capture_output=True, text=True, check=True).stdout
    assert "RECORDING" in said
    assert "--sorters" in said


def test_the_same_cells_sorted_twice_have_the_same_waveforms(tmp_path, capsys):
    probe = load_probe("neuropixels1").select(np.arange(10))
    made = simulate(probe, 16.0, 3, snr=(10.0, 20.0), rate_hz=(8.0, 12.0), seed=4)
    half = len(made.data) // 2
    for name, data in (("first", made.data[:half]), ("second", made.data[half:])):
        save_result(sort(array_recording(data, made.fs, made.gain_uv), probe, progress=False), tmp_path / name)
    repeat.main([str(tmp_path / "first"), str(tmp_path / "second")])
    assert "3 and 3 units; 3 pairs above 0.9." in capsys.readouterr().out
    waves = np.random.default_rng(0).standard_normal((2, 3, 20))
    moved = np.concatenate([np.zeros((2, 3, 4)), waves[:, :, :-4]], axis=2)
    cosine = repeat.alike(waves, moved, 5)
    assert np.diag(cosine).min() > 0.8 > 0.5 > np.abs(repeat.alike(waves, moved, 0)).max()
    with pytest.raises(SystemExit):
        repeat.main([str(tmp_path / "first"), str(tmp_path / "nothing")])


def test_the_detector_fires_in_noise_about_as_often_as_stated():
    (ratios,) = false_alarms.measured(Probe.independent(4), (1.0,), channel_seconds=800.0)
    assert len(ratios) == false_alarms.SEEDS and all(0.8 < r < 1.2 for r in ratios)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A simulated recording with bursts and collisions, in a folder."""
    out = tmp_path_factory.mktemp("simulated")
    return resolve("sortcore:channels=8,units=6,seconds=15,seed=2", out)


def left(trains, keep):
    """Some of the spikes, all of the units."""
    return make_trains(trains.samples[keep], trains.ids[trains.units[keep]], trains.fs, trains.ids)


def kept(simulated, tmp_path, **sorters):
    """A results folder that holds sortings."""
    for name, trains in sorters.items():
        save_trains(tmp_path / simulated.name / name / "sorting.npz", trains)
    return tmp_path


def test_recall_of_collisions_falls_where_colliding_spikes_are_left_out(simulated, tmp_path, capsys):
    truth = load_truth(simulated).trains
    near = np.flatnonzero(np.diff(truth.samples) < 0.0003 * FS) + 1  # the later of two
    deaf = left(truth, ~np.isin(np.arange(len(truth.samples)), near))
    for name in ("all", "deaf"):
        (tmp_path / simulated.name / name).mkdir(parents=True)
    collisions.main([str(simulated), str(kept(simulated, tmp_path, all=truth, deaf=deaf)), "--sorters", "all,deaf,absent"])
    said = [row.split("|") for row in capsys.readouterr().out.splitlines() if "deaf" in row or "all" in row]
    low = {(row[1].strip(), row[2].strip()): float(row[4]) for row in said if row[4].strip() not in ("recall", "")}
    assert low and all(recall == 1 for (_, name), recall in low.items() if name == "all")
    assert min(recall for (_, name), recall in low.items() if name == "deaf") < 0.95
    lags, recall, counted = collisions.recalls(simulated, {"deaf": deaf})
    row = counted.sum(axis=1).argmax()
    assert np.nanmin(recall["deaf"][row][np.abs(lags) < 0.15]) < np.nanmin(recall["deaf"][row][np.abs(lags) > 0.6])
    assert (tmp_path / simulated.name / "collisions.png").stat().st_size > 1000


def test_recall_within_bursts_is_told_from_the_rest(simulated, tmp_path, capsys):
    truth = load_truth(simulated)
    in_burst = np.zeros(len(truth.trains.samples), bool)
    for u in range(truth.trains.n_units):
        mine = np.flatnonzero(truth.trains.units == u)
        in_burst[mine[1:]] = np.diff(truth.trains.samples[mine]) < 0.010 * FS
    half = left(truth.trains, ~in_burst | (np.arange(len(in_burst)) % 2 == 0))
    rows = bursts.burst_recall(truth, half)
    assert len(rows) >= 1 and (rows[:, 2] == 1).all()
    assert np.average(rows[:, 3], weights=rows[:, 1]) == pytest.approx(0.5, abs=0.15)
    (tmp_path / simulated.name / "half").mkdir(parents=True)
    bursts.main([str(simulated), str(kept(simulated, tmp_path, half=half)), "--sorters", "half"])
    assert f"0 of {len(rows)}" in capsys.readouterr().out


def test_the_ceiling_finds_what_it_is_told(simulated):
    found = score(load_truth(simulated), run_ceiling(simulated, {}))
    assert (found.accuracy > 0.85).all() and found.accuracy.mean() > 0.95 and not found.extra.any()


def test_an_idea_is_switched_off_and_on_again(simulated):
    from sortcore import groups

    before = groups.separation
    with_all, extra = ablations.sorted_without(simulated, "nothing")
    assert with_all > 0.95 and extra == 0
    for idea, off in ablations.IDEAS.items():
        for where, name, _ in off if isinstance(off, list) else []:
            assert hasattr(ablations.found(where), name), idea
    assert ablations.sorted_without(simulated, "leftovers of larger units left out")[0] > 0.9
    accuracy, _ = ablations.sorted_without(simulated, "merge: no valley")
    assert accuracy <= with_all + 0.02 and groups.separation is before


@pytest.mark.parametrize(("text", "channels", "shanks"), [
    ("sortcore:probe=single", 1, 1), ("sortcore:probe=tetrode", 4, 1), ("sortcore:probe=neuropixels2-4shank,channels=16", 16, 4),
    ("sortcore:probe=planar-1024", 1024, 1), ("sortcore:channels=8", 8, 1),
])
def test_contacts_of_a_simulated_recording(text, channels, shanks):
    probe = contacts_of(parse_spec(text))
    assert probe.n_channels == channels and len(np.unique(probe.shank)) == shanks


def test_good_right_counts_the_good_units_that_are():
    trains = true_spikes(n_units=4)
    found = from_dict({0: trains[0], 1: trains[1][::2], 2: trains[2], 3: np.arange(1000, N - 1000, 5000)},
                      labels={0: "good", 1: "good", 2: "mua", 3: "good"})
    assert score(truth_of(trains), found).good_right == pytest.approx(1 / 3)


def test_costs_on_a_cluster_are_read_off_those_that_are_measured():
    def planted(n):
        per_second = dict.fromkeys(("whiten", "look", "match", "first", "fit", "noise", "spikes_hz"), 0.0001 * n)
        return cluster.Costs(n, conclude=1e-6 * n**2, taps=601, template=64, sent=1e4 * n, **per_second)

    costs = [planted(n) for n in (96, 192, 384)]
    assert cluster.at(costs, "whiten", 1000) == pytest.approx(0.1) and cluster.at(costs, "conclude", 1000) == pytest.approx(1.0)
    lines = cluster.table(costs, 100, 1.0, 4).splitlines()
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines if line.startswith("|")}
    margins = 1 + (2 * (300 + 45) + 8 * 64) / 30000
    core_hours = 0.01 * (margins + 1 + 8 * 64 / 30000)  # of whitening and matching an hour, a hundredth of its length each
    assert rows["deconvolve"][:2] == ["workers", "3600"] and float(rows["deconvolve"][2]) == pytest.approx(core_hours, abs=0.006)
    assert rows["fit"][2] == rows["fit"][3], "one machine does it, however many there are"


def test_operations_are_counted_by_stage():
    made = simulate(load_probe("tetrode"), 3.0, 3, seed=1)
    result, done = operations.sort_counted(made.recording(), made.probe, "cpu")
    assert list(done) == list(result.timings_s)
    assert all(done[stage][0] > 0 for stage in ("learn noise", "preprocess", "detect", "fit", "deconvolve"))
    assert done["preprocess"][1] >= made.data.nbytes and done["fit"][1] == 0, "the sample is read once, and then in memory"
    rate = operations.product_rate(torch.device("cpu"), 0.05)
    text = operations.table(result, done, rate)
    assert rate > 1e8 and all(stage in text for stage in result.timings_s)
    assert matching.correlation.__module__ == "sortcore.spectra", "nothing is counted any more"


def test_a_score_costs_what_its_transforms_and_products_do():
    templates = make_spectra(np.ones((5, 3, 20), np.float32))
    x = torch.zeros(3, templates.size)  # one window
    transforms = (3 + 5) * 2.5 * templates.size * np.log2(templates.size)
    products = 2 * (templates.size // 2 + 1) * (2 * 3) * (2 * 5)
    assert operations.score_operations(templates, x) == pytest.approx(transforms + products)


def test_the_gpu_script_runs_on_any_device(capsys, tmp_path):
    gpu.main(["--device", "cpu", "--channels", "8", "--seconds", "6", "--compare-seconds", "4", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "the same bytes" in said and "100.00% of the spikes the same on the CPU" in said and "times real time" in said
    assert not list(tmp_path.iterdir())


def test_exponents_and_memory_are_measured(capsys, tmp_path):
    assert scaling.exponent([1, 10, 100], [3, 30, 300]) == pytest.approx(1)
    scaling.main(["--durations", "2", "4", "--channels", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "th power of duration" in said and "| 32 " in said and not list(tmp_path.iterdir())


def test_costs_are_measured_by_one_core():
    costs = cluster.measure(12)
    assert costs.channels == 12 and min(costs.whiten, costs.look, costs.match, costs.fit, costs.noise, costs.spikes_hz) > 0
    assert costs.sent > 1000 and costs.template > 20
