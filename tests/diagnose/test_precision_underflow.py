"""EF704: gradients below the smallest float16 number."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evenflow.diagnose import CauseName, Severity
from evenflow.watch import watch
from tests.diagnose.runs import Output, run
from tests.diagnose.training import clusters, found

RULE = "EF704"
SMALLEST = 2.0**-24


def _said(*gradients: float, scale: float = 1.0, end: float = 2.3, dtype: str = "float16") -> list[Severity]:
    outputs = [Output(str(i), gradient=size / scale, dtype=dtype) for i, size in enumerate(gradients)]
    made = run(
        40, *outputs, loss=lambda s: 2.3 + (end - 2.3) * s / 40, scalars={"loss_scale": lambda s: scale}
    )
    return [finding.severity for finding in found(made, RULE)]


def test_the_size_as_it_was_stored_decides() -> None:
    assert _said(0.9 * SMALLEST, 1e-3) == [Severity.WARNING]
    assert _said(1.1 * SMALLEST, 1e-3) == []
    assert _said(0.9 * SMALLEST, 1e-3, dtype="bfloat16") == []
    assert _said(1e-3, 1e-2, scale=65536.0) == [], "1e-3 is what is stored; unscaled it is 1.5e-8"
    assert _said(0.9 * SMALLEST, 1e-3, scale=1024.0) == [Severity.WARNING]


def test_zeros_count_only_beside_tiny_numbers_and_a_few_rows_are_noted() -> None:
    assert _said(0.0, 100.0 * SMALLEST) == [Severity.WARNING]
    assert _said(0.0, 1e-2) == [], "dead units, not rounding"
    assert _said(0.9 * SMALLEST, *[1e-3] * 5) == [Severity.NOTE]
    assert _said(0.9 * SMALLEST, 1e-3, end=0.5) == [Severity.NOTE], "it learns"


@pytest.mark.parametrize(("scaled", "severities"), [(False, [Severity.WARNING]), (True, [])])
def test_autocast_with_and_without_a_loss_scale(scaled: bool, severities: list[Severity]) -> None:
    x, y = clusters()
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    with watch(model, optimizer, budget=None, scaler=scaler if scaled else None) as watcher:
        for _ in range(30):
            with torch.autocast("cpu", torch.float16):
                loss = 1e-6 * F.cross_entropy(model(x).float(), y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            watcher.log(loss=loss)
    said = found(watcher.run, RULE)
    assert [finding.severity for finding in said] == severities
    assert all(finding.causes[0].name is CauseName.PRECISION_UNDERFLOW for finding in said)
