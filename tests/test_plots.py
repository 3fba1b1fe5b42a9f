"""Every picture is drawn, shows what the result holds, and keeps its texts apart, also where there is little to draw."""

import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from helpers_result import planted
from matplotlib.collections import LineCollection
from matplotlib.text import Text

from sortcore.errors import OutputError
from sortcore.panels import COLORS, autocorrelogram, bar_length, depth_order, nearby_channels, unit_colors, waveform_lines
from sortcore.plots import plot_motion, plot_raster, plot_summary, plot_templates, plot_unit, plot_units, save_report
from sortcore.types import Motion

CASES = {
    "many units": {"n_units": 18, "n_channels": 32},
    "no unit": {"n_units": 0},
    "one channel": {"n_units": 1, "n_channels": 1},
    "four shanks": {"n_units": 8, "n_channels": 16, "n_shanks": 4},
    "two segments": {"seconds": (3.0, 4.0)},
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def result(request):
    return planted(**request.param).result


def texts(figure):
    """Every text that is drawn, with its box in pixels."""
    figure.canvas.draw()
    hidden = set()  # labels of an axis that is switched off, and of ticks that are kept in store outside the view
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            stored = [tick for tick in axis.get_major_ticks() + axis.get_minor_ticks() if not (ax.axison and low <= tick.get_loc() <= high)]
            hidden |= {id(text) for tick in stored for text in tick.findobj(Text)}
            hidden |= set() if ax.axison else {id(text) for text in axis.findobj(Text)}
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and id(t) not in hidden]
    return [(t.get_text(), t.get_window_extent()) for t in shown]


@pytest.mark.parametrize("draw", [
    plot_summary, plot_raster, plot_templates, lambda r: plot_units(r, np.arange(min(r.n_units, 6))),
    lambda r: plot_unit(r, r.n_units - 1) if r.n_units else plot_summary(r),
], ids=["summary", "raster", "templates", "units", "unit"])
def test_no_text_lies_on_another_or_outside(result, draw):
    figure = draw(result)
    boxes, whole = texts(figure), figure.bbox
    for text, box in boxes:
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < whole.x1 + 1 and box.y1 < whole.y1 + 1, text
    for (text_a, a), (text_b, b) in combinations(boxes, 2):
        across, along = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1.5 or along <= 1.5, f"{text_a!r} lies on {text_b!r}"


def test_the_summary_shows_every_unit_and_spike(result):
    figure = plot_summary(result)
    assert len(result.spikes) < 8000
    title = figure._suptitle.get_text()
    assert title.startswith(f"{result.n_units} unit") and f"{len(result.spikes):,} spike" in title
    probe, amplitude, raster, quality, _ = figure.axes
    shown = np.concatenate([c.get_offsets() for c in probe.collections[1:]])  # the first are the contacts
    np.testing.assert_allclose(np.sort(shown[:, 1]), np.sort(result.units.position_um[:, 1]))
    assert sum(len(c.get_offsets()) for c in amplitude.collections) == result.n_units
    assert sum(len(c.get_offsets()) for c in quality.collections) == result.n_units
    ticks = next(c for c in raster.collections if isinstance(c, LineCollection)).get_segments()
    np.testing.assert_allclose([t[0, 0] for t in ticks], result.spikes.samples / result.fs)
    (low, high), depth = probe.get_ylim(), result.model.preprocessing.probe.positions_um[:, 1]
    assert low <= depth.min() and depth.max() <= high


def test_a_long_raster_shows_its_beginning_and_says_so():
    result = planted().result
    ax = plot_raster(result, max_spikes=100).axes[0]
    stop = ax.get_xlim()[1]
    ticks = next(c for c in ax.collections if isinstance(c, LineCollection)).get_segments()
    assert len(ticks) == (result.spikes.samples <= round(stop * result.fs)).sum() >= 100
    assert ax.get_title(loc="left") == f"Raster, first {stop:.3g} s of 12 s"


def test_rows_of_the_raster_go_from_the_bottom_of_a_shank_to_its_top():
    result = planted(n_units=8, n_channels=16, n_shanks=4).result
    order = depth_order(result)
    shank = result.model.preprocessing.probe.shank[result.units.channel[order]]
    assert (np.diff(shank) >= 0).all()
    depth = result.units.position_um[order, 1]
    assert all(depth[i] <= depth[i + 1] for i in range(7) if shank[i] == shank[i + 1])


def test_units_beside_each_other_differ_in_colour():
    result = planted(n_units=18, n_channels=32).result
    colors = unit_colors(result)[depth_order(result)]
    assert set(colors) == set(COLORS) and (colors[1:] != colors[:-1]).all()


def test_autocorrelogram_against_counting_every_pair():
    rng = np.random.default_rng(0)
    fs, lengths = 10000.0, (40000, 30000)
    samples = np.sort(rng.choice(sum(lengths), 900, replace=False))
    lags, rate = autocorrelogram(samples, fs, lengths, window_ms=20, bin_ms=0.5)
    segment = np.searchsorted(np.cumsum(lengths), samples, side="right")
    difference = (samples[None] - samples[:, None])[segment[None] == segment[:, None]] * 1000 / fs
    later = np.histogram(difference[difference > 0], np.arange(0, 20.01, 0.5))[0]
    np.testing.assert_allclose(rate, np.concatenate([later[::-1], later]) / 900 / 0.0005)
    np.testing.assert_allclose(lags, np.arange(-19.75, 20, 0.5))
    assert autocorrelogram(samples[:0], fs, lengths)[1].sum() == 0


def test_autocorrelogram_of_a_poisson_train_is_flat_at_its_rate():
    samples = np.unique(np.random.default_rng(1).integers(0, 3_000_000, 3000))
    _, rate = autocorrelogram(samples, 10000.0, (3_000_000,), bin_ms=5.0)
    assert rate.mean() == pytest.approx(10, rel=0.05)


def test_waveforms_stand_at_their_contacts_in_true_proportion():
    result = planted().result
    near = nearby_channels(result, 2, 24)
    lines, (um_per_ms, um_per_uv) = waveform_lines(result, 2, near)
    waves = result.model.templates_uv[2, near]
    assert near[0] == result.units.channel[2] and len(near) > 3
    np.testing.assert_allclose((lines[:, :, 1] - result.model.preprocessing.probe.positions_um[near, 1:]) / um_per_uv, waves, atol=1e-3)
    assert np.ptp(lines[0, :, 0]) == pytest.approx(um_per_ms * (waves.shape[1] - 1) / result.fs * 1000)


def test_near_channels_stay_on_the_shank():
    result = planted(n_units=8, n_channels=16, n_shanks=4).result
    for unit in range(8):
        shanks = result.model.preprocessing.probe.shank[nearby_channels(result, unit, 24)]
        assert set(shanks) == {result.model.preprocessing.probe.shank[result.units.channel[unit]]}


@pytest.mark.parametrize(("value", "length"), [(130, 100), (99, 50), (49.9, 20), (0.3, 0.2), (1, 1)])
def test_scale_bars_are_round_numbers(value, length):
    assert bar_length(value) == pytest.approx(length)


def test_there_is_no_picture_of_a_unit_that_is_not_there():
    with pytest.raises(IndexError, match="no unit 6; the result has 6"):
        plot_unit(planted().result, 6)


@pytest.mark.parametrize("n_units", [0, 18])
def test_the_report_holds_every_unit_and_is_the_same_each_time(n_units, tmp_path):
    result = planted(n_units=n_units, n_channels=32).result
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "units_07.png").write_bytes(b"of an older report")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    files = save_report(result, tmp_path / "a", dpi=40)
    pages = -(-result.n_units // 15)
    assert [f.name for f in files] == ["summary.png"] + [f"units_{i + 1:02d}.png" for i in range(pages)]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted([f.name for f in files] + ["notes.txt"])
    for first, second in zip(files, save_report(result, tmp_path / "b", dpi=40), strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert first.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        save_report(planted(n_units=0).result, tmp_path / "file" / "report")


@pytest.mark.parametrize("windows", [1, 3])
def test_motion_is_drawn_with_the_spikes_where_they_were(windows, tmp_path):
    still = planted(n_units=6, n_channels=32).result
    with pytest.raises(ValueError, match="not seen to move"):
        plot_motion(still)
    moved = np.linspace(-20, 20, 50)[:, None] * np.ones(windows)
    result = replace(still, motion=Motion(np.linspace(0, 12, 50), 100.0 * np.arange(windows), moved))
    figure = plot_motion(result)
    top, bottom = figure.axes
    assert len(top.lines) == windows and np.ptp(top.lines[0].get_ydata()) == 40
    first = bottom.collections[0].get_offsets()
    early, late = first[first[:, 0] < 2, 1].mean(), first[first[:, 0] > 10, 1].mean()
    assert 25 < late - early < 40
    for (_, one), (_, two) in combinations(texts(figure), 2):
        assert not one.overlaps(two)
    assert [f.name for f in save_report(result, tmp_path, dpi=40)][:2] == ["summary.png", "motion.png"]
    save_report(still, tmp_path, dpi=40)
    assert not (tmp_path / "motion.png").exists(), "of an older report"


def test_drawing_leaves_the_global_state_of_matplotlib_alone():
    code = "import sys, sortcore.plots; assert 'matplotlib.pyplot' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert run.returncode == 0, run.stderr
