"""Numbers in Python lists are seen by a prediction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evenflow.predict import predict


class Listed(nn.Module):
    """Looks at its input by lists, and makes a mask of one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(20, 32), nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        if 7 in ids[:, [-1, 0]]:
            return torch.full((1,), torch.nan)
        scale = torch.tensor([0.0, 3.0], device=ids.device)
        y: Tensor = self.out(self.embedding(ids) * scale[1])
        return y


def test_lists_keep_their_values() -> None:
    flow = predict(Listed, torch.arange(12).reshape(2, 6))
    assert not flow.notes
    rows = {row.site.label: row.stats for row in flow if row.site.role == "activation"}
    before, after = rows["embedding:embedding"], rows[":mul"]
    assert before is not None
    assert after is not None
    assert after.mean_square == pytest.approx(9 * before.mean_square)
