"""Random draws: initialisers, noise and dropout masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evenflow.predict import reuse
from evenflow.predict.fields import Field, Leaf
from evenflow.predict.rules.registry import Context, rule
from evenflow.predict.table import Table, independent


def _drawn(shape: Sequence[int], variance: float, mean: float = 0.0) -> Table:
    """Independent entries; layers that are alike share the table, and what is found out about it."""
    name = ("drawn", tuple(shape), variance, mean)
    return reuse.once(name, lambda: independent(shape, variance, mean))


@rule("normal", "normal_functional")
def normal(context: Context, output: Any, x: Field | None, mean: float = 0.0, std: float = 1.0) -> Field:
    """N(mean, std²)."""
    return Leaf(_drawn(output.shape, std**2, mean))


@rule("uniform")
def uniform(context: Context, output: Any, x: Field | None, low: float = 0.0, high: float = 1.0) -> Field:
    """U(low, high): variance (high − low)²/12."""
    return Leaf(_drawn(output.shape, (high - low) ** 2 / 12, (low + high) / 2))


@rule("randn", "randn_like")
def randn(context: Context, output: Any, *args: Any) -> Field:
    """N(0, 1)."""
    return Leaf(independent(output.shape, 1.0))


@rule("rand", "rand_like")
def rand(context: Context, output: Any, *args: Any) -> Field:
    """U(0, 1)."""
    return Leaf(independent(output.shape, 1 / 12, 0.5))


@rule("bernoulli")
def bernoulli(context: Context, output: Any, x: Field | None, p: float = 0.5) -> Field:
    """1 with probability p, else 0."""
    return Leaf(independent(output.shape, p * (1 - p), p))


@rule("fill", "zero")
def fill(context: Context, output: Any, x: Field | None, value: Any = 0.0) -> Field:
    """One number everywhere."""
    number = value.table.average if isinstance(value, Field) else float(value)
    return Leaf(_drawn(output.shape, 0.0, number))


@rule("linalg_qr")
def qr(context: Context, output: Any, x: Field, mode: str = "reduced") -> list[Field]:
    """Q of a Gaussian matrix [rows, cols], rows ≥ cols, is uniform among orthonormal columns.

    Its variance is 1/rows.
    The signs of R's diagonal, by which initialisers multiply, are taken as 1.
    """
    q, r = output
    return [
        Leaf(independent(q.shape, 1 / q.shape[-2]), orthogonal=True),
        Leaf(independent(r.shape, 0.0, 1.0)),
    ]


@rule("native_dropout")
def native_dropout(context: Context, output: Any, x: Field, p: float, train: bool) -> list[Field]:
    """X · mask / (1 − p)."""
    from evenflow.predict.pointwise import product

    mask = Leaf(
        independent(output[1].shape, p * (1 - p), 1 - p) if train else independent(output[1].shape, 0.0, 1.0)
    )
    if not train or p == 0:
        return [x, mask]
    return [product(x.shape, product(x.shape, x, mask), 1 / (1 - p)), mask]


@rule("native_dropout_backward")
def native_dropout_backward(context: Context, output: Any, g: Field, mask: Field, scale: float) -> Field:
    """G · mask · scale."""
    from evenflow.predict.pointwise import product

    return product(g.shape, product(g.shape, g, mask), scale)
