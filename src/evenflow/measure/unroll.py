"""One layer of a recurrent net in one direction, run cell step by cell step.

    h_t = step(W_ih x_t + b_ih, h_{t−1})        (for an LSTM the state is (h, c))

Values are not the point, they are known: h_t is in the output of the fused
kernel. The point is the graph through all steps. So each step is *anchored*:
it starts from the known h_{t−1}, and its result is compared with the known
h_t. Two kernels that round differently would otherwise drift apart wherever
the recurrence is chaotic, and that is where gradients explode.

Rows are laid out as in a ``PackedSequence``: the B_t sequences alive at t = 0,
then those at t = 1, and so on, longest sequence first; N rows in all. A padded
batch is the case B_t = B.

References:
    The equations in the docs of ``torch.nn.RNN``, ``LSTM`` and ``GRU``, with the
    order of operations of aten/src/ATen/native/RNN.cpp, so as to round alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

State = tuple[Tensor, ...]
"""(h,), or (h, c) for an LSTM."""

Step = Callable[[Tensor, State], State]
"""From W_ih x_t + b_ih [B_t, gates · hidden] and the state at t−1 to the state at t."""


class Weights(NamedTuple):
    """Weights of one layer in one direction, named as in PyTorch."""

    ih: Tensor
    hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    hr: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """The unrolled states, with their graph.

    Attributes:
        states: The state at t = 0, 1, …, also where the steps ran from the last t to the first.
        final: The state after the last step of each sequence [B, hidden].
        error: See :func:`relative_error`; 0-dimensional.
    """

    states: tuple[State, ...]
    final: State
    error: Tensor

    @property
    def hidden(self) -> list[Tensor]:
        """h_t for t = 0, 1, …, each [B_t, hidden]."""
        return [state[0] for state in self.states]


def unroll(
    step: Step,
    inputs: Tensor,
    batch_sizes: list[int],
    *,
    initial: State,
    known: Tensor,
    known_final: State,
    reverse: bool,
) -> Path:
    """Run one layer in one direction.

    Args:
        step: The cell's time step.
        inputs: W_ih x + b_ih [N, gates · hidden].
        batch_sizes: B_t.
        initial: State before the first step [B, hidden].
        known: h_t as the fused kernel found it [N, hidden].
        known_final: The final state, likewise [B, hidden].
        reverse: Whether to run from the last t to the first.
    """
    times = range(len(batch_sizes))
    inputs_by_time = torch.split(inputs, batch_sizes)
    known_by_time = torch.split(known, batch_sizes)
    states: list[State] = [()] * len(times)
    found: list[Tensor] = [inputs] * len(times)
    ended: list[State] = []
    state = tuple(s[: batch_sizes[-1]] for s in initial) if reverse else initial
    for t in reversed(times) if reverse else times:
        before, alive = len(state[0]), batch_sizes[t]
        if alive < before:  # forward: the shortest sequences have ended
            ended.append(tuple(s[alive:] for s in state))
            state = tuple(s[:alive] for s in state)
        elif alive > before:  # reverse: shorter sequences begin
            state = tuple(torch.cat([s, s0[before:alive]]) for s, s0 in zip(state, initial, strict=True))
        h, *c = step(inputs_by_time[t], state)
        found[t] = h.detach()
        state = states[t] = (_anchor(h, known_by_time[t]), *c)
    final = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
    errors = [relative_error(torch.cat(found), known, batch_sizes, reverse=reverse)]
    for now, then in zip(final, known_final, strict=True):
        errors.append(relative_error(now.detach(), then, [len(then)]))
    return Path(tuple(states), final, torch.stack(errors).max())


def cell(mode: str, w: Weights) -> Step:
    """The time step of ``RNN_TANH``, ``RNN_RELU``, ``LSTM`` or ``GRU`` with given weights."""

    def rnn(x: Tensor, state: State) -> State:
        a = F.linear(state[0], w.hh, w.b_hh) + x
        return (a.tanh() if mode == "RNN_TANH" else a.relu(),)

    def lstm(x: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = (F.linear(h, w.hh, w.b_hh) + x).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h if w.hr is None else F.linear(h, w.hr), c)

    def gru(x: Tensor, state: State) -> State:
        (h,) = state
        x_r, x_z, x_n = x.chunk(3, 1)
        h_r, h_z, h_n = F.linear(h, w.hh, w.b_hh).chunk(3, 1)
        r, z = (h_r + x_r).sigmoid(), (h_z + x_z).sigmoid()
        n = (x_n + h_n * r).tanh()
        return ((h - n) * z + n,)

    return {"RNN_TANH": rnn, "RNN_RELU": rnn, "LSTM": lstm, "GRU": gru}[mode]


def relative_error(found: Tensor, known: Tensor, batch_sizes: list[int], *, reverse: bool = False) -> Tensor:
    """Largest difference at any step, over the largest known entry at that step or one before it.

    Entries known to be NaN or infinite are left out.

    Args:
        found: What the steps found [N, hidden].
        known: What the fused kernel found [N, hidden].
        batch_sizes: B_t.
        reverse: Whether the steps ran from the last t to the first.
    """
    if not known.numel():
        return known.new_zeros(())
    finite = known.isfinite()

    def by_step(entries: Tensor) -> Tensor:
        rows = torch.where(finite, entries, 0).abs().amax(1)
        steps = torch.stack([part.max() for part in torch.split(rows, batch_sizes)])
        return steps.flip(0) if reverse else steps

    difference = by_step(found - known)
    return torch.where(difference == 0, 0, difference / by_step(known).cummax(0).values).max()


class _Anchor(torch.autograd.Function):
    """The value of the known state, the gradient of the found one."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, known: Tensor) -> Tensor:
        return known.to(found.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _anchor(found: Tensor, known: Tensor) -> Tensor:
    anchored: Tensor = _Anchor.apply(found, known)  # type: ignore[no-untyped-call]
    return anchored
