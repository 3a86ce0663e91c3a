"""EF609: gradients come, and none moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.check import check
from evenflow.diagnose import CauseName, Finding, Severity, diagnose
from evenflow.measure import measure
from evenflow.program import Program
from evenflow.watch import WatchWarning
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


def _stale(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer made before its model was replaced."""
    return torch.optim.SGD(net().parameters(), 0.1)


def test_an_optimizer_made_from_other_parameters() -> None:
    data, model = clusters(), net(layers=4)
    with pytest.warns(WatchWarning, match="holds no parameter of the model"):
        made = train(model, _stale(model), data, steps=40)
    finding = only(made, RULE)
    assert finding.severity is Severity.WARNING
    assert finding.causes[0].name is CauseName.FROZEN_OR_DETACHED
    assert finding.message == (
        "The optimizer changes nothing of the model: gradients reach 0, 2, 4 and 1 more, and none moves."
    )
    with pytest.warns(WatchWarning):
        made = train(model, _stale(model), data, steps=1)
    assert len(found(made, RULE)) == 1, "known without a step"


def test_a_program_whose_optimizer_holds_nothing_is_checked_and_its_fault_named() -> None:
    program = Program(
        build=lambda seed: net(),
        optimizer=_stale,
        batches=lambda seed: [clusters()],
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        steps=40,
    )
    with pytest.warns(WatchWarning):
        report = check(program, confirm=False)
    assert report.findings[0].code == RULE
    assert next(iter(report.diagnosis.causes)).name is CauseName.FROZEN_OR_DETACHED


def test_an_optimizer_that_moves_the_input_is_noted_only() -> None:
    x, y = clusters()
    x.requires_grad_(True)
    model, optimizer = net(), torch.optim.SGD([x], 1000.0)
    with pytest.warns(WatchWarning):
        made = train(model, optimizer, (x, y), batch=0, steps=60)
    assert only(made, RULE).severity is Severity.NOTE


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


def _with_head(
    body: nn.Module, *, frozen: bool = True, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
) -> list[Finding]:
    """What is said of a body that stays as it is, while the head behind it learns its task."""
    model = nn.Sequential(body, nn.Linear(64, 4))
    body.requires_grad_(not frozen)
    x, y = clusters()
    first = measure(model, x, lambda output: loss(output, y))
    made = train(model, torch.optim.Adam(model[1].parameters(), 1e-2), (x, y), loss, steps=40)
    return [f for f in diagnose(made, select=RULE, first={"": first}).findings if f.severity.is_alarm]


def test_a_backbone_that_was_frozen_before_it_was_ever_trained() -> None:
    (finding,) = _with_head(net(layers=3, outputs=64))
    assert finding.site == "0.0.weight"
    assert finding.causes[0].name is CauseName.FROZEN_OR_DETACHED
    assert finding.message.startswith("3 of 4 weight matrices stay as they were initialised")
    (finding,) = _with_head(net(layers=3, outputs=64), frozen=False)
    assert finding.message.startswith("3 of 4"), "left out of the optimizer"


def test_a_trained_backbone_and_one_layer_of_random_features_may_stay_as_they_are() -> None:
    trained = net(layers=3, outputs=64)
    train(trained, torch.optim.Adam(trained.parameters(), 1e-3), clusters(classes=64), steps=30)
    assert _with_head(trained) == []
    assert _with_head(trained, frozen=False) == []
    assert _with_head(nn.Sequential(nn.Linear(16, 64), nn.ReLU())) == []


def test_a_random_net_that_the_loss_alone_reads_is_a_target() -> None:
    class Distilled(nn.Module):
        """A random net is to be foretold (Burda et al. 2018)."""

        def __init__(self) -> None:
            super().__init__()
            self.target = net(layers=3).requires_grad_(False)
            self.learner = net(layers=2)

        def forward(self, x: Tensor) -> Tensor:
            wanted = self.target(x)
            error: Tensor = self.learner(x) - wanted
            return error.square().mean()

    model, (x, y) = Distilled(), clusters()
    first = measure(model, x, lambda error: error)
    made = train(model, torch.optim.Adam(model.learner.parameters(), 1e-3), (x, y), lambda e, _: e, steps=40)
    findings = diagnose(made, select=RULE, first={"": first}).findings
    assert [finding for finding in findings if finding.severity.is_alarm] == []
