"""Ops whose output has a shape that depends on entries: nonzero, unique, a boolean mask as index.

Where the entries are known numbers (masks, labels, the drawn choice of experts) the
op runs on them; where they are random, no shape can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from evenflow.predict.fields import Field, Leaf
from evenflow.predict.rules.registry import NoRuleError


class Fields(Protocol):
    """Knows the fields of tensors."""

    def field_of(self, tensor: Tensor) -> Field | None:
        """The field of a tensor; None if it is not known."""

    def set_field(self, tensor: Tensor, value: Field | None) -> None:
        """Say what a tensor holds from now on."""


def run(fields: Fields, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The op's output on the meta device.

    Raises:
        NoRuleError: The shape depends on random numbers.
    """
    if func is torch.ops.aten.index.Tensor:
        return func(args[0], _columns(fields, args[1]))

    def real(value: Any) -> Any:
        return _entries(fields, value) if isinstance(value, Tensor) else value

    with _disable_current_modes():
        results = func(*map(real, args), **{key: real(value) for key, value in kwargs.items()})
    if isinstance(results, Tensor):
        return _twin(fields, results)
    return tuple(_twin(fields, part) for part in results)


def _columns(fields: Fields, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """A boolean mask as the indices at which it holds, one tensor a dimension."""
    columns: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            columns.append(index)
            continue
        with _disable_current_modes():
            found = _entries(fields, index).bool().nonzero().unbind(1)
        columns += [_twin(fields, column) for column in found]
    return columns


def _entries(fields: Fields, tensor: Tensor) -> Tensor:
    if not tensor.is_meta:
        return tensor
    found = fields.field_of(tensor)
    if not isinstance(found, Leaf) or found.values is None:
        raise NoRuleError("the model makes a tensor whose shape depends on random numbers")
    return found.values


def _twin(fields: Fields, values: Tensor) -> Tensor:
    """A tensor without entries that stands for one with them."""
    twin = torch.empty(values.shape, dtype=values.dtype, device="meta")
    fields.set_field(twin, Leaf(None, values))
    return twin


def by_entries(func: Any, args: Sequence[Any]) -> bool:
    """Whether the shape that an op gives depends on entries, if it is one of those that may."""
    if func is torch.ops.aten.index.Tensor:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return True
