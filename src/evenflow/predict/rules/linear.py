"""Matrix products: every linear layer, QKᵀ, PV, and all gradients of them.

    out_ij = Σ_k a_ik b_kj:  K_out = Σ_pairs(k, l) K_a K_b   (:func:`evenflow.predict.table.contract`).

For a weight of independent entries only k = l remains: σ_w² Σ_k E[a_ik a_i'k].
"""

from __future__ import annotations

from typing import Any

from evenflow.predict.combine import contract
from evenflow.predict.fields import Field, Made
from evenflow.predict.pointwise import apply
from evenflow.predict.rules.adjoint import remember, weight_of
from evenflow.predict.rules.coincident import over_tokens
from evenflow.predict.rules.echo import with_echo
from evenflow.predict.rules.gram import of_both
from evenflow.predict.rules.registry import Context, rule
from evenflow.predict.rules.tied import with_own_logits
from evenflow.predict.table import Table


def contraction(shape: Any, a: Field, b: Field, spec: str) -> Made:
    """``einsum(spec, a, b)``."""

    def of_tables(x: Table, y: Table) -> Table:
        return contract(x, y, spec)

    added = of_both if a.cotangent != b.cotangent else None
    return Made(shape, (a, b), of_tables, ("contract", spec), added)


def _plus(shape: Any, x: Field, bias: Field, beta: float, alpha: float) -> Field:
    x = apply(None, "mul", [x, alpha], {}, shape) if alpha != 1 else x  # type: ignore[arg-type]
    return x if beta == 0 else apply(None, "add", [x, bias], {"alpha": beta}, shape)  # type: ignore[arg-type]


@rule("mm")
def mm(context: Context, output: Any, a: Field, b: Field) -> Field:
    """[i, k] × [k, j]."""
    result: Field = over_tokens(context, contraction(output.shape, a, b, "ik,kj->ij"))
    if (weight := weight_of(b)) is not None:
        result = with_echo(context, a, b, weight, result)
        result = with_own_logits(context, a, *weight, result)
        remember(context, a, weight, result)
    return result


@rule("bmm")
def bmm(context: Context, output: Any, a: Field, b: Field) -> Field:
    """[b, i, k] × [b, k, j]."""
    return contraction(output.shape, a, b, "bik,bkj->bij")


@rule("mv")
def mv(context: Context, output: Any, a: Field, b: Field) -> Field:
    """[i, k] × [k]."""
    return contraction(output.shape, a, b, "ik,k->i")


@rule("dot", "vdot")
def dot(context: Context, output: Any, a: Field, b: Field) -> Field:
    """[k] × [k]."""
    return contraction(output.shape, a, b, "k,k->")


@rule("addmm")
def addmm(
    context: Context, output: Any, bias: Field, a: Field, b: Field, *, beta: float = 1, alpha: float = 1
) -> Field:
    """β·bias + α·a b."""
    return _plus(output.shape, mm(context, output, a, b), bias, beta, alpha)


@rule("baddbmm")
def baddbmm(
    context: Context, output: Any, bias: Field, a: Field, b: Field, *, beta: float = 1, alpha: float = 1
) -> Field:
    """β·bias + α·a b, batched."""
    return _plus(output.shape, bmm(context, output, a, b), bias, beta, alpha)


@rule("addmv")
def addmv(
    context: Context, output: Any, bias: Field, a: Field, b: Field, *, beta: float = 1, alpha: float = 1
) -> Field:
    """β·bias + α·a b, b a vector."""
    return _plus(output.shape, mv(context, output, a, b), bias, beta, alpha)
