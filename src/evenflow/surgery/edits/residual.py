"""Initialise residual branches by depth: depth-scaled and Fixup."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from evenflow.surgery import layers
from evenflow.surgery.edit import Edit
from evenflow.surgery.errors import PatchError
from evenflow.surgery.pieces.inits import scale_
from evenflow.surgery.scene import Place, Scene, Where, at, outermost
from evenflow.surgery.script import Step, call, step

_LAST = ("out_proj", "linear2", "c_proj", "o_proj", "down_proj", "proj_out", "wo", "fc2", "conv2")
"""What the last layer of a branch is called in PyTorch's, GPT-2's, Llama's, T5's, ViT's and ResNet's code."""


@final
@dataclass(frozen=True)
class DepthScaled(Edit):
    """Multiply the last weight of every residual branch by 1/√branches.

    Attributes:
        where: Glob over the paths of these last layers. The default finds them by the
            names that they have in PyTorch's own and other common code.
    """

    name: ClassVar[str] = "depth_scaled"
    reference: ClassVar[str] = "Radford et al. (GPT-2) 2019, section 2.3"
    where: Where = "*"

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"last weights of residual branches{at(self.where)} are divided by √branches"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""

        def fits(place: Place) -> bool:
            return layers.is_layer(place) and (self.where != "*" or place.name in _LAST)

        wanted = f"last layers of residual branches, called {', '.join(_LAST)}, or named by where"
        places = scene.select(self.where, fits, self.name, wanted)
        for place in places:
            ref = scene.ref(place.path, "weight")
            yield step(call(scale_, ref, len(places) ** -0.5), source=scene.line(place.path))


@final
@dataclass(frozen=True)
class Fixup(Edit):
    """Fixup's init of residual branches: He, the first layers scaled by L^(−1/(2m−2)), the last one 0.

    Of Fixup's rules this is the first two; its scalar biases and multipliers are left out.

    Attributes:
        where: Glob over the paths of the branches, each a module with m layers.
        head: Path of the model's last layer, which becomes 0 too; None: left alone.
    """

    name: ClassVar[str] = "fixup"
    reference: ClassVar[str] = "Zhang, Dauphin & Ma, Fixup initialization, ICLR 2019, section 3"
    where: Where
    head: str | None = None

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"residual branches{at(self.where)} start by Fixup"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""

        def inside(place: Place) -> list[Place]:
            start = f"{place.path}." if place.path else ""
            return [one for one in scene.places() if one.path.startswith(start) and layers.is_layer(one)]

        places = scene.select(
            self.where, lambda place: len(inside(place)) >= 2, self.name, "branches of at least 2 layers"
        )
        places = outermost(places)
        for place in places:
            branch = inside(place)
            factor = len(places) ** (-1.0 / (2 * len(branch) - 2))
            statements: list[Any] = []
            for layer in branch[:-1]:
                ref = scene.ref(layer.path, "weight")
                statements.append(call(nn.init.kaiming_normal_, ref, nonlinearity="relu"))
                statements.append(call(scale_, ref, factor))
            statements.append(call(nn.init.zeros_, scene.ref(branch[-1].path, "weight")))
            biases = [one for one in branch if getattr(one.module, "bias", None) is not None]
            statements += [call(nn.init.zeros_, scene.ref(one.path, "bias")) for one in biases]
            yield step(*statements, source=scene.line(place.path))
        if self.head is not None:
            yield self._head(scene)

    def _head(self, scene: Scene) -> Step:
        found = [place for place in scene.places() if place.path == self.head and layers.is_layer(place)]
        if not found:
            raise PatchError(
                f"fixup does not fit this model: no linear layer or convolution is at head={self.head!r}. "
                "Expected the path of the model's last layer."
            )
        names = ["weight"] + (["bias"] if getattr(found[0].module, "bias", None) is not None else [])
        return step(*(call(nn.init.zeros_, scene.ref(found[0].path, name)) for name in names))
