"""The matrix of benchmarks/diagnosis: what was drawn is what was measured, and each fault does something."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.diagnosis.matrix import draw, known, matrix, pair
from benchmarks.diagnosis.matrix.faults import faults

from evenflow import Program


def test_each_pair_that_was_drawn_was_measured() -> None:
    assert sorted(known()) == sorted(draw())
    assert {facts["kind"] for facts in known().values()} == {"faulty", "near miss", "neither"}


def test_only_what_hurts_is_faulty() -> None:
    for subject in matrix():
        facts = known()[subject.name.removeprefix("matrix-")]
        assert subject.faulty == (facts["control"] - facts["metric"] >= 0.1)
        assert subject.as_claimed(facts["metric"])
        assert bool(subject.causes) == subject.faulty


def _one_step(program: Program) -> list[torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        training = program.start(0)
        loss = next(training.run(1))["loss"]
    return [torch.as_tensor(loss).float(), *(p.detach().float() for p in training.model.parameters())]


@pytest.mark.parametrize("fault", faults())
def test_each_fault_changes_what_a_step_does(fault: str) -> None:
    control, faulty, _ = pair(next(name for name in known() if name.endswith(f"+{fault}")))
    sound, said = _one_step(control.program()), _one_step(faulty.program())
    assert (
        len(sound) != len(said)
        or any(not a.equal(b) for a, b in zip(sound, said, strict=True))
        or fault in ("decays-early", "no-zero-grad")
    )  # which show from the second step on
