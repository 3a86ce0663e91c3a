"""EF606: clipping that sets the step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from evenflow.diagnose import CauseName, Severity
from tests.diagnose.runs import ADAM, SGD, Weight, run
from tests.diagnose.training import alarms, classify, found, net, only

RULE = "EF606"


def _clipped(kept: Callable[[int], float], end: float = 2.2, optimizer: object = SGD) -> list[Severity]:
    made = run(
        100,
        Weight("0.weight"),
        loss=lambda s: 2.3 + (end - 2.3) * s / 100,
        scalars={
            "gradient_norm_before_clipping": lambda s: 50.0,
            "gradient_norm_after_clipping": lambda s: 50.0 * kept(s),
        },
        optimizer={"": optimizer},
    )
    return [finding.severity for finding in found(made, RULE)]


def test_always_hard_and_to_the_harm_of_learning() -> None:
    assert _clipped(lambda s: 0.02) == [Severity.WARNING]
    assert _clipped(lambda s: 0.02, end=0.5) == [Severity.NOTE], "it learns"
    assert _clipped(lambda s: 0.02, optimizer=ADAM) == [Severity.NOTE], "Adam divides it out"
    assert _clipped(lambda s: 0.5) == [], "the step is half of what it was"
    assert _clipped(lambda s: 0.02 if s % 2 else 1.0) == [], "every other step is not clipped"


def test_a_threshold_far_below_the_gradient_in_a_real_training() -> None:
    made = classify(lambda p: torch.optim.SGD(p, 0.01), clip=1e-3)
    finding = only(made, RULE)
    assert finding.severity is Severity.WARNING
    assert finding.causes[0].name is CauseName.CLIPPING_ALWAYS_ACTIVE
    assert only(made, "EF601").causes[0].name is CauseName.CLIPPING_ALWAYS_ACTIVE


def test_a_large_learning_rate_with_clipping_is_a_recipe() -> None:
    model = net(nn.Tanh, 2)
    assert alarms(classify(lambda p: torch.optim.SGD(p, 5.0), model=model, clip=0.1), RULE) == []


def test_gradients_of_what_the_optimizer_does_not_move_are_not_clipped() -> None:
    model = net()
    made = classify(lambda p: torch.optim.SGD(model[-1].parameters(), 0.1), model=model)
    before, after = (made.scalars[f"gradient_norm_{when}_clipping"].values for when in ("before", "after"))
    torch.testing.assert_close(torch.tensor(before), torch.tensor(after), rtol=1e-5, atol=0.0)
