"""Complex numbers as pairs of real ones: rotary positions as Llama's authors wrote them.

    (a + ib)(c + is) = (ac − bs) + i(as + bc),   the rotation of (a, b) where c + is = e^iθ is known.

References:
    Su et al., "RoFormer", 2021, equation 34.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch

from evenflow.predict.axes import plain
from evenflow.predict.fields import Field, Leaf
from evenflow.predict.lazy import cached_property
from evenflow.predict.pointwise import apply, product
from evenflow.predict.rules.joining import cat
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.rules.views import cut, view
from evenflow.predict.table import Table


@final
class Complex(Field):
    """Complex numbers.

    Args:
        pairs: Their real and imaginary parts [..., 2].
    """

    def __init__(self, pairs: Field) -> None:
        super().__init__(pairs.shape[:-1], cotangent=pairs.cotangent)
        self.pairs = pairs
        self.spread_from = (pairs,)

    @cached_property
    def table(self) -> Table:
        """E Re x_i x̄_j / 2, so that mean squares are of the parts; the complex mean is left out."""
        table = self.pairs.table.single(len(self.shape))
        if table.dims[-1] and table.dims[-1][0] != plain(2):
            table = table.regroup(len(self.shape), 0, plain(2))
        second = table.second[..., 1] if table.dims[-1] else table.second
        dims = table.dims[:-1]
        mean = np.zeros([axis.segments for axes_of in dims for axis in axes_of])
        return Table(dims, second, mean)

    @cached_property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        return self.pairs.tags


@rule("view_as_complex")
def view_as_complex(context: Context, output: Any, pairs: Field) -> Field:
    """Pairs as complex numbers."""
    return Complex(pairs)


@rule("view_as_real")
def view_as_real(context: Context, output: Any, x: Field) -> Field:
    """And back."""
    if not isinstance(x, Complex):
        raise NoRuleError("the parts of complex numbers that were not made from pairs")
    return x.pairs


@rule("mul")
def mul(context: Context, output: Any, x: Any, y: Any, **options: Any) -> Field:
    """Products x y, of complex numbers and known ones."""
    if isinstance(y, Complex):
        x, y = y, x
    if not isinstance(x, Complex):
        return apply(torch.mul, "mul", [x, y], options, output.shape)
    shape = (*output.shape, 2)
    if isinstance(y, (int, float)):
        return Complex(product(shape, x.pairs, y))
    if isinstance(y, Leaf) and y.values is not None and y.values.is_complex():
        return Complex(_turned(context, x.pairs, y.values, shape))
    if not isinstance(y, Field) or isinstance(y, Complex):
        raise NoRuleError("a product of complex numbers that are both random")
    return Complex(product(shape, x.pairs, view(context, None, y, (*y.shape, 1))))


def _turned(context: Context, pairs: Field, by: torch.Tensor, shape: tuple[int, ...]) -> Field:
    last = len(pairs.shape) - 1
    parts = [cut(context, pairs, last, 1, 2), cut(context, pairs, last, 0, 1)]
    swapped = cat(context, torch.empty(pairs.shape, device="meta"), parts, last)
    straight, across = torch.stack([by.real, by.real], -1), torch.stack([-by.imag, by.imag], -1)
    terms = [product(shape, pairs, Leaf(None, straight)), product(shape, swapped, Leaf(None, across))]
    return apply(None, "add", terms, {}, shape)  # type: ignore[arg-type]
