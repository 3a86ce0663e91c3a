"""Ops that rearrange entries: the table of the op's output, measured on real tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.predict.oracle import disagreement, worst
from torch import Tensor, nn

WIDTH = 64


def randn(*shape: int) -> Tensor:
    """Not with the seed of the random cotangent: of equal shape, the two would be equal."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


class Rearranged(nn.Module):
    """A linear layer, what is tested, and a linear layer."""

    def __init__(self, change: Callable[[Tensor], Tensor], inputs: int = WIDTH) -> None:
        super().__init__()
        self.change = change
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(inputs, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.change(self.first(x))))
        return y


CHANGES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "as_strided transposes": (lambda x: x.as_strided((8, WIDTH, 6), (6 * WIDTH, 1, WIDTH)).mT, WIDTH),
    "every other position": (lambda x: x[:, 0::2], WIDTH),
    "patches merged": (lambda x: torch.cat([x[:, 0::2], x[:, 1::2]], -1), 2 * WIDTH),
}


@pytest.mark.parametrize("name", CHANGES)
def test_rearranged(name: str) -> None:
    change, inputs = CHANGES[name]
    found = disagreement(lambda: Rearranged(change, inputs), randn(8, 6, WIDTH))
    site, excess = worst(found)
    assert excess < 0.02, site
