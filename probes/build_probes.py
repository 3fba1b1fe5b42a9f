"""Write the probe files of this folder: python probes/build_probes.py

Geometry that probeinterface knows comes from it; the rest is the maker's published layout, named in each file. Contacts are
numbered from the tip up. What only a drawing needs is left out, so that a file can be read by a person.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import probeinterface
from probeinterface.neuropixels_tools import build_neuropixels_probe

FOLDER = Path(__file__).parent
TABLE = "imec's ProbeTable, through probeinterface's build_neuropixels_probe"
CAMBRIDGE = "Cambridge NeuroTech's probe maps, checked against probeinterface's library"
NEURONEXUS = "NeuroNexus' catalogue, whose names say it: shanks x sites, length, spacing in um, site area in um^2"

# Blocks of 48 electrodes of each shank of a four-shank Neuropixels 2.0, and the block of channels that records them (imec's
# channel map). Only the two blocks nearest the tip are used here.
FOUR_SHANK_BLOCKS = ((0, 2), (1, 3), (4, 6), (5, 7))


def column(x: float, count: int, pitch: float, start: float = 0.0, slope: float = 0.0) -> list[list[float]]:
    """A column of contacts at x, or one that leans by `slope` um a contact."""
    return [[x + slope * i, start + pitch * i] for i in range(count)]


def write(name: str, positions: list, shape: dict, model: str, maker: str, source: str, shanks: list | None = None,
          wiring: list | None = None) -> None:
    """Write one probe file; shape is {"radius": um}, {"width": um} or {"width": um, "height": um}."""
    positions = np.round(np.asarray(positions, dtype=float), 3) + 0.0  # + 0.0 turns -0.0 into 0.0
    n = len(positions)
    probe = {
        "ndim": 2,
        "si_units": "um",
        "annotations": {"name": name, "model_name": model, "manufacturer": maker, "source": source},
        "contact_positions": positions.tolist(),
        "contact_plane_axes": [[[1.0, 0.0], [0.0, 1.0]]] * n,
        "contact_shapes": ["circle" if "radius" in shape else "rect" if "height" in shape else "square"] * n,
        "contact_shape_params": [shape] * n,
        "contact_ids": [str(i) for i in range(n)],
        "shank_ids": [str(s) for s in (shanks or [0] * n)],
        "device_channel_indices": list(range(n)) if wiring is None else wiring,
    }
    lines = ",\n".join(f'  "{key}": {json.dumps(value)}' for key, value in probe.items())
    text = f'{{"specification": "probeinterface", "version": "0.4.0", "probes": [{{\n{lines}\n}}]}}\n'
    (FOLDER / f"{name}.json").write_text(text, encoding="utf8")


def neuropixels() -> None:
    """The 384 contacts nearest the tip, as they are recorded by default."""
    for name, part, model in (("neuropixels1", "NP1000", "Neuropixels 1.0"),
                              ("neuropixels2-1shank", "NP2003", "Neuropixels 2.0 single shank"),
                              ("neuropixels-ultra", "NP1100", "Neuropixels Ultra")):
        probe = build_neuropixels_probe(part)
        write(name, probe.contact_positions[:384], probe.contact_shape_params[0], f"{model} ({part})", "imec", TABLE)
    probe = build_neuropixels_probe("NP2013")
    shank = np.asarray(probe.shank_ids).astype(int)
    first = np.concatenate([np.flatnonzero(shank == s)[:96] for s in range(4)])
    wiring = [48 * block + i for blocks in FOUR_SHANK_BLOCKS for block in blocks for i in range(48)]
    write("neuropixels2-4shank", probe.contact_positions[first], probe.contact_shape_params[0], "Neuropixels 2.0 four shanks (NP2013)",
          "imec", TABLE + "; 96 contacts nearest the tip of each shank, wired as imec's channel map records them",
          shank[first].tolist(), wiring)


def neuronexus() -> None:
    site = {"radius": 7.5}  # 177 um^2
    write("neuronexus-a1x32-50", column(0, 32, 50), site, "A1x32-6mm-50-177", "NeuroNexus", NEURONEXUS)
    write("neuronexus-a1x32-100", column(0, 32, 100), site, "A1x32-6mm-100-177", "NeuroNexus", NEURONEXUS)
    write("neuronexus-a1x16-100", column(0, 16, 100), site, "A1x16-5mm-100-177", "NeuroNexus", NEURONEXUS)
    columns = column(0, 10, 50, 50) + column(50, 12, 50) + column(100, 10, 50, 50)
    columns.sort(key=lambda xy: (xy[1], xy[0]))
    write("neuronexus-a1x32-poly3", columns, site, "A1x32-Poly3-10mm-50-177", "NeuroNexus",
          "probeinterface's library: columns of 10, 12 and 10 contacts, 50 um apart both ways")


def cambridge() -> None:
    def h(number: int, positions: list, shanks: list | None = None) -> None:
        write(f"cambridge-h{number}", positions, {"width": 11.0, "height": 15.0}, f"H{number}", "Cambridge NeuroTech", CAMBRIDGE, shanks)

    h(2, column(0, 32, 25) + column(250, 32, 25), [0] * 32 + [1] * 32)
    h(3, column(0, 64, 20))
    h(5, sorted(column(0, 32, 25) + column(22.5, 32, 25, 12.5), key=lambda xy: xy[1]))
    shank = sorted(column(0, 16, 50, 0, 0.5) + column(-20, 16, 50, 25, -0.5), key=lambda xy: xy[1])
    h(7, shank + [[x + 250, y] for x, y in shank], [0] * 32 + [1] * 32)
    h(9, sorted(column(0, 32, 45) + column(22.5, 32, 45, 22.5), key=lambda xy: xy[1]))


def others() -> None:
    write("tetrode", probeinterface.generate_tetrode().contact_positions, {"radius": 6.0}, "tetrode", "hand-made",
          "probeinterface's generate_tetrode")
    grid = [[400.0 * i, 400.0 * j] for j in range(10) for i in range(10)]
    corner = [x in (0, 3600) and y in (0, 3600) for x, y in grid]
    number = np.cumsum(np.logical_not(corner)) - 1
    write("utah-10x10", grid, {"radius": 10.0}, "Utah array 10 x 10, 96 wired", "Blackrock Neurotech",
          "published layout: 400 um pitch, the four corners not wired; channels row by row, so give your array's own map",
          wiring=[-1 if c else int(n) for c, n in zip(corner, number, strict=True)])
    write("linear-64", column(0, 64, 25), {"radius": 6.0}, "64 contacts in a line, 25 um apart", "any", "generic")


if __name__ == "__main__":
    neuropixels()
    neuronexus()
    cambridge()
    others()
