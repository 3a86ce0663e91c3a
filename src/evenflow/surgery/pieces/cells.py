"""Gated cells where a plain recurrent net was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class StateWithMemory(Tensor):
    """The hidden state of an LSTM as one tensor; its cell state goes with it through detach and the like."""

    memory: Tensor

    @staticmethod
    def of(hidden: Tensor, memory: Tensor) -> StateWithMemory:
        """Both as one."""
        state = hidden.as_subclass(StateWithMemory)
        state.memory = memory
        return state

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            value = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        data: Any = Tensor.data
        both = name in ("detach", "clone", "contiguous", "to", "cpu", "cuda") or (
            name == "__get__" and getattr(func, "__self__", None) is data
        )
        if both and isinstance(args[0], StateWithMemory):
            with torch._C.DisableTorchFunctionSubclass():
                return StateWithMemory.of(value, func(args[0].memory, *args[1:], **(kwargs or {})))
        return value


class LSTMForRNN(nn.LSTM):
    """An LSTM that takes and gives its state as ``nn.RNN`` does, as one tensor.

    The cell state goes with the hidden state that it gives; a state made by others,
    such as zeros, begins with an empty cell.
    """

    def forward(self, input: Any, hx: Any = None) -> Any:  # noqa: A002
        """As in ``nn.RNN``."""
        if isinstance(hx, Tensor):
            memory = hx.memory if isinstance(hx, StateWithMemory) else torch.zeros_like(hx)
            hx = (hx.as_subclass(Tensor), memory)
        output, (hidden, memory) = super().forward(input, hx)
        return output, StateWithMemory.of(hidden, memory)
