"""What is kept of a stage becomes the same again, to the bit."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers_engine import FS, column, flat_priors, unit_waveforms

from sortcore import matching
from sortcore.ephys.kept import CLUSTERS, FIT, MOTION
from sortcore.follow import make_follower
from sortcore.matching import Matcher
from sortcore.moving import MovingMatcher, moving_matcher
from sortcore.steps import Form, Steps
from sortcore.types import FitLog, Motion, Preprocessing

LOG = FitLog(np.array([1.5, 2.5]), np.array([3, 3]), np.array([10, 11]), ("round 1", "round 2"))
MOTION_UP = Motion(np.array([0.0, 10.0]), np.array([0.0, 100.0]), np.array([[-4.0, -2.0], [4.0, 2.0]]))


def still_matcher() -> Matcher:
    return matching.prepare(unit_waveforms(3, 8), flat_priors(3), FS)


def mover() -> MovingMatcher:
    waves = unit_waveforms(3, 8)
    knots = np.array([-4.0, -2.0, 0.0, 2.0, 4.0])
    there = np.stack([20 * waves * (1 + 0.01 * q) for q in range(5)]).astype(np.float32)
    return moving_matcher(waves, there, knots, flat_priors(3), MOTION_UP, np.array([10.0, 50.0, 90.0]), FS)


def there_and_back(form: Form, result: object, folder: Path) -> object:
    """A result written by one sort and read by the next."""

    def not_again() -> object:
        raise RuntimeError("it was kept")

    assert Steps(folder, "").keep("stage", form, lambda: result) is result
    return Steps(folder, "").keep("stage", form, not_again)


def same(a: Matcher, b: Matcher) -> bool:
    return all(np.asarray(x).tobytes() == np.asarray(getattr(b, name)).tobytes() for name, x in vars(a).items() if name != "spectra")


@pytest.mark.parametrize("matcher", [still_matcher, mover])
def test_a_fit_comes_back(matcher, tmp_path: Path) -> None:
    made = matcher()
    found, priors, log = there_and_back(FIT, (made, flat_priors(3), LOG), tmp_path)
    assert type(found) is type(made) and same(found.reference, made.reference)
    for time_s in (0.0, 3.0, 10.0):
        assert same(found.at(time_s), made.at(time_s))
    assert priors.rate_hz.tobytes() == flat_priors(3).rate_hz.tobytes() and log.steps == LOG.steps
    assert log.log_joint.tobytes() == LOG.log_joint.tobytes()


def test_a_fit_of_no_unit_comes_back(tmp_path: Path) -> None:
    nothing = matching.prepare(np.zeros((0, 4, 64), np.float32), flat_priors(0), FS)
    found, priors, _ = there_and_back(FIT, (nothing, flat_priors(0), LOG), tmp_path)
    assert same(found, nothing) and len(priors.rate_hz) == 0


def test_a_matcher_that_moves_is_sent_to_another_process(tmp_path: Path) -> None:
    made = mover()
    made.at(3.0)  # tables stay here
    sent = pickle.dumps(made)
    assert same(pickle.loads(sent).at(3.0), made.at(3.0))
    assert len(sent) < len(pickle.dumps(made.reference)) + made.waveforms.nbytes + 20_000


def test_motion_comes_back_and_so_does_none(tmp_path: Path) -> None:
    n, taps, eye = 8, np.zeros(3, np.float32), np.eye(8, dtype=np.float32)
    learned = Preprocessing(np.arange(n), n, FS, np.ones(n), np.zeros(n), column(n), "none", taps, taps, eye, np.ones(n))
    motion = there_and_back(MOTION, make_follower(MOTION_UP, learned, np.arange(9.0)), tmp_path / "moved")
    assert isinstance(motion, Motion) and motion.displacement_um.tobytes() == MOTION_UP.displacement_um.tobytes()
    assert there_and_back(MOTION, None, tmp_path / "still") is None


def test_clusters_come_back(tmp_path: Path) -> None:
    waves, counts = there_and_back(CLUSTERS, (unit_waveforms(3, 40), np.array([5, 6, 7])), tmp_path)
    assert waves.tobytes() == unit_waveforms(3, 40).tobytes() and counts.tolist() == [5, 6, 7]
    assert next(tmp_path.glob("*.npz")).stat().st_size < 0.5 * waves.nbytes, "channels that a unit does not touch take no room"
