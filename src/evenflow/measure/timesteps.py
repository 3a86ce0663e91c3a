"""Gradients by time step of the recurrent layers that ran, as rows of the Flow.

While the model runs, each call of an ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU`` is kept
together with the gradients that arrive at its outputs; afterwards it is replayed
step by step (:mod:`evenflow.measure.recurrent`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from evenflow.flow import ModuleCall, Role, Row, Site
from evenflow.measure import recurrent
from evenflow.trace.statistics import tensor_stats


@dataclass(slots=True)
class _Watched:
    call: ModuleCall
    record: recurrent.RecurrentCall | recurrent.NotReplayed
    gradients: dict[int, Tensor] = field(default_factory=dict)


@final
class RecurrentWatch:
    """Keeps the calls of recurrent modules of one forward pass.

    Attributes:
        notes: Calls that could not be replayed, and why.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._states: dict[ModuleCall, tuple[Tensor | None, tuple[Any, ...], Mapping[str, Any]]] = {}
        self._watched: list[_Watched] = []
        self._handles: list[RemovableHandle] = []

    def entered(
        self, module: nn.Module, call: ModuleCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """A module is about to run."""
        if isinstance(module, recurrent.Recurrent):
            self._states[call] = (recurrent.random_state(module), args, kwargs)

    def left(self, module: nn.Module, call: ModuleCall, output: Any) -> None:
        """A module has run."""
        if not isinstance(module, recurrent.Recurrent) or call not in self._states or output is None:
            return
        state, args, kwargs = self._states.pop(call)
        watched = _Watched(call, recurrent.record(module, args, kwargs, output, state))
        self._watched.append(watched)
        if isinstance(watched.record, recurrent.RecurrentCall):
            for position, tensor in enumerate(_outputs(output)):
                if tensor.requires_grad:
                    self._handles.append(tensor.register_hook(_keep(watched.gradients, position)))

    def remove(self) -> None:
        """Take all hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def rows(self, order_of: Callable[[ModuleCall], int]) -> Iterator[Row]:
        """Replay every call that a gradient reached.

        Args:
            order_of: Position of a module call in forward execution.
        """
        for watched in self._watched:
            if isinstance(watched.record, recurrent.NotReplayed):
                self._note(watched.call, watched.record)
                continue
            if not watched.gradients:
                self._note(
                    watched.call, recurrent.NotReplayed("not replayed: no gradient reached its outputs")
                )
                continue
            result = recurrent.replay(watched.record, *(watched.gradients.get(k) for k in range(3)))
            if isinstance(result, recurrent.NotReplayed):
                self._note(watched.call, result)
                continue
            module_type = type(watched.record.module).__name__
            for state, paths in (("hidden", result.hidden), ("cell", result.cell)):
                for path in paths:
                    op = f"{state}_l{path.layer}{'_reverse' if path.reverse else ''}"
                    yield from _rows(watched.call, module_type, op, path, order_of(watched.call))

    def _note(self, call: ModuleCall, why: recurrent.NotReplayed) -> None:
        self.notes.append(f"{call}: gradients by time step {why.reason}")


def _rows(
    call: ModuleCall, module_type: str, op: str, path: recurrent.StateGradients, order: int
) -> Iterator[Row]:
    for time, gradient in enumerate(path.gradients):
        if gradient is not None:
            yield Row(
                site=Site(call.path, op, Role.ACTIVATION_GRADIENT, call.call, time=time),
                order=order,
                module_type=module_type,
                shape=tuple(gradient.shape),
                dtype=str(gradient.dtype).removeprefix("torch."),
                stats=tensor_stats(gradient),
            )


def _outputs(output: Any) -> list[Tensor]:
    """The output sequence (its data, if packed) and the final states."""
    sequence, final = output
    sequence = sequence.data if isinstance(sequence, PackedSequence) else sequence
    return [sequence, *(final if isinstance(final, tuple) else (final,))]


def _keep(gradients: dict[int, Tensor], position: int) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        gradients[position] = gradient.detach()

    return hook
