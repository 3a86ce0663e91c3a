"""Kill −9 at a random moment: the run opens, and at most one flush interval is missing.

A child process writes steps and prints each flush that has ended; it is killed
after a random time. Every step up to the last flush that it told of must be
there, in order and without a gap.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evenflow.store import open_run
from tests.store.runs import loss_of

ROOT = Path(__file__).parents[2]
_CHILD = """
import sys
from evenflow.store import RunWriter
from tests.store.runs import flow, scalars
writer = RunWriter(sys.argv[1], flush_seconds=1e6)
step = 0
print("ready", flush=True)
while True:
    writer.add("flow", flow(step))
    writer.add("scalars", scalars(range(step, step + 1)))
    writer.flush()
    step += 1
    print(step, flush=True)
"""


def killed_run(folder: Path, seconds: float) -> int:
    """How many steps were flushed for certain before the child was killed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    command = [sys.executable, "-c", _CHILD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        told = child.stdout.read().split("\n")
    return int(told[-2]) if len(told) > 1 else 0


def check(folder: Path, flushed: int) -> int:
    run = open_run(folder)
    steps = list(run.scalars["loss"].steps) if run.scalars else []
    assert steps == list(range(len(steps)))
    assert len(steps) >= flushed
    assert [run.scalars["loss"].at(step) for step in steps] == [loss_of(step) for step in steps]
    assert list(run.steps) in (steps, [*steps, len(steps)]), "the flow table is written first"
    assert run.metadata["state"] == "running"
    return len(steps)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_opens(tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "run"
    flushed = killed_run(folder, random.Random(seed).uniform(0.0, 0.4))
    assert check(folder, flushed) <= flushed + 1


@pytest.mark.slow
def test_kill_50_times(tmp_path: Path) -> None:
    chance = random.Random(50)
    steps = []
    for trial in range(50):
        folder = tmp_path / str(trial)
        flushed = killed_run(folder, chance.uniform(0.0, 1.0))
        steps.append(check(folder, flushed))
        assert steps[-1] <= flushed + 1
    assert max(steps) > 8, "some were killed after parts had been joined"
