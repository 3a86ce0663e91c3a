"""EF607: ε above the gradients' root mean square."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.measure import measure
from tests.diagnose.runs import ADAM, Weight, run
from tests.diagnose.training import alarms, classify, found, only, train

RULE = "EF607"


def _moments(rms: float, end: float = 2.3) -> list[Severity]:
    made = run(
        100,
        Weight("0.weight"),
        loss=lambda s: 2.3 + (end - 2.3) * s / 100,
        optimizer={"": ADAM},
        # what Adam keeps of a constant gradient after s + 1 steps
        parameters={("0.weight", "second_moment_mean"): lambda s: rms**2 * (1.0 - 0.999 ** (s + 1))},
    )
    return [finding.severity for finding in found(made, RULE)]


def test_the_moments_are_corrected_for_their_start() -> None:
    assert _moments(0.9e-9) == [Severity.WARNING]
    assert _moments(1.1e-9) == [], "ε is 1e-8, and a tenth of it the limit"
    assert _moments(0.9e-9, end=0.3) == [Severity.NOTE], "it learns all the same"
    assert _moments(0.0) == [], "no gradient at all is another rule's business"


def test_a_large_epsilon_in_a_real_training() -> None:
    made = classify(lambda p: torch.optim.Adam(p, 1e-4, eps=10.0))
    assert only(made, RULE).severity is Severity.WARNING
    assert only(made, "EF601").causes[0].name is CauseName.OPTIMIZER_EPSILON_DOMINATES


def test_small_gradients_that_adam_hides_are_healthy() -> None:
    made = classify(
        lambda p: torch.optim.Adam(p, 1e-3),
        loss=lambda output, labels: 1e-4 * torch.nn.functional.cross_entropy(output, labels),
    )
    assert alarms(made, "EF6") == []


def _offset(epsilon: float) -> list[Severity]:
    """Targets of mean 3 and variance 1: a bias brings the loss from 10 to 1, the inputs from there to 0."""
    x = torch.randn(256, 16)
    wanted = 3.0 + x[:, :1]
    model = nn.Linear(16, 1)
    with torch.no_grad():
        model.weight.zero_()

    def squares(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target)

    first = measure(model, x, lambda output: squares(output, wanted))
    groups: list[dict[str, Any]] = [{"params": [model.weight]}, {"params": [model.bias], "eps": 1e-8}]
    optimizer = torch.optim.Adam(groups, lr=0.1, eps=epsilon)
    made = train(model, optimizer, (x, wanted), squares, steps=100, batch=0)
    return [one.severity for one in diagnose(made, select=(RULE,), first={"": first}).findings]


def test_a_squared_error_that_comes_down_to_the_variance_of_its_targets_suffers() -> None:
    assert _offset(1e3) == [Severity.WARNING]
    assert _offset(1e-8) == []
