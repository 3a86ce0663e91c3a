"""Shapes of outputs, worked out once per op and shapes of inputs.

On the meta device many ops run as Python decompositions, a hundred times the
cost of a look-up. A net of repeated layers asks the same of them in each layer.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from evenflow.predict.layouts import Layout, plain_layout
from evenflow.predict.ops import Op


class _UnnamedError(Exception):
    """An argument that has no name to be remembered by."""


@final
class Shapes:
    """Runs ops on meta tensors, and remembers the shapes, strides and formats that they gave."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[type | None, list[Layout | None]]] = {}

    def run(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the op gives; without running it, if that is fresh tensors of known shapes."""
        if op.kind == "view" or "out" in kwargs:
            return op.func(*args, **kwargs)
        try:
            name = (op, _name(args), _name(tuple(kwargs.items())) if kwargs else ())
        except _UnnamedError:
            return op.func(*args, **kwargs)
        known = self._known.get(name)
        if known is None and op.kind == "fresh" and (layout := plain_layout(op.func, args, kwargs)):
            known = self._known[name] = (None, [layout])
        if known is None:
            output = op.func(*args, **kwargs)
            several = isinstance(output, (list, tuple))
            parts = list(output) if several else [output]
            if all(part is None or (isinstance(part, Tensor) and part.is_meta) for part in parts):
                layouts = [None if p is None else (p.shape, p.stride(), p.dtype) for p in parts]
                self._known[name] = (type(output) if several else None, layouts)
            return output
        if op.kind == "in place":
            return args[0]
        container, layouts = known
        made = [None if layout is None else _empty(*layout) for layout in layouts]
        return made[0] if container is None else container(made)


def _empty(shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


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
