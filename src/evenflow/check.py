"""check: measure one batch, and say what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evenflow.diagnose import diagnose
from evenflow.diagnose.finding import Diagnosis, Finding
from evenflow.flow import Flow
from evenflow.measure import measure

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        flow: The measured batch.
        diagnosis: Findings, worst first, and the rules that could not judge.
        predicted: The Flow predicted from the model alone; None if not predicted.
    """

    flow: Flow
    diagnosis: Diagnosis
    predicted: Flow | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings, worst first."""
        return self.diagnosis.findings

    @property
    def healthy(self) -> bool:
        """Whether no finding is of severity ``warning`` or above."""
        return not self.diagnosis.alarms


def check(
    model: nn.Module,
    inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    seed: int = 0,
) -> Report:
    """Run one batch forward and backward and judge it by the rules.

    Args:
        model: Any module; it is left as it was (see :func:`evenflow.measure`).
        inputs: What the model is called with: a tensor, a tuple (positional
            arguments) or a mapping (named arguments).
        loss: From the model's output to a scalar; see :func:`evenflow.measure`.
        select: Codes, prefixes of codes or names of the rules to apply; all by default.
        ignore: Rules to leave out, likewise.
        seed: For the random cotangent that stands in for a missing loss.

    Raises:
        ModelError: The model raised or gave nothing that has a gradient.
        LossError: The loss raised, is no scalar, or has no gradient.
        EvenflowError: ``select`` or ``ignore`` names no rule.
    """
    flow = measure(model, inputs, loss, seed=seed)
    return Report(flow, diagnose(flow, select=tuple(select), ignore=tuple(ignore)))
