"""A sorted movie as NWB: a plane segmentation with the footprints, the traces of its cells, and their spikes as units."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from sortcore.archive import check_room
from sortcore.optical.records import MovieResult
from sortcore.optical.saving import UNKNOWN_START, add_trains, write_nwb
from sortcore.optional import require

UNKNOWN = "unknown"
BASE_BYTES = 300_000  # of a file without cells
COLUMNS = {  # of the plane segmentation
    "snr": "largest peak of the denoised trace over the noise of a frame", "overlap": "largest cosine with another footprint",
    "footprint_fit": "correlation of the footprint with what the movie shows of the cell"}


def save_movie_nwb(result: MovieResult, path: str | Path, *, start_s: float = 0.0, session_start: datetime | None = None,
                   indicator: str = UNKNOWN, location: str = UNKNOWN) -> Path:
    """Save a sorted movie to an NWB file.

    The processing module `ophys` has an ImageSegmentation (pixel masks of the footprints, with snr, overlap and footprint_fit), the
    series of Fluorescence (the demixed traces, Denoised, Deconvolved) and DfOverF, all (frames, cells), and the mean image; `units` has
    the spikes with their amplitudes. Row k of each is cell k.

    start_s: instant of the first frame; session_start: with its time zone; NWB must have one, and 1970 says that it is not known
    Raises MissingPackageError without pynwb, OutputError where the file cannot be written.
    """
    pynwb = require("pynwb")
    path = Path(path)
    check_room(path, BASE_BYTES + 16 * result.demixed.traces.size + 32 * result.demixed.footprints.nnz)
    file = pynwb.NWBFile(session_description="Cells of a calcium movie and their spikes, found by sortcore", identifier=path.stem,
                         session_start_time=session_start or UNKNOWN_START)
    plane = imaging_plane(pynwb, file, result, indicator, location)
    module = file.create_processing_module("ophys", "demixing and deconvolution of a calcium movie")
    module.add(pynwb.base.Images(name="SummaryImages", images=[pynwb.image.GrayscaleImage(
        name="mean", data=np.asarray(result.demixed.mean_image, np.float64), description="mean over time (height, width)")]))
    segmentation = pynwb.ophys.ImageSegmentation()
    module.add(segmentation)
    cells = segmentation.create_plane_segmentation(name="PlaneSegmentation", description="footprints, peak 1", imaging_plane=plane)
    if result.n_cells:
        add_cells(cells, result)
        add_series(pynwb, module, cells, result, start_s)
        trains = [start_s + train for train in result.trains()]
        amplitudes = [result.spikes.amplitudes[result.spikes.units == k] for k in range(result.n_cells)]
        add_trains(file, trains, amplitudes, "spike_amplitudes", "in standard deviations of the trace's noise",
                   {"snr": (COLUMNS["snr"], result.quality.snr)}, [[start_s, start_s + result.duration_s]])
    return write_nwb(file, path)


def imaging_plane(pynwb: Any, file: Any, result: MovieResult, indicator: str, location: str) -> Any:
    """The plane that NWB wants for every segmentation; what a movie does not tell is unknown."""
    channel = pynwb.ophys.OpticalChannel(name="OpticalChannel", description=UNKNOWN, emission_lambda=np.nan)
    return file.create_imaging_plane(name="ImagingPlane", optical_channel=channel, description="the plane of the movie",
                                     device=file.create_device(name="Microscope"), excitation_lambda=np.nan, indicator=indicator,
                                     location=location, imaging_rate=float(result.fs))


def add_cells(cells: Any, result: MovieResult) -> None:
    """One row a cell: the pixels of its footprint as (x, y, weight), x being the column, and its quality."""
    footprints, width = result.demixed.footprints, result.demixed.shape[1]
    for name, description in COLUMNS.items():
        cells.add_column(name=name, description=description)
    for k in range(result.n_cells):
        mine = slice(footprints.indptr[k], footprints.indptr[k + 1])
        rows, columns = np.divmod(footprints.indices[mine], width)
        mask = [(int(x), int(y), float(weight)) for x, y, weight in zip(columns, rows, footprints.data[mine], strict=True)]
        cells.add_roi(id=k, pixel_mask=mask, **{name: float(getattr(result.quality, name)[k]) for name in COLUMNS})


def add_series(pynwb: Any, module: Any, cells: Any, result: MovieResult, start_s: float) -> None:
    """The traces of all cells, (frames, cells), each in a container of its own."""
    region = cells.create_roi_table_region(region=list(range(result.n_cells)), description="all cells")
    demixed = result.demixed
    for container, name, values, unit in (("Fluorescence", "RoiResponseSeries", demixed.traces, "the movie's units"),
                                          ("DfOverF", "DfOverF", result.dff, "dF/F, as a fraction"),
                                          ("Fluorescence", "Denoised", demixed.denoised, "the movie's units"),
                                          ("Fluorescence", "Deconvolved", result.activity, "a.u.")):
        if container not in module.data_interfaces:
            module.add(getattr(pynwb.ophys, container)(name=container))
        module[container].create_roi_response_series(name=name, data=np.ascontiguousarray(np.asarray(values).T), rois=region, unit=unit,
                                                     rate=float(result.fs), starting_time=float(start_s))
