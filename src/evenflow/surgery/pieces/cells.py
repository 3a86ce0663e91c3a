"""Gated cells and an orthogonal recurrence where a plain recurrent net was."""

from __future__ import annotations

import math
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


SLOWER = 0.1
"""Of the learning rate, for the recurrence under Adam (Lezcano-Casado & Martínez-Rubio 2019, section 5.1):
every step in time turns the state by what the matrix moved."""


class OrthogonalRNN(nn.Module):
    """A recurrence that keeps the length of its state, and of the gradient, over any time: exp-RNN.

    It is called as an ``nn.RNN`` of one layer and one direction, without packed sequences:

        h_t = modReLU(W x_t + U h_{t−1}, b),   modReLU(z, b) = sign(z) max(|z| + b, 0),
        U = R exp(.1 (A − Aᵀ)).

    R turns pairs of units by random angles; A and b start as zeros, so that U is R and modReLU the
    identity. U stays orthogonal whatever A becomes.

    Args:
        input_size: Features of one time step.
        hidden_size: Units of the state.
        batch_first: Whether a batch is [B, steps, features], not [steps, B, features].

    References:
        M. Lezcano-Casado & D. Martínez-Rubio, "Cheap orthogonal constraints in neural networks",
        ICML 2019, eq. 3; M. Arjovsky et al., "Unitary evolution recurrent neural networks", ICML 2016,
        eq. 8 (modReLU); M. Henaff et al., "Recurrent orthogonal networks and long-memory tasks",
        ICML 2016, section 5 (R).
    """

    rotation: Tensor

    def __init__(self, input_size: int, hidden_size: int, *, batch_first: bool = False) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.batch_first = input_size, hidden_size, batch_first
        bound = hidden_size**-0.5  # as in nn.RNN
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size).uniform_(-bound, bound))
        self.skew = nn.Parameter(torch.zeros(hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.register_buffer("rotation", _rotation(hidden_size))

    def recurrence(self) -> Tensor:
        """U, [hidden, hidden]."""
        turn: Tensor = torch.linalg.matrix_exp(SLOWER * (self.skew - self.skew.mT))
        return self.rotation @ turn

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: A002
        """As in ``nn.RNN``: (all states, the last one)."""
        time = 1 if self.batch_first and input.dim() == 3 else 0
        turned = self.recurrence().mT
        driven = nn.functional.linear(input, self.weight_ih).unbind(time)
        state = torch.zeros_like(driven[0]) if hx is None else hx[0]
        states = []
        for drive in driven:
            state = state @ turned + drive
            state = state.sign() * (state.abs() + self.bias).relu()
            states.append(state)
        return torch.stack(states, time), state.unsqueeze(0)


def _rotation(size: int) -> Tensor:
    """Pairs of units turned by angles of U(−π, π); with an odd size the last one stays."""
    angles = torch.empty(size // 2).uniform_(-math.pi, math.pi)
    cos, sin = angles.cos(), angles.sin()
    pairs = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    rotation: Tensor = torch.block_diag(*pairs, *[torch.ones(1, 1)] * (size % 2))
    return rotation
