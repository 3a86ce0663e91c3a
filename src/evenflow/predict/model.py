"""From what the user has (a builder, or a model with weights) to a model on the meta device.

* A *builder* is called with ``torch.device("meta")`` in force, so that weights are
  never allocated; its initialisers are interpreted as they run.
* A *model with weights* keeps them; each parameter gets a twin without entries
  for the time of the prediction, known by the mean and variance of the weights.

Some initialisers give up on tensors without entries (``trunc_normal_`` draws until
a sample lies in range, ``orthogonal_`` decomposes a matrix). Their results are
supplied while a builder runs.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, final

import torch
from torch import Tensor, nn

from evenflow.errors import ModelError
from evenflow.predict.fields import Leaf
from evenflow.predict.interpreter import Interpreter
from evenflow.predict.numbers import KeptNumbers
from evenflow.predict.table import independent, measured


def build_on_meta(build: Callable[[], nn.Module], interpreter: Interpreter) -> nn.Module:
    """Call a builder without allocating weights; parameters get the fields of their initialisers.

    Raises:
        ModelError: The builder raised, gave no module, or left a parameter without an initial value.
    """
    with interpreter, torch.device("meta"), _Initialisers(interpreter):
        try:
            model = build()
            _initialise(model)
        except Exception as error:
            raise ModelError(
                f"The builder raised {type(error).__name__} while running without weights "
                f"(on the meta device): {error}. "
                "If it loads or computes with weights, pass the finished model instead of the builder."
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"The builder returned {type(model).__name__}; expected a torch.nn.Module.")
    for name, tensor in model.named_parameters():
        if tensor.is_meta and not interpreter.is_written(tensor):
            raise ModelError(
                f"The parameter {name} has no initial value that could be followed: it was created empty, "
                "or filled by an op without a rule. Fill it with torch.nn.init, or pass the finished model "
                "with its weights."
            )
    return model


def _initialise(model: Any) -> None:
    """Let models of transformers, also inside others, fill their weights: on the meta device they do not."""
    if hasattr(model, "initialize_weights"):
        model.initialize_weights()
    elif isinstance(model, nn.Module):
        for child in model.children():
            _initialise(child)


@contextlib.contextmanager
def on_meta(model: nn.Module, interpreter: Interpreter) -> Iterator[None]:
    """Put twins without entries in the place of a model's parameters.

    Raises:
        ModelError: The model has no weights.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta and interpreter.field_of(parameter) is None:
            raise ModelError(
                f"The parameter {name} is on the meta device and its initialisation was not seen. "
                "Pass the function that builds the model, or a model with weights."
            )
    originals = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and not parameter.is_meta
    ]
    twins: dict[int, nn.Parameter] = {}
    for _, _, parameter in originals:
        if id(parameter) not in twins:
            twin = nn.Parameter(
                torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
            )
            twins[id(parameter)] = twin
            interpreter.set_field(twin, measured_weights(parameter.detach()))
    try:
        for module, name, parameter in originals:
            module._parameters[name] = twins[id(parameter)]
        yield
    finally:
        for module, name, parameter in originals:
            module._parameters[name] = parameter


def measured_weights(weights: Tensor) -> Leaf:
    """Weights as independent draws with their own mean and variance.

    A mean within four standard errors of zero counts as zero.
    """
    values = weights.double()
    mean, variance = float(values.mean()), float(values.var(correction=0))
    if variance == 0.0:
        return Leaf(independent(weights.shape, 0.0, mean), torch.full(weights.shape, mean))
    if abs(mean) < 4 * math.sqrt(variance / weights.numel()):
        variance, mean = variance + mean**2, 0.0
    return Leaf(independent(weights.shape, variance, mean))


@final
class _Initialisers(KeptNumbers):
    """Completes the initialisers that do nothing to a tensor without entries.

    They ask ``tensor.is_meta`` and return. Seen from here, that question comes
    from the initialiser's own frame, which holds its arguments. A model may
    have imported the function under any name.
    """

    def __init__(self, interpreter: Interpreter) -> None:
        super().__init__()
        self._interpreter = interpreter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer ``is_meta`` and what draws weights; else as its base."""
        kwargs = kwargs or {}
        if func in _DRAWS and kwargs.keys() <= {"generator"} and not torch.is_grad_enabled():
            return self._interpreter.run(_DRAWS[func], args, kwargs)
        if getattr(func, "__self__", None) is Tensor.is_meta:
            frame = sys._getframe(1)
            write = _GIVES_UP.get(frame.f_code)
            if write is not None and func(*args):
                tensor = frame.f_locals["tensor"]
                self._interpreter.write(tensor, write(**frame.f_locals))
        return super().__torch_function__(func, types, args, kwargs)


def _truncated(tensor: Tensor, mean: float, std: float, a: float, b: float, **_: Any) -> Leaf:
    """N(mean, std²) within [a, b].

    With α, β the limits in standard deviations and Z = Φ(β) − Φ(α):
    mean + std·(φ(α) − φ(β))/Z, variance std²·(1 + (αφ(α) − βφ(β))/Z − ((φ(α) − φ(β))/Z)²).
    """
    low, high = (a - mean) / std, (b - mean) / std

    def density(z: float) -> float:
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
    shift = (density(low) - density(high)) / mass
    variance = std**2 * (1 + (low * density(low) - high * density(high)) / mass - shift**2)
    return Leaf(independent(tensor.shape, variance, mean + std * shift))


def _orthogonal(tensor: Tensor, gain: float, **_: Any) -> Leaf:
    """Gain · Q, Q uniform among matrices with orthonormal rows or columns.

    Its variance is gain²/max(rows, columns).
    """
    rows = tensor.shape[0]
    return Leaf(independent(tensor.shape, gain**2 / max(rows, tensor.numel() // rows)), orthogonal=True)


def _dirac(tensor: Tensor, groups: int, **_: Any) -> Leaf:
    """The identity as a convolution kernel: its actual entries."""
    values = nn.init.dirac_(torch.empty(tensor.shape, device="cpu"), groups)
    return Leaf(measured(values), values)


def _sparse(tensor: Tensor, sparsity: float, std: float, **_: Any) -> Leaf:
    """N(0, std²) with a share of zeros."""
    return Leaf(independent(tensor.shape, std**2 * (1 - sparsity)))


def _code(function: Any) -> CodeType:
    code: CodeType = inspect.unwrap(function).__code__
    return code


_DRAWS = {
    Tensor.uniform_: torch.ops.aten.uniform_.default,
    Tensor.normal_: torch.ops.aten.normal_.default,
}
"""What nearly all weights are drawn by: taken here without PyTorch's way to a mode, if autograd is off."""
_GIVES_UP: dict[CodeType, Callable[..., Leaf]] = {
    _code(nn.init._no_grad_trunc_normal_): _truncated,
    _code(nn.init.orthogonal_): _orthogonal,
    _code(nn.init.dirac_): _dirac,
    _code(nn.init.sparse_): _sparse,
}
