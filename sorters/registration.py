"""How SpikeInterface comes to know us, in this process and in those it starts.

SpikeInterface has no entry points: `spikeinterface.sorters.sorterlist` holds a list and a dictionary of sorters. `register`
adds our class to both, in place, as soon as that module is there. It waits for the import instead of causing it, so that
`import sorters` costs nothing.

A worker process that never imports `sorters` would not know the name "sortcore". Two ways close that hole:

- `run_sorter_jobs` and `run_sorter_by_property` send the function `launcher.run_sorter` to their workers (joblib's loky,
  spawned process pools, dask). While `sorters` is imported that name stands for `sorters.spikeinterface.run_sorter`, which
  does the same; a worker that unpickles it has to import `sorters`, and so registers. The scripts that it writes for slurm
  `import sorters` too.
- What others start (containers, scripts of one's own, `joblib.delayed(run_sorter)`) needs `import sorters` on top, or
  `sortcore install-hook` once: a one-line .pth file that registers in every interpreter of the environment.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import sysconfig
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

SORTER_LIST, LAUNCHER = "spikeinterface.sorters.sorterlist", "spikeinterface.sorters.launcher"

# site reads .pth files in alphabetical order: ours comes after those that put an editable install on the path.
HOOK_NAME = "zz_sortcore_spikeinterface.pth"
IMPORTS = "import numpy as np\nfrom numpy import inf, nan\nimport sorters  # knows sortcore\n"
HOOK_LINE = "import importlib.util; importlib.util.find_spec('sorters.registration') and __import__('sorters')\n"


class AfterImport(importlib.abc.MetaPathFinder):
    """Runs `complete` on SpikeInterface's two modules right after they are imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if name not in (SORTER_LIST, LAUNCHER):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_complete(module: ModuleType) -> None:
            execute(module)
            complete(module)

        spec.loader.exec_module = execute_and_complete  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Make "sortcore" known to SpikeInterface, now if it is imported, else when it is. Calling it again changes nothing."""
    if not any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterImport())
    complete_all()


def complete_all() -> None:
    """Run `complete` on those of SpikeInterface's two modules that are imported."""
    for name in (SORTER_LIST, LAUNCHER):
        if name in sys.modules and not importing(name):  # the finder completes it when it has been imported
            complete(sys.modules[name])


def importing(name: str) -> bool:
    """Whether a module is being imported at this moment."""
    return getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False)


def complete(module: ModuleType) -> None:
    """Add our sorter to the list of sorters, or our `run_sorter` to the launcher of jobs."""
    plugin = sys.modules.get("sorters.spikeinterface")
    if plugin is not None and not hasattr(plugin, "run_sorter"):
        return  # it was imported first, has caused this import, and calls `complete_all` at its end
    try:
        from sorters.spikeinterface import SortcoreSorter, run_sorter
    except Exception as error:  # SpikeInterface must stay usable where we are not
        warnings.warn(f"sortcore could not be added to SpikeInterface's sorters: {error}", stacklevel=2)
        return
    if module.__name__ == LAUNCHER:
        module.run_sorter = run_sorter  # type: ignore[attr-defined]
        module._slurm_script = slurm_script(getattr(module, "_slurm_script", ""))  # type: ignore[attr-defined]
    elif SortcoreSorter not in module.sorter_full_list:
        module.sorter_full_list.append(SortcoreSorter)
        module.sorter_dict[SortcoreSorter.sorter_name] = SortcoreSorter


class SlurmScript(str):
    """SpikeInterface's template of a job's script for slurm, made right.

    The recording is written into it as numpy prints it: beyond a thousand values with most of them left out, to eight digits,
    and with names that the script does not import.
    """

    def format(self, *given: object, **named: object) -> str:
        import numpy as np

        with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
            return str.format(self, *given, **named)


def slurm_script(template: str) -> str:
    """The template with what it lacks: the names that numpy prints, and `import sorters`."""
    wanted = "from numpy import array\n"
    return template if IMPORTS in template else SlurmScript(template.replace(wanted, wanted + IMPORTS))


def install_hook(folder: str | Path | None = None) -> Path:
    """Write the .pth file that registers us in every interpreter of this environment; returns its path."""
    path = hook_path(folder)
    path.write_text(HOOK_LINE, encoding="utf8")
    return path


def remove_hook(folder: str | Path | None = None) -> bool:
    """Take the .pth file away; False where there was none."""
    path = hook_path(folder)
    there = path.is_file()
    path.unlink(missing_ok=True)
    return there


def hook_path(folder: str | Path | None = None) -> Path:
    return Path(folder or sysconfig.get_paths()["purelib"]) / HOOK_NAME
