"""predict: what would flow, from the model alone."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from evenflow.errors import LossError, ModelError
from evenflow.flow import Flow, ModuleCall, Role, Stats
from evenflow.predict import fields
from evenflow.predict.fields import Leaf
from evenflow.predict.inputs import Described
from evenflow.predict.interpreter import Interpreter
from evenflow.predict.model import build_on_meta, on_meta
from evenflow.predict.numbers import KeptNumbers
from evenflow.predict.rules.attention import fused_attention
from evenflow.predict.rules.recurrent import recurrence_of_the_cpu
from evenflow.predict.rules.registry import NoRuleError
from evenflow.predict.spread import PredictedStats
from evenflow.predict.table import constant
from evenflow.predict.timesteps import RECURRENT, TimeSteps
from evenflow.predict.trust import Doubt, doubts
from evenflow.trace.calls import CallStack
from evenflow.trace.cotangent import Objective, objective
from evenflow.trace.graph import Graph
from evenflow.trace.preserve import gradients_aside, preserved, uncollected
from evenflow.trace.recorder import Recorder
from evenflow.trace.rows import op_rows, parameter_rows
from evenflow.trace.structure import tensors_in
from evenflow.trace.troubles import model_trouble


def predict(
    build_or_model: nn.Module | Callable[[], nn.Module],
    inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    seed: int = 0,
) -> Flow:
    """Predict activations and gradients at every op and parameter, without running the model.

    Args:
        build_or_model: A function that builds the model (its weights are never
            allocated), or a model, predicted from the moments of its weights.
        inputs: What the model is called with: a tensor, a tuple (positional
            arguments) or a mapping (named arguments). Tensors may be real or
            :class:`~evenflow.predict.inputs.Described`.
        loss: From the model's output to a scalar; targets are closed over.
            Without one the model's own ``output.loss`` is used if there is
            such, else a random cotangent of unit norm.
        seed: Draws that random cotangent, and nothing else.

    Returns:
        A predicted Flow with the sites that :func:`evenflow.measure` would
        give. Means are over draws of the weights. ``flow.notes`` names every op
        that has no rule; its output and all that depends on it has no statistics.

    Raises:
        ModelError: The model could not be built or followed.
        LossError: The loss raised, is no scalar, or has no gradient.
    """
    with _deep_recursion(), uncollected():
        return _checked(build_or_model, inputs, loss, seed)


def _checked(build_or_model: Any, inputs: Any, loss: Any, seed: int) -> Flow:
    interpreter = Interpreter()
    if isinstance(build_or_model, nn.Module):
        model = build_or_model
        with preserved(model, []), on_meta(model, interpreter):
            return _predict(model, inputs, loss, seed, interpreter)
    model = build_on_meta(build_or_model, interpreter)
    with on_meta(model, interpreter):  # a builder may make some with entries all the same: torch.Tensor(8)
        return _predict(model, inputs, loss, seed, interpreter)


@contextlib.contextmanager
def _deep_recursion() -> Iterator[None]:
    """Covariances of recurrent states are found by recursion over time."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 50_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _predict(model: nn.Module, inputs: Any, loss: Any, seed: int, interpreter: Interpreter) -> Flow:
    inputs_given = inputs
    inputs = tree_map(lambda value: _abstract(value, interpreter), inputs)
    args, kwargs = (
        ((), dict(inputs))
        if isinstance(inputs, Mapping)
        else (inputs if type(inputs) is tuple else (inputs,), {})
    )
    calls = CallStack()
    interpreter.model_runs()
    recurrent = any(isinstance(module, RECURRENT) for module in model.modules())
    recorder = Recorder(
        model,
        tensors_in(inputs),
        calls,
        before_write=lambda tensor: None,
        read=interpreter.stats,
        spreads=interpreter.spreads,
        run=None if recurrent else interpreter.run,  # one mode, not two, sees each op
    )
    graph = Graph(recorder.tape, calls, interpreter.stats)
    steps = TimeSteps(interpreter.stats)
    calls.attach(model, _Observer(recorder, steps, graph))
    try:
        with (
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
            fused_attention(),
            recurrence_of_the_cpu(),
        ):
            with contextlib.ExitStack() as modes:
                for mode in (KeptNumbers(), *((interpreter, steps) if recurrent else ()), recorder):
                    modes.enter_context(mode)
                with _followed("model"):
                    try:
                        output = model(*args, **kwargs)
                    except NoRuleError:
                        raise
                    except Exception as error:
                        raise model_trouble(model, error, inputs) from error
                with _followed("loss"):
                    goal = objective(output, loss, seed=seed)
            graph.build(goal.roots)
            with gradients_aside([*graph.leaves.values(), *model.parameters()]):
                with KeptNumbers(), interpreter, _followed("backward pass"):
                    torch.autograd.backward(goal.roots, _seeds(goal, interpreter))
                gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
                rows = [
                    *op_rows(recorder.tape, graph, _told),
                    *parameter_rows(
                        model, recorder.tape, graph, gradients, interpreter.gradient_stats, _told
                    ),
                    *steps.rows(lambda call: _order(recorder, call), _told),
                ]
    finally:
        calls.remove()
        steps.remove()
        graph.remove()
        fields.forget()
    unknown = [
        f"{what} ({count}×): unknown, and all that depends on it"
        for what, count in interpreter.unknown.items()
    ]
    remarks = [f"{what} ({count}×)" for what, count in interpreter.remarks.items()]
    trust = (*doubts(model, inputs_given, rows), *(Doubt(why, True) for why in interpreter.abstentions))
    return Flow(
        rows,
        "predicted",
        _facts(model, goal) | {"abstains": [doubt.text for doubt in trust if doubt.abstains]},
        dict.fromkeys([*unknown, *remarks, *(doubt.text for doubt in trust), *graph.notes]),
    )


@contextlib.contextmanager
def _followed(part: str) -> Iterator[None]:
    """Tell of what cannot be followed, in words."""
    try:
        yield
    except (NoRuleError, LossError) as error:
        why = error.__cause__ if isinstance(error, LossError) else error
        if not isinstance(why, NoRuleError):
            raise
        raise ModelError(
            f"The {part} cannot be predicted: {why}. Measure one batch instead (evenflow.measure), "
            "or write that op in terms of others."
        ) from why


def _order(recorder: Recorder, call: ModuleCall) -> int:
    """Position of the first op of a module call."""
    records = recorder.tape.records
    return next((record.order for record in records if record.name.module == call), len(records))


def _seeds(goal: Objective, interpreter: Interpreter) -> list[Tensor]:
    """Where the gradient starts, marked as such."""
    seeds = []
    for root, cotangent in zip(goal.roots, goal.cotangents, strict=True):
        seed = torch.empty(root.shape, dtype=root.dtype, device="meta")
        field = None if cotangent is None else interpreter.field_of(cotangent)
        table = constant(root.shape, 1.0) if field is None else field.table
        interpreter.set_field(seed, Leaf(table, cotangent=True))
        seeds.append(seed)
    return seeds


def _abstract(value: Any, interpreter: Interpreter) -> Any:
    """An input without entries, known to the interpreter."""
    if isinstance(value, Described):
        twin = torch.empty(value.shape, dtype=value.dtype, device="meta")
        interpreter.set_field(twin, value.field())
        return twin
    if isinstance(value, Tensor) and not value.is_meta:
        with interpreter:
            return value.detach().to("meta").requires_grad_(value.requires_grad)
    return value


def _told(stats: Stats | None, role: Role) -> tuple[Stats | None, float | None]:
    """Unknown statistics are None, not NaN; known ones have an interval."""
    if stats is None or math.isnan(stats.mean_square):
        return None, None
    if not isinstance(stats, PredictedStats):
        return stats, None
    sure = role is Role.PARAMETER or stats.mean_square == 0.0
    return stats.plain, None if sure else stats.half_width


@final
class _Observer:
    """Tells the recorder of module calls."""

    def __init__(self, recorder: Recorder, steps: TimeSteps, graph: Graph) -> None:
        self._recorder, self._steps, self._graph = recorder, steps, graph

    def entered(
        self, module: nn.Module, call: ModuleCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        if not self._graph.built:
            self._recorder.entered(module, call, args, kwargs)
            self._steps.entered(module, call)

    def left(self, module: nn.Module, call: ModuleCall, output: Any) -> None:
        if not self._graph.built:
            self._recorder.left(module, call, output)
            self._steps.left(module)


def _facts(model: nn.Module, goal: Objective) -> dict[str, Any]:
    return {
        "model": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": model.training,
        "loss": None if goal.value is None or math.isnan(goal.value) else goal.value,
        "loss_source": goal.source,
        "torch": torch.__version__,
    }
