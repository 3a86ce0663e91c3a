"""Calls of a function inside a module's own ``forward`` go to a submodule instead."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class CallsGoTo(TorchFunctionMode):
    """While it is on, calls of activations by name, within one ``forward``, run other modules.

    Args:
        code: The code object of that ``forward``; what modules inside it call is left alone.
        swapped: Name of the function → the module to run.
        indices: Name → which of its calls in one forward, from 0; None: all.
    """

    def __init__(
        self, code: Any, swapped: Mapping[str, nn.Module], indices: Mapping[str, tuple[int, ...] | None]
    ) -> None:
        super().__init__()
        self.code, self.swapped, self.indices = code, swapped, indices
        self.seen = dict.fromkeys(swapped, 0)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        called = getattr(func, "__name__", "")
        name = called.rstrip("_")
        if name in self.swapped and self.is_own():
            number, wanted = self.seen[name], self.indices[name]
            self.seen[name] += 1
            if wanted is None or number in wanted:
                value = args[0] if args else kwargs["input"]
                if called.endswith("_") or kwargs.get("inplace", False):
                    return value.copy_(self.swapped[name](value.clone()))
                return self.swapped[name](value)
        return func(*args, **kwargs)

    def is_own(self) -> bool:
        """Whether the innermost running ``forward`` is the one."""
        if torch.compiler.is_compiling():
            return True
        frame = sys._getframe(2)
        while frame.f_back is not None:
            if frame.f_code.co_name == "forward":
                return frame.f_code is self.code
            frame = frame.f_back
        return False


@cache
def with_swapped_calls(kind: Any) -> type[nn.Module]:
    """A subclass whose ``forward`` is the old one with ``self.swapped_calls`` in force."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with CallsGoTo(kind.forward.__code__, self.swapped_calls, self.swapped_indices):
            return kind.forward(self, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        return bare_with_swapped_calls, (kind,), vars(self)

    own = {"forward": forward, "__reduce_ex__": reduce, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), own)


def bare_with_swapped_calls(kind: Any) -> nn.Module:
    """An empty module of the subclass, for copies and pickles."""
    swapped = with_swapped_calls(kind)
    return swapped.__new__(swapped)


def swap_calls(module: Any, name: str, to: nn.Module, indices: tuple[int, ...] | None = None) -> None:
    """Let calls of the activation ``name`` in the module's own forward run ``to``.

    Any spelling counts: ``torch.tanh(x)``, ``x.tanh()``, ``F.tanh(x)``, ``x.tanh_()``.

    Args:
        module: Changed in place.
        name: Of the function.
        to: Takes the function's first argument.
        indices: Which calls in one forward, from 0; None: all.
    """
    if not hasattr(module, "swapped_calls"):
        module.swapped_calls = nn.ModuleDict()
        module.swapped_indices = {}
        kind: Any = type(module)
        module.__class__ = with_swapped_calls(kind)
    module.swapped_calls[name] = to
    module.swapped_indices = {**module.swapped_indices, name: indices}
