"""Gradients by time step: the rows of measure, and the numbers of many real draws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.predict.oracle import disagreement, worst
from torch import Tensor, nn

from evenflow.flow import Role
from evenflow.measure import measure
from evenflow.predict import predict

WIDTH, STEPS = 64, 5


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(16, WIDTH, batch_first=True, **options)
        self.out = nn.Linear(WIDTH * (2 if options.get("bidirectional") else 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.cell(x)[0][:, -1])
        return y


CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "RNN": ("RNN", {}),
    "RNN, two layers": ("RNN", {"num_layers": 2}),
    "GRU, two directions": ("GRU", {"bidirectional": True}),
    "LSTM": ("LSTM", {}),
    "LSTM, two layers and directions": ("LSTM", {"num_layers": 2, "bidirectional": True}),
}


@pytest.mark.parametrize("name", CELLS)
def test_rows_are_those_of_measure(name: str) -> None:
    kind, options = CELLS[name]
    x = randn(4, STEPS, 16)
    flows = [predict(lambda: Net(kind, **options), x), measure(Net(kind, **options), x)]
    rows = [flow.select(Role.ACTIVATION_GRADIENT, time_steps=True) for flow in flows]
    assert rows[0]
    predicted, measured = ({row.site: (row.shape, row.dtype, row.module_type) for row in r} for r in rows)
    assert predicted == measured
    assert all(row.stats is not None for row in rows[0])
    zeros = [{row.site for row in r if row.stats and row.stats.mean_square == 0.0} for r in rows]
    assert zeros[0] == zeros[1]
    assert all(row.half_width is not None for row in rows[0] if row.site not in zeros[0])


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_sizes_by_time_step(kind: str) -> None:
    x = randn(8, STEPS, 16)
    found = disagreement(lambda: Net(kind), x, roles=(Role.ACTIVATION_GRADIENT,), draws=16)
    states = {site: error for site, error in found.items() if "_l0" in site}
    assert len(states) == STEPS * (2 if kind == "LSTM" else 1)
    site, excess = worst(states)
    assert excess < 0.03, site
    assert all(not math.isinf(error) for error, _ in states.values())
