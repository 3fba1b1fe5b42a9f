"""Neuropil: coefficients that are known are found among bright events, and what is left is the cell."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from sortcore.errors import ConfigError, ModelError
from sortcore.optical.indicator import INDICATORS
from sortcore.optical.neuropil import NeuropilConfig, estimate, robust_fit, subtract_neuropil
from sortcore.optical.simulate import Baseline, Firing, Noise, ornstein_uhlenbeck, simulate_calcium

FS = 15.0


def contaminated(n_cells=16, rate_hz=0.5, shared=0.3, seed=0):
    """Traces with neuropil that partly follows the cell's own activity: fluorescence, neuropil, coefficients, and the cells alone."""
    rng = np.random.default_rng(seed)
    s = simulate_calcium(n_cells, 200.0, FS, indicator=INDICATORS["gcamp6f"], firing=Firing(rate_hz, 1.0, bursting=0.3), noise=Noise(0.05),
                         baseline=Baseline(0.2, 200.0, 0.05, 40.0), seed=seed)
    own = (s.calcium - s.calcium.mean(axis=1, keepdims=True)) / s.calcium.std(axis=1, keepdims=True)
    other = np.array([ornstein_uhlenbeck(rng, s.traces.shape[1], 1 / FS) for _ in range(n_cells)])
    around = gaussian_filter1d(np.sqrt(1 - shared**2) * other + shared * own, 2) + 0.1 * rng.standard_normal(other.shape)
    neuropil, coefficients = 1 + 0.15 * around, rng.uniform(0.1, 1.0, n_cells)
    return 1 + s.traces + coefficients[:, None] * neuropil, neuropil, coefficients, 1 + s.traces


def silent():
    """The same without spikes."""
    fluorescence, neuropil, true, cells = contaminated()
    quiet = 1 + 0.05 * np.random.default_rng(1).standard_normal(cells.shape)
    return fluorescence - cells + quiet, neuropil, true, quiet


@pytest.mark.parametrize("made", [silent, lambda: contaminated(shared=0.0), contaminated,
                                  lambda: contaminated(rate_hz=2.0)], ids=["silent", "alone", "shared", "busy"])
def test_known_coefficients_are_found(made):
    fluorescence, neuropil, true, _ = made()
    found = subtract_neuropil(fluorescence, neuropil, FS)
    assert found.estimated.all()
    assert np.abs(found.coefficients - true).mean() < 0.04
    assert np.abs(found.coefficients - true).max() < 0.12


def test_robust_regression_beats_plain_where_cells_follow_their_neuropil():
    fluorescence, neuropil, true, _ = contaminated()
    plain = [np.polyfit(n, f, 1)[0] for f, n in zip(fluorescence, neuropil, strict=True)]
    found = subtract_neuropil(fluorescence, neuropil, FS).coefficients
    assert np.abs(found - true).mean() < 0.25 * np.abs(plain - true).mean()


def test_what_is_left_is_the_cell():
    fluorescence, neuropil, true, cells = contaminated(6)
    whole = subtract_neuropil(fluorescence, neuropil, FS, NeuropilConfig(keep_level=False), coefficients=true)
    np.testing.assert_allclose(whole.traces, cells, atol=1e-12)
    assert not whole.estimated.any()
    level = subtract_neuropil(fluorescence, neuropil, FS, coefficients=0.7)
    np.testing.assert_allclose(np.diff(level.traces), np.diff(fluorescence - 0.7 * neuropil), atol=1e-12)
    np.testing.assert_allclose(level.traces - fluorescence, -0.7 * (neuropil - np.median(neuropil, axis=1, keepdims=True)))
    assert level.traces.min() > 0


def test_the_coefficient_does_not_depend_on_the_unit_and_keeps_its_bounds():
    fluorescence, neuropil, _, _ = contaminated(2)
    a = [estimate(scale * fluorescence[0] + 5 * scale, scale * neuropil[0], FS) for scale in (1.0, 2000.0)]
    assert a[0] == pytest.approx(a[1], rel=1e-3)
    assert estimate(-fluorescence[0], neuropil[0], FS) == 0
    assert estimate(fluorescence[0] + 3 * neuropil[0], neuropil[0], FS) == 1.2


def test_too_little_to_estimate_from_gives_the_fallback():
    flat = np.ones((2, 400))
    nothing = [(flat + np.random.default_rng(0).random(flat.shape), flat), (flat[:, :1], flat[:, :1]), (flat[:, :0], flat[:, :0]),
               (np.full((2, 400), np.nan), flat)]
    for F, N in nothing:
        found = subtract_neuropil(F, N, FS)
        assert found.coefficients.tolist() == [0.7, 0.7] and not found.estimated.any() and found.traces.shape == F.shape
    assert subtract_neuropil(np.zeros((0, 50)), np.zeros((0, 50)), FS).traces.shape == (0, 50)


def test_missing_frames_do_not_count_and_a_constant_trace_is_left_alone():
    fluorescence, neuropil, true, _ = contaminated(2)
    fluorescence[:, 300:600] = np.nan
    found = subtract_neuropil(fluorescence, neuropil, FS)
    assert np.abs(found.coefficients - true).max() < 0.12
    assert np.isnan(found.traces[:, 300:600]).all() and np.isfinite(found.traces[:, :300]).all()
    constant = subtract_neuropil(np.full((1, 3000), 7.0), neuropil[:1], FS)
    assert constant.coefficients[0] == pytest.approx(0, abs=1e-6)


def test_robust_fit_ignores_what_lies_far_above(rng):
    X = np.column_stack([rng.standard_normal(500), np.ones(500)])
    y = X @ [0.5, 2.0] + 0.1 * rng.standard_normal(500)
    y[::7] += rng.exponential(5, len(y[::7])) * (X[::7, 0] > 0)
    np.testing.assert_allclose(robust_fit(X, y, 2.5), [0.5, 2.0], atol=0.06)  # the constant is low: only one side is cut
    assert np.abs(np.linalg.lstsq(X, y, rcond=None)[0] - [0.5, 2.0]).max() > 0.2


@pytest.mark.parametrize("call, error", [
    (lambda: subtract_neuropil(np.ones((2, 9)), np.ones((2, 8)), FS), ModelError),
    (lambda: subtract_neuropil(np.ones((2, 9)), np.ones((2, 9)), 0.0), ConfigError),
    (lambda: NeuropilConfig(largest=-1.0), ConfigError),
])
def test_what_does_not_fit_is_refused(call, error):
    with pytest.raises(error):
        call()
