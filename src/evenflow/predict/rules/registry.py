"""The registry of op rules, and what rules are given.

A rule takes the context, the op's output on the meta device (for its shape; a
list for ops with several) and the op's arguments, with a
:class:`~evenflow.predict.fields.Field` in place of each tensor. It returns the
field of the output, or a list of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

Rule: TypeAlias = Callable[..., Any]
F = TypeVar("F", bound=Rule)

RULES: dict[str, Rule] = {}
"""From an op's name, without overload and in-place underscore, to its rule."""


OUTPUTS: dict[str, Rule] = {}
"""From an op's name to what makes its output on the meta device, where PyTorch refuses to."""


class NoRuleError(Exception):
    """This use of the op is not covered; the text says why."""


@dataclass(frozen=True)
class Context:
    """What rules share in one prediction.

    Attributes:
        remarks: Approximations that were made, in words, counted.
        abstentions: Reasons not to trust the prediction, in words, counted.
        made: Memory of derived fields, so that equal views of one field are one object.
    """

    remarks: Counter[str]
    abstentions: Counter[str] = field(default_factory=Counter)
    made: dict[Any, Any] = field(default_factory=dict)


def rule(*names: str) -> Callable[[F], F]:
    """Register a function as the rule of some ops."""

    def register(function: F) -> F:
        for name in names:
            if name in RULES:
                raise ValueError(f"There are two rules for {name}.")
            RULES[name] = function
        return function

    return register


def makes(name: str) -> Callable[[F], F]:
    """Register a function as that which makes an op's output on the meta device."""

    def register(function: F) -> F:
        OUTPUTS[name] = function
        return function

    return register
