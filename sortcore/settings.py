"""Dataclass fields that know what they mean and what they may be: of these every group of settings is made."""

from __future__ import annotations

import dataclasses
from dataclasses import field, fields
from typing import Any

from sortcore.errors import ConfigError


def setting(default: Any, help: str, unit: str = "", low: float | None = None, high: float | None = None, choices: tuple = ()) -> Any:
    """A dataclass field that knows what it means and what it may be."""
    return field(default=default, metadata={"help": help, "unit": unit, "low": low, "high": high, "choices": choices})


class Checked:
    """Checks every field against the range and choices of its `setting`."""

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            check(f, getattr(self, f.name), type(self).__name__)


def check(f: dataclasses.Field, value: Any, owner: str) -> None:
    """Raise ConfigError unless `value` is of the default's kind, in range and among the choices."""
    meta, name = f.metadata, f"{owner}.{f.name}"
    if not meta:
        return
    number = isinstance(f.default, (int, float)) and not isinstance(f.default, bool)
    if number and (isinstance(value, bool) or not isinstance(value, (int, float))):
        unit = f" in {meta['unit']}" if meta["unit"] else ""
        raise ConfigError(f"{name} must be a number{unit}, but it is {value!r}.")
    if isinstance(f.default, int) and number and int(value) != value:
        raise ConfigError(f"{name} must be a whole number, but it is {value!r}.")
    if isinstance(f.default, bool) and not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, but it is {value!r}.")
    if meta["choices"] and value not in meta["choices"]:
        raise ConfigError(f"{name} must be one of {', '.join(map(str, meta['choices']))}, but it is {value!r}.")
    low, high = meta["low"], meta["high"]
    if number and ((low is not None and not value >= low) or (high is not None and not value <= high)):
        raise ConfigError(f"{name} must lie between {low} and {high} {meta['unit']}".rstrip() + f", but it is {value}.")
