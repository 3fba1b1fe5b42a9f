"""How the command speaks: plain text, and an error in one sentence with an exit code."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import typer

INTERRUPTED = 130  # what a shell gives for a process that Ctrl-C ended


def say(text: str = "", error: bool = False) -> None:
    typer.echo(text, err=error)


@contextlib.contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Turn an exception into one sentence and an exit code: 2 for a wrong setting, 130 for Ctrl-C, else 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show_warning
        try:
            yield
        except KeyboardInterrupt as error:
            say("\nInterrupted: stopped before the end. There is no result yet.", error=True)
            raise typer.Exit(INTERRUPTED) from error
        except typer.Exit:
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            sentence, code = explain(error)
            say(f"Error: {sentence}", error=True)
            raise typer.Exit(code) from error


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"Warning: {message}", error=True)


def explain(error: Exception) -> tuple[str, int]:
    """One sentence about an error, and the exit code for it."""
    from sortcore.errors import ConfigError, SortcoreError

    if isinstance(error, SortcoreError):
        return str(error), 2 if isinstance(error, ConfigError) else 1
    if isinstance(error, MemoryError):
        return "The memory is not enough; lower chunk_seconds of [pursuit] in --config, or close other programs.", 1
    if isinstance(error, OSError):
        return f"{error.filename or 'A file'} cannot be read or written ({error.strerror or error}).", 1
    return f"Something unforeseen went wrong ({type(error).__name__}: {error}). Run it again with --debug, and report what it shows.", 1
