"""Ops that rearrange entries: the table of the op's output, measured on real tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from tests.predict.oracle import disagreement, worst
from torch import Tensor, nn

from evenflow.predict.fields import Leaf
from evenflow.predict.rules.indexing import scattered
from evenflow.predict.rules.registry import Context, NoRuleError
from evenflow.predict.rules.views import as_strided, view
from evenflow.predict.table import measured

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


def test_gradients_of_relative_positions() -> None:
    """A gradient of scores that is nearly alike for all queries, added up by the distance of query and key.

    Of each distance a query has one key, and so has a key: equal indices share neither.
    """
    queries, keys, heads = 8, 8, 16
    distance = (torch.arange(queries)[:, None] - torch.arange(keys) + keys - 1).flatten()
    generator = torch.Generator().manual_seed(1)
    predicted, real = 0.0, 0.0
    for _ in range(400):
        of_keys = torch.randn(1, keys, heads, generator=generator)
        g = of_keys - of_keys.mean(1) + 0.1 * torch.randn(queries, keys, heads, generator=generator)
        rows = g.reshape(queries * keys, heads)
        known = Leaf(measured(g), cotangent=True)
        shape = queries + keys - 1, heads
        predicted += scattered(view(Context(Counter()), None, known, rows.shape), distance, shape).mean_square
        sums = torch.zeros(queries + keys - 1, heads).index_add(0, distance, rows)
        real += sums.square().mean().item()
    assert predicted == pytest.approx(real, rel=0.03)


SLICES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "one dimension": ((5, 4, 2), (24, 6, 1), 0),
    "its end": ((5, 4, 2), (24, 6, 1), 4),
    "two dimensions": ((3, 4, 2), (24, 6, 1), 51),
    "one row": ((5, 6), (24, 1), 12),
    "one row, kept": ((5, 1, 6), (24, 6, 1), 18),
}


@pytest.mark.parametrize("name", SLICES)
def test_memory_read_in_slices(name: str) -> None:
    x = randn(5, 4, 6)
    shape, strides, offset = SLICES[name]
    found = as_strided(Context(Counter()), None, Leaf(None, x), *SLICES[name], source=(x.stride(), 0))
    assert isinstance(found, Leaf)
    assert found.values is not None
    assert torch.equal(found.values, x.as_strided(shape, strides, offset))


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((5, 4, 2), (24, 6, 2), 0),  # every other entry
        ((4, 4, 6), (24, 6, 1), 36),  # across the end of a row
        ((3, 3, 4), (6, 6, 1), 0),  # rows again
    ],
)
def test_memory_read_otherwise(shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> None:
    x = randn(5, 4, 6)
    with pytest.raises(NoRuleError, match="repeat or leave out"):
        as_strided(Context(Counter()), None, Leaf(None, x), shape, strides, offset, source=(x.stride(), 0))
