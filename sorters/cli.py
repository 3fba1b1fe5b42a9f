"""The `sortcore` command. Every command says what it will do, then does it; an error is one sentence, never a traceback.

Only typer is imported here: torch, numba and SpikeInterface come in when a command needs them, so that `--help` is quick.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sorters.console import INTERRUPTED, reported, say

if TYPE_CHECKING:
    from sortcore import Probe
    from sorters.recordings import Input

app = typer.Typer(name="sortcore", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

INPUT = "Raw binary, .npy, a folder with recording.bin and info.json, or whatever SpikeInterface reads."
FORMAT = "binary, npy, folder, saved, or SpikeInterface's name of a format (spikeglx, openephysbinary, nwb, ...); found out if not given."
RESUME = "Go on where a sort of the same recording was stopped, and do again only what changed settings ask for; or do all of it again."
MOVIE = "A motion-corrected movie: .npy, a TIFF stack or a folder of numbered ones, .h5, .zarr or .nwb; time first."
SORTED = "Result folder, phy folder, .npz with spike_samples and spike_units, or what SpikeInterface loads."

Debug = Annotated[bool, typer.Option("--debug", help="On an error, show where in the code it came from.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps; auto takes a CUDA card when there is one.")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw; the same input and seed give the same spikes.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write over what is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def show_version(wanted: bool) -> None:
    if wanted:
        from sorters import __version__

        say(f"sortcore {__version__}")
        raise typer.Exit


@app.callback()
def options(version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show it.")] = False) -> None:
    """Spike sorting as convolutive semi-non-negative matrix factorisation."""


@app.command()
def sort(
    recording: Annotated[Path, typer.Argument(metavar="INPUT", help=INPUT)],
    out: Annotated[Path, typer.Option(help="Folder for the result; must be new or empty.")],
    probe: Annotated[str | None, typer.Option(help="Name of a probe (see `sortcore probes`) or a probeinterface JSON file.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Raw binary: numpy dtype of the stored values; int16 if not given.")] = None,
    channels: Annotated[int | None, typer.Option(help="Raw binary: number of channels; the probe's contacts if not given.")] = None,
    fs: Annotated[float | None, typer.Option(help="Raw binary and .npy: samples per second.")] = None,
    gain_uv: Annotated[float | None, typer.Option(help="Microvolts of one stored unit; if not given the input's own, else 1.")] = None,
    format: Annotated[str | None, typer.Option(help=FORMAT)] = None,
    stream: Annotated[str | None, typer.Option(help="Stream to sort, where the format holds several.")] = None,
    device: Device = "auto",
    seed: Seed = 0,
    config: Annotated[Path | None, typer.Option(help="Settings as TOML; `sortcore params` writes all of them.")] = None,
    overwrite: Overwrite = False,
    phy: Annotated[bool, typer.Option("--phy/--no-phy", help="Write a folder for phy.")] = True,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write pictures.")] = True,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help=RESUME)] = True,
    work: Annotated[Path | None, typer.Option(help="Folder where stages keep what they finish; OUT/work if not given.")] = None,
    workers: Annotated[int | None, typer.Option(help="Work in so many processes of this machine, cut by time.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Work on this Dask cluster, cut by time: address of its scheduler.")] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Sort a recording: spikes, units and templates, in a folder that opens in Python, SpikeInterface and phy."""
    with reported(debug):
        import sortcore
        from sortcore.numerics import pick_device
        from sortcore.probes import load_probe
        from sorters.cluster import check_cluster, cluster
        from sorters.outputs import WORK, output_folder, resumable, save_all
        from sorters.recordings import Reading, open_input
        from sorters.settings import check_seed, read_config
        from sorters.summary import result_summary

        settings = read_config(config) if config else sortcore.SortConfig()
        check_seed(seed)
        pick_device(device)
        check_cluster(workers, scheduler)
        given = load_probe(probe) if probe else None
        source = open_input(recording, Reading(format, dtype, channels, fs, gain_uv, stream), given.n_channels if given else None)
        contacts = choose_probe(given, source)
        with output_folder(out, overwrite):
            say(plan(recording, source, contacts, out))
            say(f"Device {device}, seed {seed}, settings {config or 'as they come'}.")
            with resumable(work or out / WORK, resume) as kept, cluster(workers, scheduler) as spread:
                result = sortcore.sort(source.recording, contacts, settings, device=device, seed=seed, progress=not quiet, work=kept,
                                       fresh=not resume, spread=spread)
                files = save_all(result, out, source.raw, phy, report)
            say(result_summary(result, files))


def choose_probe(given: Probe | None, source: Input) -> Probe:
    """The probe that was given, else the recording's, else independent channels with a warning; checked against the channels."""
    from sortcore import Probe
    from sortcore.probes import match_probe
    from sorters.adapter import check_distinct

    probe, n = given or source.probe, source.recording.n_channels
    if probe is not None:
        return check_distinct(match_probe(probe, n))
    if n > 1:
        warnings.warn("No probe is known, so every channel is sorted for itself; give --probe if neighbours see the same spikes.",
                      stacklevel=2)
    return Probe.independent(n)


def plan(path: Path, source: Input, probe: Probe, out: Path) -> str:
    """What will be sorted, and where to, in words."""
    recording, n_shanks = source.recording, len(set(probe.shank.tolist()))
    seconds, pieces = sum(recording.segment_lengths) / recording.fs, len(recording.segment_lengths)
    segments = f" in {pieces} segments" if pieces > 1 else ""
    shanks = f" on {n_shanks} shanks" if n_shanks > 1 else ""
    return (f"Sorting {path} ({source.format}):\n"
            f"{recording.n_channels} channels, {seconds:.1f} s{segments} at {recording.fs:g} samples per second.\n"
            f"Probe {probe.name}: {probe.n_channels} contacts{shanks}. The result goes to {out}.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the result and the pictures; written over.")] = Path("sortcore_demo"),
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Simulate a recording, sort it, and show how many of its spikes were found."""
    with reported(debug):
        import sortcore
        from sortcore.numerics import pick_device
        from sortcore.simulate import demo_simulation
        from sorters.outputs import output_folder, save_all
        from sorters.scoring import as_dict, result_trains, score, truth_trains
        from sorters.settings import check_seed
        from sorters.summary import result_summary, score_summary

        check_seed(seed)
        pick_device(device)
        with output_folder(out, overwrite=True):
            say("Simulating a recording ...")
            made = demo_simulation(seed)
            source = sortcore.array_recording(made.data, made.fs, made.gain_uv)
            say(f"Sorting it: {source.n_channels} channels, {len(made.data) / made.fs:.0f} s, {len(made.templates_uv)} units.")
            result = sortcore.sort(source, made.probe, device=device, seed=seed, progress=not quiet)
            say(result_summary(result, save_all(result, out, None, phy=True, report=True)))
            found, truth = result_trains(result), truth_trains(made)
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
        from sorters.outputs import draw_to
        from sorters.summary import probe_table

        if name is None and draw is not None:
            raise ConfigError("Say which probe to draw: sortcore probes NAME --draw FILE.")
        shown = [load_probe(n) for n in ([name] if name else probe_names())]
        say(probe_table(shown))
        if draw is not None:
            draw_to(shown[0], draw)
            say(f"Drawn into {draw}.")


@app.command()
def params(
    out: Annotated[Path | None, typer.Option(help="File to write; printed if not given.")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write all settings as a commented TOML file, for `sortcore sort --config`."""
    with reported(debug):
        from sorters.outputs import write_new
        from sorters.settings import to_toml

        if out is None:
            say(to_toml().rstrip("\n"))
        else:
            write_new(out, to_toml(), overwrite)
            say(f"Written to {out}. Change what you want, and give it to `sortcore sort --config {out}`.")


@app.command()
def score(
    sorted_path: Annotated[Path, typer.Argument(metavar="SORTED", help=SORTED)],
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
        told = scoring.as_dict(scoring.score(found, truth, fs, tolerance_ms), found, truth)
        say(json.dumps(told, indent=1) if as_json else score_summary(told))


@app.command()
def info(folder: Annotated[Path, typer.Argument(help="A result folder.")], debug: Debug = False) -> None:
    """Show the summary of a saved result."""
    with reported(debug):
        from sortcore.export import load_result
        from sorters.summary import result_summary

        if (folder / "movie.json").is_file():
            from sortcore.optical.movie.saving import load_movie
            from sorters.movie import movie_summary

            say(movie_summary(load_movie(folder), [("Result", folder)]))
        else:
            say(result_summary(load_result(folder), [("Result", folder)]))


@app.command()
def calcium(
    traces: Annotated[Path, typer.Argument(metavar="TRACES", help="Traces: .npy, .npz, .csv, a suite2p folder, CaImAn .hdf5 or .nwb.")],
    out: Annotated[Path, typer.Option(help="Folder for the result; must be new or empty.")],
    fs: Annotated[float | None, typer.Option(help="Frames per second, where the file does not say.")] = None,
    tau_rise: Annotated[float | None, typer.Option(help="Rise time in seconds; estimated if not given.")] = None,
    tau_decay: Annotated[float | None, typer.Option(help="Decay time in seconds; estimated if not given.")] = None,
    neuropil: Annotated[bool, typer.Option(help="Subtract the neuropil, where the file has it, by each cell's own coefficient.")] = True,
    false_positives: Annotated[float, typer.Option(help="Rate in Hz at which noise alone may pass for a spike.")] = 0.01,
    network: Annotated[bool, typer.Option(help="Write the spikes that a network expects in each frame, too.")] = True,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Infer spikes from calcium traces: activity, fit and baseline as .npy, spikes.npz, estimates.csv, a picture; and the spikes that a
    network expects, expected_spikes.npy with spike_counts.csv."""
    with reported(debug):
        from sorters.calcium import deconvolve_file

        say(deconvolve_file(traces, fs, out, tau_rise, tau_decay, overwrite=overwrite, quiet=quiet, neuropil=neuropil,
                            false_positives=false_positives, network=network, device=device))


@app.command()
def voltage(
    traces: Annotated[Path, typer.Argument(metavar="TRACES", help="Traces: .npy, .npz, .csv, a suite2p folder, CaImAn .hdf5 or .nwb; "
                                                                  "or with --movie a motion-corrected movie.")],
    out: Annotated[Path, typer.Option(help="Folder for the result; must be new or empty.")],
    fs: Annotated[float | None, typer.Option(help="Frames per second, where the file does not say.")] = None,
    movie: Annotated[bool, typer.Option("--movie", help="TRACES is a movie; its cells go to cells.npz and cells.png.")] = False,
    footprints: Annotated[Path | None, typer.Option(help="Footprints of the movie's cells, .npy or .npz, instead.")] = None,
    method: Annotated[str, typer.Option(help="filter, network, or auto, which is the one that finds more.")] = "auto",
    polarity: Annotated[str, typer.Option(help="up, down (indicators that dim as voltage rises), or auto.")] = "auto",
    false_alarms: Annotated[float | None, typer.Option(help="Rate in Hz at which noise alone may pass for a spike; if not given, "
                                                            "precision and recall are balanced.")] = None,
    nwb: Annotated[bool, typer.Option("--nwb", help="Write voltage.nwb too.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find spikes in voltage imaging traces: spikes.csv with probabilities, estimates.csv, voltage.npz with the subthreshold potential."""
    with reported(debug):
        from sorters.voltage import detect_in_file

        say(detect_in_file(traces, fs, out, movie=movie, footprints=footprints, method=method, polarity=polarity,
                           false_alarms=false_alarms, nwb=nwb, overwrite=overwrite, quiet=quiet))


@app.command()
def movie(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help=MOVIE)],
    out: Annotated[Path, typer.Option(help="Folder for the result; must be new or empty.")],
    fs: Annotated[float | None, typer.Option(help="Frames per second, where the file does not say.")] = None,
    axes: Annotated[str | None, typer.Option(help="Order of the axes, THW or HWT, where neither the file nor the shape tells.")] = None,
    key: Annotated[str | None, typer.Option(help="HDF5, Zarr and NWB: which array, where there are several.")] = None,
    channel: Annotated[int | None, typer.Option(help="TIFF: which channel, from 0, where there are several.")] = None,
    register: Annotated[bool, typer.Option("--register", help="Take rigid motion away first, to a fraction of a pixel.")] = False,
    decay: Annotated[float | None, typer.Option(help="Rough decay time of the indicator in seconds; 0.7 if not given.")] = None,
    nwb: Annotated[bool | None, typer.Option("--nwb/--no-nwb", help="Write an NWB file; by default if pynwb is there.")] = None,
    suite2p: Annotated[bool, typer.Option("--suite2p/--no-suite2p", help="Write the files that suite2p writes.")] = True,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write pictures.")] = True,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Sort a calcium movie: footprints, demixed traces, dF/F, activity, spikes and quality of each cell, in a folder."""
    with reported(debug):
        from sorters.movie import Wanted, sort_movie_file

        say(sort_movie_file(source, out, fs, axes=axes, key=key, channel=channel, decay_s=decay,
                            wanted=Wanted(register, nwb, suite2p, report), overwrite=overwrite, quiet=quiet))


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
