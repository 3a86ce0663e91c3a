"""Rules for single steps over a run: what lasts, since when, and whether it does harm."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.flow import Run
from tests.diagnose.runs import Output, Weight, run
from tests.diagnose.training import classify, net, only


def _dying(dead: Callable[[int], float], *, update: float = 1e-3, end: float = 2.3) -> Run:
    return run(
        101,
        Weight("0.weight", update=lambda s: update if 30 < s < 50 else 1e-3),
        Output("0"),
        Output("1", "ReLU", dead=dead),
        Output("2"),
        loss=lambda s: 2.3 + (end - 2.3) * s / 100,
    )


def test_what_begins_in_training_is_dated_and_blamed_on_large_steps_before_it() -> None:
    finding = only(_dying(lambda s: 0.95 if s >= 43 else 0.1, update=0.05), "EF202")
    assert "It began in training: it is so since step 43." in [e.text for e in finding.evidence]
    assert [cause.name for cause in finding.causes] == [CauseName.LEARNING_RATE_TOO_HIGH, CauseName.DEAD_RELU]
    gentle = only(_dying(lambda s: 0.95 if s >= 43 else 0.1), "EF202")
    assert [cause.name for cause in gentle.causes] == [CauseName.DEAD_RELU]


def test_what_passes_is_no_finding_and_what_does_no_harm_is_a_note() -> None:
    assert diagnose(_dying(lambda s: 0.95 if s < 43 else 0.1), select="EF202").findings == ()
    assert diagnose(_dying(lambda s: 0.95 if s == 100 else 0.1), select="EF202").findings == ()
    assert only(_dying(lambda s: 0.95, end=0.2), "EF202").severity is Severity.NOTE
    lasting = only(_dying(lambda s: 0.95), "EF202")
    assert lasting.severity is Severity.WARNING
    assert lasting.evidence[-1].text == "It is so from the first step seen to the last, 100."


def test_a_loss_that_fell_from_a_bad_start_to_guessing_has_learned_nothing() -> None:
    def dead(end: float) -> Severity:
        made = run(
            101,
            Weight("0.weight"),
            Output("0"),
            Output("1", "ReLU", dead=0.95),
            Output("2", shape=(64, 10)),
            loss=lambda s: 300.0 if s < 3 else end,
        )
        return only(made, "EF202").severity

    assert dead(math.log(10)) is Severity.WARNING
    assert dead(0.5) is Severity.NOTE
    assert only(_dying(lambda s: 1.0, end=0.2), "EF202").severity is Severity.ERROR, "nothing gets through"


def _shrinking(layer: int) -> Output:
    """A gradient that loses two decades a layer from step 21 on."""
    return Output(str(layer), gradient=lambda s: 1e-3 * (0.01 if s > 20 else 1.0) ** (4 - layer))


def test_weights_that_shrink_in_training_are_no_fault_of_their_initial_size() -> None:
    sites = [site for i in range(5) for site in (Weight(f"{i}.weight"), _shrinking(i))]
    finding = only(run(100, *sites, loss=lambda s: 2.3), "EF101")
    assert CauseName.INIT_TOO_SMALL not in {cause.name for cause in finding.causes}
    assert "It began in training: it is so since step 21." in [e.text for e in finding.evidence]


def test_the_first_broken_step_is_the_one_that_is_looked_at() -> None:
    def breaking(step: int) -> float:
        return math.inf if step >= 41 else 1.0

    made = run(
        100,
        Output("0", size=lambda s: math.inf if s >= 42 else 1.0),
        Output("1", size=breaking),
        Output("2", size=breaking, gradient=breaking),
        loss=lambda s: 2.3 if s < 41 else math.nan,
    )
    assert only(made, "EF701").site.startswith("1:"), "a step later it would be 0"


def test_a_sigmoid_stack_that_stands_still_and_a_shallow_one_that_learns() -> None:
    deep = classify(lambda p: torch.optim.SGD(p, 0.1), model=net(torch.nn.Sigmoid, 10), steps=60)
    assert only(deep, "EF101").causes[0].name is CauseName.SATURATING_ACTIVATION
    shallow = classify(lambda p: torch.optim.SGD(p, 0.1), model=net(torch.nn.Tanh, 3), steps=60)
    diagnosis = diagnose(shallow, select=("EF1", "EF2"))
    assert diagnosis.findings == ()
    assert {skip.code for skip in diagnosis.skipped} == {"EF203", "EF204"}  # a run does not compare samples


def test_a_run_without_a_sampled_step_says_so() -> None:
    diagnosis = diagnose(run(30, loss=lambda s: 1.0), select="EF101")
    assert diagnosis.skipped[0].reason == "no step of the run was sampled"


def test_what_is_wrong_at_first_and_passes_is_a_note_where_training_learns() -> None:
    def shrinking(layer: int) -> Output:
        return Output(str(layer), gradient=lambda s: 1e-3 * (1.0 if s > 20 else 0.01) ** (4 - layer))

    sites = [site for i in range(5) for site in (Weight(f"{i}.weight"), shrinking(i))]
    passed = only(run(100, *sites, loss=lambda s: 2.3 * 0.97**s), "EF101")
    assert (passed.severity, passed.passed) == (Severity.NOTE, True)
    assert passed.evidence[-1].text == "It has passed: it was so at step 0, and is not at step 99."
    assert diagnose(run(100, *sites, loss=lambda s: 2.3), select="EF101").findings == ()


def test_weights_that_grew_do_harm_where_nothing_takes_their_size_away() -> None:
    def growing(layer: int) -> Output:
        return Output(str(layer), gradient=lambda s: 1e-6 * (100.0 if s > 20 else 1.0) ** (4 - layer))

    def causes(norm: bool) -> set[CauseName]:
        sites = [site for i in range(5) for site in (Weight(f"{i}.weight"), growing(i))]
        last = [Output("5", "BatchNorm1d" if norm else "Identity")]
        return {cause.name for cause in only(run(100, *sites, *last, loss=lambda s: 2.3), "EF102").causes}

    assert CauseName.MISSING_NORMALIZATION in causes(norm=False)
    assert CauseName.MISSING_NORMALIZATION not in causes(norm=True)


def test_large_steps_come_before_the_normalisation_that_would_have_hidden_them() -> None:
    def growing(layer: int) -> Output:
        return Output(str(layer), gradient=lambda s: 1e-6 * (100.0 if s > 20 else 1.0) ** (4 - layer))

    def causes(update: float) -> list[CauseName]:
        sites = [site for i in range(5) for site in (Weight(f"{i}.weight", update=update), growing(i))]
        made = run(100, *sites, loss=lambda s: 2.3)
        return [cause.name for cause in diagnose(made, select="EF102").causes]

    large, norm = CauseName.LEARNING_RATE_TOO_HIGH, CauseName.MISSING_NORMALIZATION
    assert causes(0.1)[:2] == [large, norm], "one update as large as the weights"
    assert causes(1e-4)[0] is norm, "the weights grew by small steps"


def test_many_moderate_steps_are_blamed_for_what_nothing_else_explains() -> None:
    def blamed(update: float) -> list[CauseName]:
        sites = [site for i in range(5) for site in (Weight(f"{i}.weight", update=update), _shrinking(i))]
        return [cause.name for cause in only(run(100, *sites, loss=lambda s: 2.3), "EF101").causes]

    assert blamed(2e-3)[0] is CauseName.LEARNING_RATE_TOO_HIGH, "22 steps of 2 % each"
    assert CauseName.LEARNING_RATE_TOO_HIGH not in blamed(2e-4), "22 steps of .2 % each"
