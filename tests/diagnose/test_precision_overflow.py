"""EF703: outputs that leave float16."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evenflow.diagnose import Severity
from evenflow.watch import watch
from tests.diagnose.runs import Output, run
from tests.diagnose.training import clusters, found, net, only

RULE = "EF703"


def test_the_end_of_the_format_is_near_from_half_of_it() -> None:
    def said(largest: float, dtype: str = "float16") -> list[Severity]:
        made = run(
            30, Output("0", size=largest / 4.0, dtype=dtype), loss=lambda s: 2.0
        )  # made runs reach 4 RMS
        return [finding.severity for finding in found(made, RULE)]

    assert said(32800.0) == [Severity.NOTE]
    assert said(32700.0) == []
    assert said(60000.0, "float32") == said(60000.0, "bfloat16") == []


def test_an_infinity_is_an_error_where_the_loss_is_lost_and_its_first_place_is_named() -> None:
    spread = [
        Output("0", dtype="float16"),
        Output("1", size=lambda s: math.inf if s >= 10 else 1.0, dtype="float16"),
        Output("2", size=lambda s: math.inf if s >= 11 else 1.0, dtype="float16"),
    ]
    finding = only(run(30, *spread, loss=lambda s: 2.0 if s < 10 else math.nan), RULE)
    assert (finding.severity, finding.site) == (Severity.ERROR, "1")
    assert only(run(30, *spread, loss=lambda s: 2.0), RULE).severity is Severity.NOTE


@pytest.mark.parametrize(("scale", "overflows"), [(3e4, True), (1.0, False)])
def test_autocast(scale: float, overflows: bool) -> None:
    x, y = clusters()
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)) if overflows else net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    with watch(model, optimizer, budget=None) as watcher:
        for _ in range(25):
            with torch.autocast("cpu", torch.float16):
                loss = F.cross_entropy(scale * model(scale * x[:32] / 4.0).float(), y[:32])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watcher.log(loss=loss)
    assert bool(found(watcher.run, RULE)) is overflows
