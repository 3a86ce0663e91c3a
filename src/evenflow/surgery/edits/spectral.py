"""Spectral normalisation of weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from evenflow.surgery import layers
from evenflow.surgery.edit import Edit
from evenflow.surgery.scene import Place, Scene, Where, at
from evenflow.surgery.script import Step, call, step


@final
@dataclass(frozen=True)
class SpectralNorm(Edit):
    """Divide the weights of linear layers and convolutions by their largest singular value, at every use.

    Attributes:
        where: Glob over the layers' paths.
    """

    name: ClassVar[str] = "spectral_norm"
    reference: ClassVar[str] = "Miyato et al., Spectral normalization for GANs, ICLR 2018"
    where: Where = "*"

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"weights{at(self.where)} have spectral norm 1"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""

        def fits(place: Place) -> bool:
            return layers.is_layer(place) and not parametrize.is_parametrized(place.module, "weight")

        for place in scene.select(self.where, fits, self.name, "linear layers or convolutions"):
            yield step(call(spectral_norm, scene.ref(place.path)), source=scene.line(place.path))
