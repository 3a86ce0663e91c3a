"""A search whose time is limited: it ends in the middle of a training, and keeps what it found."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evenflow.errors import EvenflowError
from evenflow.fix import fix
from evenflow.fix.course import train
from evenflow.fix.deadline import NEVER, Deadline, TimeUpError
from evenflow.fix.script import Script, fix_script
from evenflow.fix.search import searched
from evenflow.parallel import Workers
from evenflow.scripts import nursery
from tests.fix import programs
from tests.fix.test_search import _Levels

PAST = Deadline(time.time() - 1.0)
SCRIPTS = Path(__file__).parent / "scripts"


def test_without_a_limit_nothing_is_wrapped() -> None:
    program = programs.healthy()
    assert Deadline.after(None) is NEVER
    assert NEVER.on(program) is program
    NEVER.check()


def test_minutes_are_counted_from_now() -> None:
    left = Deadline.after(2.0).left
    assert left is not None
    assert 119.0 < left <= 120.0
    with pytest.raises(EvenflowError, match="above 0; got 0"):
        Deadline.after(0.0)


def test_a_training_ends_at_its_next_batch() -> None:
    with pytest.raises(TimeUpError):
        train(PAST.on(programs.healthy()), 5)
    later = pickle.loads(pickle.dumps(Deadline.after(1.0)))
    program = programs.healthy()
    assert train(later.on(program), 5).losses == train(program, 5).losses


class _Ends(_Levels):
    """Time is up at the training of so many."""

    noise = 0.001

    def __init__(self, last: int) -> None:
        self.left = last

    def _course(self, job: Any) -> Any:
        self.left -= 1
        course = super()._course(job)
        return course if self.left else type(course)((), None, 0.0, cut=True)


@pytest.mark.parametrize(("trainings", "found"), [(9, False), (60, True)])
def test_what_was_found_by_then_is_kept(trainings: int, found: bool) -> None:
    outcome = searched(_Ends(trainings), (0, 1, 2), 40, Workers())  # type: ignore[arg-type]
    assert outcome.time_up is (trainings == 9)
    assert not outcome.interrupted
    assert bool(outcome.patches) is found
    assert all(trial.patched[0] > float("-inf") for trial in outcome.trials), "what was cut is no trial"


def test_the_clock_is_looked_at_before_and_after_each_training() -> None:
    passed: list[int] = []

    def track(title: str, items: Iterable[int], total: int) -> Iterator[int]:
        for item in items:
            passed.append(item)
            yield item

    with pytest.raises(TimeUpError):
        list(PAST.tracking(track)("", [1, 2], 2))
    assert passed == []
    assert list(NEVER.tracking(track)("", [1, 2], 2)) == [1, 2]


def test_a_check_that_takes_all_of_the_time_is_told() -> None:
    with pytest.raises(EvenflowError, match="longer than 1e-09 minutes"):
        fix(programs.sigmoid(), minutes=1e-9)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no nursery here")
def test_a_script_is_ended_with_its_trial(tmp_path: Path) -> None:
    """Neither the trial nor the process that forked it is left behind."""
    Script(str(SCRIPTS / "train.py"), folder=str(tmp_path)).course((None, 0, 1))  # PyTorch is imported
    script = tmp_path / "sleeps.py"
    script.write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    with pytest.raises(EvenflowError, match=r"takes 40 steps, and longer than 0\.05 minutes"):
        fix_script(Script(str(script)), steps=20, minutes=0.05)
    assert nursery._nurseries == []
    status = Path("/proc", (tmp_path / "pid").read_text(), "status")
    for _ in range(100):
        if not status.exists() or "zombie" in status.read_text():
            return
        time.sleep(0.05)
    pytest.fail("the trial is still running")


def test_a_trial_that_was_cut_says_so(tmp_path: Path) -> None:
    script = Script(str(SCRIPTS / "train.py"), folder=str(tmp_path))
    course = script.course((None, 0, 5), PAST)
    assert course.cut
    assert course.losses == ()
