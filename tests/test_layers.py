"""The layers of the package, read from its imports: a module imports only from its own layer and those below."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Lowest first. A module of the engine that is not named here must be a stage.
LAYERS = (
    {"errors", "types", "version"},
    {"recording", "progress", "workers", "numerics", "medians", "probes", "cluster", "groups", "spectra", "pursuit", "matching", "moving",
     "background", "bank", "follow", "sample", "archive", "steps", "remote", "settings", "optional", "ephys.config", "optical.foreign",
     "optical.reading", "optical.traces", "optical.weights", "optical.tails", "optical.kernels", "optical.kernel", "optical.ar1",
     "optical.ar2", "optical.estimate", "optical.rise", "optical.inputs", "optical.voltage.noise", "optical.voltage.waveform",
     "optical.voltage.filter", "optical.voltage.pursuit", "optical.voltage.history",
     "optical.voltage.learning", "optical.voltage.evidence", "optical.voltage.guess", "optical.voltage.steps",
     "optical.voltage.decision", "optical.movie.records", "optical.movie.reading", "optical.movie.survey", "optical.movie.stores",
     "optical.movie.tiff"},
    {"model", "reference", "reference_pursuit", "cells", "simulate", "metrics", "metrics.sorting", "metrics.trains", "metrics.distances",
     "metrics.intervals", "optical.indicator", "optical.simulate", "optical.voltage.simulate", "optical.movie.simulate",
     "optical.movie.footprints", "optical.movie.touching", "optical.movie.reference"},
    {"<stage>"},
    {"ephys.conclude", "ephys.kept", "ephys.pipeline", "optical.calcium", "optical.combined", "optical.voltage.detect",
     "optical.voltage.fit", "optical.voltage.movie", "optical.movie.demix", "optical.movie.sort"},
    {"export", "phy", "panels", "plots", "plots_probe", "report", "optical.saving", "optical.plots", "optical.voltage.saving",
     "optical.voltage.plots", "optical.movie.saving", "optical.movie.nwb", "optical.movie.suite2p", "optical.movie.plots"},
)
# The package's front doors gather public names and are imported by no module of the engine.
DOORS = {"", "ephys", "optical", "optical.movie", "optical.voltage"}
OUTSIDE = {"torch", "numpy", "scipy", "numba", "tqdm", "matplotlib", "triton", "tomli", "tomllib", "threadpoolctl"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Full names of all that a file imports, at any depth; `from a import b` gives a.b where that is a module, else a."""
    found: set[str] = set()
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                path_of = ROOT.joinpath(*base.split("."), alias.name)
                is_module = path_of.with_suffix(".py").is_file() or (path_of / "__init__.py").is_file()
                found.add(f"{base}.{alias.name}" if is_module else base)
    return found


def layer(name: str) -> int:
    """Layer of a module of the engine, given without "sortcore."."""
    for i, names in enumerate(LAYERS):
        if name in names:
            return i
    package = name.partition(".")[0]
    if package in {"ephys", "optical"}:
        return next(i for i, names in enumerate(LAYERS) if "<stage>" in names)
    raise AssertionError(f"sortcore.{name} has no layer: name it in LAYERS of {Path(__file__).name}")


def engine() -> dict[str, Path]:
    return {module_name(path).removeprefix("sortcore").removeprefix("."): path for path in sorted((ROOT / "sortcore").rglob("*.py"))}


MODULES = {name: path for name, path in engine().items() if name not in DOORS}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_layer_and_below(name: str) -> None:
    for imported in imports(MODULES[name]):
        if imported.partition(".")[0] != "sortcore":
            continue
        other = imported.removeprefix("sortcore").removeprefix(".")
        assert other not in DOORS, f"sortcore.{name} imports the front door {imported}; import the module that defines what it needs"
        assert layer(other) <= layer(name), f"sortcore.{name} imports {imported}, of a layer above its own"


STAGES = [name for name in MODULES if "<stage>" in LAYERS[layer(name)]]


@pytest.mark.parametrize("name", STAGES)
def test_stages_do_not_import_each_other(name: str) -> None:
    assert not imports(MODULES[name]) & {f"sortcore.{other}" for other in STAGES} - {f"sortcore.{name}"}


@pytest.mark.parametrize("name", engine())
def test_the_engine_needs_only_its_own_few_packages(name: str) -> None:
    used = {imported.partition(".")[0] for imported in imports(engine()[name])}
    assert used <= OUTSIDE | set(sys.stdlib_module_names) | {"sortcore"}


def test_importing_the_engine_loads_nothing_that_only_formats_need() -> None:
    heavy = {"spikeinterface", "probeinterface", "sorters", "pandas", "h5py", "pynwb", "hdmf", "pynapple", "tifffile", "zarr", "skimage"}
    modules = ", ".join(f"sortcore.{name}" for name in MODULES)
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_imports_are_read_as_python_reads_them() -> None:
    """The reader of imports itself: on a module known to import by name, by module and inside functions."""
    found = imports(ROOT / "sortcore" / "simulate.py")
    assert {"numpy", "scipy.signal", "sortcore.errors", "sortcore.probes", "sortcore.types"} <= found
