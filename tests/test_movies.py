"""Movies in files of every kind: read in pieces, turned where their shape tells, refused where they are none."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from sortcore.errors import ConfigError, RecordingError
from sortcore.optical.movies import look, open_movie, pieces, require_movie_rate

T, H, W = 40, 12, 17


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, (T, H, W)).astype(np.uint16)


def write(kind: str, frames: np.ndarray, folder: Path) -> Path:
    """The same frames in a file of a kind."""
    path = folder / f"movie.{kind}"
    if kind == "npy":
        np.save(path, frames)
    elif kind == "fortran.npy":
        np.save(path, np.asfortranarray(frames))
    elif kind in ("tif", "big.tif", "packed.tif"):
        tifffile.imwrite(path, frames, bigtiff=kind == "big.tif", photometric="minisblack",
                         compression="zlib" if kind == "packed.tif" else None)
    elif kind == "paged.tif":  # page by page, as microscopes write
        with tifffile.TiffWriter(path, bigtiff=True, byteorder=">") as file:
            for frame in frames:
                file.write(frame, contiguous=False, photometric="minisblack", metadata=None)
    elif kind == "imagej.tif":
        tifffile.imwrite(path, frames, imagej=True, metadata={"axes": "TYX", "finterval": 0.05})
    elif kind == "ome.tif":
        tifffile.imwrite(path, frames, photometric="minisblack", metadata={"axes": "TYX", "TimeIncrement": 50.0, "TimeIncrementUnit": "ms"})
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("data/mov", data=frames, chunks=(5, H, W), compression="lzf").attrs["fr"] = 20.0
            file["times"] = np.arange(T)
    elif kind == "zarr":
        array = zarr.open(str(path), mode="w", shape=frames.shape, chunks=(7, H, W), dtype=frames.dtype)
        array[:] = frames
        array.attrs["fs"] = 20.0
    elif kind == "nwb":
        write_nwb(path, frames)
    return path


def write_nwb(path: Path, frames: np.ndarray) -> None:
    pynwb = pytest.importorskip("pynwb")
    from datetime import datetime, timezone

    file = pynwb.NWBFile(session_description="test", identifier="test", session_start_time=datetime(2020, 1, 1, tzinfo=timezone.utc))
    device = file.create_device(name="microscope")
    channel = pynwb.ophys.OpticalChannel(name="channel", description="green", emission_lambda=510.0)
    plane = file.create_imaging_plane(name="plane", optical_channel=channel, description="test", device=device, excitation_lambda=920.0,
                                      indicator="GCaMP", location="V1")
    file.add_acquisition(pynwb.ophys.TwoPhotonSeries(name="movie", data=frames, imaging_plane=plane, rate=20.0, unit="counts"))
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)


KINDS = {"npy": None, "fortran.npy": None, "tif": None, "big.tif": None, "packed.tif": None, "paged.tif": None, "imagej.tif": 20.0,
         "ome.tif": 20.0, "h5": 20.0, "zarr": 20.0, "nwb": 20.0}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_frames(kind: str, frames: np.ndarray, tmp_path: Path) -> None:
    movie = open_movie(write(kind, frames, tmp_path))
    assert movie.shape == (T, H, W) and movie.dtype == np.uint16 and len(movie) == T
    assert movie.fs is None if KINDS[kind] is None else movie.fs == pytest.approx(KINDS[kind])
    np.testing.assert_array_equal(movie[0:T], frames)
    np.testing.assert_array_equal(movie[11:14], frames[11:14])
    np.testing.assert_array_equal(movie[T - 3 : T + 5], frames[-3:])
    np.testing.assert_array_equal(movie[30:30], frames[30:30])
    np.testing.assert_array_equal(movie[2:20:5], frames[2:20:5])
    np.testing.assert_array_equal(movie[T - 1], frames[-1])
    assert movie[3:9].flags.c_contiguous and movie[3:9].dtype.isnative
    with pytest.raises(IndexError, match="0 to 39"):
        movie[T]


@pytest.mark.parametrize("dtype", ["int8", "uint8", ">i2", "uint16", "int32", ">u4", "int64", "uint64", "float16", "float32", ">f8", "?"])
def test_integers_and_floats_of_any_width_are_read(dtype: str, frames: np.ndarray, tmp_path: Path) -> None:
    frames = (frames % 100).astype(dtype)
    np.save(tmp_path / "movie.npy", frames)
    movie = open_movie(tmp_path / "movie.npy")
    assert movie.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(movie[5:20], frames[5:20])


@pytest.mark.parametrize("axes", ["HWT", "TWH", "WTH"])
def test_axes_in_any_order_are_turned_when_they_are_said(axes: str, frames: np.ndarray, tmp_path: Path) -> None:
    turned = np.transpose(frames, ["THW".index(letter) for letter in axes])
    np.save(tmp_path / "movie.npy", turned)
    for source in (turned, tmp_path / "movie.npy"):
        movie = open_movie(source, axes=axes)
        assert movie.shape == (T, H, W)
        np.testing.assert_array_equal(movie[3:8], frames[3:8])


def test_time_last_is_told_from_the_shape_where_only_that_can_be() -> None:
    array = np.arange(16 * 16 * 50, dtype=np.uint16).reshape(16, 16, 50)
    with pytest.warns(UserWarning, match="time is taken to be its last axis"):
        movie = open_movie(array)
    np.testing.assert_array_equal(movie[7], array[:, :, 7])
    with pytest.warns(UserWarning, match="last axis"):
        assert open_movie(np.zeros((20, 25, 3000), np.uint8)).shape == (3000, 20, 25)


@pytest.mark.parametrize("shape", [(50, 16, 16), (16, 16, 16), (3000, 20, 25), (50, 16, 20), (8, 32, 32), (3000, 16, 128)])
def test_time_first_is_left_alone(shape: tuple[int, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_movie(np.zeros(shape, np.uint8)).shape == shape
        assert open_movie(np.zeros((*shape, 1), np.uint8)).shape == shape
        assert open_movie(np.zeros((shape[0], 1, *shape[1:]), np.uint8)).shape == shape


@pytest.mark.parametrize("shape", [(32, 32, 20), (20, 300, 3000)])
def test_axes_that_the_shape_does_not_tell_must_be_said(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"cannot be told.*--axes"):
        open_movie(np.zeros(shape, np.uint8))
    assert open_movie(np.zeros(shape, np.uint8), axes="THW").shape == shape


@pytest.mark.parametrize("axes", ["TH", "THWC", "TTW", "ABC", ""])
def test_axes_that_do_not_fit_are_refused(axes: str, frames: np.ndarray) -> None:
    if not axes:
        assert open_movie(frames, axes=axes).shape == frames.shape
        return
    with pytest.raises(ConfigError, match="does not fit"):
        open_movie(frames, axes=axes)


@pytest.mark.parametrize(("array", "match"), [
    (np.zeros((1, 20, 20)), "single frame"),
    (np.zeros((20, 30)), "one picture, or traces"),
    (np.zeros((20, 30, 3), np.uint8), "colour"),
    (np.zeros((50, 20, 30, 3), np.uint8), "colour"),
    (np.zeros((50, 4, 20, 30)), "too many axes"),
    (np.zeros((0, 20, 30)), "no pixels"),
    (np.zeros((50, 20, 30), complex), "complex128"),
    (np.full((50, 20, 30), "a"), "<U1"),
    (np.zeros(50), "too few axes"),
    ([1, 2, 3], "but this is a list"),
])
def test_what_is_no_movie_is_refused_in_words(array: object, match: str) -> None:
    with pytest.raises(RecordingError, match=match):
        open_movie(array)


def test_a_line_is_no_picture() -> None:
    with pytest.raises(RecordingError, match="no picture"):
        open_movie(np.zeros((9, 1, 30)), axes="THW")


@pytest.mark.parametrize("kind", ["npy", "tif", "packed.tif", "paged.tif", "imagej.tif", "ome.tif", "h5", "nwb"])
def test_a_file_that_is_cut_short_is_an_error_before_work(kind: str, frames: np.ndarray, tmp_path: Path) -> None:
    path = write(kind, frames, tmp_path)
    whole = path.read_bytes()
    for share in (0.0, 0.001, 0.7, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        if kind == "imagej.tif" and share == 0.999:  # all frames are there, what is lost comes after them
            np.testing.assert_array_equal(open_movie(path)[:], frames)
            continue
        with pytest.raises(RecordingError, match=path.name):
            open_movie(path)


@pytest.mark.parametrize("kind", ["npy", "tif", "packed.tif", "paged.tif", "h5"])
def test_a_file_that_is_cut_short_while_it_is_open_is_an_error(kind: str, frames: np.ndarray, tmp_path: Path) -> None:
    path = write(kind, frames, tmp_path)
    movie = open_movie(path)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(RecordingError):
        movie[T - 5 : T]


def test_a_file_that_is_damaged_or_missing_is_named(tmp_path: Path) -> None:
    for name in ("movie.npy", "movie.tif", "movie.h5", "movie.nwb"):
        (tmp_path / name).write_bytes(b"nothing of the kind" * 50)
        with pytest.raises(RecordingError, match=name):
            open_movie(tmp_path / name)
    with pytest.raises(RecordingError, match="no file or folder"):
        open_movie(tmp_path / "absent.tif")
    (tmp_path / "movie.avi").write_bytes(b"RIFF")
    with pytest.raises(RecordingError, match="no known ending"):
        open_movie(tmp_path / "movie.avi")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordingError, match="no TIFF files"):
        open_movie(tmp_path / "empty")
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    with pytest.raises(RecordingError, match="objects"):
        open_movie(tmp_path / "objects.npy")


def test_numbered_files_are_one_movie_in_the_order_of_their_numbers(frames: np.ndarray, tmp_path: Path) -> None:
    folder, parts = tmp_path / "stack", []
    folder.mkdir()
    for i, (start, stop) in enumerate([(0, 10), (10, 11), (11, 30), (30, 40)]):
        parts.append(folder / f"frame_{[1, 2, 9, 10][i]}.tif")
        tifffile.imwrite(parts[-1], frames[start:stop], photometric="minisblack")
    (folder / "notes.txt").write_text("not a picture")
    for source in (folder, parts):
        movie = open_movie(source, fs=20.0)
        assert movie.shape == (T, H, W) and movie.fs == 20.0
        np.testing.assert_array_equal(movie[0:T], frames)
        np.testing.assert_array_equal(movie[9:12], frames[9:12])
    tifffile.imwrite(folder / "frame_11.tif", frames[:3, :5], photometric="minisblack")
    with pytest.raises(RecordingError, match=r"frame_11.tif has frames of 5 x 17 uint16, but .*frame_1.tif of 12 x 17"):
        open_movie(folder)


def test_single_pictures_in_numbered_files_are_a_movie(frames: np.ndarray, tmp_path: Path) -> None:
    for t in range(T):
        tifffile.imwrite(tmp_path / f"t{t}.tif", frames[t], photometric="minisblack")
    np.testing.assert_array_equal(open_movie(tmp_path)[8:13], frames[8:13])


def test_a_data_set_of_several_ome_files_is_one_movie(frames: np.ndarray, tmp_path: Path) -> None:
    """As Micro-Manager writes: each file tells of all of them."""
    names, halves = ("a_1.ome.tif", "a_2.ome.tif"), (frames[:25], frames[25:])
    ids = ("urn:uuid:00000000-0000-0000-0000-000000000001", "urn:uuid:00000000-0000-0000-0000-000000000002")
    first, planes = 0, ""
    for name, uuid, half in zip(names, ids, halves, strict=True):
        for i in range(len(half)):
            planes += f'<TiffData FirstT="{first + i}" IFD="{i}" PlaneCount="1"><UUID FileName="{name}">{uuid}</UUID></TiffData>'
        first += len(half)
    for name, uuid, half in zip(names, ids, halves, strict=True):
        told = (f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid}"><Image ID="Image:0">'
                f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="{W}" SizeY="{H}" SizeC="1" SizeZ="1" SizeT="{T}">'
                f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>')
        with tifffile.TiffWriter(tmp_path / name) as file:
            for i, frame in enumerate(half):
                file.write(frame, contiguous=False, photometric="minisblack", metadata=None, description=told if i == 0 else None)
    with tifffile.TiffFile(tmp_path / names[0]) as file:
        assert file.series[0].is_multifile  # otherwise this tests nothing
    movie = open_movie(tmp_path)
    assert movie.shape == (T, H, W)
    np.testing.assert_array_equal(movie[:], frames)


def test_a_channel_of_several_must_be_said(frames: np.ndarray, tmp_path: Path) -> None:
    both = np.stack([frames, frames[::-1]], axis=1)
    path = tmp_path / "two.tif"
    tifffile.imwrite(path, both, imagej=True, metadata={"axes": "TCYX"})
    with pytest.raises(ConfigError, match=r"2 channels.*--channel"):
        open_movie(path)
    np.testing.assert_array_equal(open_movie(path, channel=1)[5:8], frames[::-1][5:8])
    with pytest.raises(ConfigError, match="channel 2"):
        open_movie(path, channel=2)
    tifffile.imwrite(path, np.stack([both, both], axis=1), imagej=True, metadata={"axes": "TZCYX"})
    with pytest.raises(RecordingError, match="of one plane"):
        open_movie(path, channel=0)
    tifffile.imwrite(path, np.zeros((10, H, W, 3), np.uint8), photometric="rgb")
    with pytest.raises(RecordingError, match="colour"):
        open_movie(path)


def test_one_array_of_several_must_be_named(frames: np.ndarray, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["raw"], file["registered/movie"], file["trace"] = frames, frames + 1, frames[:, 0, 0]
    group = zarr.open_group(str(tmp_path / "two.zarr"), mode="w")
    for name, values in (("raw", frames), ("registered/movie", frames + 1)):
        group.create_dataset(name, data=values)
    for path in (tmp_path / "two.h5", tmp_path / "two.zarr"):
        with pytest.raises(RecordingError, match=r"several arrays.*raw \(40, 12, 17\).*registered/movie.*--key"):
            open_movie(path)
        for key in ("registered/movie", "/registered/movie", "movie"):
            np.testing.assert_array_equal(open_movie(path, key=key)[:], frames + 1)
        with pytest.raises(RecordingError, match="no 'other'"):
            open_movie(path, key="other")
    with pytest.raises(RecordingError, match="one picture, or traces|too few"):
        open_movie(tmp_path / "two.h5", key="trace")
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["trace"] = frames[:, 0, 0]
    with pytest.raises(RecordingError, match="no array of three axes"):
        open_movie(tmp_path / "none.h5")


def test_the_frame_rate_is_the_given_one_or_must_be_said(frames: np.ndarray, tmp_path: Path) -> None:
    path = write("h5", frames, tmp_path)
    assert open_movie(path, fs=7.5).fs == 7.5 and require_movie_rate(open_movie(path)) == 20.0
    with pytest.raises(ConfigError, match="--fs"):
        require_movie_rate(open_movie(frames))
    for fs in (0.0, -1.0, np.nan):
        with pytest.raises(ConfigError, match="above 0"):
            open_movie(frames, fs=fs)


def test_a_movie_and_what_is_sliced_like_an_array_are_opened_again(frames: np.ndarray, tmp_path: Path) -> None:
    again = open_movie(open_movie(frames), fs=3.0)
    assert again.fs == 3.0 and again.shape == frames.shape
    with h5py.File(write("h5", frames, tmp_path), "r") as file:
        np.testing.assert_array_equal(open_movie(file["data/mov"])[4:6], frames[4:6])


def test_a_look_finds_what_is_missing_and_what_never_changes(frames: np.ndarray) -> None:
    odd = frames.astype(np.float32)
    odd[:, :3], odd[:, 3:6] = np.nan, 7.0
    seen = look(open_movie(odd))
    assert seen.missing == pytest.approx(0.25) and seen.constant == pytest.approx(0.5)
    at = np.unique(np.linspace(0, T - 1, 16).astype(int))
    assert (seen.low, seen.high) == (min(7, odd[at, 6:].min()), odd[at, 6:].max())
    with pytest.raises(RecordingError, match="NaN"):
        look(open_movie(np.full((T, H, W), np.nan, np.float32)))


def test_pieces_lie_end_to_end_and_are_small_enough() -> None:
    cut = pieces(103, (10, 10), max_bytes=4000)
    assert [c.start for c in cut] == list(range(0, 103, 10)) and cut[-1].stop == 103
    assert pieces(3, (1000, 1000), max_bytes=1) == [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
@pytest.mark.parametrize("kind", ["npy", "paged.tif", "h5", "zarr"])
def test_reading_in_pieces_keeps_memory_small(kind: str, tmp_path: Path) -> None:
    """All of a movie of 72 MB is read by a process that may grow by 30 MB."""
    global H, W
    path, size = tmp_path / f"movie.{kind}", (280, 500, 256)
    before, (H, W) = (H, W), size[1:]
    try:
        write(kind, np.random.default_rng(0).integers(0, 255, size, np.uint16), tmp_path)
    finally:
        H, W = before
    code = (f"import resource, h5py, zarr, tifffile; from sortcore.optical.movies import *; movie = open_movie({str(path)!r}); movie[0:8];"
            "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "total = sum(int(movie[part].sum()) for part in pieces(len(movie), movie.shape[1:], 2**22))\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start, total)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, total = (int(word) for word in done.stdout.split())
    assert grown < 30_000 and total > 0
