"""The gradient at every time step of a recurrent net, by replay.

``nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` run all time steps in one fused kernel. It
shows the gradient of the loss L at the outputs, but not at the hidden states
h_t in between, where gradients vanish and explode (Pascanu et al. 2013):

    ∂L/∂h_t   total: through the output at t and through all later steps.

So a call is recorded (:func:`record`), run again one cell step after another
with its own weights, and the gradients that reached its outputs are sent back
through the steps (:func:`replay`). An LSTM also gives ∂L/∂c_t. If the replayed
states disagree with the recorded ones by more than :data:`TOLERANCE`, the
answer is a reason and no numbers.

References:
    Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural
    networks", ICML 2013, eq. 3 to 5.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from evenflow.measure.unroll import Path, State, Weights, cell, unroll

Recurrent = nn.RNN | nn.LSTM | nn.GRU

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest accepted error of a replay, see :func:`~evenflow.measure.unroll.relative_error`.

Each lies between two figures measured on the CPU. Rounding alone gave at most 2e-6 in float32 and .022 in
bfloat16 (LSTM of 1 to 3 layers, H = 64, T = 200). Dropout masks other than those of the call gave .1 or more,
in every dtype, at a rate of only .02 (H = 256, T = 50). Coarser rounding is possible: a bfloat16 LSTM with
recurrent weights twenty times their usual size reached .13, and such a call is not replayed.
"""


@dataclass(frozen=True, slots=True, eq=False)
class RecurrentCall:
    """One forward call of a recurrent module, as :func:`record` makes it.

    It holds the call's own tensors, detached; nothing is copied.

    Attributes:
        module: The module.
        weights: The weights that this call used, flat, layer by layer.
        input: What the module was called with.
        hx: Initial state, (h_0,) or (h_0, c_0); None for zeros.
        output: The output at every time step.
        final: Final state, (h_n,) or (h_n, c_n).
        training: Train or eval mode during the call.
        autocast_dtype: The dtype of the surrounding autocast; None without.
        random_state: See :func:`random_state`.
        output_version: Version counter of ``output`` when the module returned it.
    """

    module: Recurrent
    weights: tuple[Tensor, ...]
    input: Tensor | PackedSequence
    hx: State | None
    output: Tensor | PackedSequence
    final: State
    training: bool
    autocast_dtype: torch.dtype | None
    random_state: Tensor | None
    output_version: int

    @property
    def directions(self) -> int:
        """1, or 2 if bidirectional."""
        return 2 if self.module.bidirectional else 1

    @property
    def draws(self) -> bool:
        """Whether the call drew dropout masks."""
        return self.training and _has_dropout(self.module)


@dataclass(frozen=True, slots=True, eq=False)
class StateGradients:
    """∂L/∂h_t (or ∂L/∂c_t) of one layer in one direction.

    Attributes:
        layer: Layer, from 0.
        reverse: Whether this is the direction that reads the sequence backwards.
        gradients: For each position t of the sequence the gradient [B_t, hidden],
            None where the loss does not depend on the state. B_t is the number
            of sequences that reach t; their order is that of the batch, or of
            the ``PackedSequence``.
    """

    layer: int
    reverse: bool
    gradients: tuple[Tensor | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RecurrentGradients:
    """Gradients at all states of one call.

    Attributes:
        error: Largest relative error of the replayed states.
        hidden: At h_t, layer by layer, the forward direction first.
        cell: At c_t, likewise; empty but for an LSTM.
    """

    error: float
    hidden: tuple[StateGradients, ...]
    cell: tuple[StateGradients, ...] = ()


@dataclass(frozen=True, slots=True)
class NotReplayed:
    """Why a call has no gradients by time step.

    Attributes:
        reason: Text for the user; starts with ``not replayed:``.
    """

    reason: str


def random_state(module: Recurrent) -> Tensor | None:
    """State of the random generator that the next call of ``module`` will draw dropout masks from.

    To be called just before the module runs. None if it will draw none.
    """
    if module.training and _has_dropout(module):
        return _get_random_state(next(module.parameters()).device)
    return None


def record(
    module: Recurrent,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    result: Any,
    random_state: Tensor | None = None,
) -> RecurrentCall | NotReplayed:
    """Record one call of a recurrent module, from inside its forward hook.

    Args:
        module: An ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU``.
        args: The call's positional arguments.
        kwargs: The call's keyword arguments.
        result: What the module returned.
        random_state: What :func:`random_state` gave just before the call.

    Returns:
        The record, or why such a call cannot be replayed.
    """
    if reason := _foreign(module):
        return NotReplayed(f"not replayed: {reason}")
    sequence, hx = _arguments(*args, **kwargs)
    output, final = result
    tensors = [_rows(sequence), _rows(output), *module._flat_weights]
    if odd := [type(t).__name__ for t in tensors if type(t) not in {Tensor, nn.Parameter}]:
        return NotReplayed(f"not replayed: it works on tensors of type {odd[0]}, not on plain ones")
    if not _rows(output).requires_grad:
        return NotReplayed("not replayed: it ran without gradients, so that none can reach its states")
    if module.training and _has_dropout(module) and random_state is None:
        return NotReplayed("not replayed: the random state before the call was not kept")
    device_type = _rows(sequence).device.type
    autocast = torch.is_autocast_enabled(device_type)
    return RecurrentCall(
        module=module,
        weights=tuple(w.detach() for w in module._flat_weights if w is not None),
        input=_detach(sequence),
        hx=None if hx is None else _as_state(hx),
        output=_detach(output),
        final=_as_state(final),
        training=module.training,
        autocast_dtype=torch.get_autocast_dtype(device_type) if autocast else None,
        random_state=random_state,
        output_version=_rows(output)._version,
    )


def replay(
    call: RecurrentCall, output: Tensor | None, h_n: Tensor | None = None, c_n: Tensor | None = None
) -> RecurrentGradients | NotReplayed:
    """Find ∂L/∂h_t for every layer, direction and time step of a recorded call.

    The module, its ``.grad`` and the random state stay as they are.

    Args:
        call: The record.
        output: ∂L/∂output, shaped like the call's output (like its ``data``
            if that is a ``PackedSequence``); None if no gradient came.
        h_n: ∂L/∂h_n, likewise.
        c_n: ∂L/∂c_n of an LSTM, likewise.

    Returns:
        The gradients, or why there are none.
    """
    layout = _Layout.of(call)
    device = _rows(call.input).device
    with (
        torch.enable_grad(),
        _autocast(device, call.autocast_dtype),
        _drawing_from(call.random_state, device),
    ):
        paths = _unroll_layers(call, layout)
    error = float(torch.stack([path.error for path in paths]).max())
    dtype = call.autocast_dtype or _rows(call.output).dtype
    if not error <= (tolerance := _tolerance(dtype, device)):
        masks = ", or the kernel draws dropout masks in a way of its own, as cuDNN does" if call.draws else ""
        return NotReplayed(
            f"not replayed: step by step, the states differ from the recorded ones by {error:.1e} of their "
            f"size, and {tolerance:.0e} is allowed in {str(dtype).removeprefix('torch.')}. Either a tensor "
            "of the call was changed in place after it, or the kernel rounds more coarsely than the "
            f"replay{masks}"
        )
    with _autocast(device, None):
        return RecurrentGradients(error, *_backward(paths, call, layout, output, (h_n, c_n)))


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """How a call's tensors map to rows [N, …] and to states [layers · directions, B, …]."""

    batch_sizes: list[int]
    batch_first: bool = False
    batched: bool = True
    sorted_indices: Tensor | None = None

    @classmethod
    def of(cls, call: RecurrentCall) -> _Layout:
        if isinstance(call.input, PackedSequence):
            return cls(call.input.batch_sizes.tolist(), sorted_indices=call.input.sorted_indices)
        if call.input.dim() == 2:
            return cls([1] * len(call.input), batched=False)
        time, batch = (1, 0) if call.module.batch_first else (0, 1)
        return cls([call.input.shape[batch]] * call.input.shape[time], call.module.batch_first)

    def rows(self, sequence: Tensor) -> Tensor:
        """Rows of an input, an output or its gradient."""
        if sequence.dim() == 2:
            return sequence
        return (sequence.transpose(0, 1) if self.batch_first else sequence).flatten(0, 1)

    def state(self, state: Tensor) -> Tensor:
        """An initial or final state or its gradient, with the sequences in the order of the rows."""
        if not self.batched:
            return state.unsqueeze(1)
        return state if self.sorted_indices is None else state.index_select(1, self.sorted_indices)


def _unroll_layers(call: RecurrentCall, layout: _Layout) -> list[Path]:
    """Run a call again step by step: one path for each layer and direction, in the order of ``h_n``."""
    module, directions = call.module, call.directions
    weights = _weights(call)
    rows = layout.rows(_rows(call.input))
    final = [layout.state(s) for s in call.final]
    if call.hx is None:
        initial = [torch.zeros_like(s, dtype=rows.dtype) for s in final]
    else:
        initial = [layout.state(s) for s in call.hx]
    # With a leaf that requires grad, every state after it has a graph.
    initial = [s.detach().requires_grad_() for s in initial]
    output_is_intact = _rows(call.output)._version == call.output_version

    paths: list[Path] = []
    for layer in range(module.num_layers):
        if layer > 0:
            rows = torch.cat([torch.cat(path.hidden) for path in paths[-directions:]], 1)
            if call.draws:
                rows = F.dropout(rows, module.dropout)
        if layer == module.num_layers - 1 and output_is_intact:
            known = layout.rows(_rows(call.output))
        else:
            known = _fused_layer(call, layout, layer, rows, initial)
        for direction, part in enumerate(known.chunk(directions, 1)):
            k = len(paths)
            path = unroll(
                cell(module.mode, weights[k]),
                F.linear(rows, weights[k].ih, weights[k].b_ih),
                layout.batch_sizes,
                initial=tuple(s[k] for s in initial),
                known=part,
                known_final=tuple(s[k] for s in final),
                reverse=direction == 1,
            )
            paths.append(path)
    return paths


def _fused_layer(
    call: RecurrentCall, layout: _Layout, layer: int, rows: Tensor, initial: Sequence[Tensor]
) -> Tensor:
    """Hidden states [N, directions · hidden] that the call did not show: one layer by the kernel of the call.

    Grad mode is on, as in the call: without it oneDNN takes another kernel, which rounds differently.
    """
    module, directions = call.module, call.directions
    kernel = getattr(torch._VF, module.mode.lower())
    count = len(call.weights) // module.num_layers
    weights = call.weights[layer * count : (layer + 1) * count]
    states = tuple(s.detach()[layer * directions : (layer + 1) * directions] for s in initial)
    arguments: list[Any] = [
        states if module.mode == "LSTM" else states[0],
        weights,
        *(module.bias, 1, 0.0, call.training, module.bidirectional),  # one layer, no dropout
    ]
    if isinstance(call.input, PackedSequence):
        arguments = [rows.detach(), call.input.batch_sizes, *arguments]
    else:
        shape = (len(layout.batch_sizes), layout.batch_sizes[0], rows.shape[1])
        arguments = [rows.detach().reshape(shape), *arguments, False]  # time first
    with warnings.catch_warnings():  # cuDNN complains that the weights of one layer are not in one chunk
        warnings.filterwarnings("ignore", "RNN module weights", UserWarning)
        output: Tensor = kernel(*arguments)[0]
    return output.flatten(0, -2)


def _backward(
    paths: list[Path],
    call: RecurrentCall,
    layout: _Layout,
    output: Tensor | None,
    final: Sequence[Tensor | None],
) -> list[tuple[StateGradients, ...]]:
    """Send gradients at the outputs back to all states: to h_t, and to c_t of an LSTM."""
    ends: list[Tensor] = []
    arriving: list[Tensor] = []
    if output is not None:
        parts = layout.rows(output).chunk(call.directions, 1)
        for path, part in zip(paths[-call.directions :], parts, strict=True):
            ends += path.hidden
            arriving += torch.split(part, layout.batch_sizes)
    for index, gradient in enumerate(final):
        if gradient is not None:
            ends += [path.final[index] for path in paths]
            arriving += layout.state(gradient).unbind()

    states = [s for path in paths for state in path.states for s in state]
    found: Sequence[Tensor | None] = [None] * len(states)
    if ends:
        found = torch.autograd.grad(ends, states, arriving, allow_unused=True)
    at = iter(found)
    table = [[tuple(next(at) for _ in state) for state in path.states] for path in paths]
    return [
        tuple(
            StateGradients(
                k // call.directions, k % call.directions == 1, tuple(step[index] for step in path)
            )
            for k, path in enumerate(table)
        )
        for index in range(len(call.final))
    ]


def _weights(call: RecurrentCall) -> list[Weights]:
    """The weights by layer and direction."""
    module, flat = call.module, call.weights
    if call.autocast_dtype is not None:  # what autocast does, but once and not at every step
        flat = tuple(w if w.dtype == torch.float64 else w.to(call.autocast_dtype) for w in flat)
    count = len(flat) // (module.num_layers * call.directions)
    found = []
    for first in range(0, len(flat), count):
        ih, hh, *others = flat[first : first + count]
        b_ih, b_hh = others[:2] if module.bias else (None, None)
        found.append(Weights(ih, hh, b_ih, b_hh, others[-1] if module.proj_size else None))
    return found


def _foreign(module: nn.Module) -> str | None:
    """Why a module is none of those that can be replayed, or None if it is."""
    name = type(module).__name__
    for base in (nn.RNN, nn.LSTM, nn.GRU):
        if isinstance(module, base):
            if getattr(module.forward, "__func__", None) is base.forward:
                return None
            return f"{name} has a forward of its own in place of that of nn.{base.__name__}"
    return f"{name} is not an nn.RNN, nn.LSTM or nn.GRU"


def _tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """The entry of :data:`TOLERANCE`.

    Off the CPU a kernel may compute float32 in TF32, whose mantissa has the length of float16's.
    """
    return TOLERANCE[torch.float16 if dtype == torch.float32 and device.type != "cpu" else dtype]


def _has_dropout(module: Recurrent) -> bool:
    return module.dropout > 0 and module.num_layers > 1


def _arguments(sequence: Any = None, hx: Any = None, **named: Any) -> tuple[Any, Any]:
    """The input and the initial state out of a call's arguments."""
    return named.get("input", sequence), hx


def _rows(sequence: Tensor | PackedSequence) -> Tensor:
    return sequence.data if isinstance(sequence, PackedSequence) else sequence


def _detach(sequence: Tensor | PackedSequence) -> Tensor | PackedSequence:
    if isinstance(sequence, PackedSequence):
        return sequence._replace(data=sequence.data.detach())
    return sequence.detach()


def _as_state(state: Tensor | tuple[Tensor, ...]) -> State:
    return (state.detach(),) if isinstance(state, Tensor) else tuple(s.detach() for s in state)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False)


def _get_random_state(device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.get_rng_state()
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def _drawing_from(state: Tensor | None, device: torch.device) -> Iterator[None]:
    """Put the device's random generator into a state for a while."""
    if state is None:
        yield
        return
    now = _get_random_state(device)
    try:
        _set_random_state(device, state)
        yield
    finally:
        _set_random_state(device, now)
