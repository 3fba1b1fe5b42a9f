"""Records in files: an array is stored under its dotted name in an .npz, all else in one JSON text beside it.

Nothing is pickled. What goes wrong becomes an OutputError that names the file, the cause and the cure.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from sortcore.errors import OutputError

FORMAT = 1  # raised when a file written now could not be read by an older sortcore
FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name)}
PART = ".part"  # the name's end of a file that is being written
SAVING = ".saving-"  # its beginning, of a folder
ROWS, USED = ":rows", ":used"  # of an array that is stored without its rows of zeros,
MANY_USED = 0.7  # where there are more of them than this
Record = TypeVar("Record")


def pack(record: Any, kind: str, prefix: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a record and of the records in it, and what is not an array."""
    arrays: dict[str, np.ndarray] = {}
    meta: dict[str, Any] = {} if prefix else {"sortcore": kind, "format": FORMAT}
    for f in dataclasses.fields(record):
        value, name = getattr(record, f.name), prefix + f.name
        if dataclasses.is_dataclass(value):
            inner_arrays, inner_meta = pack(value, kind, name + ".")
            arrays, meta = arrays | inner_arrays, meta | inner_meta
        elif isinstance(value, np.ndarray):
            arrays[name] = value
        else:
            meta[name] = value
    return arrays, meta


def unpack(cls: type[Record], arrays: dict[str, np.ndarray], meta: dict[str, Any], prefix: str = "") -> Record:
    """The inverse of `pack`; the record's annotations say what a JSON value was."""
    values, hints = {}, get_type_hints(cls)
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        name, hint = prefix + f.name, hints[f.name]
        inner: Any = next((t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)), None)
        if name in arrays:
            values[f.name] = arrays[name]
        elif name in meta:
            values[f.name] = restore(meta[name], hint)
        elif inner is not None:
            values[f.name] = unpack(inner, arrays, meta, name + ".")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise KeyError(name)
    return cls(**values)


def restore(value: Any, hint: Any) -> Any:
    """Turn a JSON value back into the tuple or the dictionary with integer keys that it was."""
    if get_origin(hint) is tuple:
        return tuple(value)
    if get_origin(hint) is dict and get_args(hint)[0] is int:
        return {int(key): item for key, item in value.items()}
    return value


def to_json(values: dict[str, Any]) -> str:
    """JSON text, numpy numbers and arrays included."""
    return json.dumps(values, indent=1, default=lambda v: v.tolist() if isinstance(v, (np.ndarray, np.generic)) else str(v)) + "\n"


def write_npz(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any] | None = None, compress: bool = False) -> None:
    """Write arrays to an .npz, whose entries numpy dates 1980, so that the same arrays give the same bytes."""
    for name, array in arrays.items():
        if array.dtype.kind == "O":
            raise OutputError(f"{name} is an array of Python objects, which a result cannot hold; make it numbers or text.")
    text = {} if meta is None else {"meta": np.array(to_json(meta))}
    with open(path, "wb") as file:
        (np.savez_compressed if compress else np.savez)(file, **arrays, **text)  # type: ignore[arg-type]
        to_disk(file)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with the same line ends everywhere."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        to_disk(file)


def to_disk(file: IO[Any]) -> None:
    """Wait until what was written would outlast a loss of power."""
    file.flush()
    os.fsync(file.fileno())


def write_whole(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write an .npz that is there as a whole or not at all; rows of zeros take no room. Raises OutputError where that fails."""
    with whole(path) as part:
        write_npz(part, thinned(arrays), meta)


def save_record(record: Any, path: str | Path, kind: str) -> Path:
    """Save a record to one compressed .npz, whole; the same record gives the same bytes. Raises OutputError where that fails."""
    path = Path(path)
    with whole(path) as part:
        write_npz(part, *pack(record, kind), compress=True)
    return path


@contextmanager
def whole(path: Path, suffix: str = PART) -> Iterator[Path]:
    """A name to write to: the file is at `path` when all of it is written, and not before. Raises OutputError where that fails."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.stem}.{os.getpid()}{suffix}")
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what `write_whole` could not complete in processes that have ended."""
    for part in folder.rglob(f".*{PART}"):
        number = part.name.removesuffix(PART).rpartition(".")[2]
        if number.isdigit() and not running(int(number)):
            part.unlink(missing_ok=True)


def running(process: int) -> bool:
    """Whether there is a process of that number; True where that cannot be told."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def thinned(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays, those with many rows of zeros as their other rows and a mask: waveforms are zero on most channels."""
    out: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        used = np.ones(1, bool)
        if array.ndim > 1 and array.size:  # by their bits: minus zero is no zero
            used = np.any(np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape[:-1], -1), axis=-1)
        if used.mean() > MANY_USED:
            out[name] = array
        else:
            out[name + ROWS], out[name + USED] = array[used], used
    return out


def thickened(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `thinned`, to the bit."""
    out = {name: array for name, array in arrays.items() if not name.endswith((ROWS, USED))}
    for name in (n.removesuffix(USED) for n in arrays if n.endswith(USED)):
        used, rows = arrays[name + USED], arrays[name + ROWS]
        out[name] = np.zeros((*used.shape, rows.shape[-1]), rows.dtype)
        out[name][used] = rows
    return out


def read_record(cls: type[Record], path: Path, meta: dict[str, Any] | None = None, kind: str | None = None) -> Record:
    """Read a record from its .npz. With `kind`, the file must say that it is one, in a version that is known."""
    with explained(path):
        arrays, known = read_arrays(path, kind)
        return unpack(cls, arrays, known | (meta or {}))


def read_arrays(path: Path, kind: str | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of an .npz and what is not an array, as `pack` gives them."""
    with explained(path):
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        text = arrays.pop("meta", None)
        known = {} if text is None else json.loads(str(text))
        if kind is not None:
            check_format(known, kind, path)
        return thickened(arrays), known


def check_format(meta: Any, kind: str, path: Path) -> None:
    """Raise OutputError unless a file is a `kind` that this sortcore can read."""
    if not isinstance(meta, dict) or meta.get("sortcore") != kind:
        raise OutputError(f"{path} is no {kind} of sortcore.")
    if not isinstance(meta.get("format"), int) or meta["format"] > FORMAT:
        written = meta.get("format")
        raise OutputError(f"{path} is in format {written}, written by a later sortcore; this one reads up to {FORMAT}. Update sortcore.")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in reading into an OutputError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise OutputError(f"{path} is missing; the result is not complete. Sort again.") from error
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise OutputError(f"{path} cannot be read ({type(error).__name__}: {error}); it is damaged or no file of sortcore.") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into an OutputError that names cause and cure."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise OutputError(f"The disk is full: {path} could not be written. Make room, or choose a folder on another disk.") from error
        cause = error.strerror or error
        raise OutputError(f"{path} cannot be written ({cause}). Check the name and its permissions, or choose another.") from error


def is_full(error: OSError) -> bool:
    """Whether a failure to write means that the disk is full, which numpy and HDF5 tell in words of their own."""
    text = str(error)
    return error.errno in FULL or "No space left" in text or (error.errno is None and " requested and " in text and " written" in text)


def check_room(path: Path, n_bytes: int) -> None:
    """Raise OutputError where the disk has no room for so much, for files whose writing had better not fail half-way."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OutputError(f"The disk is full: {path} takes about {n_bytes / 1e6:.3g} MB, and {free / 1e6:.3g} MB are free. Make room, or "
                          "choose a folder on another disk.")


@contextmanager
def staging(folder: Path, seal: str) -> Iterator[Path]:
    """A hidden folder inside `folder`, whose files move to their places once all are complete.

    The file `seal` is taken away first and put in place last: a folder that has it is whole.
    """
    fresh = not folder.exists()
    stage = None
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stage = Path(tempfile.mkdtemp(prefix=SAVING, dir=folder))
            yield stage
            (folder / seal).unlink(missing_ok=True)
            for file in sorted(stage.iterdir(), key=lambda f: (f.name == seal, f.name)):
                os.replace(file, folder / file.name)
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        if fresh and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
