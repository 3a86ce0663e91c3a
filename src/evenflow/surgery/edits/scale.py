"""Multiply weights by a number: the same directions, another gain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

from evenflow.surgery import layers
from evenflow.surgery.edit import Edit, check_number
from evenflow.surgery.pieces.inits import scale_
from evenflow.surgery.scene import Scene, Where, at
from evenflow.surgery.script import Step, call, step


@final
@dataclass(frozen=True)
class ScaleWeights(Edit):
    """Multiply the weights of linear layers and convolutions by a factor; biases stay.

    Attributes:
        factor: A positive number.
        where: Glob over the layers' paths.
    """

    name: ClassVar[str] = "scale_weights"
    factor: float
    where: Where = "*"

    def __post_init__(self) -> None:
        check_number(self.name, "factor", self.factor, 0.0)

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"weights{at(self.where)} are times {self.factor:.3g}"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        wanted = "linear layers or convolutions"
        for place in scene.select(self.where, layers.is_layer, self.name, wanted):
            yield step(
                call(scale_, scene.ref(place.path, "weight"), self.factor), source=scene.line(place.path)
            )
