"""For your own test suite: a model whose gradients do not flow fails its test.

    from evenflow.testing import assert_healthy

    def test_gradients_flow():
        assert_healthy(Net(), images, lambda output: F.cross_entropy(output, labels))

With pytest the same is a fixture that needs no import, and ``pytest
--evenflow-html DIR`` leaves a page for each check that failed:

    def test_gradients_flow(assert_healthy):
        assert_healthy(Net(), images, loss)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evenflow.check import Report
    from evenflow.program import Program

__all__ = ["UnhealthyError", "assert_healthy"]


class UnhealthyError(AssertionError):
    """Gradients do not flow as they should.

    Attributes:
        report: The whole check.
    """

    def __init__(self, text: str, report: Report) -> None:
        super().__init__(text)
        self.report = report


def assert_healthy(
    model: nn.Module | Program,
    inputs: Any = None,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    seed: int = 0,
) -> Report:
    """Check a model on one batch, or a program's whole training, and raise if there is an alarm.

    What the project's pyproject.toml selects, ignores, suppresses or has in its
    baseline holds here too (see :mod:`evenflow.diagnose.policy`).

    Args:
        model: Any module, left as it was; or a :class:`~evenflow.program.Program`.
        inputs: What the model is called with.
        loss: From the model's output to a scalar; see :func:`evenflow.measure`.
        select: Rules to apply; the project's by default.
        ignore: Rules to leave out, besides the project's.
        seed: As in :func:`evenflow.check`.

    Returns:
        The report; its notes are no alarm.

    Raises:
        UnhealthyError: A finding is a warning or an error.
        EvenflowError: The model, the loss or the settings cannot be used.
    """
    from dataclasses import replace

    from evenflow.check import check
    from evenflow.diagnose import Policy
    from evenflow.program import Program

    policy = Policy.of_project(Path.cwd()).also(tuple(select), tuple(ignore))
    if isinstance(model, Program):
        report = check(model, select=policy.select, ignore=policy.ignore, seed=seed)
    else:
        report = check(model, inputs, loss, select=policy.select, ignore=policy.ignore, seed=seed)
    report = replace(report, diagnosis=policy.settle(report.diagnosis))
    if not report.healthy:
        raise UnhealthyError(_told(report), report)
    return report


def _told(report: Report) -> str:
    from evenflow.report.content import headline
    from evenflow.report.sarif import message
    from evenflow.report.text import place_name, words

    lines = [headline(report.diagnosis)]
    for finding in report.diagnosis.alarms:
        place = f"{place_name(finding.site)}{f' ({finding.source})' if finding.source else ''}"
        lines.append(
            f"{finding.severity} {finding.code} {words(finding.symptom)} at {place}: {message(finding)}"
        )
    codes = " ".join(dict.fromkeys(finding.code for finding in report.diagnosis.alarms))
    lines.append(f"What they mean and why: evenflow explain {codes}")
    return "\n".join(lines)
