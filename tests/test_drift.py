"""Motion of the tissue: estimated from events, told from stillness, and followed by templates that move."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_engine import FS, D, flat_priors, unit_waveforms

import sortcore as sc
from sortcore import follow, groups, matching, moving
from sortcore.ephys import drift
from sortcore.ephys.config import DriftConfig, PursuitConfig
from sortcore.ephys.deconvolve import deconvolve
from sortcore.export import load_result, save_result
from sortcore.metrics import compare
from sortcore.numerics import unit_norm
from sortcore.probes import load_probe
from sortcore.recording import array_recording
from sortcore.simulate import drifting, simulate
from sortcore.types import Motion, Preprocessing, Probe

SECONDS = 120.0


def staggered(n):
    """Two columns of contacts, 20 um apart in depth."""
    return Probe(np.stack([32.0 * (np.arange(n) % 2), 20.0 * (np.arange(n) // 2)], axis=1), np.zeros(n, int), "staggered")


def plain(probe, whitening=None):
    """A preprocessing that leaves data as they are, or whitens in space alone."""
    n, taps = probe.n_channels, np.ones(1, np.float32)
    whitening = np.eye(n, dtype=np.float32) if whitening is None else whitening
    return Preprocessing(np.arange(n), n, FS, np.ones(n), np.zeros(n), probe, "none", taps, taps, whitening, np.full(n, np.inf))


def events_of(motion, probe, per_second=60.0, cells=15, noise_um=4.0, seed=0):
    """Times, depths and sizes of the events of cells that move."""
    rng = np.random.default_rng(seed)
    n = rng.poisson(per_second * SECONDS)
    low, high = probe.positions_um[:, 1].min(), probe.positions_um[:, 1].max()
    home, loud = rng.uniform(low, high, cells), np.exp(rng.normal(4, 0.5, cells))
    cell, times = rng.integers(cells, size=n), rng.uniform(0, SECONDS, n)
    moved = np.array([motion.at(t, home[c]) for t, c in zip(times, cell, strict=True)])
    return times, home[cell] + moved + rng.normal(0, noise_um, n), loud[cell] * np.exp(rng.normal(0, 0.08, n))


def error_um(found, true):
    """(B, V) um between two motions, each from where the tissue is in the median, every half second: the times of a motion are denser
    about a jump."""
    times = np.arange(found.times_s[0], found.times_s[-1], 0.5)
    off = np.array([found.at(t, found.depths_um) - true.at(t, found.depths_um) for t in times])
    return off - np.median(off, axis=0)


@pytest.mark.parametrize("motion", [
    pytest.param({"drift_um": 30.0, "period_s": 70.0}, id="slow"),
    pytest.param({"drift_um": 0.0, "jump_um": 25.0}, id="sudden"),
    pytest.param({"drift_um": 8.0, "period_s": 30.0}, id="small"),
])
def test_planted_motion_is_estimated(motion):
    probe = staggered(40)
    true = drifting(probe, SECONDS, **motion)
    found = drift.estimate(*events_of(true, probe), SECONDS, probe, DriftConfig())
    assert np.sqrt((error_um(found, true) ** 2).mean()) < 1.5
    assert np.abs(error_um(found, true)).max() < 8


@pytest.mark.parametrize(("jump_s", "rigid"), [(61.3, 1.0), (58.6, 1.0), (40.0, 0.5)])
def test_a_jump_is_timed_by_the_events_around_it(jump_s, rigid):
    probe = staggered(200 if rigid < 1 else 40)
    slow, windows = drifting(probe, SECONDS, 12.0, 50.0, rigid=rigid), np.linspace(0, probe.positions_um[:, 1].max(), 4)
    times = np.sort(np.r_[slow.times_s, jump_s + np.array([-1e-3, 1e-3])])
    um = np.array([slow.at(t, windows) for t in times]) + np.where(times[:, None] > jump_s, 25.0 * np.linspace(1, rigid, 4), 0.0)
    true = Motion(times, windows, um)
    events = events_of(true, probe, 100.0 if rigid < 1 else 60.0, 80 if rigid < 1 else 15)
    found = drift.estimate(*events, SECONDS, probe, DriftConfig())
    assert len(found.jumps_s) == 0
    timed = drift.with_jumps_timed(found, *events)
    np.testing.assert_allclose(timed.jumps_s, jump_s, atol=0.15)
    assert len(timed.jumps_s) == 1 and (np.diff(timed.times_s) > 0).all()
    around = np.arange(jump_s - 3, jump_s + 3, 0.1)
    before, after = (np.array([m.at(t, windows[1]) - true.at(t, windows[1]) for t in around]) for m in (found, timed))
    before, after = (np.abs(off - np.median(off)).mean() for off in (before, after))
    assert after < 0.6 * before


def test_what_is_slow_or_always_fast_has_no_jump():
    probe = staggered(40)
    for motion in (drifting(probe, SECONDS, 30.0, 70.0), drifting(probe, SECONDS, 60.0, 16.0)):
        events = events_of(motion, probe)
        found = drift.estimate(*events, SECONDS, probe, DriftConfig())
        assert np.array_equal(drift.with_jumps_timed(found, *events).times_s, found.times_s)


def test_motion_that_differs_along_the_probe_is_estimated():
    probe = staggered(200)  # two millimetres
    true = drifting(probe, SECONDS, 40.0, 80.0, rigid=0.2)
    found = drift.estimate(*events_of(true, probe, 300.0, 80), SECONDS, probe, DriftConfig())
    assert len(found.depths_um) == 5 and (np.diff(found.depths_um) > 0).all()
    assert np.sqrt((error_um(found, true) ** 2).mean()) < 2.5
    span = np.ptp(found.displacement_um, axis=0)
    assert span[0] > 30 and span[-1] < 18


def sizes_of(depths_um, contacts_um, away=20.0, power=1.5, noise=4.0):
    """Sizes (S, M) of sources beside the first column of contacts, above the size 20 of noise alone; they fall off faster than assumed."""
    gap = np.sqrt((contacts_um[None, :, 0] - 8) ** 2 + (contacts_um[None, :, 1] - depths_um[:, None]) ** 2 + away**2)
    return 100 * (away / gap) ** power + 20 + noise * np.random.default_rng(0).standard_normal(gap.shape)


def test_events_at_the_ends_of_a_probe_move_as_far_as_others():
    contacts = np.array([[x, y] for y in 15.0 * np.arange(7) for x in (0.0, 32.0)])
    for true, nearest in ((np.linspace(0, 20, 400), 15.0), (np.linspace(35, 55, 400), 45.0), (np.linspace(70, 90, 400), 75.0)):
        sizes = sizes_of(true, contacts)
        moved = np.polyfit(true, drift.located(sizes, *drift.sources(contacts, nearest)), 1)[0]
        mass = np.maximum(sizes - np.quantile(sizes, drift.FLOOR, axis=1, keepdims=True), 0) ** 2
        by_mass = np.polyfit(true, mass @ contacts[:, 1] / mass.sum(axis=1), 1)[0]
        assert 0.8 < moved < 1.25 and (by_mass < 0.75 or nearest == 45.0)


def test_events_are_placed_by_every_source_as_likely_as_it_is():
    contacts = np.array([[x, y] for y in 15.0 * np.arange(7) for x in (0.0, 32.0)])
    sizes = sizes_of(np.array([40.0, 52.0]), contacts)
    depths, profiles = drift.sources(contacts, 45.0)
    for event, found in zip(sizes, drift.located(sizes, depths, profiles), strict=True):
        floor = np.quantile(event, drift.FLOOR)
        seen = np.maximum(event - floor, 0)
        sd = np.hypot(drift.NOISE_SHARE * floor, drift.SIZE_ERROR * seen.max())
        left = np.array([((seen - (seen @ p) * p) ** 2).sum() for p in profiles.astype(float)])  # with the amplitude that fits best
        weight = np.exp(-0.5 * (left - left.min()) / sd**2)
        assert found == pytest.approx(weight @ depths / weight.sum(), abs=0.01)
    np.testing.assert_allclose(np.linalg.norm(profiles, axis=1), 1, rtol=1e-5)


def test_stillness_is_no_motion():
    probe = staggered(40)
    still = drifting(probe, SECONDS, 0.0)
    assert drift.estimate(*events_of(still, probe), SECONDS, probe, DriftConfig()) is None
    few = tuple(column[:30] for column in events_of(drifting(probe, SECONDS, 30.0), probe))
    assert drift.estimate(*few, SECONDS, probe, DriftConfig()) is None, "thirty events tell nothing"


def test_positions_fit_all_pairs_and_outliers_count_little():
    rng = np.random.default_rng(0)
    p = np.cumsum(rng.normal(0, 3, 40))
    shifts = p[None] - p[:, None] + rng.normal(0, 0.3, (40, 40))
    wrong = rng.random((40, 40)) < 0.1
    shifts[wrong] += rng.uniform(-60, 60, wrong.sum())
    weights = np.triu(np.ones((40, 40)), 1)
    found = drift.solved(shifts, weights)
    assert np.abs(found - (p - np.median(p))).max() < 1.0
    # the reference: least squares over all pairs, written out
    i, j = np.nonzero(np.triu(~wrong, 1))
    rows = np.zeros((len(i), 40))
    rows[np.arange(len(i)), i], rows[np.arange(len(i)), j] = -1, 1
    exact = np.linalg.lstsq(rows, shifts[i, j], rcond=None)[0]
    assert np.abs(found - (exact - np.median(exact))).max() < 0.5


def test_motion_is_read_between_its_times_and_depths():
    m = Motion(np.array([0.0, 10.0]), np.array([0.0, 100.0]), np.array([[0.0, 10.0], [20.0, 30.0]]))
    assert m.at(5.0, np.array([50.0]))[0] == 15 and m.at(-3, np.array([0.0]))[0] == 0 and m.at(99, np.array([500.0]))[0] == 30
    np.testing.assert_allclose(m.over(np.array([0.0, 5.0, 10.0]), 50.0), [5, 15, 25])


def test_waveforms_are_carried_along_the_probe_and_back():
    probe = staggered(30)
    depth = probe.positions_um[:, 1] - 140
    wave = np.exp(-0.5 * ((probe.positions_um[:, 0] - 16) ** 2 + depth**2) / 40**2)[:, None] * np.ones((1, 3), np.float32)
    motion = Motion(np.array([0.0]), np.array([0.0]), np.array([[20.0]]))
    whitening = np.eye(30) - 0.2 * np.eye(30, k=1) - 0.2 * np.eye(30, k=-1)
    for learned in (plain(probe), plain(probe, whitening.astype(np.float32))):
        f = follow.make_follower(motion, learned, np.zeros(10, np.float32))
        assert f.knots_um[0] == 0 and f.knots_um[-1] == 20 and np.array_equal(f.forth[0], np.eye(30)) and f.median_knot == 0
        there = f.carried(learned.whitening @ wave)[-1]
        wanted = learned.whitening @ np.roll(wave, 2, axis=0)  # 20 um is one row of contacts
        inner = slice(6, 24)
        assert np.linalg.norm((there - wanted)[inner]) < 0.1 * np.linalg.norm(wanted)
        back = f.registered(torch.from_numpy(np.tile(there, (1, 4))[:, :10]), np.zeros(10))
        assert np.linalg.norm((back.numpy()[:, :3] - learned.whitening @ wave)[inner]) < 0.15 * np.linalg.norm(wave)


@pytest.fixture(scope="module")
def moved_spikes():
    """A follower, and spikes of one cell at every knot: features (S, M, B) with unit noise."""
    probe = staggered(16)
    motion = Motion(np.array([0.0, 1.0]), np.array([0.0]), np.array([[-12.0], [12.0]]))
    f = follow.make_follower(motion, plain(probe), np.linspace(0, 1, 1000).astype(np.float32))
    rng = np.random.default_rng(0)
    knots = rng.integers(len(f.knots_um), size=800)

    def wave(um, at=75.0):
        r = np.hypot(probe.positions_um[:, 0] - 10, probe.positions_um[:, 1] - at - um)
        return 30 * np.exp(-r / 18)[:, None] * np.array([[1.0, 0.3]])

    seen = np.array([wave(f.knots_um[q]) for q in knots]) + rng.standard_normal((800, 16, 2))
    return f, groups.Displaced(knots, seen.astype(np.float32)), wave


def test_waveforms_at_knots_are_learned_and_drawn_to_what_interpolation_says(moved_spikes):
    f, there, wave = moved_spikes
    channels = np.arange(16)
    true = np.array([wave(um) for um in f.knots_um])
    mean = groups.trimmed_mean(f.back_home(there.features, there.knots, channels))
    learned = f.at_knots(there, channels, mean)
    carried = f.forth @ mean
    error, before = (np.linalg.norm(w - true, axis=(1, 2)) for w in (learned, carried))
    assert (error < 0.5 * before.max()).all() and error.mean() < 0.4 * before.mean()
    one = there.part(slice(0, 1))
    said = f.at_knots(one, channels, mean)[one.knots[0]] - carried[one.knots[0]]
    assert np.linalg.norm(said) < 0.7 * np.linalg.norm(one.features[0] - carried[one.knots[0]]), "one spike is mostly noise"


def test_spikes_brought_back_look_alike_and_another_cell_stays_another(moved_spikes):
    f, there, wave = moved_spikes
    channels = np.arange(16)
    home = f.brought_back(there, channels)
    spread = (home - home.mean(axis=0)).reshape(len(home), -1).std(axis=0)
    assert spread.max() < 1.3, "what is left is noise"
    rng = np.random.default_rng(1)
    other = np.array([wave(f.knots_um[q], at=105.0) for q in there.knots]) + rng.standard_normal(there.features.shape)
    both = there.with_more(groups.Displaced(there.knots, other.astype(np.float32)))
    home = f.brought_back(both, channels)
    assert np.linalg.norm(groups.mean_difference(home, len(there.knots))) > 15


@pytest.fixture(scope="module")
def drifting_cell(moved_spikes):
    """A follower whose motion is a zigzag of 20 um, seen every second for 40 s, and a group of spikes of a cell that follows a motion
    that is off that one by so many um at each time."""
    f, _, wave = moved_spikes
    times = np.arange(40.0)
    motion = Motion(times, np.array([0.0]), (10 * np.interp(times % 16, [0, 4, 12, 16], [0, 1, -1, 0]))[:, None])
    f = replace(f, motion=motion, times_s=np.linspace(0, 39, 39_000).astype(np.float32))
    samples = np.sort(np.random.default_rng(2).choice(39_000, 2000, replace=False))

    def group(off_um):
        rng = np.random.default_rng(3)
        said = motion.over(f.times_s[samples], 75.0)
        moved = said + off_um[np.rint(f.times_s[samples]).astype(int)]
        seen = np.array([wave(um) for um in moved]) + rng.standard_normal((2000, 16, 2))
        spikes = groups.Displaced(moving.nearest_knot(said, f.knots_um), seen.astype(np.float32))
        channels = np.r_[5, np.delete(np.arange(16), 5)]  # the largest first
        return groups.Group(samples, np.full(2000, 30.0), f.brought_back(spikes.on(channels), channels), channels, spikes.on(channels))

    return f, group


def test_spikes_leave_a_motion_that_is_right_as_it_is(drifting_cell):
    """Though most of them lie between two knots."""
    f, group = drifting_cell
    change = (f.refined([group(np.zeros(40))]).motion.displacement_um - f.motion.displacement_um)[:, 0]
    assert np.sqrt((change**2).mean()) < 0.2


def test_large_spikes_refine_the_motion(drifting_cell):
    f, group = drifting_cell
    off = np.random.default_rng(4).normal(0, 0.8, 40)
    change = (f.refined([group(off)]).motion.displacement_um - f.motion.displacement_um)[:, 0]
    assert np.sqrt(((change - off)[1:-1] ** 2).mean()) < 0.5 * np.sqrt((off[1:-1] ** 2).mean())


def test_what_is_between_two_times_of_a_jump_is_not_asked(drifting_cell):
    f, _ = drifting_cell
    jump = replace(f.motion, displacement_um=f.motion.displacement_um + 15.0 * (np.arange(40) > 20)[:, None])
    assert follow.jumping(jump, np.array([3.5, 19.9, 20.1, 20.9, 21.5, 39.0]), 75.0).tolist() == [False, False, True, True, False, False]


def test_what_is_seen_only_while_tissue_jumps_is_no_cell(drifting_cell):
    f, group = drifting_cell
    f = replace(f, motion=replace(f.motion, displacement_um=f.motion.displacement_um + 15.0 * (np.arange(40) > 20)[:, None]))
    cell = group(np.zeros(40))
    between = np.abs(f.times_s[cell.samples] - 20.5) < 0.5
    seen_then, also = cell.part(np.flatnonzero(between)), cell.part(np.flatnonzero(between | (np.arange(2000) % 20 == 0)))
    assert f.lasting([cell, seen_then, also]) == [cell, also]
    fast = replace(f, motion=replace(f.motion, displacement_um=4.0 * f.motion.times_s[:, None]))
    assert fast.lasting([cell, seen_then]) == [cell, seen_then], "always moving so fast: that tells nothing"


def test_the_moving_matcher_finds_spikes_where_the_tissue_is():
    n, wave = 12, unit_waveforms(1, 12)[0]
    knots = np.array([-25.0, 0.0, 25.0])  # contacts are 25 um apart
    moved = 20 * np.array([[np.roll(wave, r, axis=0)] for r in (-1, 0, 1)])
    motion = Motion(np.array([0.0, 1.0, 2.0]), np.array([0.0]), np.array([[-25.0], [0.0], [25.0]]))
    priors = flat_priors(1)
    m = moving.moving_matcher(unit_norm(moved[1]), moved, knots, priors, motion, np.array([125.0]), FS)
    for time, q in ((0.0, 0), (0.9, 1), (5.0, 2)):
        assert m.knots(time)[0] == q
        x = np.zeros((n, 4 * D), np.float32)
        x[:, 100 : 100 + D] = moved[q, 0]
        now = m.at(time)
        spikes = matching.match(now, matching.scores(now, torch.from_numpy(x)).numpy(), 15)
        assert len(spikes) == 1 and abs(spikes.samples[0] - 100) <= 1 and spikes.amplitudes[0] == pytest.approx(20, rel=0.02)
    assert m.at(0.0) is m.at(-1.0), "made once"
    np.testing.assert_allclose(m.displacement(np.array([0.0, 1.5]), np.array([0, 0])), [-25, 12.5])
    still = matching.prepare(unit_norm(moved[1]), priors, FS)
    assert still.at(3.0) is still is still.reference


def test_spikes_just_before_and_after_a_jump_are_found_where_the_tissue_is():
    wave, jump_s = unit_waveforms(1, 12)[0], 0.5123
    knots = np.array([-25.0, 0.0, 25.0])
    moved = 20 * np.array([[np.roll(wave, r, axis=0)] for r in (-1, 0, 1)])
    motion = Motion(np.array([0.0, jump_s - 0.002, jump_s + 0.002, 2.0]), np.array([0.0]), np.array([[-25.0], [-25.0], [25.0], [25.0]]))
    m = moving.moving_matcher(unit_norm(moved[1]), moved, knots, flat_priors(1), motion, np.array([125.0]), FS)
    np.testing.assert_allclose(m.jumps_s, jump_s)
    assert len(m.reference.jumps_s) == 0
    x = np.zeros((12, int(FS)), np.float32)
    starts = np.array([0.48, jump_s - 0.005, jump_s + 0.005, 0.55]) * FS
    for start in starts.astype(int):
        x[:, start : start + D] += moved[0 if start < jump_s * FS else 2, 0]
    whole = torch.from_numpy(x)
    spikes = deconvolve(lambda c: whole[:, c.start : c.stop], (x.shape[1],), m, 0, FS, PursuitConfig())
    assert len(spikes) == 4 and (np.abs(spikes.samples - starts) <= 1).all()
    np.testing.assert_allclose(spikes.amplitudes, 20, rtol=0.02)


@pytest.fixture(scope="module")
def moving_simulation():
    probe = load_probe("neuropixels1").select(np.arange(24))
    motion = drifting(probe, 40.0, 24.0, 30.0, jump_um=10.0)
    return simulate(probe, 40.0, 6, snr=(10.0, 20.0), rate_hz=(6.0, 15.0), motion=motion, seed=3)


def run(simulation, **settings):
    config = sc.SortConfig(drift=DriftConfig(**settings))
    recording = array_recording(simulation.data, simulation.fs, simulation.gain_uv)
    return sc.sort(recording, simulation.probe, config, device="cpu", progress=False)


def accuracy(simulation, result):
    found = [result.spike_train(u) for u in range(result.n_units)]
    return compare([simulation.spike_train(k) for k in range(simulation.n_units)], found, 12).accuracy


@pytest.fixture(scope="module")
def followed(moving_simulation):
    return run(moving_simulation)


def test_cells_that_move_are_found_whole(moving_simulation, followed):
    assert np.sqrt((error_um(followed.motion, moving_simulation.motion) ** 2).mean()) < 3
    found = accuracy(moving_simulation, followed)
    assert (found > 0.9).all(), found
    lost = accuracy(moving_simulation, run(moving_simulation, follow=False))
    assert lost.mean() < found.mean() - 0.1, "without following, cells come apart"


def test_a_moving_result_is_saved_and_its_model_finds_the_same_spikes(moving_simulation, followed, tmp_path):
    again = load_result(save_result(followed, tmp_path / "sorted"))
    assert np.array_equal(again.motion.displacement_um, followed.motion.displacement_um)
    assert np.array_equal(again.model.moving.footprints, followed.model.moving.footprints)
    recording = array_recording(moving_simulation.data, moving_simulation.fs, moving_simulation.gain_uv)
    spikes = sc.deconvolve(recording, again.model, motion=again.motion, device="cpu", progress=False)
    truth = [followed.spike_train(u) for u in range(followed.n_units)]
    same = compare(truth, [spikes.samples[spikes.units == u] for u in range(followed.n_units)], 5)
    assert np.average(same.accuracy, weights=[len(t) for t in truth]) > 0.97


def test_a_still_recording_is_sorted_as_if_motion_were_never_asked_for(small_simulation):
    on, off = run(small_simulation), run(small_simulation, follow=False)
    assert on.motion is None and on.model.moving is None
    assert on.spikes.samples.tobytes() == off.spikes.samples.tobytes() and on.spikes.units.tobytes() == off.spikes.units.tobytes()


def test_motion_of_a_recording_longer_than_its_sample_is_seen_all_along(moving_simulation):
    config = sc.SortConfig(fit=replace(sc.SortConfig().fit, sample_seconds=20.0))
    recording = array_recording(moving_simulation.data, moving_simulation.fs, moving_simulation.gain_uv)
    result = sc.sort(recording, moving_simulation.probe, config, device="cpu", progress=False)
    assert np.sqrt((error_um(result.motion, moving_simulation.motion) ** 2).mean()) < 3
    assert accuracy(moving_simulation, result).mean() > 0.9
