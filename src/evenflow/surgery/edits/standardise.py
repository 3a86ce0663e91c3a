"""Standardise inputs and targets, inside the model: whoever calls it goes on in his own units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from evenflow.surgery.edit import Edit, check_choice
from evenflow.surgery.errors import PatchError
from evenflow.surgery.pieces.ambient import ScaledBackward
from evenflow.surgery.pieces.losses import scaled_loss
from evenflow.surgery.pieces.standardise import restore_outputs, standardise_inputs
from evenflow.surgery.scene import Scene
from evenflow.surgery.script import Ref, Set, Step, call, step

_POWERS = {"mse": 2.0, "mae": 1.0}
"""How a loss in the targets' units scales with them."""


def _check(edit: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    if not mean or len(mean) != len(std):
        raise PatchError(
            f"{edit} has {len(mean)} means and {len(std)} standard deviations. Expected as many of each."
        )
    if not all(math.isfinite(one) for one in mean) or not all(
        math.isfinite(one) and one > 0.0 for one in std
    ):
        raise PatchError(
            f"{edit} needs finite means and standard deviations above 0. Leave constant features at 1."
        )


def _figures(values: Iterable[Tensor], dimension: int | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(means, standard deviations) over all values; constant features have 1."""
    rows = []
    for one in values:
        x = one.detach().double()
        rows.append(x.reshape(-1, 1) if dimension is None else x.movedim(dimension, -1).flatten(0, -2))
    table = torch.cat(rows)
    std = table.std(0, unbiased=False)
    std = torch.where(std > 0, std, torch.ones_like(std))
    return tuple(table.mean(0).tolist()), tuple(std.tolist())


@final
@dataclass(frozen=True)
class StandardiseInput(Edit):
    """The model takes (input − mean)/std.

    Attributes:
        mean: One number, or one per feature.
        std: Likewise.
        dimension: That of the features in the input: −1, or 1 for the channels of images.
        role: Which of several models; None: the only one.
    """

    name: ClassVar[str] = "standardise_input"
    reference: ClassVar[str] = "LeCun et al., Efficient BackProp, 1998, section 4.3"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dimension: int = -1
    role: str | None = None

    def __post_init__(self) -> None:
        _check(self.name, self.mean, self.std)

    @staticmethod
    def of(inputs: Iterable[Tensor] | Tensor, dimension: int | None = None) -> StandardiseInput:
        """With the figures of these inputs: of all entries, or feature by feature along ``dimension``."""
        mean, std = _figures([inputs] if isinstance(inputs, Tensor) else inputs, dimension)
        return StandardiseInput(mean, std, -1 if dimension is None else dimension)

    def describe(self) -> str:
        """See :class:`Edit`."""
        told = (
            f" (mean {self.mean[0]:.3g}, std {self.std[0]:.3g})"
            if len(self.mean) == 1
            else " feature by feature"
        )
        return f"inputs are standardised{told}"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        path, module = _root(scene, self.role, self.name)
        if hasattr(module, "input_mean"):
            raise PatchError(
                "standardise_input does not fit this model: it has an input_mean already. "
                "Expected a model that takes its inputs as they are; undo the other patch first."
            )
        settings = {} if self.dimension == -1 else {"dimension": self.dimension}
        yield step(call(standardise_inputs, scene.ref(path), self.mean, self.std, **settings))


@final
@dataclass(frozen=True)
class StandardiseTarget(Edit):
    """The model learns standardised targets and gives them in their own units.

    Its output is multiplied by std and mean is added; the loss, in the targets' units, is divided by
    std² (mean squared error) or std (mean absolute error). For the weights this is the
    loss between the inner output and (target − mean)/std.

    Attributes:
        mean: Of the targets: one number, or one per feature.
        std: Likewise; several only with ``mae`` or ``mse`` if they are equal.
        loss: ``mse`` or ``mae``: how the program's loss grows with its units.
        role: Which of several models; None: the only one.
    """

    name: ClassVar[str] = "standardise_target"
    reference: ClassVar[str] = "LeCun et al., Efficient BackProp, 1998, section 4.5"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    loss: str = "mse"
    role: str | None = None

    def __post_init__(self) -> None:
        _check(self.name, self.mean, self.std)
        check_choice(self.name, "loss", self.loss, tuple(_POWERS))
        if len(set(self.std)) > 1:
            raise PatchError(
                "standardise_target has a standard deviation per feature, which one factor on the "
                "loss cannot undo. "
                "Expected one std for all features: StandardiseTarget.of(targets)."
            )

    @staticmethod
    def of(targets: Iterable[Tensor] | Tensor, loss: str = "mse") -> StandardiseTarget:
        """With the figures of these targets."""
        mean, std = _figures([targets] if isinstance(targets, Tensor) else targets, None)
        return StandardiseTarget(mean, std, loss)

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"targets are standardised (mean {self.mean[0]:.3g}, std {self.std[0]:.3g})"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        path, module = _root(scene, self.role, self.name)
        if hasattr(module, "target_mean"):
            raise PatchError(
                "standardise_target does not fit this model: it has a target_mean already. "
                "Expected a model that gives its outputs as they are; undo the other patch first."
            )
        yield step(call(restore_outputs, scene.ref(path), self.mean, self.std))

    def loss_steps(self) -> Iterator[Step]:
        """See :class:`Edit`."""
        yield step(Set(Ref("loss"), call(scaled_loss, Ref("loss"), self._factor)))

    def on_calls(self) -> AbstractContextManager[Any]:
        """See :class:`Edit`."""
        return ScaledBackward(self._factor)

    @property
    def _factor(self) -> float:
        return float(self.std[0] ** -_POWERS[self.loss])


def _root(scene: Scene, role: str | None, edit: str) -> tuple[str, Any]:
    """(path, module) of the model, or of the one with the role."""
    if isinstance(scene.model, nn.Module):
        return "", scene.model
    if role not in scene.model:
        raise PatchError(
            f"{edit} has role={role!r}, and the models are {', '.join(scene.model)}. Name one of them."
        )
    return str(role), scene.model[str(role)]
