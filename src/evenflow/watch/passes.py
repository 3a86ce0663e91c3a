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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evenflow.watch.inventory import Inventory
from evenflow.watch.moments import Page, Rows
from evenflow.watch.units import Share, dead_share, saturated_share

_WAITING_PASSES = 64
"""Passes that wait for a gradient at most; an evaluation with gradients on would pile up without end."""
_MOST_OUTPUTS = 1 << 16
"""Descriptions that are remembered; batches of ever new shapes would make ever new ones."""


Call: TypeAlias = tuple[str, int]
"""Path of a module, and which of its calls within the pass; a plain tuple, for it is hashed often."""


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """What stays from step to step of the output of a module call. Made once, and equal to itself only.

    Attributes:
        module: Which call made it.
        module_type: Class of the module.
        order: Position in its pass.
        shape: Its shape.
        dtype: Its format.
        inputs: Orders of the outputs that it was computed from.
        output_of: All calls that returned this tensor, innermost first.
    """

    module: Call
    module_type: str
    order: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    inputs: tuple[int, ...]
    output_of: tuple[Call, ...]


@dataclass(slots=True, eq=False)
class Pass:
    """One call of the whole model.

    Rows ``2i`` and ``2i + 1`` of its page are the moments of output ``i`` and of the
    gradient that came to it.
    """

    training: bool
    page: Page
    outputs: list[Output] = field(default_factory=list)
    has_gradient: bytearray = field(default_factory=bytearray)
    """For each output, whether a gradient came to it."""
    dead: list[Share | None] = field(default_factory=list)
    """For each output, the share of dead units; None for all but rectifiers."""
    saturated: list[Share | None] = field(default_factory=list)
    """For each output, the share of saturated entries; None for all but sigmoids and their kin."""
    calls: dict[str, int] = field(default_factory=dict)
    nodes: dict[int, int] = field(default_factory=dict)
    """Number of an autograd node → order of the output that it made."""
    without_graph: dict[str, list[int]] = field(default_factory=dict)
    """Orders of outputs made while gradients were off, by path; the latest last."""
    last: tuple[int, int] = (0, 0)
    """Identity of the latest output: of the tensor and of its node."""
    can_have_gradients: bool = False
    reached: int | None = None
    """Turn in which a gradient last came."""

    def structure(self) -> tuple[object, ...]:
        """Equal where two passes differ by numbers only."""
        return tuple(self.outputs), bytes(self.has_gradient)

    def moments(self) -> Rows:
        """The rows of all outputs and of their gradients [2 · outputs, 5]."""
        return self.page.read(2 * len(self.outputs))

    def shares(self) -> Rows:
        """Shares of dead units and of saturated entries, beside :meth:`moments`; NaN where there are none."""
        found = np.full((2 * len(self.outputs), 2), np.nan)
        for column, shares in enumerate((self.dead, self.saturated)):
            known = [index for index, share in enumerate(shares) if share is not None]
            found[[2 * index for index in known], column] = [float(shares[index] or 0.0) for index in known]
        return found


@final
class PassProbe:
    """Records the passes of one model.

    Args:
        inventory: The model.
        wanted: Whether a module, by its path, is to be recorded.
        timed: Wraps every hook: measures its time and catches its failures.
    """

    def __init__(
        self,
        inventory: Inventory,
        wanted: Callable[[str], bool],
        timed: Callable[[Callable[..., None]], Callable[..., None]],
    ) -> None:
        self._inventory = inventory
        self._wanted = wanted
        self._timed = timed
        self._handles: list[RemovableHandle] = []
        self._passes: list[Pass] = []
        self._known: dict[tuple[object, ...], Output] = {}
        self._script: list[Output] = []
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
        return any(id(owned.parameter) in parameters for owned in self._inventory.parameters)

    def attach(self) -> None:
        """Put hooks on all wanted modules, and on the model itself."""
        for path, module in self._inventory.modules:
            if isinstance(module, torch.jit.ScriptModule) or (path and not self._wanted(path)):
                continue
            outer = not path or bool(module._modules)
            if outer:  # others can be in no other's way: what they return says enough
                self._handles.append(module.register_forward_pre_hook(self._timed(self._enterer(path))))
            self._handles.append(module.register_forward_hook(self._timed(self._leaver(path, outer))))

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
                self._begin()
            self._depth += 1

        return hook

    def _leaver(self, path: str, outer: bool) -> Callable[..., None]:
        wanted = self._wanted(path)

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if _in_backward():
                self._recomputed(path, output)
                return
            if outer:
                self._depth -= 1
            elif self._depth == 0:
                self._begin()
            if self._current is not None:
                tensor = main_tensor(output)
                if tensor is not None and wanted:
                    self._record(self._current, path, module, tensor)
                if self._depth <= 0:
                    self._current.nodes.clear()
                    self._script = self._current.outputs
                    self._current = None

        return hook

    def _begin(self) -> None:
        self._current = None
        if torch.is_grad_enabled() and not self.paused:
            self._current = Pass(self._inventory.model.training, Page(2 * max(len(self._script), 32)))
            self._passes.append(self._current)
            self._drop_old()

    def _record(self, one: Pass, path: str, module: nn.Module, tensor: Tensor) -> None:
        number = one.calls.get(path, 0)
        one.calls[path] = number + 1
        node = tensor.grad_fn
        identity = (id(tensor), -1 if node is None else node._sequence_nr())
        if one.last == identity and one.outputs:
            one.outputs[-1] = self._returned_again(one.outputs[-1], (path, number))
            return
        one.last = identity
        order = len(one.outputs)
        described = self._output(one, (path, number), module, tensor)
        one.dead.append(dead_share(module, tensor, channels_first=_channels_first(one, described)))
        one.saturated.append(saturated_share(module, tensor))
        one.outputs.append(described)
        one.has_gradient.append(0)
        one.page.put(2 * order, tensor)
        if tensor.requires_grad:
            one.can_have_gradients = True
            self._expect_gradient(one, order, tensor)
            if node is not None:
                one.nodes[identity[1]] = order
        elif not torch.is_grad_enabled():
            one.without_graph.setdefault(path, []).append(order)

    def _output(self, one: Pass, call: Call, module: nn.Module, tensor: Tensor) -> Output:
        """The description of an output: the one of the previous pass, if nothing has changed."""
        order = len(one.outputs)
        inputs = _made_from(tensor.grad_fn, one.nodes)
        shape, dtype = tensor.shape, tensor.dtype
        if order < len(self._script):
            known = self._script[order]
            if (
                known.module == call
                and known.shape == shape
                and known.dtype is dtype
                and known.inputs == inputs
                and len(known.output_of) == 1
            ):
                return known
        key = (call, type(module).__name__, order, tuple(shape), dtype, inputs, (call,))
        return self._made(key)

    def _returned_again(self, output: Output, call: Call) -> Output:
        key = (
            output.module, output.module_type, output.order, output.shape, output.dtype, output.inputs,
            (*output.output_of, call),
        )  # fmt: skip
        return self._made(key)

    def _made(self, key: tuple[Any, ...]) -> Output:
        if len(self._known) > _MOST_OUTPUTS:
            self._known.clear()
        if key not in self._known:
            self._known[key] = Output(*key)
        return self._known[key]

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

    def _expect_gradient(self, one: Pass, order: int, tensor: Tensor) -> None:
        def arrived(gradient: Tensor) -> None:
            if self._handles and not self.paused:
                one.page.put(2 * order + 1, gradient)
                one.has_gradient[order] = 1
                one.reached = self.turn

        tensor.register_hook(self._timed(arrived))

    def _drop_old(self) -> None:
        if len(self._passes) > _WAITING_PASSES:
            oldest = next((one for one in self._passes[:-1] if one.reached is None), None)
            if oldest is not None:
                self._passes.remove(oldest)


def _channels_first(one: Pass, output: Output) -> bool:
    """Whether units lie along axis 1: images do, and what a convolution or an image norm has made."""
    before = [one.outputs[order].module_type for order in output.inputs]
    return len(output.shape) > 3 or any(name.startswith(("Conv", "BatchNorm")) for name in before)


def main_tensor(value: Any) -> Tensor | None:
    """The tensor that stands for a module's output: the first floating one that is no scalar, if any."""
    if type(value) is Tensor and value.ndim and value.is_floating_point():
        return value
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


def _made_from(node: Any, known: Mapping[int, int]) -> tuple[int, ...]:
    """Orders of the nearest recorded outputs that ``node`` was computed from."""
    if node is None or not known:
        return ()
    found: set[int] = set()
    seen: set[Any] = set()
    waiting = [node]
    while waiting:
        for parent, _ in waiting.pop().next_functions:
            if parent is None or parent in seen:
                continue
            seen.add(parent)
            order = known.get(parent._sequence_nr())
            if order is None:
                waiting.append(parent)
            else:
                found.add(order)
    return tuple(sorted(found))
