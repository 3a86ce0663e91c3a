"""EF607: ε above the gradients' root mean square."""

from __future__ import annotations

import torch

from evenflow.diagnose import CauseName, Severity
from tests.diagnose.runs import ADAM, Weight, run
from tests.diagnose.training import alarms, classify, found, only

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
