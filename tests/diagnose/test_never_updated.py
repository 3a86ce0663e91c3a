"""EF609: gradients come, and no step is taken."""

from __future__ import annotations

import torch
from torch import nn

from evenflow.diagnose import CauseName, Severity
from tests.diagnose.runs import Weight, run
from tests.diagnose.training import clusters, found, net, only, train

RULE = "EF609"


def test_a_part_that_the_optimizer_does_not_have() -> None:
    data, model = clusters(), net(layers=4)
    for_all_but_the_second = [p for name, p in model.named_parameters() if not name.startswith("2.")]
    nn.init.constant_(model.get_parameter("2.bias"), -50.0)  # nothing passes, and nothing will
    model.get_parameter("4.bias").data += 0.1
    made = train(model, torch.optim.SGD(for_all_but_the_second, 1e-6), data, steps=60)
    assert found(made, RULE) == [], "no gradient passes its dead units, so it is not this rule's business"


def test_a_layer_left_out_is_noted_while_training_learns_and_an_alarm_if_not() -> None:
    data = clusters()
    for rate, severity in ((0.1, Severity.NOTE), (1e-6, Severity.WARNING)):
        model = net(layers=4)
        kept = [p for name, p in model.named_parameters() if not name.startswith("2.")]
        finding = only(train(model, torch.optim.SGD(kept, rate), data, steps=100), RULE)
        assert finding.severity is severity
        assert finding.site == "2.weight"
        assert finding.causes[0].name is CauseName.FROZEN_OR_DETACHED


def test_a_learning_rate_of_zero() -> None:
    data, model = clusters(), net()
    finding = only(train(model, torch.optim.SGD(model.parameters(), 0.0), data, steps=60), RULE)
    assert finding.severity is Severity.WARNING
    assert finding.causes[0].name is CauseName.LEARNING_RATE_TOO_LOW


def test_a_frozen_part_and_an_update_that_rounding_swallows_are_not_this_rules_business() -> None:
    data, model = clusters(), net()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    kept = [p for p in model.parameters() if p.requires_grad]
    assert found(train(model, torch.optim.SGD(kept, 0.1), data, steps=60), RULE) == []
    assert found(run(60, Weight("0.weight", update=0.0), loss=lambda s: 2.3), RULE) == []
