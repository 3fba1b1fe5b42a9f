"""The sorter's settings as people write them: a commented TOML file, and SpikeInterface's flat parameters.

Both are made from the metadata of the config dataclasses, so names, defaults, units and ranges stand in one place.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from sortcore import SortConfig
from sortcore.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# SpikeInterface's parameter -> section and setting
FLAT = {
    "highpass_hz": ("preprocess", "highpass_hz"),
    "lowpass_hz": ("preprocess", "lowpass_hz"),
    "reference": ("preprocess", "reference"),
    "whiten_time": ("preprocess", "whiten_time"),
    "false_alarm_hz": ("detect", "false_alarm_hz"),
    "follow_drift": ("drift", "follow"),
    "min_spikes": ("initialize", "min_spikes"),
    "sample_seconds": ("fit", "sample_seconds"),
    "refractory_ms": ("curate", "refractory_ms"),
    "max_contamination": ("curate", "max_contamination"),
    "min_snr": ("curate", "min_snr"),
}

EXTRA = {
    "device": ("auto", "where to compute: auto (a CUDA card if there is one), cpu, cuda, mps"),
    "seed": (0, "seed of every random draw; the same recording and seed give the same spikes"),
    "work_folder": (None, "folder where stages keep what they finish, for a sort that is stopped, or repeated with other settings; "
                          "sorter_output/work until the sort is done, if not given"),
    "keep_noise": (False, "also return the units labelled noise"),
    "settings": ({}, "any other setting, {section: {name: value}} as in the file that `sortcore params` writes"),
}


def fields_of(section: str) -> dict[str, dataclasses.Field]:
    """The fields of one section of SortConfig by name."""
    return {f.name: f for f in dataclasses.fields(getattr(SortConfig(), section))}


def description(field: dataclasses.Field) -> str:
    """What a setting means, with its unit and what it may be."""
    meta = field.metadata
    words = [meta["help"]]
    if meta["unit"]:
        words.append(f"[{meta['unit']}]")
    if meta["choices"]:
        words.append(f"(one of {', '.join(map(str, meta['choices']))})")
    elif meta["low"] is not None and meta["high"] is not None:
        words.append(f"({meta['low']:g} to {meta['high']:g})")
    elif meta["low"] is not None:
        words.append(f"(at least {meta['low']:g})")
    return " ".join(words)


def default_params() -> dict[str, Any]:
    """SpikeInterface's parameters with their defaults; all can be written as JSON."""
    flat = {name: fields_of(section)[setting].default for name, (section, setting) in FLAT.items()}
    return flat | {name: copy.deepcopy(value) for name, (value, _) in EXTRA.items()}


def params_description() -> dict[str, str]:
    """One sentence a parameter, with its unit."""
    flat = {name: description(fields_of(section)[setting]) for name, (section, setting) in FLAT.items()}
    return flat | {name: words for name, (_, words) in EXTRA.items()}


def config_from_params(params: dict[str, Any]) -> SortConfig:
    """The SortConfig of SpikeInterface's flat parameters. Raises ConfigError for a value or name that is wrong."""
    settings = params.get("settings") or {}
    if not isinstance(settings, dict) or not all(isinstance(v, dict) for v in settings.values()):
        raise ConfigError(f"settings must be a table of tables, {{section: {{name: value}}}}, but it is {settings!r}.")
    nested = {section: dict(values) for section, values in settings.items()}
    for name, (section, setting) in FLAT.items():
        default = fields_of(section)[setting].default
        if name not in params or (params[name] == default and type(params[name]) is type(default)):
            continue
        given = nested.setdefault(section, {}).setdefault(setting, params[name])
        if given != params[name]:
            raise ConfigError(f"{name} is {params[name]!r}, but settings says {section}.{setting} is {given!r}; give one of them.")
    check_seed(params.get("seed", 0))
    return SortConfig.from_dict(nested)


def check_seed(seed: Any) -> None:
    """Raise ConfigError unless the seed is a whole number, 0 or more."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"The seed must be a whole number, 0 or more, but it is {seed!r}.")


def to_toml(config: SortConfig | None = None) -> str:
    """All settings as TOML, each under a comment that says what it means; `from_toml` reads it back."""
    values = (config or SortConfig()).to_dict()
    lines = ["# Settings of `sortcore sort --config FILE`. Those left out keep their defaults."]
    for section in values:
        lines += ["", f"[{section}]"]
        for name, field in fields_of(section).items():
            if field.metadata:
                lines.append(f"# {description(field)}")
            lines.append(f"{name} = {toml_value(values[section][name])}")
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A bool, number, string or list of these; JSON's spelling is TOML's."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def from_toml(text: str) -> SortConfig:
    """The settings in a TOML text. Raises ConfigError where it is not TOML, or names what there is not."""
    try:
        return SortConfig.from_dict(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The settings are not TOML: {error}.") from error


def read_config(path: str | Path) -> SortConfig:
    """The settings in a TOML file. Raises ConfigError, with the file's name."""
    try:
        return from_toml(Path(path).read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The settings file {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
