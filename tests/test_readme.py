"""The README's code runs as it stands, and its commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sortcore.probes import load_probe
from sortcore.simulate import simulate

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf8")
PROBE = "neuronexus-a1x32-poly3"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the recording that the README speaks of."""
    path = tmp_path_factory.mktemp("readme")
    simulate(load_probe(PROBE), 8.0, 5, snr=(9.0, 20.0), rate_hz=(5.0, 15.0), seed=1).data.tofile(path / "recording.bin")
    return path


def test_the_command_sorts(folder: Path) -> None:
    command = next(line for line in "".join(blocks("bash")).splitlines() if line.startswith("sortcore sort"))
    done = subprocess.run([sys.executable, "-m", "sorters", *shlex.split(command)[1:], "--out", "by_command", "--quiet"],
                          cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "by_command" / "phy" / "params.py").is_file()


def test_the_python_blocks_run_one_after_the_other(folder: Path) -> None:
    codes = blocks("python")
    assert len(codes) >= 4
    for i, code in enumerate(codes):
        script = folder / f"block_{i}.py"
        script.write_text(code, encoding="utf8")
        done = subprocess.run([sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        assert done.stdout.strip(), "a block that shows nothing teaches nothing"
    assert (folder / "sorted" / "spikes.npz").is_file()
    assert (folder / "sorted_on_gpu" / "spikes.npz").is_file()


def test_its_commands_files_and_probes_exist() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if not path.startswith("http"):
            assert (ROOT / path).is_file(), path
    shown = subprocess.run([sys.executable, "-m", "sorters", "--help"], capture_output=True, text=True, check=True).stdout
    for command in set(re.findall(r"`sortcore ([a-z-]+)", TEXT)):
        assert command in shown, command
    load_probe(PROBE)


def test_it_opens_with_what_it_is_and_the_two_commands() -> None:
    assert TEXT.index("$$") < TEXT.index("pip install . && sortcore demo") < TEXT.index('pip install ".[test]" && pytest')
    assert "".join(blocks("bash")).splitlines()[:1] == ["pip install . && sortcore demo"]
