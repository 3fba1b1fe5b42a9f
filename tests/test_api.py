"""The public names: a name added or taken away is a decision, written down here and in the changelog."""

from __future__ import annotations

import inspect
import re

import sortcore

PUBLIC = """
    ArrayRecording CalciumResult CalciumStream CombinedActivity ConfigError DemixConfig Demixed Model MovieConfig MovieResult
    NetworkActivity OutputError Preprocessing Priors Probe ProbeError Recording RecordingError Simulation SortConfig SortcoreError
    SortingResult Spikes Templates Units VoltageMovie VoltageResult array_recording binary_recording deconvolve demix demo_simulation
    detect_voltage_spikes export_phy infer_ar1 infer_calcium infer_combined infer_network load_model load_movie load_probe load_result
    open_movie probe_names save_model save_movie save_result simulate sort sort_movie sort_voltage_movie
""".split()


def public_names() -> list[str]:
    """What `import sortcore` offers, its submodules aside."""
    return sorted(name for name in dir(sortcore) if not name.startswith("_") and not inspect.ismodule(getattr(sortcore, name)))


def test_the_public_names_are_these() -> None:
    assert public_names() == sorted(PUBLIC)
    assert sorted(sortcore.__all__) == sorted(PUBLIC)


def test_every_public_name_says_what_it_is() -> None:
    for name in public_names():
        text = inspect.getdoc(getattr(sortcore, name))
        assert text, name
        assert text[0].isupper(), name


def test_the_version_is_a_release_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", sortcore.__version__)
