"""A saved result is the same result; what is in the way, damaged or full is said so."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers_result import planted

from sortcore.archive import write_npz, writing
from sortcore.errors import OutputError
from sortcore.export import is_result, load_model, load_result, save_model, save_result

CASES = {
    "six units": {},
    "no unit": {"n_units": 0},
    "one channel": {"n_units": 1, "n_channels": 1},
    "four shanks": {"n_units": 8, "n_channels": 16, "n_shanks": 4},
    "two segments": {"seconds": (3.0, 4.0)},
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def result(request):
    return planted(**request.param).result


def assert_same(a, b, name="record"):
    """Equal to the bit, with the same types, whatever the record holds."""
    if dataclasses.is_dataclass(a):
        assert type(a) is type(b), name
        for f in dataclasses.fields(a):
            assert_same(getattr(a, f.name), getattr(b, f.name), f"{name}.{f.name}")
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), name
    else:
        assert type(a) is type(b) and a == b, name


def test_a_result_comes_back_to_the_bit(result, tmp_path):
    assert_same(result, load_result(save_result(result, tmp_path / "out")))


def test_a_model_comes_back_to_the_bit(result, tmp_path):
    bad = {3: "noisy", 11: "dead"}
    model = dataclasses.replace(result.model, preprocessing=dataclasses.replace(result.model.preprocessing, bad_channels=bad))
    assert_same(model, load_model(save_model(model, tmp_path / "new" / "units.npz")))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["units.npz"]


def test_the_model_of_a_result_folder_can_be_read_alone(tmp_path):
    result = planted().result
    folder = save_result(result, tmp_path / "out")
    assert_same(result.model, load_model(folder))
    assert_same(result.model, load_model(folder / "model.npz"))


def test_the_same_result_gives_the_same_bytes(result, tmp_path):
    first, second = save_result(result, tmp_path / "a"), save_result(load_result(tmp_path / "a"), tmp_path / "b")
    names = sorted(p.name for p in first.iterdir())
    assert names == ["README.txt", "fit.npz", "log.txt", "model.npz", "result.json", "spikes.npz", "units.npz", "units.tsv"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert {entry.date_time[0] for entry in zipfile.ZipFile(first / "spikes.npz").infolist()} == {1980}


def test_the_files_can_be_read_without_sortcore(tmp_path):
    planted_data = planted()
    result = planted_data.result
    folder = save_result(result, tmp_path / "out")
    spikes = np.load(folder / "spikes.npz", allow_pickle=False)
    fs = json.loads((folder / "result.json").read_text())["fs"]
    np.testing.assert_allclose(spikes["times_s"], (result.spikes.samples + result.spikes.shifts) / fs)
    rows = [line.split("\t") for line in (folder / "units.tsv").read_text().splitlines()]
    assert len(rows) == 7 and {len(row) for row in rows} == {len(rows[0])}
    column = rows[0].index("amplitude (uV, trough to peak)")
    np.testing.assert_allclose([float(row[column]) for row in rows[1:]], result.units.amplitude_uv, atol=0.051)
    for file in folder.glob("*.npz"):
        with np.load(file, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype.kind in "iufbU" for name in arrays.files)


def test_saved_amplitudes_agree_with_the_raw_data_in_microvolts(tmp_path):
    data = planted()
    folder = save_result(data.result, tmp_path / "out")
    spikes, units = np.load(folder / "spikes.npz"), data.result.units
    for k in range(len(units)):
        mine = spikes["units"] == k
        measured = -data.filtered_uv[units.channel[k], spikes["samples"][mine]]
        assert spikes["amplitudes_uv"][mine].mean() == pytest.approx(measured.mean(), rel=0.01)


def test_the_readme_names_every_file_and_every_array_of_the_spikes(tmp_path):
    folder = save_result(planted().result, tmp_path / "out")
    text = (folder / "README.txt").read_text()
    for path in folder.iterdir():
        assert path.name in text or path.name == "README.txt"
    for name in np.load(folder / "spikes.npz").files:
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    result, folder = planted().result, tmp_path / "out"
    folder.mkdir()
    save_result(result, folder)  # an empty folder is free
    with pytest.raises(OutputError, match="holds a sorting already.*overwrite"):
        save_result(result, folder)
    other = planted(n_units=3).result
    (folder / "notes.txt").write_text("mine")
    save_result(other, folder, overwrite=True)
    assert_same(other, load_result(folder))
    assert (folder / "notes.txt").read_text() == "mine"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.doc").write_text("mine")
    with pytest.raises(OutputError, match="holds other files: thesis.doc"):
        save_result(result, foreign)
    with pytest.raises(OutputError, match="is a file, not a folder"):
        save_result(result, foreign / "thesis.doc")
    with pytest.raises(OutputError, match="cannot be written"):
        save_result(result, foreign / "thesis.doc" / "out")
    with pytest.raises(OutputError, match="is a folder"):
        save_model(result.model, foreign)
    assert [p.name for p in foreign.iterdir()] == ["thesis.doc"]


def test_what_is_no_result_is_said_to_be_none(tmp_path):
    result = planted().result
    with pytest.raises(OutputError, match="There is no folder"):
        load_result(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="no sorting by sortcore"):
        load_result(tmp_path)
    with pytest.raises(OutputError, match="missing"):
        load_model(tmp_path / "nothing.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(OutputError, match="no model of sortcore"):
        load_model(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(OutputError, match="cannot be read"):
        load_model(tmp_path / "text.npz")
    assert not is_result(tmp_path) and is_result(save_result(result, tmp_path / "out"))


def damage_seal(folder: Path, **values):
    seal = folder / "result.json"
    seal.write_text(json.dumps(json.loads(seal.read_text()) | values))


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: damage_seal(f, format=99), "format 99, written by a later sortcore"),
    (lambda f: damage_seal(f, sortcore="recipe"), "no result of sortcore"),
    (lambda f: (f / "result.json").write_text("{"), "result.json cannot be read"),
    (lambda f: (f / "spikes.npz").unlink(), "spikes.npz is missing"),
    (lambda f: os.truncate(f / "spikes.npz", 2000), "spikes.npz cannot be read"),
    (lambda f: np.savez(f / "units.npz", label=np.zeros(0, "<U5")), "units.npz cannot be read"),
    (lambda f: os.replace(save_result(planted(n_units=2).result, f / "x") / "spikes.npz", f / "spikes.npz"), "different sortings"),
], ids=["later", "other", "no json", "missing", "cut short", "arrays missing", "mixed"])
def test_a_damaged_result_says_what_is_wrong(damage, message, tmp_path):
    folder = save_result(planted().result, tmp_path / "out")
    damage(folder)
    with pytest.raises(OutputError, match=message):
        load_result(folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full, the disk that is always full")
def test_a_full_disk_is_called_a_full_disk():
    with pytest.raises(OutputError, match="disk is full"), writing(Path("/dev/full")):
        write_npz(Path("/dev/full"), {"a": np.zeros(100_000)})


LIMITED = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from helpers_result import planted
from sortcore.errors import OutputError
from sortcore.export import save_model, save_result
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
result = planted(n_units=3).result
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
for name in ("out", "fresh"):
    try:
        save_result(result, sys.argv[1] + "/" + name, overwrite=True)
    except OutputError as error:
        print(error)
try:
    save_model(result.model, sys.argv[1] + "/model.npz")
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of a file as POSIX does")
def test_a_write_that_fails_half_way_leaves_the_old_result_and_nothing_else(tmp_path):
    result = planted().result
    save_result(result, tmp_path / "out")
    before = save_model(result.model, tmp_path / "model.npz").read_bytes()
    here = Path(__file__).parent
    run = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path), str(here)], check=False, capture_output=True, text=True,
                         cwd=here.parent)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("cannot be written (File too large)") == 3
    assert_same(result, load_result(tmp_path / "out"))
    assert (tmp_path / "model.npz").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.npz", "out"]
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


def test_an_array_of_python_objects_is_refused(tmp_path):
    result = planted().result
    units = dataclasses.replace(result.units, label=result.units.label.astype(object))
    with pytest.raises(OutputError, match="Python objects"):
        save_result(dataclasses.replace(result, units=units), tmp_path / "out")
    assert not (tmp_path / "out").exists()
