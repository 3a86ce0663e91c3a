"""The step once more, op by op.

A logged pass is run again from its inputs and its random state, with every op
recorded, and back from the gradients that had come to its outputs. Weights are
those of the step, for the optimizer has not moved yet. If the trouble comes again,
the op that made it is known with its module and the user's line; if it does not,
it was made by something that is not in the pass: the loss, another process, a
race, a failing chip.

Forwards the way is followed from a bad output to the op that made a bad number
from good ones. Backwards the first graph node that received finite gradients and
sent one that is not is the culprit.

The model is left bitwise as it was (:mod:`evenflow.trace.preserve`), and so are
gradients, random state and hooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from evenflow.flow import LOSS_PATH, Flow, ModuleCall
from evenflow.trace.calls import CallStack
from evenflow.trace.graph import Graph
from evenflow.trace.preserve import gradients_aside, preserved
from evenflow.trace.recorder import OpRecord, Recorder
from evenflow.trace.rows import op_rows, parameter_rows
from evenflow.trace.structure import differentiable, main_tensor, tensors_in
from evenflow.watch.finite import bad, is_bad
from evenflow.watch.readings import Readings
from evenflow.watch.recorder.culprit import Culprit, Direction, Witness
from evenflow.watch.recorder.doors import Place
from evenflow.watch.recorder.passes import LoggedPass
from evenflow.watch.recorder.sentinels import Sentinels


@dataclass(slots=True)
class Replayed:
    """What a pass showed when it was run again.

    Attributes:
        flow: Every op and parameter; paths start at the watched model.
        culprit: Who made the first bad number; None if all numbers were finite.
    """

    flow: Flow
    culprit: Culprit | None


def cannot_replay(model: nn.Module) -> str | None:
    """Why a pass of this model cannot be run again on this process alone; None if it can."""
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == "DTensor" or hasattr(parameter, "device_mesh"):
            return f"the parameter {name} is spread over processes"
    for path, module in model.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            return f"{path} normalises over processes"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{path or 'the model'} is compiled code"
    return None


def replay(model: nn.Module, one: LoggedPass, usual: set[Place]) -> Replayed:
    """Run a logged pass again, forward and backward, and leave no trace.

    Args:
        model: The watched model that the pass's module is, or is a part of.
        one: The pass.
        usual: Places that are not finite in healthy steps either.
    """
    tensors = list(tensors_in((one.args, one.kwargs)))
    parameters = dict(model.named_parameters())
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        preserved(model, tensors) as preserver,
    ):
        _set_random_state(one)
        calls = CallStack()
        recorder = Recorder(model, tensors, calls, preserver.before_write)
        graph = Graph(recorder.tape, calls)
        calls.attach(model, _Observer(recorder, graph))
        backward = _Backward(recorder)
        sentinels = Sentinels({one.prefix: model}, lambda hook: hook, Readings())
        sentinels.usual = usual
        sentinels.attach()
        try:
            with recorder, _autocast(one):
                output = _inner(one.module)(*one.args, **one.kwargs)
            outputs = list(tensors_in(output))
            roots = _roots(outputs, one.gradients)
            graph.build([tensor for tensor in outputs if tensor.requires_grad])
            with gradients_aside([*graph.leaves.values(), *parameters.values()]):
                if roots:
                    backward.watch([root for root, _ in roots])
                    torch.autograd.backward([root for root, _ in roots], [gradient for _, gradient in roots])
                gradients = {name: parameter.grad for name, parameter in parameters.items()}
                rows = [
                    *op_rows(recorder.tape, graph),
                    *parameter_rows(model, recorder.tape, graph, gradients),
                ]
            op = _culprit(model, one, recorder, graph, outputs, backward, tensors)
            culprit = _agreed(sentinels.culprit(), op, one)
        finally:
            sentinels.detach()
            calls.remove()
            graph.remove()
            backward.remove()
    return Replayed(Flow(rows, "measured", {"model": type(model).__name__}, graph.notes), culprit)


@final
class _Observer:
    """Tells the recorder of module calls, and the graph of those that checkpoints repeat."""

    def __init__(self, recorder: Recorder, graph: Graph) -> None:
        self._recorder, self._graph = recorder, graph

    def entered(
        self, module: nn.Module, call: ModuleCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        if not self._graph.built:
            self._recorder.entered(module, call, args, kwargs)

    def left(self, module: nn.Module, call: ModuleCall, output: Any) -> None:
        if not self._graph.built:
            self._recorder.left(module, call, output)
        elif (tensor := main_tensor(output)) is not None:
            self._graph.recomputed(tensor)


@final
class _Backward:
    """Finds the first node that turns finite gradients into others."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._handles: list[Any] = []
        self.maker: int | None = None
        """Number of the node; None if there was none."""
        self.taker: int | None = None
        """Number of the first node that received a bad gradient."""

    def watch(self, roots: Iterable[Tensor]) -> None:
        """Put hooks on all nodes above ``roots``."""
        pending = [root.grad_fn for root in roots if root.grad_fn is not None]
        seen: set[Node] = set()
        while pending:
            node = pending.pop()
            if node in seen or node.name().endswith("AccumulateGrad"):
                continue
            seen.add(node)
            self._handles.append(node.register_hook(self._looker(node._sequence_nr())))
            pending += [child for child, _ in node.next_functions if child is not None]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _looker(self, number: int) -> Any:
        def hook(sent: tuple[Tensor | None, ...], received: tuple[Tensor | None, ...]) -> None:
            if self.maker is None and self.taker is None:
                if _any_bad(received):
                    self.taker = number
                elif _any_bad(sent):
                    self.maker = number

        return hook

    def record(self) -> OpRecord | None:
        """The op of the node that is to blame: its own record, or that of the op just before it."""
        number = self.maker if self.maker is not None else self.taker
        if number is None:
            return None
        by_node = self._recorder.tape.by_node
        known = [other for other in by_node if other <= number]
        return by_node[max(known)] if known else next(iter(by_node.values()), None)


def _any_bad(tensors: Sequence[Tensor | None]) -> bool:
    return any(t is not None and differentiable(t) and is_bad(bad(t)) for t in tensors)


def _culprit(
    model: nn.Module,
    one: LoggedPass,
    recorder: Recorder,
    graph: Graph,
    outputs: Sequence[Tensor],
    backward: _Backward,
    inputs: Sequence[Tensor],
) -> Culprit | None:
    entry = next((path for path, module in model.named_modules() if module is _inner(one.module)), "")

    def culprit(direction: Direction, record: OpRecord | None) -> Culprit:
        path = entry if record is None else record.name.module.path
        if path == LOSS_PATH:  # ops before the first hook of the module that was called
            path = entry
        return Culprit(
            direction,
            ".".join(filter(None, (one.prefix, path))),
            one.number,
            Witness.REPLAY,
            record.name.op if record is not None else None,
            record.source if record is not None else None,
        )

    if _any_bad(inputs):
        return culprit(Direction.BATCH, None)
    weights = [name for name, p in model.named_parameters() if differentiable(p) and is_bad(bad(p))]
    if weights:
        owner = ".".join(filter(None, (one.prefix, weights[0].rpartition(".")[0])))
        return Culprit(Direction.WEIGHTS, owner, one.number, Witness.REPLAY)
    if _any_bad([tensor for tensor in outputs if differentiable(tensor)]):
        return culprit(Direction.FORWARD, _origin(recorder, graph, outputs))
    record = backward.record()
    if record is None or _any_bad(list(one.gradients.values())):
        return None
    hidden = next((r for r in (record, *graph.inputs.get(record, ())) if _is_broken(r)), None)
    if hidden is not None:  # bad numbers that do not show in the output, but met the gradient
        return culprit(Direction.FORWARD, _beginning(hidden, graph))
    return culprit(Direction.BACKWARD, record)


def _origin(recorder: Recorder, graph: Graph, outputs: Sequence[Tensor]) -> OpRecord | None:
    """The op at the beginning of the chain of bad numbers that ends in the outputs."""
    at_the_end = [
        graph.record_of(tensor.grad_fn)
        for tensor in outputs
        if tensor.grad_fn is not None and differentiable(tensor) and is_bad(bad(tensor))
    ]
    record = next((found for found in at_the_end if found is not None and _is_broken(found)), None)
    if record is None:
        return next(filter(_is_broken, recorder.tape.records), None)
    return _beginning(record, graph)


def _beginning(record: OpRecord, graph: Graph) -> OpRecord:
    """The first op on the way to ``record`` along which all outputs are bad."""
    while True:
        before = [source for source in graph.inputs.get(record, ()) if _is_broken(source)]
        if not before:
            return record
        record = min(before, key=lambda source: source.order)


def _is_broken(record: OpRecord) -> bool:
    return record.activation is not None and record.activation.nonfinite_count > 0


def _agreed(module: Culprit | None, op: Culprit | None, one: LoggedPass) -> Culprit | None:
    """Sentinels also see what no op made (a copy, a sum of gradients); the op says more where both agree."""
    if module is None or (op is not None and op.module == module.module):
        return op
    if op is not None and op.direction in (Direction.BATCH, Direction.WEIGHTS):
        return op
    if module.direction is Direction.LOSS:
        return None  # told by the gradients that the pass began with
    return replace(module, micro_batch=one.number, witness=Witness.REPLAY)


def _roots(outputs: Sequence[Tensor], gradients: Mapping[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Outputs to go back from, each with its gradient, without those that others were made of.

    The gradient that was seen at such an output holds what came through the others.
    """
    pairs = [
        (outputs[place], gradient)
        for place, gradient in sorted(gradients.items())
        if place < len(outputs) and outputs[place].requires_grad
    ]
    scalar = [(root, gradient) for root, gradient in pairs if root.ndim == 0]
    if scalar:
        return scalar[:1]
    return [
        (root, gradient)
        for root, gradient in pairs
        if not any(root.grad_fn in _above(other) for other, _ in pairs if other is not root)
    ]


def _above(tensor: Tensor) -> set[Node | None]:
    seen: set[Node | None] = set()
    pending = [child for child, _ in tensor.grad_fn.next_functions] if tensor.grad_fn is not None else []
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [child for child, _ in node.next_functions]
    return seen


def _inner(module: nn.Module) -> nn.Module:
    """The module inside a wrapper of data parallelism, which would talk to other processes."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return module.module if isinstance(module, wrappers) else module


def _set_random_state(one: LoggedPass) -> None:
    """As it was when the pass began; ``preserved`` undoes it."""
    host, devices = one.random_state
    torch.set_rng_state(host)
    for index, state in devices.items():
        torch.cuda.set_rng_state(state, index)


def _autocast(one: LoggedPass) -> contextlib.AbstractContextManager[Any]:
    if one.autocast is None:
        return contextlib.nullcontext()
    kind, dtype = one.autocast
    return torch.autocast(kind, dtype, cache_enabled=False)
