"""The gradient of a norm's size, where the next norm takes that size out again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.predict.oracle import disagreement, worst
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.flow import Role
from evenflow.predict.rules.euler import multiple
from evenflow.predict.scalar import VARIABLE, Scalar, times

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


def squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


@pytest.mark.parametrize(
    ("activation", "bias", "eps"),
    [
        (F.relu, True, 1e-6),
        (F.relu, True, 0.1),
        (F.relu, False, 0.1),
        (F.leaky_relu, True, 1e-6),
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


def test_multiples() -> None:
    """The product u φ'(u) is a multiple of φ(u) for powers of rectifiers and for nothing else."""

    def scaled_slope(op: Callable[[Tensor], Tensor]) -> tuple[Scalar, Scalar]:
        def slope(u: Tensor) -> Tensor:
            v = u.detach().requires_grad_()
            return torch.autograd.grad(op(v).sum(), v)[0]

        return times(Scalar(slope, (VARIABLE,)), VARIABLE), Scalar(op, (VARIABLE,))

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
