"""Floating types and loss scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from evenflow.surgery.edit import Applicability, Edit, check_choice, check_number
from evenflow.surgery.errors import PatchError
from evenflow.surgery.pieces.ambient import ScaledBackward
from evenflow.surgery.pieces.clipping import Unscale, before_update
from evenflow.surgery.pieces.losses import autocast_loss, scaled_loss
from evenflow.surgery.pieces.precision import compute_in
from evenflow.surgery.scene import Place, Scene, Where, at, outermost
from evenflow.surgery.script import Ref, Set, Step, call, step

_TYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


@final
@dataclass(frozen=True)
class SetDtype(Edit):
    """Parts of the model hold their parameters and compute in another floating type.

    Each casts what it is given and gives back the type that it was given.

    Attributes:
        to: ``float16``, ``bfloat16``, ``float32`` or ``float64``.
        where: Glob over paths; the default is the whole model.
    """

    name: ClassVar[str] = "set_dtype"
    to: str
    where: Where = ""

    def __post_init__(self) -> None:
        check_choice(self.name, "to", self.to, tuple(_TYPES))

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"{f'modules{at(self.where)}' if self.where else 'the model'} computes in {self.to}"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        dtype = _TYPES[self.to]

        def fits(place: Place) -> bool:
            return any(p.is_floating_point() and p.dtype != dtype for p in place.module.parameters())

        wanted = f"modules with parameters of another type than {self.to}"
        places = scene.select(self.where, fits, self.name, wanted)
        for place in outermost(places):
            yield step(call(compute_in, scene.ref(place.path), dtype), source=scene.line(place.path))


@final
@dataclass(frozen=True)
class Autocast(Edit):
    """Compute the loss under autocast: matrix products in a short type, sums in float32.

    Attributes:
        to: ``bfloat16`` or ``float16``; the latter wants a :class:`LossScale`.
        device: As PyTorch spells it.
    """

    name: ClassVar[str] = "autocast"
    reference: ClassVar[str] = "Micikevicius et al., Mixed precision training, ICLR 2018"
    to: str = "bfloat16"
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_choice(self.name, "to", self.to, ("bfloat16", "float16"))

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"the loss is computed under autocast in {self.to}"

    def loss_steps(self) -> Iterator[Step]:
        """See :class:`Edit`."""
        yield step(Set(Ref("loss"), call(autocast_loss, Ref("loss"), self.device, _TYPES[self.to])))

    def on_calls(self) -> AbstractContextManager[Any]:
        """See :class:`Edit`."""
        # Without its cache, which would keep the weights of the first step for as long as this is on.
        return torch.autocast(self.device, _TYPES[self.to], cache_enabled=False)


@final
@dataclass(frozen=True)
class LossScale(Edit):
    """Multiply the loss by a power of two and divide the gradients before the update.

    Gradients too small for a short float then survive the backward pass. Where one
    overflows, all are 0 for that step.

    Attributes:
        scale: A power of two.
    """

    applicability: ClassVar[Applicability] = Applicability.SAFE
    rank: ClassVar[int] = 2
    name: ClassVar[str] = "loss_scale"
    reference: ClassVar[str] = "Micikevicius et al., Mixed precision training, ICLR 2018, section 3.2"
    scale: float = 2.0**16

    def __post_init__(self) -> None:
        check_number(self.name, "scale", self.scale, 0.0)
        if math.frexp(self.scale)[0] != 0.5:
            raise PatchError(
                f"loss_scale has scale={self.scale!r}. Expected a power of two, which rounds nothing."
            )

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"the loss is scaled by {self.scale:g}"

    def loss_steps(self) -> Iterator[Step]:
        """See :class:`Edit`."""
        yield step(Set(Ref("loss"), call(scaled_loss, Ref("loss"), self.scale)))

    def on_calls(self) -> AbstractContextManager[Any]:
        """See :class:`Edit`."""
        return ScaledBackward(self.scale)

    def optimizer_steps(self) -> Iterator[Step]:
        """See :class:`Edit`."""
        yield step(Set(Ref("optimizer"), call(before_update, Ref("optimizer"), call(Unscale, self.scale))))
