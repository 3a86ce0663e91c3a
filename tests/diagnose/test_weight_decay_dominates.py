"""EF608: weights that decay faster than they learn."""

from __future__ import annotations

import torch

from tests.diagnose.runs import SGD, Weight, run
from tests.diagnose.training import alarms, classify, only

RULE = "EF608"


def _decaying(gradient: float, end: float) -> bool:
    made = run(
        100,
        Weight("0.weight", weight=lambda s: 0.1 * 0.98**s, gradient=lambda s: gradient * 0.98**s),
        loss=lambda s: 2.3 + (end - 2.3) * s / 100,
        scalars={"lr": lambda s: 0.1},
        optimizer={"": {**SGD, "weight_decay": 0.2}},
    )
    return bool(alarms(made, RULE))


def test_decay_must_make_the_update_and_learning_must_suffer() -> None:
    assert _decaying(gradient=0.01, end=2.3), ".2 · .1 = .02 of decay"
    assert not _decaying(gradient=0.06, end=2.3), "a quarter of what moves the weights is decay"
    assert not _decaying(gradient=0.01, end=1.0), "the loss falls"


def test_a_decay_of_1_and_one_of_5e_4() -> None:
    assert only(classify(lambda p: torch.optim.SGD(p, 0.1, weight_decay=1.0)), RULE).severity.is_alarm
    assert alarms(classify(lambda p: torch.optim.SGD(p, 0.1, weight_decay=5e-4)), RULE) == []
    assert alarms(classify(lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=10.0)), RULE) == []


def test_decay_that_adam_normalises_together_with_the_gradient() -> None:
    """Each step takes the learning rate from every weight, however small the decay beside the weight."""
    assert only(classify(lambda p: torch.optim.Adam(p, 1e-2, weight_decay=1.0)), RULE).severity.is_alarm
    assert alarms(classify(lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-3)), RULE) == []
