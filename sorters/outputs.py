"""Where the command's results go: tried before work begins, written at its end."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sortcore import Probe, SortingResult
from sortcore.archive import SAVING
from sortcore.errors import OutputError
from sortcore.export import check_free, is_result, save_result
from sorters.console import say
from sorters.recordings import RawFile

WORK = "work"  # in the folder for a result: what stages have finished,
MARK = ".unfinished"  # and that there is no result yet, or not all of it


@contextlib.contextmanager
def output_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """The folder for a result, made and tried; on the way out, what was made here and stayed empty goes away again.

    While this lasts a hidden file marks the folder as unfinished: what a sort that was killed has left there is not in the way.
    Raises OutputError where it is not empty (unless `overwrite`) or cannot be written.
    """
    mark = out / MARK
    try:
        check_free(out, overwrite or mark.exists())
    except OutputError as error:
        raise OutputError(str(error).replace("overwrite=True", "--overwrite")) from error
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out):
                pass
            for left in out.glob(f"{SAVING}*"):
                shutil.rmtree(left, ignore_errors=True)
            mark.touch()
        except OSError as error:
            raise OutputError(f"{out} cannot be written ({error.strerror or error}). Choose another folder for --out.") from error
        yield out
        mark.unlink(missing_ok=True)
    except BaseException:
        if out.is_dir() and [entry.name for entry in out.iterdir()] == [MARK]:
            mark.unlink(missing_ok=True)
        raise
    finally:
        remove_empty(made)


@contextlib.contextmanager
def resumable(work: Path, resume: bool) -> Iterator[Path]:
    """The folder where stages keep what they finish. Says whether something is there, and, should the sort not come to its end,
    that the next one can go on with it."""
    if resume and holds_steps(work):
        say(f"What is kept in {work} is used where it fits.")
    try:
        yield work
    except BaseException:
        if holds_steps(work):
            say(f"\nWhat was finished is kept in {work}: the same command goes on from there.", error=True)
        raise


def holds_steps(work: Path) -> bool:
    return next(work.glob("*/*"), None) is not None


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def save_all(result: SortingResult, out: Path, raw: RawFile | None, phy: bool, report: bool) -> list[tuple[str, Path]]:
    """Write the result, and phy's folder and the pictures if wanted, in place of an earlier sorting; returns what lies where."""
    for name in ("phy", "report"):
        if is_result(out) and (out / name).is_dir():
            shutil.rmtree(out / name)
    files = [("Result", save_result(result, out, overwrite=True))]
    if phy:
        from sortcore.phy import export_phy

        where: dict[str, Any] = {}
        if raw is not None:
            where = dict(dat_path=raw.paths, n_channels_dat=raw.n_channels, dtype=raw.dtype, offset=raw.skip_bytes)
        files.append(("Phy", export_phy(result, out / "phy", overwrite=True, **where) / "params.py"))
    if report:
        from sortcore.plots import save_report

        save_report(result, out / "report")
        files.append(("Pictures", out / "report"))
    return files


def write_new(path: Path, text: str, overwrite: bool) -> None:
    """Write a text file. Raises OutputError where it is there already (unless `overwrite`) or cannot be written."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} is there already; choose another name, or give --overwrite.")
    try:
        path.write_text(text, encoding="utf8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}).") from error


def draw_to(probe: Probe, path: Path) -> None:
    """Draw a probe into a picture, whose kind its suffix says. Raises OutputError where that cannot be."""
    from sortcore.plots import new_figure
    from sortcore.plots_probe import draw_probe

    figure = new_figure(5, 9)
    draw_probe(probe, figure.add_subplot())
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be drawn: {error}.") from error
