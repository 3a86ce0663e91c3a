"""EF706: updates that a short format rounds away."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from evenflow.diagnose import CauseName, Severity
from tests.diagnose.runs import Weight, run
from tests.diagnose.training import alarms, clusters, found, net, only, train

RULE = "EF706"


def _said(lost: float, end: float = 2.2) -> list[Severity]:
    made = run(
        40,
        Weight("0.weight", dtype="bfloat16"),
        loss=lambda s: 2.3 + (end - 2.3) * s / 40,
        parameters={("0.weight", "lost_update_fraction"): lambda s: lost},
    )
    return [finding.severity for finding in found(made, RULE)]


def test_half_of_the_entries_and_a_loss_that_suffers() -> None:
    assert _said(0.6) == [Severity.WARNING]
    assert _said(0.4) == []
    assert _said(0.6, end=0.4) == [Severity.NOTE]


def _loss(output: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(output.float(), labels)


def test_bfloat16_weights_with_a_small_and_with_an_ordinary_step() -> None:
    x, y = clusters()
    small, ordinary = net().bfloat16(), net()
    data = (x.bfloat16(), y)
    finding = only(train(small, torch.optim.SGD(small.parameters(), 1e-3), data, _loss, steps=80), RULE)
    assert finding.severity is Severity.WARNING
    assert finding.causes[0].name is CauseName.UPDATE_LOST_TO_ROUNDING
    assert found(train(ordinary, torch.optim.SGD(ordinary.parameters(), 1e-3), (x, y), steps=80), RULE) == []
    large = net().bfloat16()
    assert alarms(train(large, torch.optim.SGD(large.parameters(), 0.3), data, _loss, steps=80), RULE) == []
