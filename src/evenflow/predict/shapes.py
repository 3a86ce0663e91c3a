"""Shapes of outputs, worked out once per op and shapes of inputs.

On the meta device many ops run as Python decompositions, a hundred times the
cost of a look-up. A net of repeated layers asks the same of them in each layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, final

import torch
from torch import Tensor

from evenflow.predict.layouts import Layout, plain_layout


class _UnnamedError(Exception):
    """An argument that has no name to be remembered by."""


@final
class Shapes:
    """Runs ops on meta tensors, and remembers the shapes, strides and formats that they gave."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[type | None, list[Layout | None]]] = {}

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``func(*args, **kwargs)``; without running it, if that gives fresh tensors of known shapes."""
        kind = _kind(func)
        if kind == "view" or "out" in kwargs:
            return func(*args, **kwargs)
        try:
            name = (func, _name(args), _name(tuple(kwargs.items())) if kwargs else ())
        except _UnnamedError:
            return func(*args, **kwargs)
        known = self._known.get(name)
        if known is None and kind == "fresh" and (layout := plain_layout(func, args, kwargs)) is not None:
            known = self._known[name] = (None, [layout])
        if known is None:
            output = func(*args, **kwargs)
            several = isinstance(output, (list, tuple))
            parts = list(output) if several else [output]
            if all(part is None or (isinstance(part, Tensor) and part.is_meta) for part in parts):
                layouts = [None if p is None else (p.shape, p.stride(), p.dtype) for p in parts]
                self._known[name] = (type(output) if several else None, layouts)
            return output
        if kind == "in place":
            return args[0]
        container, layouts = known
        made = [None if layout is None else _empty(*layout) for layout in layouts]
        return made[0] if container is None else container(made)


def _empty(shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


@cache
def _kind(func: Any) -> str:
    """Whether an op writes in place or gives fresh tensors; all else counts as a view."""
    returns = [r.alias_info for r in func._schema.returns]
    arguments = [a.alias_info for a in func._schema.arguments]
    written = [i for i, alias in enumerate(arguments) if alias is not None and alias.is_write]
    if returns and not written and not any(returns):
        return "fresh"
    same = len(returns) == 1 and returns[0] is not None and returns[0].is_write
    return "in place" if same and written == [0] and torch.Tag.inplace_view not in func.tags else "view"


def _name(values: Any) -> tuple[Any, ...]:
    """What arguments say about shapes: 1, 1.0 and True are told apart, for they lead to other formats."""
    parts: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            parts.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, (list, tuple)):
            parts.append((type(value), _name(value)))
        elif value is None or isinstance(
            value, (int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
        ):
            parts.append((type(value), value))
        else:
            raise _UnnamedError
    return tuple(parts)
