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

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evenflow.watch import graph
from evenflow.watch.autograd import PARAMETER_NODE, in_backward
from evenflow.watch.inventory import Inventory
from evenflow.watch.moments import Page
from evenflow.watch.outputs import Catalogue, Output, Pass, Told
from evenflow.watch.readings import Readings

_TICKETS = 1 << 20
"""Tickets are this times the number of the pass, plus the position of the output."""
_WAITING_PASSES = 64
"""Passes that wait for a gradient at most; an evaluation with gradients on would pile up without end."""
_LONG_WALK = 128
"""Autograd nodes between recorded outputs, from which what was walked is remembered."""


@final
class PassProbe:
    """Records the passes of one model.

    Args:
        inventory: The model.
        wanted: Whether a module, by its path, is to be recorded.
        timed: Wraps every hook: measures its time and catches its failures.
        readings: Is told which tensors were finite.
    """

    def __init__(
        self,
        inventory: Inventory,
        wanted: Callable[[str], bool],
        timed: Callable[[Callable[..., None]], Callable[..., None]],
        readings: Readings,
    ) -> None:
        self._inventory = inventory
        self._wanted = wanted
        self._timed = timed
        self._readings = readings
        self._arrived = timed(self._take_gradient)
        self._handles: dict[str, list[RemovableHandle]] = {}
        self._passes: list[Pass] = []
        self._catalogue = Catalogue()
        self._script: list[Output] = []
        self._depth = 0
        self._current: Pass | None = None
        self._traced = graph.TracedModules(inventory.modules)
        self._in_graph = False
        self._ticket = graph.NOTHING
        self._told_last: list[Told] = []
        self._begun, self._saw, self._brought = timed(self._begin), timed(self._see), timed(self._bring)
        self.tag, self.sink = graph.register(self), graph.sink()
        self.on = False
        """Whether hooks are on the modules, to record what they return."""
        self.unseen: tuple[str, ...] = ()
        """Paths of parts that are compiled by themselves, of which nothing is recorded."""
        self.turn = 0
        self.paused = False

    def holds(self, parameters: set[int]) -> bool:
        """Whether any of these parameters, by identity, is the model's."""
        return any(id(owned.parameter) in parameters for owned in self._inventory.parameters)

    def attach(self) -> None:
        """Put hooks on all wanted modules, and on the model itself."""
        self.on = True
        self.unseen = graph.compiled_parts(self._inventory.modules)
        if self._traced.modules != self._inventory.modules:
            self._take_off()
            self._traced = graph.TracedModules(self._inventory.modules)
        for number, (path, module) in enumerate(self._inventory.modules):
            if isinstance(module, torch.jit.ScriptModule) or (path and not self._wanted(path)):
                continue
            if any(f"{path}.".startswith(f"{part}.") for part in self.unseen):
                continue
            if path not in self._handles:
                self._handles[path] = self._hooked(number, path, module)

    def detach(self) -> None:
        """Take the hooks off and forget what waits. Those in compiled graphs stay, and do nothing."""
        self.on = False
        if not self._in_graph:
            self._take_off()
        self._passes.clear()
        self._current = None

    def _take_off(self) -> None:
        for handle in itertools.chain.from_iterable(self._handles.values()):
            handle.remove()
        self._handles.clear()

    def remove(self) -> None:
        """Take all hooks off, for good."""
        self._in_graph = False
        self.detach()

    def _hooked(self, number: int, path: str, module: nn.Module) -> list[RemovableHandle]:
        outer = not path or bool(module._modules)
        constant = str(number)  # a number would be a variable of graphs that are dynamic
        leave = graph.traceable(
            "leave" if path else "leave_model",
            self._timed(self._leaver(path, outer)),
            lambda output: graph.probe(self, int(constant), output),
        )
        handles = [module.register_forward_hook(leave)]
        if outer:  # others can be in no other's way: what they return says enough
            begins = (lambda: graph.begin(self)) if not path else (lambda: None)
            enter = graph.traceable(
                "enter" if path else "enter_model", self._timed(self._enterer(path)), begins
            )
            handles.append(module.register_forward_pre_hook(enter))
        return handles

    def collect(self, turn: int) -> list[Pass]:
        """The passes that belong to the optimizer's step that ends ``turn``; the others are forgotten."""
        passes, self._passes = self._passes, []
        reached = [one for one in passes if one.reached is not None]
        latest = [one for one in reached if one.reached == turn]
        frozen = [one for one in passes if one.training and one.outputs and not one.can_have_gradients]
        return [one for one in passes if one in (latest or reached) or one in frozen]

    def _enterer(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if not self.on or in_backward():
                return
            if self._depth == 0 or not path:  # the model itself begins anew, whatever raised before
                self._depth = 0
                self._current = None
                if torch.is_grad_enabled():
                    self._begin()
            self._depth += 1

        return hook

    def _leaver(self, path: str, outer: bool) -> Callable[..., None]:
        wanted = self._wanted(path)

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not self.on:
                return
            if in_backward():
                self._recomputed(path, output)
                return
            if outer:
                self._depth -= 1
            elif self._depth == 0:
                self._current = None
                if torch.is_grad_enabled():
                    self._begin()
            if self._current is not None:
                tensor = main_tensor(output)
                if tensor is not None and wanted:
                    self._record(self._current, path, module, tensor)
                if self._depth <= 0:
                    self._current.nodes.clear()
                    self._current.walked.clear()
                    self._script = self._current.outputs
                    self._current = None

        return hook

    def _begin(self) -> None:
        self._current = None
        if not self.paused:
            before, self._told_last = self._told_last, []
            rows = 2 * max(len(self._script), len(before), 32)
            self._current = Pass(
                self._inventory.model.training, Page(rows), told=self._told_last, before=before
            )
            self._passes.append(self._current)
            self._drop_old()

    def _record(self, one: Pass, path: str, module: nn.Module, tensor: Tensor) -> None:
        call = one.count(path)
        node = tensor.grad_fn
        identity = (id(tensor), -1 if node is None else node._sequence_nr())
        if one.last == identity and one.outputs:
            one.outputs[-1] = self._catalogue.returned_again(one.outputs[-1], call)
            return
        one.last = identity
        inputs = _made_from(node, one.nodes, one.walked)
        described = self._catalogue.describe(call, module, len(one.outputs), tensor, inputs, self._script)
        order, flag = one.add(described, module, tensor)
        self._readings.note(tensor, flag)
        if tensor.requires_grad:
            one.can_have_gradients = True
            self._expect_gradient(one, order, tensor)
            if node is not None:
                one.nodes[identity[1]] = order
                if identity[1] in one.walked:  # it was walked past before it was recorded
                    one.walked.clear()
        elif not torch.is_grad_enabled():
            one.without_graph.setdefault(path, []).append(order)

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
        self._readings.expect_gradient(tensor, partial(self._arrived, one, order))

    def _take_gradient(self, one: Pass, order: int, gradient: Tensor) -> None:
        if self.on and not self.paused:
            self._readings.note(gradient, one.add_gradient(order, gradient, self.turn))

    def _drop_old(self) -> None:
        if len(self._passes) > _WAITING_PASSES:
            oldest = next((one for one in self._passes[:-1] if one.reached is None), None)
            if oldest is not None:
                self._passes.remove(oldest)

    # --- what compiled graphs tell (evenflow.watch.graph) ---------------------

    def graph_begins(self) -> None:
        """A pass begins."""
        if self.on and not in_backward():
            self._begun()

    def graph_saw(self, module: int, output: Tensor, *, differentiable: bool) -> int:
        """A module returned ``output``; gives a ticket for its gradient."""
        self._in_graph = True
        self._ticket = graph.NOTHING
        if self.on and not self.paused and not in_backward():
            self._saw(module, output, differentiable)
        return self._ticket

    def graph_brought(self, ticket: int, gradient: Tensor) -> None:
        """The gradient of an output arrived."""
        if self.on and not self.paused:
            self._brought(ticket, gradient)

    def graph_traced(self, call: graph.TracedCall, origin: graph.Origin) -> None:
        """The compiler traces a call."""
        self._traced.origins[call] = origin
        self._told_last = []  # it may be made from something else from now on

    def _bring(self, ticket: int, gradient: Tensor) -> None:
        number, order = divmod(ticket, _TICKETS)
        for one in self._passes:
            if one.number == number:
                one.add_gradient(order, gradient, self.turn)
                return

    def _see(self, module: int, output: Tensor, differentiable: bool) -> None:
        if self._current is None:
            self._begin()
        one = self._current
        if one is None:
            return
        told = one.as_before(module, output, differentiable)
        if told is None:
            told = self._told(one, module, output, differentiable)
            one.tell(told)
        if told.again:
            one.outputs[told.order] = told.output
            return
        one.add(told.output, self._traced.modules[module][1], output)
        one.can_have_gradients |= differentiable
        self._ticket = one.number * _TICKETS + told.order

    def _told(self, one: Pass, module: int, output: Tensor, differentiable: bool) -> Told:
        """What is to be said of an output that the last pass did not have at this place."""
        path, owner = self._traced.modules[module]
        call = one.count(path)
        same, inputs, outside = self._traced.origins.get((module, call[1]), graph.UNKNOWN)
        order = one.order_of_equal(output) if outside else one.traced.get(same)
        again = order is not None
        if order is not None:
            described = self._catalogue.returned_again(one.outputs[order], call)
        else:
            order = len(one.outputs)
            made_from = tuple(sorted(one.traced[source] for source in inputs if source in one.traced))
            described = self._catalogue.describe(call, owner, order, output, made_from, self._script)
        return Told(
            module, call, output.shape, output.dtype, differentiable, described, order, again, outside
        )


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


def _made_from(node: Any, known: Mapping[int, int], walked: dict[int, frozenset[int]]) -> tuple[int, ...]:
    """Orders of the nearest recorded outputs that ``node`` was computed from.

    Args:
        node: Of the autograd graph.
        known: Number of a node → order of the recorded output that it made.
        walked: Number of a node between recorded ones → the nearest recorded outputs, of long walks.
    """
    if node is None or not known:
        return ()
    found: set[int] = set()
    seen: set[Any] = set()
    waiting = [node]
    while waiting:
        if len(seen) > _LONG_WALK:
            return tuple(sorted(_walked(node, known, walked)))
        for parent, _ in waiting.pop().next_functions:
            if parent is None or parent in seen:
                continue
            number = parent._sequence_nr()
            order = known.get(number)
            if order is not None:
                found.add(order)
            elif number != PARAMETER_NODE:
                seen.add(parent)
                waiting.append(parent)
    return tuple(sorted(found))


def _walked(node: Any, known: Mapping[int, int], walked: dict[int, frozenset[int]]) -> frozenset[int]:
    """The same where the way back is long, as along the cell state of an LSTM in a loop: each node once."""
    path = [node]
    nearest: frozenset[int] = frozenset()
    while path:
        found, missing = set[int](), []
        for parent, _ in path[-1].next_functions:
            number = PARAMETER_NODE if parent is None else parent._sequence_nr()
            if number in known:
                found.add(known[number])
            elif number in walked:
                found |= walked[number]
            elif number != PARAMETER_NODE:
                missing.append(parent)
        if missing:
            path += missing
            continue
        nearest = frozenset(found)
        number = path.pop()._sequence_nr()
        if path:
            walked[number] = nearest
    return nearest
