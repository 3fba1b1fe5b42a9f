"""The `sortcore` command. Every command says what it will do, then does it; an error is one sentence, never a traceback.

Only typer is imported here: torch, numba and SpikeInterface come in when a command needs them, so `--help` is quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sortcore import Probe, SortingResult

    from sorters.recordings import Input, RawFile

INTERRUPTED = 130  # what a shell gives for a process that Ctrl-C ended

app = typer.Typer(name="sortcore", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Spike sorting as convolutive semi-non-negative matrix factorisation.")

Debug = Annotated[bool, typer.Option("--debug", help="On an error, show where in the code it came from.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps; auto takes a CUDA card when there is one.")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw; the same input and seed give the same spikes.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")]


def say(text: str = "", error: bool = False) -> None:
    typer.echo(text, err=error)


@contextlib.contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Turn an exception into one sentence and an exit code: 2 for a wrong option, 130 for Ctrl-C, else 1."""
    from sortcore.errors import ConfigError, SortcoreError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("once", UserWarning)
        warnings.showwarning = lambda message, *_: say(f"Warning: {message}", error=True)
        try:
            yield
        except KeyboardInterrupt as error:
            say("\nInterrupted; no result was written.", error=True)
            raise typer.Exit(INTERRUPTED) from error
        except (SortcoreError, MemoryError, OSError) as error:
            if debug:
                traceback.print_exc()
            words = "The memory is not enough; lower pursuit.chunk_seconds in --config." if isinstance(error, MemoryError) else error
            say(f"Error: {words}", error=True)
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error
        except typer.Exit:
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            say(f"Error: something unforeseen went wrong ({type(error).__name__}: {error}). Run it again with --debug, and report what it shows.",
                error=True)
            raise typer.Exit(1) from error


@contextlib.contextmanager
def output_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """The folder for the output, made and tried before work begins; one that was made here and stayed empty goes away again."""
    from sortcore.errors import OutputError
    from sortcore.export import check_free

    try:
        check_free(out, overwrite)
    except OutputError as error:
        raise OutputError(str(error).replace("overwrite=True", "--overwrite")) from error
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        remove_empty(missing)
        raise OutputError(f"{out} cannot be written ({error.strerror or error}). Choose another folder for --out.") from error
    try:
        yield out
    finally:
        remove_empty(missing)


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@app.command()
def sort(
    recording: Annotated[Path, typer.Argument(metavar="INPUT", help="Raw binary, .npy, a folder with recording.bin and info.json, or whatever SpikeInterface reads.")],
    out: Annotated[Path, typer.Option(help="Folder for the result; must be new or empty.")],
    probe: Annotated[str | None, typer.Option(help="Name of a probe (see `sortcore probes`) or a probeinterface JSON file.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Raw binary: type of the stored values, a numpy dtype; int16 if not given.")] = None,
    channels: Annotated[int | None, typer.Option(help="Raw binary: number of channels; the probe's contacts if not given.")] = None,
    fs: Annotated[float | None, typer.Option(help="Raw binary and .npy: samples per second.")] = None,
    gain_uv: Annotated[float | None, typer.Option(help="Microvolts of one stored unit; the input's own, else 1.")] = None,
    format: Annotated[str | None, typer.Option(help="binary, npy, folder, saved, or SpikeInterface's name of a format (spikeglx, openephysbinary, nwb, ...).")] = None,
    stream: Annotated[str | None, typer.Option(help="Stream to sort, where the format holds several.")] = None,
    device: Device = "auto",
    seed: Seed = 0,
    config: Annotated[Path | None, typer.Option(help="Settings as TOML; `sortcore params` writes all of them.")] = None,
    overwrite: Overwrite = False,
    phy: Annotated[bool, typer.Option("--phy/--no-phy", help="Write a folder for phy.")] = True,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write pictures.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    debug: Debug = False,
) -> None:
    """Sort a recording: spikes, units and templates, in a folder that opens in Python, SpikeInterface and phy."""
    with reported(debug):
        import sortcore

        from sorters.recordings import Reading, open_input
        from sorters.settings import check_seed, read_config

        settings = read_config(config) if config else sortcore.SortConfig()
        check_seed(seed)
        check_device(device)
        given = load_given_probe(probe)
        source = open_input(recording, Reading(format, dtype, channels, fs, gain_uv, stream), given.n_channels if given else None)
        contacts = choose_probe(given, source)
        with output_folder(out, overwrite):
            say(plan(recording, source, contacts, device, seed, config, out))
            result = sortcore.sort(source.recording, contacts, settings, device=device, seed=seed, progress=not quiet)
            say(summarise(result, save(result, out, source.raw, phy, report, overwrite)))


def check_device(name: str) -> None:
    from sortcore.numerics import pick_device

    pick_device(name)


def load_given_probe(name: str | None) -> Probe | None:
    from sortcore.probes import load_probe

    return None if name is None else load_probe(name)


def choose_probe(given: Probe | None, source: Input) -> Probe:
    """The probe that was given, else the recording's, else independent channels with a warning; checked against the channels."""
    from sortcore import Probe
    from sortcore.probes import match_probe

    from sorters.adapter import set_apart

    probe = given or source.probe
    n = source.recording.n_channels
    if probe is None:
        if n > 1:
            warnings.warn("No probe is known, so every channel is sorted for itself; give --probe if neighbouring channels see the same spikes.",
                          stacklevel=2)
        return Probe.independent(n)
    return set_apart(match_probe(probe, n))


def plan(path: Path, source: Input, probe: Probe, device: str, seed: int, config: Path | None, out: Path) -> str:
    """What will be done, in words."""
    recording, n_shanks = source.recording, len(set(probe.shank.tolist()))
    seconds, pieces = sum(recording.segment_lengths) / recording.fs, len(recording.segment_lengths)
    segments = f" in {pieces} segments" if pieces > 1 else ""
    shanks = f" on {n_shanks} shanks" if n_shanks > 1 else ""
    return (f"Sorting {path}: {recording.n_channels} channels, {seconds:.1f} s{segments} at {recording.fs:g} samples per second ({source.format}).\n"
            f"Probe {probe.name}: {probe.n_channels} contacts{shanks}. Device {device}, seed {seed}, settings {config or 'as they come'}.\n"
            f"The result goes to {out}.")


def save(result: SortingResult, out: Path, raw: RawFile | None, phy: bool, report: bool, overwrite: bool) -> list[tuple[str, Path]]:
    """Write the result, and phy's folder and the pictures if wanted; returns what lies where."""
    from sortcore.export import save_result

    files = [("Result", save_result(result, out, overwrite=True))]  # output_folder has asked already
    if phy:
        from sortcore.phy import export_phy

        where = {} if raw is None else {"dat_path": raw.paths, "n_channels_dat": raw.n_channels, "dtype": raw.dtype, "offset": raw.skip_bytes}
        files.append(("Phy", export_phy(result, out / "phy", overwrite=overwrite, **where) / "params.py"))
    if report:
        from sortcore.plots import save_report

        save_report(result, out / "report")
        files.append(("Pictures", out / "report"))
    return files


def summarise(result: SortingResult, files: list[tuple[str, Path]]) -> str:
    from sorters.summary import result_summary

    return result_summary(result, files)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the result and the picture; written over.")] = Path("sortcore_demo"),
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    debug: Debug = False,
) -> None:
    """Simulate a recording, sort it, and show how many of its spikes were found."""
    with reported(debug):
        import sortcore
        from sortcore.simulate import demo_simulation

        from sorters.scoring import as_dict, group, score
        from sorters.settings import check_seed
        from sorters.summary import score_summary

        check_seed(seed)
        check_device(device)
        with output_folder(out, overwrite=True):
            say("Simulating a recording ...")
            made = demo_simulation(seed)
            source = sortcore.array_recording(made.data, made.fs, made.gain_uv)
            say(f"Sorting it: {source.n_channels} channels, {len(made.data) / made.fs:.0f} s, {len(made.templates_uv)} units. The result goes to {out}.")
            result = sortcore.sort(source, made.probe, device=device, seed=seed, progress=not quiet)
            files = save(result, out, None, phy=True, report=True, overwrite=True)
            truth = group(made.spike_samples, made.spike_units, None, made.fs)
            found = group(result.spikes.samples, result.spikes.units, (result.units.label != "noise").nonzero()[0], result.fs)
            say(summarise(result, files))
            say("\nAgainst the truth:\n" + score_summary(as_dict(score(found, truth), found, truth)))


@app.command()
def probes(
    name: Annotated[str | None, typer.Argument(help="Name of a probe, or a probeinterface JSON file.")] = None,
    draw: Annotated[Path | None, typer.Option(help="Draw the probe into this picture (.png, .pdf, .svg).")] = None,
    debug: Debug = False,
) -> None:
    """List the probes that come with sortcore, or show one."""
    with reported(debug):
        from sortcore.errors import ConfigError
        from sortcore.probes import load_probe, probe_names

        from sorters.summary import probe_table

        if name is None and draw is not None:
            raise ConfigError("Say which probe to draw: sortcore probes NAME --draw FILE.")
        say(probe_table([load_probe(n) for n in ([name] if name else probe_names())]))
        if name and draw:
            draw_to(load_probe(name), draw)
            say(f"Drawn into {draw}.")


def draw_to(probe: Probe, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sortcore.errors import OutputError
    from sortcore.plots_probe import draw_probe

    figure = Figure(figsize=(5, 9), layout="constrained")
    FigureCanvasAgg(figure)
    draw_probe(probe, figure.add_subplot())
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be drawn: {error}.") from error


@app.command()
def params(
    out: Annotated[Path | None, typer.Option(help="File to write; printed if not given.")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write all settings as a commented TOML file, for `sortcore sort --config`."""
    with reported(debug):
        from sorters.settings import to_toml

        if out is None:
            say(to_toml().rstrip("\n"))
        else:
            write_new(out, to_toml(), overwrite)
            say(f"Written to {out}. Change what you want, and give it to `sortcore sort --config {out}`.")


def write_new(path: Path, text: str, overwrite: bool) -> None:
    from sortcore.errors import OutputError

    if path.exists() and not overwrite:
        raise OutputError(f"{path} is there already; choose another name, or give --overwrite.")
    try:
        path.write_text(text, encoding="utf8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}).") from error


@app.command()
def score(
    sorted_path: Annotated[Path, typer.Argument(metavar="SORTED", help="Result folder, phy folder, .npz with spike_samples and spike_units, or what SpikeInterface loads.")],
    truth_path: Annotated[Path, typer.Argument(metavar="TRUTH", help="The same, of the true spikes; or a folder with truth.npz.")],
    fs: Annotated[float | None, typer.Option(help="Samples per second, where neither says it.")] = None,
    tolerance_ms: Annotated[float, typer.Option(help="Two spikes at most this far apart may be the same.")] = 0.4,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Score a sorting against the true spikes: accuracy, precision and recall of every unit."""
    with reported(debug):
        from sorters import scoring
        from sorters.summary import score_summary

        found, truth = scoring.read_trains(sorted_path), scoring.read_trains(truth_path)
        told: dict[str, Any] = scoring.as_dict(scoring.score(found, truth, fs, tolerance_ms), found, truth)
        say(json.dumps(told, indent=1) if as_json else score_summary(told))


@app.command()
def info(folder: Annotated[Path, typer.Argument(help="A result folder.")], debug: Debug = False) -> None:
    """Show the summary of a saved result."""
    with reported(debug):
        from sortcore.export import load_result

        say(summarise(load_result(folder), [("Result", folder)]))


@app.command("install-hook")
def install_hook(remove: Annotated[bool, typer.Option("--remove", help="Take it away again.")] = False, debug: Debug = False) -> None:
    """Make SpikeInterface know sortcore in every process of this Python environment, e.g. in slurm jobs, without `import sorters`."""
    with reported(debug):
        from sorters import registration

        if remove:
            say("The hook was removed." if registration.remove_hook() else "There was no hook.")
        else:
            say(f"Written: {registration.install_hook()}. `sortcore install-hook --remove` takes it away.")


def main() -> None:
    """The entry point of `sortcore` and of `python -m sorters`."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        app(prog_name="sortcore")
    except KeyboardInterrupt:
        say("\nInterrupted.", error=True)
        raise SystemExit(INTERRUPTED) from None
