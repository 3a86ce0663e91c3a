"""Tensors inside whatever a model takes or returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses, in order.

    Packed sequences are tuples, and the outputs of transformers are mappings, so
    both are covered. A container that holds itself is entered once.
    """
    return _walk(value, set())


def _walk(value: Any, entered: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    children: Any
    if isinstance(value, Mapping):
        children = value.values()
    elif isinstance(value, (tuple, list)):
        children = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        children = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    else:
        return
    if id(value) in entered:
        return
    entered.add(id(value))
    for child in children:
        yield from _walk(child, entered)


def differentiable(tensor: Tensor) -> bool:
    """Whether gradients are defined for this kind of number."""
    return tensor.is_floating_point() or tensor.is_complex()


def main_tensor(value: Any) -> Tensor | None:
    """The tensor that stands for a module's output: the first one that is floating and no scalar.

    A lone scalar (a loss module's output) stands for itself.
    """
    scalar = None
    for tensor in tensors_in(value):
        if differentiable(tensor):
            if tensor.ndim:
                return tensor
            scalar = scalar if scalar is not None else tensor
    return scalar


def describe(value: Any) -> str:
    """A value in a few words for an error message: ``float32 [8, 3, 32, 32]``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe(child)}" for key, child in value.items()) + "}"
    if isinstance(value, (tuple, list)) and len(value) <= 8:
        return f"{type(value).__name__}({', '.join(describe(child) for child in value)})"
    return type(value).__name__
