"""Sentinels: at the door of every module, whether what passes is finite, forwards and backwards.

Forwards, each tensor that enters or leaves a module call is looked at once, in
order. The first bad one names the module: if it *left* a call, the ops inside made
it; if it *entered* one, the code of the caller did, between its calls (a residual
sum, a functional activation).

Backwards, a hook on each such tensor looks at the gradient that came together
there, and a hook on the graph nodes at a call's lower end at what that call alone
sent. The first bad gradient was made by a call that sent a bad one; if no call did,
by the caller's own code between them, and if there is no caller, by the loss.
Gradients of parameters are looked at when the backward pass is over, before a
clipping spreads what is bad in one over all: where only they are bad, it is their
owner.

A healthy step, which nearly every one is, should cost little. What the figures of the
step have read is not read again (:mod:`evenflow.watch.readings`), nor what went through a
door before, nor the input of a layer that keeps nothing to itself (:data:`_TELLING`) and
returned finite numbers. What a call sent is kept, and looked at only if the gradient it
became part of turns out bad; of what is known to be fine, nothing is written down.
PyTorch's own layers are visited once, when they return.

Infinities can be meant: an attention mask is −∞ on purpose. What was bad in the
same place of a healthy step is not held against a module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from evenflow.trace.structure import differentiable, tensors_in
from evenflow.watch.autograd import PARAMETER_NODE, in_backward, next_number
from evenflow.watch.finite import Flag, is_bad
from evenflow.watch.norms import norms
from evenflow.watch.ranks.placement import rank_and_size
from evenflow.watch.readings import Readings
from evenflow.watch.recorder.culprit import Culprit, Direction, Witness
from evenflow.watch.recorder.doors import Call, Door, Place, Sender, Value, blame_backward, blame_forward
from evenflow.watch.recorder.eager import eager_only

_MOST_PASSES = 64
"""Passes that are kept at most; an evaluation with gradients on would pile up without end."""
_MOST_NODES = 16
"""Graph nodes of one call that are searched for its lower end. PyTorch's layers have up to four; a module
that has more (an LSTM unrolled in Python) is judged by the gradients at its doors alone."""
_OUTPUT_BITS = 32
_NOWHERE: tuple[type | None, int] = (None, 0)
_TELLING = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.GroupNorm, nn.Identity, nn.Flatten,
)  # fmt: skip
"""Layers of which every entry that they read shows in the output if it is NaN or infinite: sums of products,
in which ∞·0 is NaN, or entries as they are."""


@final
class Sentinels:
    """Watches the doors of all modules of some models.

    Args:
        models: Prefix → model.
        timed: Wraps every hook: measures its time and catches its failures.
        readings: Says of tensors that were read already whether they were finite.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        timed: Callable[[Callable[..., None]], Callable[..., None]],
        readings: Readings,
    ) -> None:
        self._models = models
        self._parameters = {
            ".".join(filter(None, (prefix, name))): parameter
            for prefix, model in models.items()
            for name, parameter in model.named_parameters()
        }
        self._readings = readings
        self._timed = timed
        self._arrived = timed(self._take_arrival)
        self._handles: list[RemovableHandle] = []
        self.usual: set[Place] = set()
        """Places that were not finite in healthy steps."""
        self._stack: list[Call] = []
        self._counts: dict[str, int] = {}
        self._ran: set[str] = set()
        self._doors: list[Door] = []
        self._values: dict[int, Value] = {}
        self._arrivals: list[tuple[Value, Flag]] = []
        self._lower_ends: dict[str, tuple[type, int]] = {}
        self._gradients: list[tuple[int, list[str], Tensor]] = []
        self._asked = False
        self._passes = 0
        self._node_number = 0
        self._active = False

    @property
    def attached(self) -> bool:
        """Whether sentinels stand at the doors."""
        return bool(self._handles)

    @property
    def complete(self) -> bool:
        """Whether this step was seen from its first pass on."""
        return self._passes > 0

    def attach(self) -> None:
        """Post them. Compiled code is made without them: a module in it is judged by the doors around it."""
        leave = self._timed(self._leave)
        for prefix, model in self._models.items():
            for path, module in model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                name = ".".join(filter(None, (prefix, path)))
                leaf = next(module.children(), None) is None
                if leaf and path and _leaves_inputs(module):
                    visit = self._timed(self._visitor(name, telling=type(module) in _TELLING))
                    self._handles.append(module.register_forward_hook(eager_only(visit), with_kwargs=True))
                    continue
                enter = self._timed(self._enterer(name, leaf))
                self._handles += [
                    module.register_forward_pre_hook(eager_only(enter), with_kwargs=True),
                    module.register_forward_hook(eager_only(leave), always_call=True),
                ]

    def detach(self) -> None:
        """Withdraw them and forget what they saw."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def close(self) -> None:
        """Let the models go."""
        self.detach()
        self._models, self._parameters = {}, {}

    def clear(self) -> None:
        """A new step begins."""
        self._stack.clear()
        self._counts.clear()
        self._doors.clear()
        for value in self._values.values():  # which a graph may keep alive
            value.sent = ()
        self._values.clear()
        self._arrivals.clear()
        self._gradients.clear()
        self._asked = False
        self._passes = 0
        self._active = False

    def healthy(self) -> None:
        """The step went well: what was infinite in it was meant to be."""
        self.usual.update(door.place for door in self._doors if door.flag is True)

    # --- on the way forward ---------------------------------------------------

    def _enterer(self, path: str, leaf: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            again = in_backward()
            call = self._opened(path, leaf, next_number(), again)
            if self._active:
                for tensor in _floating(args, kwargs):
                    self._write_down(call, self._look(call, tensor, entered=True, read=not again), True)
            self._stack.append(call)
            self._node_number = call.began

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._stack:
            return
        call = self._stack.pop()
        if self._active:
            tensors = _floating(output)
            again = in_backward()
            for tensor in tensors:
                self._write_down(call, self._look(call, tensor, entered=False, read=not again), False)
            if call.leaf and call.inputs:
                self._watch_lower_end(call, tensors)
        self._node_number = next_number()

    def _visitor(self, path: str, *, telling: bool) -> Callable[..., None]:
        """In place of both, for a layer that leaves its inputs as they are."""

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            again = in_backward()
            call = self._opened(path, True, self._node_number if self._stack else 0, again)
            if self._active and (again or kwargs or not self._passed_by(call, args, output, telling)):
                entered, left = _floating(args, kwargs), _floating(output)
                of_left = [self._look(call, tensor, entered=False, read=not again) for tensor in left]
                fine = telling and bool(left) and all(flag is False for flag in of_left)
                for tensor in entered:
                    flag = self._look(call, tensor, entered=True, read=not again and not fine)
                    self._write_down(call, flag, True)
                for flag in of_left:
                    self._write_down(call, flag, False)
                if call.inputs:
                    self._watch_lower_end(call, left)
            self._node_number = next_number()

        return hook

    def _passed_by(self, call: Call, args: tuple[Any, ...], left: Any, telling: bool) -> bool:
        """The usual visit, with little work and few objects: those that live long wake the garbage collector.

        A layer was given one tensor, which went through a door before, and returned one. Its only output was
        made by a node right above its only input, as before. Otherwise nothing is done: False.
        """
        if len(args) != 1 or type(args[0]) is not Tensor or type(left) is not Tensor:
            return False
        (entered,) = args
        below, above = entered.grad_fn, left.grad_fn
        kind, place = self._lower_ends.get(call.path, _NOWHERE)
        if below is None or above is None or type(above) is not kind:
            return False
        number, made = entered.output_nr, _key(above, left.output_nr)
        value, children = self._values.get(_key(below, number)), above.next_functions
        if (
            value is None
            or made in self._values
            or len(children) <= place
            or children[place] != (below, number)
        ):
            return False
        flag = self._readings.bad(left)
        if not (telling and flag is False):
            if value.version != entered._version:
                return False
            self._write_down(call, value.flag, True)
        self._write_down(call, flag, False)
        value.taken_by += (call,)
        self._listen(call, above, place, value)
        self._values[made] = new = Value(self, returned_by=(call,), flag=flag, version=left._version)
        self._readings.on_gradient(left, new)
        return True

    def _opened(self, path: str, leaf: bool, began: int, again: bool) -> Call:
        """A module is called; ``again`` by a checkpoint, inside the backward pass."""
        caller = self._stack[-1] if self._stack else None
        if caller is None and not again:
            self._active = torch.is_grad_enabled() and self._passes < _MOST_PASSES
            if self._active:
                self._passes += 1
                self._counts.clear()
        number = self._counts.get(path, 0)
        self._counts[path] = number + 1
        self._ran.add(path)
        return Call(path, number, caller, self._passes - 1, began, leaf)

    def _look(self, call: Call, tensor: Tensor, *, entered: bool, read: bool) -> Flag:
        """A tensor goes through a door; whether it is not finite, if it is to be ``read``."""
        node = tensor.grad_fn
        if node is None:
            return self._readings.bad(tensor) if read else False
        key = _key(node, tensor.output_nr)
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = Value(self)
            self._readings.on_gradient(tensor, value)
        if entered:
            value.taken_by += (call,)
            if key not in call.inputs:
                call.inputs += (key,)
        else:
            value.returned_by += (call,)
        if not read:
            return False
        if value.version != tensor._version:
            value.flag, value.version = self._readings.bad(tensor), tensor._version
        return value.flag

    def _write_down(self, call: Call, flag: Flag, entered: bool) -> None:
        if flag is not False:
            self._doors.append(Door(call, entered, flag))

    # --- on the way back ------------------------------------------------------

    def arrives(self, value: Value, gradient: Tensor) -> None:
        """A gradient; not timed where the figures know that all is well, for that would take longer."""
        if self._asked and self._readings.finite(gradient):
            value.sent = ()
        else:
            self._arrived(value, gradient)

    def _take_arrival(self, value: Value, gradient: Tensor) -> None:
        if self._active or self._values:
            flag = self._readings.bad(gradient)
            if flag is False:  # so is all that was sent
                value.sent = ()
            else:
                self._arrivals.append((value, flag))
                value.judge()
            if not self._asked:
                self._asked = True
                self._ask()

    def _ask(self) -> None:
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(self._timed(self._backward_ended))

    def _backward_ended(self) -> None:
        # Now, not later: what ranks add up would bring the bad numbers of others.
        asked, self._asked = self._asked, False
        if asked and rank_and_size()[1] == 1:
            self._ask()  # behind the figures, which then have read the gradients
            return
        found = {
            name: gradient
            for name, parameter in self._parameters.items()
            if (gradient := parameter.grad) is not None
            and not self._readings.finite_gradient(gradient)
            and gradient.layout is torch.strided
        }
        if found:
            self._gradients.append((self._passes - 1, list(found), norms(list(found.values()))))

    def _watch_lower_end(self, call: Call, outputs: Iterable[Tensor]) -> None:
        """Look at the gradients that leave the call's own part of the graph, besides those of its weights."""
        pending = [output.grad_fn for output in outputs if output.grad_fn is not None]
        pending = [node for node in pending if call.began <= node._sequence_nr() < PARAMETER_NODE]
        seen: list[Node] = []
        ends: list[tuple[Node, list[int]]] = []
        while pending:
            node = pending.pop()
            if node in seen:
                continue
            seen.append(node)
            if len(seen) > _MOST_NODES:
                return
            below: list[tuple[int, Value]] = []
            for place, (child, output) in enumerate(node.next_functions):
                if child is None:
                    continue
                key = _key(child, output)
                if key in call.inputs:
                    below.append((place, self._values[key]))
                elif call.began <= child._sequence_nr() < PARAMETER_NODE:
                    pending.append(child)
            for place, value in below:
                self._listen(call, node, place, value)
            if below:
                ends.append((node, [place for place, _ in below]))
        if len(ends) == len(call.inputs) == 1 and ends[0][0] is seen[0] and len(ends[0][1]) == 1:
            self._lower_ends[call.path] = type(seen[0]), ends[0][1][0]

    def _listen(self, call: Call, node: Node, place: int, value: Value) -> None:
        call.sent = False
        node.register_hook(Sender(call, value, place))

    # --- the verdict ----------------------------------------------------------

    def culprit(self) -> Culprit | None:
        """Who made the first bad number of this step; None if all that was seen is fine."""
        for value in self._values.values():
            value.judge()
        for door in self._doors:
            if door.place not in self.usual and is_bad(door.flag):
                return blame_forward(door)
        for value, flag in self._arrivals:
            if is_bad(flag):
                return blame_backward(value)
        for number, names, sizes in self._gradients:
            for name, fine in zip(names, sizes.isfinite().tolist(), strict=True):
                if not fine:
                    return Culprit(Direction.BACKWARD, self._user_of(name), number, Witness.IN_SITU)
        return None

    def _user_of(self, parameter: str) -> str:
        """The innermost module around a parameter that ran: an attention may use its projection's weights."""
        path = parameter.rpartition(".")[0]
        while path and path not in self._ran:
            path = path.rpartition(".")[0]
        return path


def _key(node: Node, output: int) -> int:
    """One number for an output of a graph node."""
    return node._sequence_nr() << _OUTPUT_BITS | output


def _floating(*values: Any) -> list[Tensor]:
    """The tensors among some values that can have gradients, or their like."""
    found: list[Tensor] = []
    for value in values:
        if type(value) is Tensor:
            found.append(value)
        elif type(value) is tuple and len(value) == 1 and type(value[0]) is Tensor:
            found.append(value[0])
        elif type(value) is not dict or value:
            found += tensors_in(value)
    return [tensor for tensor in found if differentiable(tensor) and not tensor.is_meta]


def _leaves_inputs(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's, which write into their inputs only when told so."""
    ours = type(module).__module__.startswith("torch.nn.modules.")
    return ours and not getattr(module, "inplace", False)
