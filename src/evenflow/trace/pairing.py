"""Losses that take a target: ``F.cross_entropy`` needs two arguments, so the batch is a pair.

A loss of one argument is called with the model's output. One of two is called
with the output and the second half of the batch; the model gets the first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from evenflow.errors import LossError
from evenflow.trace.structure import describe, tensors_in


@dataclass(slots=True)
class PairLoss:
    """A loss with its targets, which follow the output to its device."""

    loss: Callable[[Any, Any], Any]
    targets: Any

    def __call__(self, output: Any) -> Any:
        """The loss of an output."""
        device = next((tensor.device for tensor in tensors_in(output)), None)
        return self.loss(output, self.targets if device is None else moved(self.targets, device))


def paired(inputs: Any, loss: Callable[..., Any] | None) -> tuple[Any, Callable[[Any], Any] | None]:
    """What the model is called with, and the loss as a function of its output.

    Args:
        inputs: The batch; a pair (inputs, target) if the loss needs a target.
        loss: Of the output, or of output and target.

    Raises:
        LossError: The loss needs two arguments, and the batch is no pair.
    """
    if loss is None or len(needed_arguments(loss)) != 2:
        return inputs, loss
    if not isinstance(inputs, (tuple, list)) or len(inputs) != 2:
        raise LossError(
            "The loss needs two arguments, (output, target), so the batch must be a pair (inputs, target); "
            f"it is {describe(inputs)}. Or close over the target: lambda output: loss(output, target)."
        )
    batch, targets = inputs
    return batch, PairLoss(loss, targets)


def needed_arguments(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments without a default; none where Python cannot tell."""
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.default is one.empty and one.kind not in variable]


def moved(value: Any, device: Any) -> Any:
    """Tensors inside tuples, lists and dicts, on ``device``; all else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) is dict:
        return {key: moved(child, device) for key, child in value.items()}
    if type(value) in (tuple, list):
        return type(value)(moved(child, device) for child in value)
    if hasattr(value, "to"):  # packed sequences, transformers' BatchEncoding
        return value.to(device)
    return value
