"""EF801: a discriminator without doubts."""

from __future__ import annotations

import math
from collections.abc import Callable

from evenflow.diagnose import CauseName, Severity, diagnose
from tests.diagnose.adversarial import play
from tests.diagnose.runs import ADAM, Weight, run
from tests.diagnose.training import found, only

RULE = "EF801"


def _said(discriminator: Callable[[int], float], generator: Callable[[int], float]) -> list[Severity]:
    made = run(
        120,
        Weight("generator.0.weight"),
        Weight("discriminator.0.weight"),
        scalars={"loss/generator": generator, "loss/discriminator": discriminator},
        optimizer={"generator": ADAM, "discriminator": ADAM},
        models=["generator", "discriminator"],
    )
    return [finding.severity for finding in found(made, RULE)]


def test_the_discriminators_loss_decides_and_not_the_generators() -> None:
    def rising(step: int) -> float:
        return 0.7 + step / 20

    assert _said(lambda s: 1.39 * math.exp(-s / 10), rising) == [Severity.WARNING]
    assert _said(lambda s: 1.39 if s < 5 else 0.6, rising) == [], "a game in balance"
    assert _said(lambda s: 1.39 if s % 3 == 0 else 0.01, rising) == [], "it doubts at times"
    assert _said(lambda s: 1.0 - s / 10, rising) == [], "a critic has no bottom"


def test_a_strong_discriminator_and_a_slow_generator_far_away() -> None:
    finding = only(play(1e-5, 1e-2, distance=6.0, saturating=True), RULE)
    assert finding.causes[0].name is CauseName.DISCRIMINATOR_SATURATION
    assert finding.site == "discriminator"


def test_a_game_in_balance_raises_no_alarm_of_any_rule_over_runs() -> None:
    assert diagnose(play(), select=("EF6", "EF7", "EF8")).alarms == ()


def test_six_losses_are_enough_and_five_are_not() -> None:
    def short(steps: int) -> list[Severity]:
        made = run(
            steps,
            Weight("generator.0.weight"),
            Weight("discriminator.0.weight"),
            scalars={
                "loss/generator": lambda s: 1.0 + s,
                "loss/discriminator": lambda s: 1.39 if s == 0 else 1e-3,
            },
            optimizer={"generator": ADAM, "discriminator": ADAM},
            models=["generator", "discriminator"],
        )
        return [finding.severity for finding in diagnose(made, select=RULE).findings]

    assert short(6) == [Severity.WARNING]
    assert short(5) == []
