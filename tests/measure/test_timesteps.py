"""Gradients by time step as rows of a measured Flow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evenflow.measure import measure
from tests.measure.replays import BATCH, FEATURES, HIDDEN, TIME, build, normal
from tests.oracles.unrolled_cells import unrolled


@pytest.mark.parametrize("kind", ["tanh", "lstm", "gru"])
def test_rows_agree_with_cells(kind: str) -> None:
    torch.manual_seed(0)
    module, x = build(kind, num_layers=2, bidirectional=True), normal(TIME, BATCH, FEATURES)
    flow = measure(nn.Sequential(module), x, lambda output: output[0][-1].sum())
    truth = unrolled(module, list(x.unbind(1)))
    truth.padded[-1].sum().backward()
    found = {(row.site.op, row.site.time): row for row in flow.rows if row.site.time is not None}
    states = {"hidden": truth.hidden} | ({"cell": truth.cell} if kind == "lstm" else {})
    assert len(found) == len(states) * 4 * TIME
    for name, paths in states.items():
        for (layer, reverse), sequences in paths.items():
            for t in range(TIME):
                row = found[f"{name}_l{layer}{'_reverse' if reverse else ''}", t]
                gradients = [s[t].grad for s in sequences]
                expected = torch.cat([torch.zeros(1, HIDDEN) if g is None else g for g in gradients])
                assert row.site.path == "0"
                assert row.stats is not None
                assert row.stats.norm == pytest.approx(expected.norm().item(), rel=1e-9)


class _OwnForward(nn.LSTM):
    """Returns the output only."""

    def forward(self, *args: Any) -> Any:
        return super().forward(*args)[0]


class _NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(FEATURES, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            output, _ = self.rnn(x)
        score: Tensor = self.head(output)
        return score


class _Detached(_NoGrad):
    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)
        score: Tensor = self.head(output.detach())
        return score


@pytest.mark.parametrize(
    ("model", "note"),
    [
        (
            nn.Sequential(_OwnForward(FEATURES, HIDDEN)),
            "0: gradients by time step not replayed: _OwnForward has",
        ),
        (_NoGrad(), "rnn: gradients by time step not replayed: it ran without gradients"),
        (_Detached(), "rnn: gradients by time step not replayed: no gradient reached its outputs"),
    ],
)
def test_calls_that_are_not_replayed_are_noted(model: nn.Module, note: str) -> None:
    flow = measure(model, normal(TIME, BATCH, FEATURES).float(), lambda output: output.sum())
    assert not [row for row in flow.rows if row.site.time is not None]
    assert [text for text in flow.notes if text.startswith(note)]
