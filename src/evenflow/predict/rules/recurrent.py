"""Recurrent layers, step by step as the CPU takes them.

On the CPU PyTorch multiplies the inputs of all steps with W_ih at once; on the
meta device it would do so step by step, and ops of the same name would not be
the same steps. :func:`recurrence_of_the_cpu` runs RNN and GRU in the CPU's order
(aten/src/ATen/native/RNN.cpp: FullLayer, SimpleCell, GRUCell). An LSTM is one
fused op there, whose parts nobody sees.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _simple(nonlinearity: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def step(inputs: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nonlinearity(F.linear(hidden, weight, bias).add_(inputs))

    return step


def _gru(inputs: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    mine = inputs.unsafe_chunk(3, 1)
    other = F.linear(hidden, weight, bias).unsafe_chunk(3, 1)
    reset = other[0].add_(mine[0]).sigmoid_()
    update = other[1].add_(mine[1]).sigmoid_()
    new = mine[2].add(other[2].mul_(reset)).tanh_()
    return (hidden - new).mul_(update).add_(new)


STEPS = {"rnn_tanh": _simple(torch.tanh), "rnn_relu": _simple(torch.relu), "gru": _gru}


def _layer(
    step: Callable[..., Tensor], x: Tensor, hidden: Tensor, weights: Sequence[Tensor], *, reverse: bool
) -> tuple[Tensor, Tensor]:
    """One direction of one layer: outputs [T, B, H] and the last state [B, H]."""
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:] or (None, None)
    inputs = F.linear(x, w_ih, b_ih).unbind(0)
    outputs = []
    for each in reversed(inputs) if reverse else inputs:
        hidden = step(each, hidden, w_hh, b_hh)
        outputs.append(hidden)
    return torch.stack(outputs[::-1] if reverse else outputs, 0), hidden


def _run(
    step: Callable[..., Tensor],
    x: Tensor,
    hidden: Tensor,
    weights: Sequence[Tensor],
    biases: bool,
    layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    x = x.transpose(0, 1) if batch_first else x
    size, directions = 4 if biases else 2, 2 if bidirectional else 1
    groups = [weights[i : i + size] for i in range(0, len(weights), size)]
    states, last = hidden.unbind(0), []
    for layer in range(layers):
        found = []
        for direction in range(directions):
            at = layer * directions + direction
            y, state = _layer(step, x, states[at], groups[at], reverse=direction == 1)
            found.append(y)
            last.append(state)
        x = torch.cat(found, found[0].dim() - 1) if bidirectional else found[0]
        if dropout and training and layer < layers - 1:
            x = F.dropout(x, dropout, training)
    return x.transpose(0, 1) if batch_first else x, torch.stack(last, 0)


@contextlib.contextmanager
def recurrence_of_the_cpu() -> Iterator[None]:
    """Let RNN and GRU on the meta device run in the order of the CPU while the block runs.

    Packed sequences are left as they are.
    """
    module: Any = torch._VF

    def instead(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            if len(args) != 9 or not isinstance(args[2], (list, tuple)) or args[0].device.type != "meta":
                return original(*args)
            return _run(STEPS[name], *args)

        return run

    for name in STEPS:
        setattr(module, name, instead(name, getattr(module, name)))
    try:
        yield
    finally:
        for name in STEPS:
            delattr(module, name)
