"""The gradient of queries and keys whose tokens have few directions, against real draws."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from tests.predict.oracle import disagreement
from torch import Tensor, nn

from evenflow.flow import Role
from evenflow.predict.fields import Leaf, Made
from evenflow.predict.pointwise import apply
from evenflow.predict.rules.convolution import convolution
from evenflow.predict.rules.gram import fluctuation, gram_variance, of_both
from evenflow.predict.rules.linear import contraction
from evenflow.predict.rules.registry import Context
from evenflow.predict.rules.softmax import Softmax
from evenflow.predict.table import independent

WIDTH, TOKENS = 96, 24


class Patches(nn.Module):
    """Tokens of few numbers each, embedded; one or two blocks of attention and a pooled class."""

    def __init__(self, numbers: int, *, pooled: bool) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(numbers, WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.pooled = nn.Linear(WIDTH, 10), pooled

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.mlp(x)
        h = self.norm(x)
        q, k, v = (layer(h).view(len(h), TOKENS, 4, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        logits: Tensor = self.out(y.mean(1) if self.pooled else y[:, 0])
        return logits


@pytest.mark.parametrize("numbers", [12])
@pytest.mark.parametrize("pooled", [True, False])
def test_gradients_of_queries_and_keys(numbers: int, pooled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(8, TOKENS, numbers, generator=generator), torch.arange(8)
    found = disagreement(
        lambda: Patches(numbers, pooled=pooled),
        x,
        lambda y: F.cross_entropy(y, labels),
        draws=8,
        roles=(Role.PARAMETER_GRADIENT,),
    )
    small = {site: found[f"parameter_gradient:{site}"] for site in ("q.weight", "q.bias", "k.weight")}
    for site, (error, standard) in small.items():
        assert abs(error) < 0.03 + 3 * standard, (site, small)


class Pooled(nn.Module):
    """Tokens of few numbers each, embedded, normalised, and the mean of a function of them."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(numbers, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down, self.out = nn.Linear(WIDTH, 256), nn.Linear(256, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.down(F.gelu(self.up(self.norm(self.embed(x))))).mean(1))
        return logits


def test_gradients_of_a_layer_and_its_norm() -> None:
    """G = h φ'(W x) and x have the Gram matrix in common, Wᵀg and x their weight too."""
    x = torch.randn(4, 128, 24, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4)
    found = disagreement(
        lambda: Pooled(24),
        x,
        lambda y: F.cross_entropy(y, labels),
        draws=16,
        roles=(Role.PARAMETER_GRADIENT,),
    )
    small = {site: found[f"parameter_gradient:{site}"] for site in ("up.weight", "norm.weight")}
    for site, (error, standard) in small.items():  # without: −.086 and −.12
        assert abs(error) < 0.02 + 2 * standard, (site, small)


@pytest.mark.parametrize("n", [6, 48, 400])
def test_variance_of_a_gram_matrix(n: int) -> None:
    """κ = 1/n for n independent directions; W x of m units has κ + (1 + κ)/m."""
    x = Leaf(independent((4, 16, n), 2.0))
    assert gram_variance(x) == pytest.approx(1 / n)
    y = contraction((4, 16, 64), x, Leaf(independent((n, 64), 0.3)), "btn,nm->btm")
    assert gram_variance(y) == pytest.approx(1 / n + (1 + 1 / n) / 64)
    draw = torch.randn(4000, 2, n, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(4000, n, 64, generator=torch.Generator().manual_seed(2))
    z = draw @ weights
    measured = (z[:, 0] * z[:, 1]).sum(-1).square().mean() / (z[:, 0].square().sum(-1).mean() ** 2)
    assert gram_variance(y) == pytest.approx(measured.item(), rel=0.1)


def test_a_convolution_of_each_channel_by_itself_has_the_directions_of_all() -> None:
    """Nine taps a channel are few, but every channel has its own."""
    image, kernel = Leaf(independent((2, 32, 8, 8), 1.0)), Leaf(independent((32, 1, 3, 3), 1 / 9))
    output, one = torch.empty(2, 32, 8, 8), [1]
    y = convolution(Context(Counter()), output, image, kernel, None, one, one, one, False, [0], 32)
    generator = torch.Generator().manual_seed(4)
    patches = torch.randn(4000, 2, 32, 9, generator=generator)
    z = (patches * torch.randn(4000, 1, 32, 9, generator=generator)).sum(-1)
    measured = (z[:, 0] * z[:, 1]).sum(-1).square().mean() / (z[:, 0].square().sum(-1).mean() ** 2)
    assert gram_variance(y) == pytest.approx(measured.item(), rel=0.1)


def test_a_residual_branch_fluctuates_with_its_input() -> None:
    """X + gelu(x) W against x + z W with z of its own: amplitudes add in the first, squares in the second."""
    x, z = (Leaf(independent((4, 16, 12), 1.0)) for _ in range(2))
    w = Leaf(independent((12, 12), 1 / 12))

    def kappa(branch: Leaf) -> float:
        y = contraction(
            x.shape, apply(torch.nn.functional.gelu, "gelu", [branch], {}, x.shape), w, "btn,nm->btm"
        )
        return gram_variance(apply(None, "add", [x, y], {}, x.shape))  # type: ignore[arg-type]

    generator = torch.Generator().manual_seed(3)
    a, b, weights = (
        torch.randn(20_000, *shape, generator=generator) for shape in ((2, 12), (2, 12), (12, 12))
    )
    for branch, real in ((x, a), (z, b)):
        y = a + F.gelu(real) @ (weights / math.sqrt(12))
        y = y - (
            F.gelu(torch.randn(10**6, generator=generator)).mean()
            * weights.sum(1, keepdim=True)
            / math.sqrt(12)
        )
        measured = (y[:, 0] * y[:, 1]).sum(-1).square().mean() / (y[:, 0].square().sum(-1).mean() ** 2)
        assert kappa(branch) == pytest.approx(measured.item(), rel=0.1)


def test_other_pairs_do_not_count() -> None:
    """Queries are summed over their own tokens, not over those that the values are of."""
    x = Leaf(independent((2, 16, 8), 1.0))
    q, k, v = (contraction(x.shape, x, Leaf(independent((8, 8), 1 / 8)), "btn,nm->btm") for _ in range(3))
    p = Softmax(contraction((2, 16, 16), q, k, "bid,bjd->bij"), 2)
    g = Leaf(independent((2, 16, 8), 1.0), cotangent=True)
    scores = Softmax(p.x, 2, contraction(p.shape, g, v, "bid,bjd->bij"), p)
    to_queries = contraction(x.shape, scores, k, "bij,bjd->bid")
    to_keys = contraction(x.shape, scores, q, "bij,bid->bjd")
    assert isinstance(to_queries, Made)
    assert isinstance(to_keys, Made)
    assert of_both(to_queries) is not None
    assert of_both(to_keys) is None
    assert fluctuation(to_keys) is not None
    other = contraction(
        x.shape, Leaf(independent(x.shape, 1.0)), Leaf(independent((8, 8), 1.0)), "btn,nm->btm"
    )
    unrelated = contraction(x.shape, scores, other, "bij,bjd->bid")
    assert isinstance(unrelated, Made)
    assert of_both(unrelated) is None
