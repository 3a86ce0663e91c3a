"""Gradients by time step of recurrent layers, as :func:`evenflow.measure` gives them.

Without entries, ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` run one cell step after another.
The states of a layer in one direction are then seen twice: at its end they are stacked
in the order of time, and each cell state c_t of an LSTM is the one tensor that goes
through a tanh which is not in place (aten/src/ATen/native/RNN.cpp). A hook on each
state gives its whole gradient, through the output and through all later steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from evenflow.flow import ModuleCall, Role, Row, Site, Stats
from evenflow.trace.rows import Told

RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)


@dataclass(slots=True)
class _State:
    """∂L/∂ one state: its shape, its format and, once it has come by, its statistics."""

    shape: tuple[int, ...]
    dtype: str
    stats: Stats | None = None


@dataclass(slots=True)
class _Call:
    """One call of a recurrent module: its states, layer by layer, forward direction first."""

    module: nn.RNN | nn.LSTM | nn.GRU
    call: ModuleCall
    hidden: list[list[_State]] = field(default_factory=list)
    cell: list[list[_State]] = field(default_factory=list)
    cells: list[_State] = field(default_factory=list)

    @property
    def directions(self) -> int:
        """1, or 2 if bidirectional."""
        return 2 if self.module.bidirectional else 1


@final
class TimeSteps(TorchDispatchMode):
    """Watches recurrent modules while it is entered.

    Args:
        read: Statistics of a gradient.
    """

    def __init__(self, read: Callable[[Tensor], Stats]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._read = read
        self._calls: list[_Call] = []
        self._running: list[_Call] = []
        self._handles: list[RemovableHandle] = []

    def entered(self, module: nn.Module, call: ModuleCall) -> None:
        """A module is about to run."""
        if isinstance(module, RECURRENT):
            self._running.append(_Call(module, call))

    def left(self, module: nn.Module) -> None:
        """A module has run."""
        if self._running and self._running[-1].module is module:
            self._calls.append(self._running.pop())

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the op, and note the states that it reads."""
        if self._running:
            call = self._running[-1]
            if func is torch.ops.aten.tanh.default and isinstance(call.module, nn.LSTM):
                call.cells.append(self._hooked(args[0]))
            elif func in (torch.ops.aten.stack.default, torch.ops.aten.cat.default):
                self._layer(call, args[0])
        return func(*args, **(kwargs or {}))

    def _layer(self, call: _Call, states: Sequence[Tensor]) -> None:
        """The end of one layer in one direction; the outputs of both directions have three dimensions."""
        paths = call.module.num_layers * call.directions
        if len(call.hidden) == paths or any(state.ndim != 2 for state in states):
            return  # final states are stacked once all layers have run
        backwards = len(call.hidden) % call.directions == 1
        call.hidden.append([self._hooked(state) for state in states])
        if len(call.cells) == len(states):
            call.cell.append(call.cells[::-1] if backwards else call.cells)
        call.cells = []

    def _hooked(self, tensor: Tensor) -> _State:
        state = _State(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        if tensor.requires_grad:

            def seen(gradient: Tensor) -> None:
                state.stats = self._read(gradient)

            self._handles.append(tensor.register_hook(seen))
        return state

    def remove(self) -> None:
        """Take all hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def rows(self, order_of: Callable[[ModuleCall], int], told: Told) -> Iterator[Row]:
        """One row a state that a gradient reached.

        Args:
            order_of: Position of a module call in forward execution.
            told: What a row says of statistics.
        """
        for call in self._calls:
            directions = call.directions
            for name, paths in (("hidden", call.hidden), ("cell", call.cell)):
                for k, path in enumerate(paths):
                    op = f"{name}_l{k // directions}{'_reverse' if k % directions else ''}"
                    for time, state in enumerate(path):
                        if state.stats is not None:
                            yield _row(call, op, time, state, order_of(call.call), told)


def _row(call: _Call, op: str, time: int, state: _State, order: int, told: Told) -> Row:
    stats, half_width = told(state.stats, Role.ACTIVATION_GRADIENT)
    return Row(
        site=Site(call.call.path, op, Role.ACTIVATION_GRADIENT, call.call.call, time=time),
        order=order,
        module_type=type(call.module).__name__,
        shape=state.shape,
        dtype=state.dtype,
        stats=stats,
        half_width=half_width,
    )
