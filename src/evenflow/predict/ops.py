"""What name and schema say about an op, found out once per op."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from evenflow.predict.rules import OUTPUTS, RULES
from evenflow.predict.rules.registry import Rule

_FILLED = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}
_RANDOM = frozenset(
    {
        "normal",
        "uniform",
        "random",
        "bernoulli",
        "exponential",
        "randn",
        "rand",
        "randint",
        "randperm",
        "randn_like",
        "rand_like",
        "normal_functional",
        "native_dropout",
        "multinomial",
        "cauchy",
        "geometric",
        "log_normal",
    }
)
_VIEWS = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "expand"})
"""Their rules keep entries, and with them that a merged axis has factors, which entries alone do not tell."""
_POINTWISE = frozenset(
    f"{name}{suffix}"
    for name in (
        "celu",
        "elu",
        "gelu",
        "hardshrink",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "logit",
        "log_sigmoid",
        "mish",
        "relu",
        "selu",
        "sigmoid",
        "silu",
        "softplus",
        "softshrink",
        "tanh",
        "threshold",
    )
    for suffix in ("", "_backward")
)
"""Pointwise ops that PyTorch does not tag as such."""


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """What is known of an op before it runs.

    Attributes:
        func: The op.
        name: Without overload and underscore.
        kind: Whether it writes "in place" or gives "fresh" tensors; all else counts as a "view".
        inplace: Whether it writes to its first argument.
        changes_view: Whether it gives its argument another shape.
        several: Whether it returns several tensors.
        pointwise: For pointwise ops, the op that makes a new tensor.
        rule: Its rule; None if it has none.
        makes: What makes its output on the meta device, where PyTorch refuses to.
        dynamic: Whether the shape of its output may depend on entries.
        allocates: Whether it gives new memory that nobody wrote to.
        fills: Whether it gives a new tensor filled with one number,
        fill: and that number; None where it is an argument.
        random: Whether it draws entries.
        overwrites: Whether what its first argument held before does not matter.
        shows: Whether it shows the entries of its argument in another shape.
        renames: Whether its output is its argument, in the same place in memory.
    """

    func: Any
    name: str
    kind: str
    inplace: bool
    changes_view: bool
    several: bool
    pointwise: Any
    rule: Rule | None
    makes: Rule | None
    dynamic: bool
    allocates: bool
    fills: bool
    fill: float | None
    random: bool
    overwrites: bool
    shows: bool
    renames: bool


@cache
def op_of(func: Any) -> Op:
    """What is known of an op."""
    full = func._schema.name.split("::")[1]
    inplace = full.endswith("_") and not full.endswith("__")
    name = full[:-1] if inplace else full
    fresh = None
    if torch.Tag.pointwise in func.tags or name in _POINTWISE:
        fresh = getattr(getattr(torch.ops.aten, name), func._overloadname) if inplace else func
    returns = func._schema.returns
    return Op(
        func=func,
        name=name,
        kind=_kind(func),
        inplace=inplace,
        changes_view=torch.Tag.inplace_view in func.tags,
        several=len(returns) != 1 or isinstance(returns[0].type, torch.ListType),
        pointwise=fresh,
        rule=RULES.get(name),
        makes=OUTPUTS.get(name),
        dynamic=torch.Tag.dynamic_output_shape in func.tags,
        allocates=name.startswith(("empty", "new_empty")),
        fills=name in _FILLED or name in ("full", "new_full", "full_like"),
        fill=_FILLED.get(name),
        random=name in _RANDOM,
        overwrites=name in _RANDOM or name in ("fill", "zero", "copy"),
        shows=name in _VIEWS,
        renames=name in ("detach", "alias"),
    )


def _kind(func: Any) -> str:
    returns = [r.alias_info for r in func._schema.returns]
    arguments = [a.alias_info for a in func._schema.arguments]
    written = [i for i, alias in enumerate(arguments) if alias is not None and alias.is_write]
    if returns and not written and not any(returns):
        return "fresh"
    same = len(returns) == 1 and returns[0] is not None and returns[0].is_write
    return "in place" if same and written == [0] and torch.Tag.inplace_view not in func.tags else "view"
