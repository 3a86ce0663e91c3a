"""The first batch of a script as a small program: enough to make patches for it and to screen them.

The models and optimizers are copies of the script's from before its first step, the
batch is what the model was called with. The loss is the loss function of PyTorch
that the script called, on the same target; where it called none, a fixed random
direction of the output stands for it, which shows the gradient's way through the
net as well, but not the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evenflow.program import Program
from evenflow.surgery.pieces.ambient import LOSSES
from evenflow.trace.structure import tensors_in


@final
@dataclass(frozen=True, slots=True)
class LossCall:
    """A call of a loss function on a model's output."""

    function: Callable[..., Tensor]
    shape: torch.Size
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def fits(self, output: Any) -> bool:
        """Whether the output is what the loss was called with, but for its shape."""
        return isinstance(output, Tensor) and output.numel() == self.shape.numel()

    def __call__(self, output: Tensor) -> Tensor:
        """The same loss of another output."""
        return self.function(output.reshape(self.shape), self.target, *self.args, **self.kwargs)


@final
class SeesLoss(TorchFunctionMode):
    """Remembers the last loss function that was called, until it is told to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.call: LossCall | None = None
        self.looking = True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.looking and getattr(func, "__name__", "") in LOSSES:
            given = list(args)
            output = given.pop(0) if given else kwargs.get("input")
            rest = {key: value for key, value in kwargs.items() if key not in ("input", "target")}
            target = given.pop(0) if given else kwargs.get("target")
            if isinstance(output, Tensor) and isinstance(target, Tensor) and output.requires_grad:
                self.call = LossCall(func, output.shape, kept(target), tuple(given), rest)
        return func(*args, **kwargs)


def kept(value: Any) -> Any:
    """A copy of nested values whose tensors no one writes to any more."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: kept(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(kept(one) for one in value)
    return value


@final
@dataclass(frozen=True)
class FirstCall:
    """What a script does first with its models.

    Attributes:
        model: A copy of the model, or of the models by role.
        optimizer: Copies of its optimizers over the copied parameters; a mapping if there are several models.
        path: Of the module that was called, within the model.
        args: What it was called with.
        kwargs: Likewise.
    """

    model: Any
    optimizer: Any
    path: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def program(self, loss: LossCall | None, steps: int) -> Program:
        """The stand-in.

        Args:
            loss: What the script called on the output.
            steps: How long the script trains, as far as is known.
        """
        simple = len(self.args) == 1 and not self.kwargs and isinstance(self.args[0], Tensor)
        batch = (self.args[0], loss.target) if simple and loss else (self.args, dict(self.kwargs))

        def objective(model: Any, batch: Any) -> Tensor:
            args, kwargs = ((batch[0],), {}) if simple and loss else batch
            called = model
            for name in filter(None, self.path.split(".")):
                called = called[name] if isinstance(called, Mapping) else getattr(called, name)
            output = called(*args, **kwargs)
            if loss is not None and loss.fits(output):
                return loss(output)
            own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            return own if isinstance(own, Tensor) else _along_a_direction(output)

        return Program(
            build=lambda seed: copy.deepcopy(self.model),
            optimizer=self._optimizer_of,
            batches=lambda seed: [batch],
            loss=dict.fromkeys(self.model, objective) if isinstance(self.model, Mapping) else objective,
            steps=steps,
        )

    def _optimizer_of(self, model: Any) -> Any:
        if isinstance(self.model, Mapping):
            return {
                role: self._over(one, model[role], self.model[role]) for role, one in self.optimizer.items()
            }
        return self._over(self.optimizer, model, self.model)

    @staticmethod
    def _over(optimizer: torch.optim.Optimizer, model: nn.Module, original: nn.Module) -> Any:
        """The optimizer over the parameters of that name in another model."""
        theirs = dict(model.named_parameters())
        memo: dict[int, Any] = {
            id(one): theirs[name] for name, one in original.named_parameters() if name in theirs
        }
        known = {id(one) for one in theirs.values()}
        made = copy.deepcopy(optimizer, memo)
        for group in made.param_groups:
            group["params"] = [one for one in group["params"] if id(one) in known]
        return made


def _along_a_direction(output: Any) -> Tensor:
    source = torch.Generator().manual_seed(0)
    parts = [one for one in tensors_in(output) if one.requires_grad]
    count = sum(one.numel() for one in parts)
    return torch.stack(
        [
            (one.float() * torch.randn(one.shape, generator=source).to(one.device)).sum()
            / max(1, count) ** 0.5
            for one in parts
        ]
    ).sum()
