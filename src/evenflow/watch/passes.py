"""Module calls of the steps that are sampled: outputs on the way forward, their gradients on the way back.

A *pass* is one call of the whole model (or, where parts are called by
themselves, of the outermost watched module), with the calls of all modules
inside. Hooks are on the modules only while a step is sampled.

Which passes belong to training is judged by evidence, not by mode: a pass
counts when a gradient came back to it. An evaluation, with gradients switched
off or not, gets none. (A pass in training mode of which nothing could have a
gradient, a frozen backbone called by itself, counts too.)

With several optimizers a pass may get gradients in the turn of another one: the
discriminator's, while the generator learns. An optimizer's step takes the passes
that were reached since the last step of any optimizer, if there are such; else
all that were reached since its own.

Activation checkpointing runs modules again inside the backward pass. What was
recorded the first time is not recorded again; where the first run had gradients
switched off (reentrant checkpoints), the second one supplies the gradient.

A module's output that is the very tensor its last child returned (Sequential) is
not read twice: the row carries both calls. Where gradients come to one output
several times in a step (a second ``backward`` over a retained graph), the last
one is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evenflow.watch.moments import Taken, take
from evenflow.watch.units import Share, dead_share, saturated_share

_WAITING_PASSES = 64
"""Passes that wait for a gradient at most; an evaluation with gradients on would pile up without end."""


Call: TypeAlias = tuple[str, int]
"""Path of a module, and which of its calls within the pass; a plain tuple, for it is hashed often."""


@dataclass(slots=True, eq=False)
class Output:
    """The output of one module call.

    Attributes:
        module: Which call made it.
        module_type: Class of the module.
        order: Position in its pass.
        shape: Its shape.
        dtype: PyTorch's name of its format.
        inputs: Orders of the outputs that it was computed from.
        output_of: All calls that returned this tensor, innermost first.
        activation: Moments of its entries.
        gradient: Moments of the gradient that came to it; None as long as none came.
        dead: Share of dead units; None for all but rectifiers.
        saturated: Share of saturated entries; None for all but sigmoids and their kin.
    """

    module: Call
    module_type: str
    order: int
    shape: tuple[int, ...]
    dtype: str
    inputs: tuple[int, ...]
    output_of: tuple[Call, ...]
    activation: Taken
    gradient: Taken | None = None
    dead: Share | None = None
    saturated: Share | None = None


@dataclass(slots=True, eq=False)
class Pass:
    """One call of the whole model."""

    training: bool
    outputs: list[Output] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    nodes: dict[int, Output] = field(default_factory=dict)
    """Number of an autograd node → the output that it made."""
    without_graph: dict[str, list[Output]] = field(default_factory=dict)
    """Outputs made while gradients were off, by path; the latest last."""
    last: tuple[int, int] = (0, 0)
    """Identity of the latest output: of the tensor and of its node."""
    can_have_gradients: bool = False
    reached: int | None = None
    """Turn in which a gradient last came."""


@final
class PassProbe:
    """Records the passes of one model.

    Args:
        model: The model.
        wanted: Whether a module, by its path, is to be recorded.
        timed: Wraps every hook: measures its time and catches its failures.
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: Callable[[str], bool],
        timed: Callable[[Callable[..., None]], Callable[..., None]],
    ) -> None:
        self._model = model
        self._wanted = wanted
        self._timed = timed
        self._handles: list[RemovableHandle] = []
        self._passes: list[Pass] = []
        self._hooked: list[int] = []
        self._depth = 0
        self._current: Pass | None = None
        self.turn = 0
        self.paused = False

    @property
    def attached(self) -> bool:
        """Whether hooks are on the modules."""
        return bool(self._handles)

    def holds(self, parameters: set[int]) -> bool:
        """Whether any of these parameters, by identity, is the model's."""
        return any(id(parameter) in parameters for parameter in self._model.parameters())

    @property
    def outdated(self) -> bool:
        """Whether modules came or went since the hooks were put on."""
        return self._hooked != [id(module) for module in self._model.modules()]

    def attach(self) -> None:
        """Put hooks on all wanted modules, and on the model itself."""
        self._hooked = [id(module) for module in self._model.modules()]
        for path, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule) or (path and not self._wanted(path)):
                continue
            self._handles += [
                module.register_forward_pre_hook(self._timed(self._enterer(path))),
                module.register_forward_hook(self._timed(self._leaver(path))),
            ]

    def detach(self) -> None:
        """Take the hooks off and forget what waits."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._passes.clear()
        self._current = None

    def collect(self, turn: int) -> list[Pass]:
        """The passes that belong to the optimizer's step that ends ``turn``; the others are forgotten."""
        passes, self._passes = self._passes, []
        reached = [one for one in passes if one.reached is not None]
        latest = [one for one in reached if one.reached == turn]
        frozen = [one for one in passes if one.training and one.outputs and not one.can_have_gradients]
        return [one for one in passes if one in (latest or reached) or one in frozen]

    def _enterer(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if _in_backward():
                return
            if self._depth == 0 or not path:  # the model itself begins anew, whatever raised before
                self._depth = 0
                self._current = None
                if torch.is_grad_enabled() and not self.paused:
                    self._current = Pass(training=self._model.training)
                    self._passes.append(self._current)
                    self._drop_old()
            self._depth += 1

        return hook

    def _leaver(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if _in_backward():
                self._recomputed(path, output)
                return
            self._depth -= 1
            if self._current is not None:
                tensor = main_tensor(output)
                if tensor is not None and self._wanted(path):
                    self._record(self._current, path, module, tensor)
                if self._depth <= 0:
                    self._current.nodes.clear()
                    self._current = None

        return hook

    def _record(self, one: Pass, path: str, module: nn.Module, tensor: Tensor) -> None:
        call = (path, one.calls[path])
        one.calls[path] += 1
        node = tensor.grad_fn
        number = -1 if node is None else node._sequence_nr()
        if one.outputs and one.last == (id(tensor), number):
            one.outputs[-1].output_of += (call,)
            return
        one.last = (id(tensor), number)
        inputs = _made_from(node, one.nodes)
        output = Output(
            module=call,
            module_type=type(module).__name__,
            order=len(one.outputs),
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            inputs=inputs,
            output_of=(call,),
            activation=take(tensor),
            dead=dead_share(module, tensor, channels_first=_channels_first(one, inputs, tensor)),
            saturated=saturated_share(module, tensor),
        )
        one.outputs.append(output)
        if tensor.requires_grad:
            one.can_have_gradients = True
            self._expect_gradient(one, output, tensor)
            if node is not None:
                one.nodes[number] = output
        elif not torch.is_grad_enabled():
            one.without_graph.setdefault(path, []).append(output)

    def _recomputed(self, path: str, output: Any) -> None:
        """A checkpoint runs the module again, inside backward."""
        tensor = main_tensor(output)
        if tensor is None or not tensor.requires_grad:
            return
        for one in reversed(self._passes):
            if one.without_graph.get(path):
                one.can_have_gradients = True
                self._expect_gradient(one, one.without_graph[path].pop(0), tensor)
                return

    def _expect_gradient(self, one: Pass, output: Output, tensor: Tensor) -> None:
        def arrived(gradient: Tensor) -> None:
            if self.attached and not self.paused:
                output.gradient = take(gradient)
                one.reached = self.turn

        tensor.register_hook(self._timed(arrived))

    def _drop_old(self) -> None:
        if len(self._passes) > _WAITING_PASSES:
            oldest = next((one for one in self._passes[:-1] if one.reached is None), None)
            if oldest is not None:
                self._passes.remove(oldest)


def _channels_first(one: Pass, inputs: tuple[int, ...], tensor: Tensor) -> bool:
    """Whether units lie along axis 1: images do, and what a convolution or an image norm has made."""
    before = [one.outputs[order].module_type for order in inputs]
    return tensor.ndim > 3 or any(name.startswith(("Conv", "BatchNorm")) for name in before)


def main_tensor(value: Any) -> Tensor | None:
    """The tensor that stands for a module's output: the first floating one that is no scalar, if any."""
    scalar = None
    for tensor in _tensors(value, 0):
        if tensor.is_floating_point() or tensor.is_complex():
            if tensor.ndim:
                return tensor
            scalar = scalar if scalar is not None else tensor
    return scalar


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth < 8:
        children: Sequence[Any] = ()
        if isinstance(value, Mapping):
            children = list(value.values())
        elif isinstance(value, (tuple, list)):
            children = value
        elif hasattr(value, "__dataclass_fields__"):
            children = [getattr(value, name, None) for name in value.__dataclass_fields__]
        for child in children:
            yield from _tensors(child, depth + 1)


def _in_backward() -> bool:
    """Whether this code runs inside a backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)


def _made_from(node: Any, known: Mapping[int, Output]) -> tuple[int, ...]:
    """Orders of the nearest recorded outputs that ``node`` was computed from."""
    found: set[int] = set()
    seen: set[Any] = set()
    waiting = [] if node is None else [parent for parent, _ in node.next_functions]
    while waiting:
        parent = waiting.pop()
        if parent is None or parent in seen:
            continue
        seen.add(parent)
        output = known.get(parent._sequence_nr())
        if output is not None:
            found.add(output.order)
        else:
            waiting += [grand for grand, _ in parent.next_functions]
    return tuple(sorted(found))
