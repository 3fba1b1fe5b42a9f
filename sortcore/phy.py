"""A folder that phy opens, and that SpikeInterface reads with read_phy, read_kilosort and read_kilosort_as_analyzer.

Template and amplitude multiply to the spike: row k of templates.npy is the unit's mean band-passed waveform in microvolts,
and a spike's number in amplitudes.npy is its size relative to that (about 1). The whitening matrices are the identity, since
whitening in time cannot be undone by a matrix over channels. Each spike's amplitude in microvolts and its score stand in
spike_amplitudes_uv.npy and spike_scores.npy, which phy shows as views of their own.

Two limits are the readers': phylib cannot load a folder with fewer than two spikes, and it drops axes of length one, so
that a single unit on several channels gets a second, silent template to keep its shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sortcore.archive import staging, write_text
from sortcore.errors import OutputError
from sortcore.types import SortingResult

SIMILAR_MS = 0.3  # templates are compared at lags up to this


def export_phy(result: SortingResult, folder: str | Path, dat_path: str | Path | Sequence[str | Path] | None = None,
               n_channels_dat: int | None = None, dtype: str = "int16", offset: int = 0, hp_filtered: bool = False,
               overwrite: bool = False) -> Path:
    """Write a phy folder, and return it.

    dat_path: the raw file, or one a segment in order; None where there is none, and phy shows templates alone
    n_channels_dat: channels of that file; by default those of the recording that was sorted
    dtype, offset: type of its numbers, and bytes before the first of them
    hp_filtered: whether the file is high-passed already
    overwrite: write into a folder that is not empty; files of the same names are replaced
    Cluster k is unit k. Segments stand end to end. Raises OutputError where the folder is not empty or cannot be written.
    """
    folder = Path(folder)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty. Choose a new folder, or overwrite it on purpose (overwrite=True).")
    paths = [dat_path] if isinstance(dat_path, (str, Path)) else list(dat_path or [])
    recorded = result.model.preprocessing.n_recorded
    with staging(folder, "params.py") as stage:
        for name, array in arrays(result).items():
            np.save(stage / f"{name}.npy", array)
        # read_kilosort_as_analyzer takes the trough from here, and reads it with pickle; without it, it guesses
        trough = {"nt0min": result.model.trough_uv, "nt": result.model.templates_uv.shape[2], "fs": result.fs}
        np.save(stage / "ops.npy", np.array(trough, dtype=object), allow_pickle=True)
        for name, column in cluster_columns(result).items():
            rows = [f"{k}\t{value}" for k, value in enumerate(column)]
            write_text(stage / f"cluster_{name}.tsv", "\n".join([f"cluster_id\t{name}", *rows]) + "\n")
        values = {"dat_path": [str(Path(p).resolve()) for p in paths], "n_channels_dat": n_channels_dat or recorded,
                  "dtype": np.dtype(dtype).name, "offset": offset, "sample_rate": float(result.fs), "hp_filtered": bool(hp_filtered)}
        write_text(stage / "params.py", "".join(f"{name} = {value!r}\n" for name, value in values.items()))
    return folder


def arrays(result: SortingResult) -> dict[str, np.ndarray]:
    """Every .npy of the folder, by name."""
    spikes, preprocessing = result.spikes, result.model.preprocessing
    templates = result.model.templates_uv.astype(np.float32)  # (K, N, D)
    if templates.shape[0] == 1 and templates.shape[1] > 1:
        templates = np.concatenate([templates, np.zeros_like(templates)])
    n_units, n_channels = templates.shape[:2]
    identity = np.eye(n_channels, dtype=np.float32)
    return {
        "spike_times": spikes.samples.astype(np.int64),
        "spike_templates": spikes.units.astype(np.int32),
        "spike_clusters": spikes.units.astype(np.int32),
        "amplitudes": relative_amplitudes(result),
        "spike_amplitudes_uv": result.amplitudes_uv.astype(np.float32),
        "spike_scores": spikes.scores.astype(np.float32),
        "templates": np.ascontiguousarray(templates.transpose(0, 2, 1)),  # (K, D, N)
        "templates_ind": np.tile(np.arange(n_channels, dtype=np.int32), (n_units, 1)),
        "similar_templates": similarity(templates, round(SIMILAR_MS * result.fs / 1000)),
        "channel_map": preprocessing.channels.astype(np.int32),
        "channel_positions": distinct(preprocessing.probe.positions_um),
        "channel_shanks": preprocessing.probe.shank.astype(np.int32),
        "whitening_mat": identity,
        "whitening_mat_inv": identity,
    }


def relative_amplitudes(result: SortingResult) -> np.ndarray:
    """(S,) float32 size of each spike relative to its unit's template in microvolts."""
    model = result.model
    if not len(result.spikes):
        return np.zeros(0, np.float32)
    trough_uv = np.abs(model.templates_uv[:, :, model.trough_uv]).max(axis=1)  # (K,)
    ratio = np.divide(np.abs(model.scale_uv), trough_uv, out=np.zeros(len(trough_uv)), where=trough_uv > 0)
    return (result.spikes.amplitudes * ratio[result.spikes.units]).astype(np.float32)


def similarity(templates: np.ndarray, reach: int) -> np.ndarray:
    """(K, K) float32 cosine of each two templates (K, N, D), the largest over a few lags up to `reach` samples."""
    n_units, n_channels, n_samples = templates.shape
    norm = np.sqrt((templates**2).sum(axis=(1, 2), keepdims=True))
    unit = np.divide(templates, norm, out=np.zeros_like(templates), where=norm > 0)
    best = np.zeros((n_units, n_units), np.float32)
    for lag in np.unique(np.linspace(0, min(reach, n_samples - 1), 5).astype(int)):
        size = n_channels * (n_samples - lag)
        cosine = unit[:, :, : n_samples - lag].reshape(n_units, size) @ unit[:, :, lag:].reshape(n_units, size).T
        np.maximum(best, np.maximum(cosine, cosine.T), out=best)
    return best


def distinct(positions_um: np.ndarray) -> np.ndarray:
    """(N, 2) float32 positions, no two alike: phy gives up the whole geometry where two contacts share a place."""
    places = positions_um.astype(np.float32)
    taken: set[tuple[float, float]] = set()
    for place in places:
        while tuple(place) in taken:
            place[0] += 1
        taken.add(tuple(place))
    return places


def cluster_columns(result: SortingResult) -> dict[str, Sequence[object]]:
    """What phy and SpikeInterface list for each cluster, a file a column."""
    units = result.units

    def rounded(values: np.ndarray, decimals: int) -> list[str]:
        return [f"{v:.{decimals}f}" for v in values]

    return {
        "group": units.label.tolist(),
        "KSLabel": units.label.tolist(),
        "ContamPct": rounded(100 * units.contamination, 2),
        "ContamPct_upper": rounded(100 * units.contamination_upper, 2),
        "amplitude_uv": rounded(units.amplitude_uv, 1),
        "snr": rounded(units.snr, 2),
        "missed": rounded(units.missed, 3),
        "presence": rounded(units.presence, 2),
        "evidence": rounded(units.evidence, 1),
    }
