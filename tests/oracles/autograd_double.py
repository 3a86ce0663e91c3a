"""Statistics of a training step in float64, by nothing but autograd and NumPy.

A float64 copy of the model is run with ``retain_grad`` on every module's output;
statistics are taken with NumPy from the retained tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Table = dict[tuple[str, str], npt.NDArray[np.float64]]


def double_step(model: nn.Module, inputs: Tensor, loss: Callable[[Any], Tensor]) -> Table:
    """All tensors of one step: (role, path) → entries, flat. Each module must run once."""
    model = copy.deepcopy(model).double()
    model.zero_grad()
    outputs: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                output.retain_grad()
                outputs[path] = output

        return hook

    for path, module in model.named_modules():
        module.register_forward_hook(keep(path))
    loss(model(inputs.double() if inputs.is_floating_point() else inputs)).backward()
    table: Table = {}
    for path, output in outputs.items():
        table["activation", path] = _entries(output)
        assert output.grad is not None
        table["activation_gradient", path] = _entries(output.grad)
    for name, parameter in model.named_parameters():
        table["parameter", name] = _entries(parameter)
        if parameter.grad is not None:
            table["parameter_gradient", name] = _entries(parameter.grad)
    return table


def _entries(tensor: Tensor) -> npt.NDArray[np.float64]:
    return (
        tensor.detach().to_dense().double().numpy().ravel()
        if tensor.is_sparse
        else tensor.detach().double().numpy().ravel()
    )


def rms(entries: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(entries))))


def exponent_counts(entries: npt.NDArray[np.float64]) -> dict[int, int]:
    """floor(log2 |x|) → count, of the finite entries other than zero."""
    finite = np.abs(entries[np.isfinite(entries) & (entries != 0)])
    values, counts = np.unique(np.frexp(finite)[1] - 1, return_counts=True)
    return {int(v): int(c) for v, c in zip(values, counts, strict=True)}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
