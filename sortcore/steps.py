"""Results of the stages kept on disk, so that a sort that was stopped goes on where it was.

Stages follow on each other. A stage's result lies in a file named by the stage and a key: a hash of the recording, the probe, the
code, and the settings of this stage and of all before it. A setting that is changed changes the keys from its stage on; what
comes before is found again. Every file is written beside its place, brought to the disk and then renamed, so that it is whole
or not there at all, whatever happens and whenever.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from sortcore.archive import FORMAT, pack, read_arrays, read_record, remove_parts, write_whole
from sortcore.errors import OutputError
from sortcore.recording import Recording
from sortcore.workers import InOrder, Item, spread_by, spread_now

Out = TypeVar("Out")

KIND = "step"  # what a file says that it is
KEY = 16  # hexadecimal digits of a hash in a file's name
HASHED_BLOCKS = 64  # of a recording, spread evenly over it,
BLOCK_VALUES = 1 << 18  # of so many stored values each
EVERY_SECONDS = 20.0  # a long pass over the recording writes what it has found so often


@dataclass(frozen=True)
class Form(Generic[Out]):
    """How a stage's result is kept: as a record of its own, from which it can be made again to the bit."""

    record: type
    to: Callable[[Out], Any] = lambda result: result
    back: Callable[[Any], Out] = lambda record: record


class Steps:
    """The results of one sort's stages, in a folder; kept nowhere where there is none.

    identity: hash of what all stages depend on; fresh: do not use what earlier sorts of this recording left
    """

    def __init__(self, folder: Path | None, identity: str, fresh: bool = False, every_seconds: float = EVERY_SECONDS) -> None:
        self.folder, self.key, self.every_seconds = folder, identity, every_seconds
        self.used: set[Path] = set()
        if folder is not None and fresh and folder.is_dir():
            shutil.rmtree(folder)

    def keep(self, name: str, form: Form[Out], make: Callable[[], Out], *settings: Any, parts: Callable[..., Any] | None = None) -> Out:
        """The result of the next stage, read where it is kept, else made and kept.

        settings: all that the stage depends on beside the stages before it
        parts: for a stage that passes over the recording, what makes the result of a chunk of its arrays; chunks are kept as well
        Raises OutputError where it cannot be written: the disk is full, for one. What was kept before stays.
        """
        self.key = digest(self.key, name, *settings)
        if self.folder is None:
            return make()
        path = self.folder / f"{name}-{self.key[:KEY]}.npz"
        self.used.add(path)
        record = read_whole(path, form.record)
        if record is not None:
            return form.back(record)
        folder = self.folder / f"parts-{self.key[:KEY]}"
        with spread_by(None if parts is None else kept_in_parts(folder, parts, spread_now(), self.every_seconds)):
            result = make()
        write_whole(path, *pack(form.to(result), KIND))
        shutil.rmtree(folder, ignore_errors=True)
        return result

    def finish(self) -> None:
        """Take away what this sort did not use: results of other settings, and what was never completed."""
        if self.folder is None or not self.folder.is_dir():
            return
        for path in set(self.folder.iterdir()) - self.used:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def read_whole(path: Path, record: type) -> Any:
    """A record that was kept; None where there is none, or where the disk has damaged it."""
    with suppress(OutputError):
        return read_record(record, path, kind=KIND) if path.is_file() else None
    return None


def kept_in_parts(folder: Path, build: Callable[..., Any], spread: InOrder, every_seconds: float) -> InOrder:
    """As `spread`, but every so many seconds the results of the latest items are written to the folder, and those that are there
    are read. build: makes a result, which is a record or a sequence of arrays, of those arrays."""
    passes = count()

    def in_order(function: Callable[[Item], Out], items: Sequence[Item], /) -> Iterator[Out]:
        place = folder / f"{next(passes)}-{len(items)}"
        done = 0
        for part in parts_in(place):
            yield from (build(*arrays) for arrays in part)
            done += len(part)
        new: list[Out] = []
        last = time.monotonic()
        for result in spread(function, items[done:]):
            new.append(result)
            yield result
            if time.monotonic() - last >= every_seconds:
                write_part(place / f"{done:08d}-{done + len(new):08d}.npz", new)
                done, new, last = done + len(new), [], time.monotonic()

    return in_order


def write_part(path: Path, results: Sequence[Any]) -> None:
    """Keep the arrays of several results, each end to end, and how long they are."""
    rows = [tuple(vars(r).values()) if dataclasses.is_dataclass(r) else tuple(r) for r in results]
    arrays = {str(i): np.concatenate(column) for i, column in enumerate(zip(*rows, strict=True))}
    write_whole(path, arrays | {"lengths": np.array([[len(a) for a in row] for row in rows])}, {"sortcore": KIND, "format": FORMAT})


def parts_in(folder: Path) -> Iterator[list[list[np.ndarray]]]:
    """The arrays of each result, part by part, from the first on, as far as parts follow on each other."""
    done = 0
    for path in sorted(folder.glob("*.npz")):
        start, stop = map(int, path.stem.split("-"))
        if start != done:
            continue
        with suppress(OutputError):
            arrays, _ = read_arrays(path, KIND)
            ends = np.cumsum(arrays.pop("lengths"), axis=0)
            columns = [np.split(arrays[str(i)], ends[:-1, i]) for i in range(len(arrays))]
            yield [list(row) for row in zip(*columns, strict=True)]
            done = stop


def open_steps(work: str | Path | None, recording: Recording, fresh: bool, *others: Any) -> Steps:
    """The kept results of one recording in the folder `work`, of whatever settings. others: what else all stages depend on."""
    if work is None:
        return Steps(None, "")
    content = fingerprint(recording)
    folder = Path(work) / content[:KEY]
    if folder.is_dir():
        remove_parts(folder)
    return Steps(folder, digest(content, code(), *others), fresh)


def fingerprint(recording: Recording) -> str:
    """A hash of a recording's content, wherever it lies: of all of it where it is short, else of blocks spread evenly over it."""
    told = (recording.fs, recording.n_channels, recording.segment_lengths, recording.gain_uv, recording.offset)
    total = hashlib.blake2b(digest(*told).encode(), digest_size=16)
    size = max(1, BLOCK_VALUES // recording.n_channels)
    first = 0
    for length in recording.segment_lengths:
        n_blocks = -(-length // size)
        for i in np.unique(np.linspace(0, n_blocks - 1, min(n_blocks, HASHED_BLOCKS)).astype(np.int64)):
            start = first + int(i) * size
            stored = np.ascontiguousarray(recording.read(start, min(start + size, first + length)))
            total.update(f"{stored.dtype.str} {stored.shape}".encode())
            total.update(stored.data)
        first += length
    return total.hexdigest()


def digest(*things: Any) -> str:
    """A hash of numbers, text, arrays, records, and sequences and dictionaries of them."""
    total = hashlib.blake2b(digest_size=16)
    for thing in things:
        if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            said = digest(type(thing).__name__, *((f.name, getattr(thing, f.name)) for f in dataclasses.fields(thing)))
        elif isinstance(thing, np.ndarray):
            said = digest(thing.dtype.str, thing.shape, thing.tobytes())
        elif isinstance(thing, (tuple, list)):
            said = digest("sequence", *thing)
        elif isinstance(thing, dict):
            said = digest("dictionary", *sorted(thing.items()))
        else:
            said = repr(thing)
        total.update(f"{len(said)}:{said}".encode())
    return total.hexdigest()


@cache
def code() -> str:
    """A hash of this package's source: results of other code are not used."""
    folder = Path(__file__).parent
    total = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*.py")):
        total.update(os.fsencode(path.relative_to(folder).as_posix()) + path.read_bytes())
    return total.hexdigest()
