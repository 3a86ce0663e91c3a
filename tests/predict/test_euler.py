"""The gradient of a norm's size, where the next norm takes that size out again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.predict.oracle import disagreement, worst
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.flow import Role
from evenflow.predict.expressions import Term
from evenflow.predict.fields import Leaf
from evenflow.predict.rules.euler import multiple, projected
from evenflow.predict.scalar import VARIABLE, Scalar, times
from evenflow.predict.table import independent

WIDTH = 96
SMALL = ("pow", "mean", "rsqrt")


class Norms(nn.Module):
    """Three times linear, RMSNorm and an activation."""

    def __init__(
        self, activation: Callable[[Tensor], Tensor], *, bias: bool = True, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(3))
        self.head, self.activation, self.eps = nn.Linear(WIDTH, 10), activation, eps

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            x = self.activation(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
        y: Tensor = self.head(x)
        return y


class HeadNorms(nn.Module):
    """Qwen3's queries: a norm, a layer, and a norm for each head of what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        x = self.second(x).unflatten(-1, (3, -1))
        x = F.relu(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        y: Tensor = self.head(x.flatten(-2))
        return y


def squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


@pytest.mark.parametrize(
    ("activation", "bias", "eps"),
    [
        (F.relu, True, 1e-6),
        (F.relu, True, 0.1),
        (F.relu, False, 0.1),
        (F.leaky_relu, True, 1e-6),
        (F.gelu, True, 1e-6),
        (torch.tanh, True, 1e-6),
    ],
)
@pytest.mark.parametrize("shape", [(16, WIDTH), (4, 6, WIDTH)])
def test_a_size_that_the_next_norm_takes_out(
    activation: Callable[[Tensor], Tensor], bias: bool, eps: float, shape: tuple[int, ...]
) -> None:
    """Taken as independent terms, these sums are 1.4 decades too large."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = disagreement(
        lambda: Norms(activation, bias=bias, eps=eps),
        x,
        draws=8,
        roles=(Role.ACTIVATION_GRADIENT,),
    )
    small = {site: error for site, error in found.items() if site.split(":")[-1].split("[")[0] in SMALL}
    assert len(small) == 9
    assert worst(small, sigmas=3)[1] < 0.03, small


def test_a_size_that_the_norms_of_heads_take_out() -> None:
    x = torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    found = disagreement(HeadNorms, x, draws=8, roles=(Role.ACTIVATION_GRADIENT,))
    small = {site: found[site] for site in found if site.split(":")[-1] in SMALL}
    assert len(small) == 3
    assert worst(small, sigmas=3)[1] < 0.03, small


@pytest.mark.parametrize("op", [F.gelu, torch.tanh])
def test_what_is_left_is_orthogonal(op: Callable[[Tensor], Tensor]) -> None:
    """Of u φ'(u), less its multiple of φ(u), on drawn entries."""
    slope, value = scaled_slope(op)
    u = Leaf(independent((4, 50_000), 1.7))
    found = projected(Term(1.0, ((u, slope),)), Term(1.0, ((u, value),)))
    assert found is not None
    drawn = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.7**0.5
    left = sum(term.factor * torch.stack([f(drawn) for _, f in term.functions]).prod(0) for term in found[1])
    assert isinstance(left, Tensor)
    cosine = left @ value(drawn) / (left.norm() * value(drawn).norm())
    assert abs(cosine) < 4 / 200_000**0.5
    assert slope(drawn) @ value(drawn) / (slope(drawn).norm() * value(drawn).norm()) > 0.8


def test_other_fields_have_no_multiple() -> None:
    """Functions of different tensors."""
    u, v = (Leaf(independent((4, 8), 1.0)) for _ in range(2))
    assert projected(Term(1.0, ((u, VARIABLE),)), Term(1.0, ((v, VARIABLE),))) is None


def scaled_slope(op: Callable[[Tensor], Tensor]) -> tuple[Scalar, Scalar]:
    """The functions u φ'(u) and φ(u)."""

    def slope(u: Tensor) -> Tensor:
        v = u.detach().requires_grad_()
        return torch.autograd.grad(op(v).sum(), v)[0]

    slope.__qualname__ = f"slope of {op}"  # its name in the memory of expectations
    return times(Scalar(slope, (VARIABLE,)), VARIABLE), Scalar(op, (VARIABLE,))


def test_multiples() -> None:
    """The product u φ'(u) is a multiple of φ(u) for powers of rectifiers and for nothing else."""

    powers: dict[Callable[[Tensor], Tensor], float] = {
        F.relu: 1.0,
        F.leaky_relu: 1.0,
        torch.abs: 1.0,
        squared_relu: 2.0,
    }
    others: list[Callable[[Tensor], Tensor]] = [F.gelu, F.silu, torch.tanh, F.relu6, F.elu]
    for op, degree in powers.items():
        assert multiple(*scaled_slope(op)) == pytest.approx(degree, rel=1e-12)
    for op in others:
        assert multiple(*scaled_slope(op)) is None
