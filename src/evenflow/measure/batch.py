"""measure: one forward and one backward pass, as a Flow."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from evenflow.errors import ModelError
from evenflow.flow import Flow, ModuleCall
from evenflow.measure.timesteps import RecurrentWatch
from evenflow.trace.calls import CallStack
from evenflow.trace.cotangent import Objective, objective
from evenflow.trace.graph import Graph
from evenflow.trace.preserve import gradients_aside, preserved, uncollected
from evenflow.trace.recorder import Recorder
from evenflow.trace.rows import op_rows, parameter_rows
from evenflow.trace.structure import main_tensor, tensors_in
from evenflow.trace.troubles import backward_trouble, model_trouble

Inputs = Any
"""What a model is called with: one value, a tuple of positional ones or a dict of named ones."""


def measure(
    model: nn.Module,
    inputs: Inputs,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    seed: int = 0,
) -> Flow:
    """Run one batch forward and backward, and return what flowed where.

    Every op is seen with its output and the gradient there, attributed to its
    module, call and source line; every parameter with its gradient. Model,
    inputs and random state are left bitwise as they were, also when the model
    raises. The model runs in the mode (train or eval) that it is in.

    Args:
        model: Any module. Wrappers of ``torch.compile`` and data parallelism
            are looked through.
        inputs: What the model is called with: a tensor, a tuple (positional
            arguments) or a mapping (named arguments).
        loss: From the model's output to a scalar; targets are closed over.
            Without one the model's own ``output.loss`` is used if there is
            such, else a random cotangent of unit norm.
        seed: Draws that random cotangent, and nothing else.

    Returns:
        A measured Flow. ``flow.metadata`` says which loss was used and its
        value, ``flow.notes`` what could not be covered.

    Raises:
        ModelError: The model or the backward pass raised, or no output has a gradient.
        LossError: The loss raised, is no scalar, or has no gradient.
    """
    model = _unwrapped(model)
    args, kwargs = _arguments(inputs)

    def run() -> Objective:
        try:
            output = model(*args, **kwargs)
        except Exception as error:
            raise model_trouble(model, error, inputs) from error
        return objective(output, loss, seed=seed)

    return _measure(model, list(tensors_in(inputs)), run)


def measure_loss(model: nn.Module, loss: Callable[[], Tensor], batch: Inputs = ()) -> Flow:
    """Measure a loss that calls the model by itself, as training code does.

    Args:
        model: As for :func:`measure`, or an ``nn.ModuleDict`` of several, whose
            keys become the first part of every path.
        loss: Runs the model, however often, and returns the scalar.
        batch: What it reads; its tensors are left as they were.

    Raises:
        ModelError: The loss, the model in it or the backward pass raised.
        LossError: The loss is no scalar, or has no gradient.
    """

    def run() -> Objective:
        try:
            value = loss()
        except Exception as error:
            raise model_trouble(model, error, batch) from error
        return objective(None, lambda _: value, seed=0)

    return _measure(model, list(tensors_in(batch)), run)


def _measure(model: nn.Module, tensors: list[Tensor], run: Callable[[], Objective]) -> Flow:
    """What flowed while ``run`` ran the model, and back from what it returned."""
    parameters = dict(model.named_parameters())
    _refuse_lazy(parameters)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        uncollected(),
        _uncompiled(),
        preserved(model, tensors) as preserver,
    ):
        calls, watch = CallStack(), RecurrentWatch()
        recorder = Recorder(model, tensors, calls, preserver.before_write)
        graph = Graph(recorder.tape, calls)
        calls.attach(model, _Observers(recorder, watch, graph))
        try:
            with recorder:
                goal = run()
            graph.build(goal.roots)
            leaves = [*graph.leaves.values(), *parameters.values()]
            with gradients_aside(leaves):
                _backward(goal)
                gradients = {name: parameter.grad for name, parameter in parameters.items()}
                order_of = _orders(recorder)
                rows = [
                    *op_rows(recorder.tape, graph),
                    *parameter_rows(model, recorder.tape, graph, gradients),
                    *watch.rows(lambda call: order_of.get(call, len(recorder.tape.records))),
                ]
        finally:
            calls.remove()
            watch.remove()
            graph.remove()
        lost = [
            f"{name} was written to during backward and could not be put back" for name in preserver.lost()
        ]
    notes = dict.fromkeys([*graph.notes, *watch.notes, *lost])
    return Flow(rows, "measured", _facts(model, parameters, goal), notes)


@final
class _Observers:
    """Tells the recorder of module calls in the forward pass, and the graph of those in recomputed parts."""

    def __init__(self, recorder: Recorder, watch: RecurrentWatch, graph: Graph) -> None:
        self._recorder, self._watch, self._graph = recorder, watch, graph

    def entered(
        self, module: nn.Module, call: ModuleCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        if not self._graph.built:
            self._recorder.entered(module, call, args, kwargs)
            self._watch.entered(module, call, args, kwargs)

    def left(self, module: nn.Module, call: ModuleCall, output: Any) -> None:
        if not self._graph.built:
            self._recorder.left(module, call, output)
            self._watch.left(module, call, output)
        elif (tensor := main_tensor(output)) is not None:
            self._graph.recomputed(tensor)


def _backward(goal: Objective) -> None:
    device_type = goal.roots[0].device.type
    with contextlib.ExitStack() as stack:
        if torch.amp.is_autocast_available(device_type):  # backward follows the formats of forward by itself
            stack.enter_context(torch.autocast(device_type, enabled=False))
        try:
            torch.autograd.backward(goal.roots, goal.cotangents)
        except Exception as error:
            raise backward_trouble(error) from error


def _arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if type(inputs) is tuple else (inputs,)), {}


def _unwrapped(model: nn.Module) -> nn.Module:
    """The user's module inside wrappers of compilation and data parallelism."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"The model is of type {type(model).__name__}; expected a torch.nn.Module. "
            "If it is a class or a function that builds the model, call it first."
        )
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Compiled parts of the model run as they are written, op by op."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _refuse_lazy(parameters: Mapping[str, Tensor]) -> None:
    lazy = [name for name, tensor in parameters.items() if isinstance(tensor, nn.UninitializedParameter)]
    if lazy:
        raise ModelError(
            f"The parameter {lazy[0]!r} has no shape yet (a lazy module). "
            "Run the model once on a batch, then measure it: model(batch)."
        )


def _orders(recorder: Recorder) -> dict[ModuleCall, int]:
    """From a module call to the position of its first op."""
    return {record.name.module: record.order for record in reversed(recorder.tape.records)}


def _facts(model: nn.Module, parameters: Mapping[str, Tensor], goal: Objective) -> dict[str, Any]:
    device_type = goal.roots[0].device.type
    autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return {
        "model": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in parameters.values()),
        "training": model.training,
        "loss": goal.value,
        "loss_source": goal.source,
        "device": str(goal.roots[0].device),
        "autocast": str(torch.get_autocast_dtype(device_type)).removeprefix("torch.") if autocast else None,
        "torch": torch.__version__,
    }
