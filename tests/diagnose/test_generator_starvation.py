"""EF802: a generator whose gradient fades."""

from __future__ import annotations

from collections.abc import Callable

from evenflow.diagnose import CauseName, Severity
from tests.diagnose.adversarial import play
from tests.diagnose.runs import ADAM, Weight, run
from tests.diagnose.training import found, only

RULE = "EF802"


def _said(gradient: Callable[[int], float], discriminator: Callable[[int], float]) -> list[Severity]:
    made = run(
        60,
        Weight("generator.0.weight", gradient=gradient),
        Weight("discriminator.0.weight"),
        scalars={"loss/generator": lambda s: 1.0, "loss/discriminator": discriminator},
        optimizer={"generator": ADAM, "discriminator": ADAM},
        models=["generator", "discriminator"],
    )
    return [finding.severity for finding in found(made, RULE)]


def test_two_decades_while_the_discriminator_knows_better() -> None:
    assert _said(lambda s: 1e-3 * 0.85**s, lambda s: 1.39 - s / 60) == [Severity.WARNING]
    assert _said(lambda s: 1e-3 * 0.95**s, lambda s: 1.39 - s / 60) == [], "a decade is no starvation"
    assert _said(lambda s: 1e-3 * 0.85**s, lambda s: 1.39) == [], "the game is over: there is nothing to tell"


def test_a_saturating_loss_against_a_strong_discriminator() -> None:
    finding = only(play(1e-5, 3e-2, distance=6.0, saturating=True), RULE)
    assert finding.causes[0].name is CauseName.DISCRIMINATOR_SATURATION


def test_samples_detached_in_the_generators_turn() -> None:
    finding = only(play(detached=True), RULE)
    assert finding.severity is Severity.ERROR
    assert finding.causes[0].name is CauseName.FROZEN_OR_DETACHED
    assert found(play(), RULE) == []
