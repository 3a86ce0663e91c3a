"""Short trainings and their scores."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from evenflow.fix.course import LOST, Course, train
from tests.fix import programs


def test_a_course_is_the_programs_own_training() -> None:
    program = programs.healthy()
    course = train(program, 30, seed=3)
    training = program.start(3)
    by_hand = [float(figures["loss"]) for figures in training.run(30)]
    assert course.losses == pytest.approx(by_hand, abs=0)
    assert course.metric == programs.accuracy(training.model)


def test_random_states_and_output_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def build(seed: int) -> nn.Module:
        print("building")
        return programs.chain(1, nn.ReLU)(seed)

    state = torch.get_rng_state()
    train(programs.program(build), 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert capsys.readouterr().out == ""


def test_a_training_that_broke_is_given_up() -> None:
    bad = replace(programs.healthy(), loss=lambda model, batch: programs.loss(model, batch) * math.nan)
    course = train(bad, 10 * LOST)
    assert len(course.losses) == LOST
    assert course.broken
    assert course.score(other_loss=False) == -math.inf
    assert course.metric is None


def test_scores() -> None:
    losses = (8.0, 4.0, 2.0, 1.0)
    assert Course(losses, 0.7, 0.0).score(other_loss=True) == 0.7
    assert Course(losses, None, 0.0).score(other_loss=False) == -1.0
    assert Course(losses, None, 0.0).score(other_loss=True) == pytest.approx(math.log(8))
    assert Course((2.0, -1.0), None, 0.0).fallen == 3.0
