"""EF705: a scaler that never settles."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
import torch
from torch import nn

from evenflow.flow import Run
from evenflow.watch import watch
from tests.diagnose.runs import Recorded, run
from tests.diagnose.training import found

RULE = "EF705"


def _run(skipped: set[int], steps: int = 400, lowest: float = 1024.0) -> Run:
    made = run(steps, loss=lambda s: 2.0, scalars={"loss_scale": lambda s: lowest if s == 50 else 65536.0})
    rows = made.table("scalars")
    extra = pa.table(
        {"step": sorted(skipped), "name": ["skipped"] * len(skipped), "value": [1.0] * len(skipped)},
        schema=rows.schema,
    )
    tables = {name: made.table(name) for name in ("flow", "parameters", "events")}
    return Run(Recorded({**tables, "scalars": pa.concat_tables([rows, extra])}, made.metadata))


@pytest.mark.parametrize(
    ("skipped", "lowest", "alarm"),
    [
        (set(range(16)) | {399}, 1024.0, False),  # finding its scale, and one attempt at a larger one
        (set(range(40, 400, 10)), 1024.0, True),
        ({40, 50, 60, 70}, 1024.0, False),
        ({60}, 0.5, True),
    ],
)
def test_how_often_and_how_low(skipped: set[int], lowest: float, alarm: bool) -> None:
    assert bool(found(_run(skipped, lowest=lowest), RULE)) is alarm


def test_without_a_scaler_there_is_nothing_to_say() -> None:
    assert found(run(100, loss=lambda s: 2.0), RULE) == []


@pytest.mark.parametrize("every", [4, 1000])
def test_a_gradient_that_is_infinite_again_and_again(every: int) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu")
    with watch(model, optimizer, budget=None, scaler=scaler) as watcher:
        for step in range(120):
            broken = step % every == every - 1
            loss = model(torch.ones(2, 4)).square().mean() * (math.inf if broken else 1.0)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            watcher.log(loss=1.0)
    assert bool(found(watcher.run, RULE)) is (every == 4)
