"""Probe files: probeinterface JSON read with the standard library, so that the engine needs no probeinterface.

The format is described at https://probeinterface.readthedocs.io (format specifications).
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import numpy as np

from sortcore.errors import ProbeError
from sortcore.types import Probe

TO_UM = {"um": 1.0, "mm": 1e3, "m": 1e6}
BETWEEN_PROBES_UM = 500.0


def probe_folder() -> Path:
    """Where the probe files are: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "probe_files"
    return installed if installed.is_dir() else here.parent / "probes"


def probe_names() -> list[str]:
    """Names of the probes that come with sortcore, for `load_probe`."""
    return sorted(path.stem for path in probe_folder().glob("*.json"))


def load_probe(name_or_path: str | Path) -> Probe:
    """The probe of that name (see `probe_names`), or of a probeinterface JSON file.

    Contacts come in the order of the recording's channels (`device_channel_indices`, or the file's own order where it has
    none); contacts that are not wired are left out. Raises ProbeError where there is no such name or file, or where the
    file cannot be understood.
    """
    path = Path(name_or_path)
    if path.is_file():
        return probe_from_dict(read_json(path), path.stem)
    if path.suffix == ".json" or len(path.parts) > 1:
        raise ProbeError(f"There is no probe file {path}.")
    names = probe_names()
    plain = {plain_name(name): name for name in names}
    wanted = plain_name(str(name_or_path))
    if wanted in plain:
        found = plain[wanted]
        return probe_from_dict(read_json(probe_folder() / f"{found}.json"), found)
    near = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.5)
    hint = f" Did you mean {plain[near[0]]}?" if near else ""
    raise ProbeError(f"There is no probe {str(name_or_path)!r}.{hint} There are {', '.join(names)}; or give the path of a "
                     "probeinterface JSON file.")


def match_probe(probe: Probe, n_channels: int) -> Probe:
    """The probe itself, if it has as many contacts as the recording has channels; else ProbeError."""
    if probe.n_channels == n_channels:
        return probe
    raise ProbeError(
        f"Probe {probe.name} has {probe.n_channels} wired contacts, but the recording has {n_channels} channels. Give the probe that "
        "was recorded (its device_channel_indices say which contact is on which channel, -1 for none), or check the number of channels."
    )


def probe_from_dict(content: Any, name: str = "probe") -> Probe:
    """The probe of a decoded probeinterface file, `{"probes": [...]}`.

    Several probes (tetrodes, say) become shanks of one, set side by side where they would lie on each other: their
    positions then only say where contacts of one shank are to each other. Raises ProbeError, which names what is wrong.
    """
    probes = content.get("probes") if isinstance(content, dict) else None
    if not isinstance(probes, list) or not probes:
        raise ProbeError(f'{name} is no probeinterface file: it has no list of "probes".')
    try:
        parts = [read_one(part, name) for part in probes]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProbeError(f"{name} cannot be read as a probeinterface file: {type(error).__name__} {error}.") from error
    positions = side_by_side([part[0] for part in parts])
    shank = number_shanks([(i, s) for i, part in enumerate(parts) for s in part[1]])
    wiring = join_wiring([part[2] for part in parts], len(positions), name)
    order = np.argsort(wiring, kind="stable")
    order = order[wiring[order] >= 0]
    if not len(order):
        raise ProbeError(f"{name} has no wired contact: every one of its device_channel_indices is -1.")
    return Probe(positions[order], shank[order], name)


def plain_name(name: str) -> str:
    """Lower case letters and digits only, so that "Neuropixels 1" is neuropixels1."""
    return "".join(c for c in name.lower() if c.isalnum())


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ProbeError(f"{path} cannot be read as JSON: {error}.") from error


def read_one(part: dict[str, Any], name: str) -> tuple[np.ndarray, list[str], np.ndarray | None]:
    """Positions (n, 2) in micrometres, shank names and channel numbers (or None) of one probe of a file."""
    unit = part.get("si_units", "um")
    if unit not in TO_UM:
        raise ProbeError(f"{name} gives positions in {unit!r}; probeinterface knows {', '.join(TO_UM)}.")
    positions = flatten(np.asarray(part["contact_positions"], dtype=np.float64) * TO_UM[unit], name)
    n = len(positions)
    shanks = [str(s) for s in part.get("shank_ids") or [""] * n]
    wiring = part.get("device_channel_indices")
    for field, values in (("shank_ids", shanks), ("device_channel_indices", wiring)):
        if values is not None and len(values) != n:
            raise ProbeError(f"{name} has {n} contact positions but {len(values)} {field}; expected one each.")
    return positions, shanks, None if wiring is None else np.asarray(wiring, dtype=np.int64)


def flatten(positions: np.ndarray, name: str) -> np.ndarray:
    """(n, 2) of (n, 2) or of (n, 3) positions that lie in a plane along two of the axes."""
    if positions.ndim != 2 or positions.shape[1] not in (2, 3) or not len(positions):
        raise ProbeError(f"{name} needs contact_positions of shape (contacts, 2), but they are {positions.shape}.")
    if positions.shape[1] == 2:
        return positions
    flat = np.flatnonzero(np.ptp(positions, axis=0) == 0)
    if not len(flat):
        raise ProbeError(f"{name} has contacts in three dimensions that lie in no plane; give the two in which its shanks lie.")
    return np.delete(positions, flat[-1], axis=1)


def side_by_side(parts: list[np.ndarray]) -> np.ndarray:
    """Positions of all probes, each moved right of those before where their outlines overlap."""
    placed: list[np.ndarray] = []
    for part in parts:
        before = np.concatenate(placed) if placed else None
        if before is not None and any(overlaps(other, part) for other in placed):
            part = part + [before[:, 0].max() - part[:, 0].min() + BETWEEN_PROBES_UM, 0.0]
        placed.append(part)
    return np.concatenate(placed)


def overlaps(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the rectangles round two sets of positions share a point."""
    return bool((a.min(0) <= b.max(0)).all() and (b.min(0) <= a.max(0)).all())


def number_shanks(keys: list[tuple[int, str]]) -> np.ndarray:
    """0, 1, ... for the different (probe, shank) in the order in which they first come."""
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def join_wiring(parts: list[np.ndarray | None], n_contacts: int, name: str) -> np.ndarray:
    """(n_contacts,) channel of each contact; where no probe says, the contacts' own order."""
    known = [part for part in parts if part is not None]
    if not known:
        return np.arange(n_contacts)
    if len(known) < len(parts):
        raise ProbeError(f"{name} gives device_channel_indices for {len(known)} of its {len(parts)} probes; give them for all or for none.")
    wiring = np.concatenate(known)
    wired = wiring[wiring >= 0]
    values, counts = np.unique(wired, return_counts=True)
    if len(values) < len(wired):
        raise ProbeError(f"{name} wires several contacts to channel {values[counts > 1][0]}; device_channel_indices must differ, "
                         "over all of its probes.")
    return wiring
