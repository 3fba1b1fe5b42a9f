"""The picture of calcium traces shows what it is given, also where that is little."""

from itertools import combinations

import numpy as np
import pytest

from sortcore.errors import ModelError
from sortcore.optical.plots import POINTS, plot_calcium, thinned
from sortcore.optical.simulate import Firing, simulate_calcium
from sortcore.optical.spikes import Threshold, find_events


@pytest.fixture(scope="module")
def simulation():
    return simulate_calcium(10, 40.0, 20.0, firing=Firing(0.5))


def test_trace_fit_activity_and_spikes_are_drawn(simulation):
    s = simulation
    events = find_events(s.counts, s.fs, Threshold("absolute", 0.5))
    figure = plot_calcium(s.traces, s.fs, fit=s.calcium, activity=s.counts, events=events, truth=s.spike_times_s, cells=[3, 7])
    figure.canvas.draw()
    assert len(figure.axes) == 2
    for ax, k in zip(figure.axes, (3, 7), strict=True):
        trace, fit = ax.get_lines()
        np.testing.assert_array_equal(trace.get_ydata(), s.traces[k])
        np.testing.assert_array_equal(fit.get_ydata(), s.calcium[k])
        drawn = [np.array([p[0, 0] for p in c.get_segments()]) for c in ax.collections if hasattr(c, "get_segments")]
        np.testing.assert_allclose(drawn[0], s.spike_times_s[k][s.spike_times_s[k] >= 0])
        np.testing.assert_allclose(drawn[1], events.trains()[k])
    texts = [t.get_window_extent() for t in figure.axes[0].get_legend().get_texts()] + [figure.axes[0].title.get_window_extent()]
    assert not any(a.overlaps(b) for a, b in combinations(texts, 2))
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["trace", "fit", "activity", "true spikes", "spikes"]


def test_eight_cells_by_default_and_a_span_of_time(simulation):
    figure = plot_calcium(simulation.traces, simulation.fs, span_s=(5.0, 10.0))
    assert len(figure.axes) == 8 and figure.axes[0].get_xlim() == (5.0, 10.0)
    assert len(figure.axes[0].get_lines()[0].get_xdata()) == 101


LITTLE = {"no cell": np.zeros((0, 50)), "constant": np.zeros((2, 50)), "missing": np.full((1, 50), np.nan), "one frame": np.ones((1, 1)),
          "no frame": np.zeros((2, 0)), "one row": np.ones(9)}


@pytest.mark.parametrize("traces", LITTLE.values(), ids=LITTLE)
def test_little_to_draw_is_drawn(traces):
    shape = np.atleast_2d(traces).shape
    events = find_events(np.zeros(shape), 10.0)
    plot_calcium(traces, 10.0, fit=traces, activity=traces, events=events, truth=[np.zeros(0)] * shape[0]).canvas.draw()


def test_a_long_line_keeps_its_extremes(rng):
    values = rng.standard_normal(123_457)
    times, few = thinned(np.arange(123_457.0), values)
    assert len(few) < 1.1 * POINTS and few.min() == values.min() and few.max() == values.max()
    assert (np.diff(times) >= 0).all()
    np.testing.assert_array_equal(few, values[times.astype(int)])


def test_what_does_not_fit_is_refused(simulation):
    with pytest.raises(ModelError, match="shape of the traces"):
        plot_calcium(simulation.traces, 20.0, fit=simulation.traces[:2])
    with pytest.raises(IndexError, match="no cell 10"):
        plot_calcium(simulation.traces, 20.0, cells=[10])
