"""Shape activations for plain depth: Deep Kernel Shaping and Tailored Activation Transformation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from evenflow.surgery import activations
from evenflow.surgery.activations import Used
from evenflow.surgery.edit import Edit, check_choice
from evenflow.surgery.edits.activation import put, selected
from evenflow.surgery.errors import PatchError
from evenflow.surgery.pieces.shaped import Shaped
from evenflow.surgery.scene import Scene, Where, at
from evenflow.surgery.script import Call, Step
from evenflow.surgery.shaping import Shape, deep_kernel_shape, tailored_shape, tailored_slope
from evenflow.theory import get_activation

_RECTIFIERS = ("relu", "leaky_relu", "prelu", "rrelu")


@final
@dataclass(frozen=True)
class ShapeActivation(Edit):
    """Give activations the scales and shifts with which a plain chain of them stays trainable.

    It goes with weights of σ_w² = 1 and no biases: ``Reinitialise("orthogonal")``.
    ReLU and its leaky relatives get TAT's leaky ReLU; other activations keep their kind.

    Attributes:
        method: ``"tat"`` or ``"dks"``.
        where: Glob over paths, as in ``SwapActivation``.
        from_: Only this activation; None: any.
        layers: Activations in the chain; None: as many as are shaped.
    """

    name: ClassVar[str] = "shape_activation"
    reference: ClassVar[str] = "Zhang, Botev & Martens, ICLR 2022 (TAT); Martens et al. 2021 (DKS)"
    method: str = "tat"
    where: Where = "*"
    from_: str | None = None
    layers: int | None = None

    def __post_init__(self) -> None:
        check_choice(self.name, "method", self.method, ("tat", "dks"))
        if self.layers is not None and self.layers < 1:
            raise PatchError(
                f"shape_activation has layers={self.layers}. Expected a whole number of at least 1."
            )

    def describe(self) -> str:
        """See :class:`Edit`."""
        depth = f" for {self.layers} layers" if self.layers else ""
        return f"{self.from_ or 'activations'}{at(self.where)} are shaped by {self.method.upper()}{depth}"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        found = selected(scene, self.where, self.from_, self.name)
        layers = self.layers or len(found)
        shapes: dict[str, Shape] = {}
        for use in found:
            if isinstance(use.place.module, Shaped):
                raise PatchError(
                    f"shape_activation does not fit this model: {use.place} is shaped already. "
                    "Expected plain activations; undo the patch that shaped it first."
                )
            yield put(scene, use, self._shaped(scene, use, layers, shapes))

    def _shaped(self, scene: Scene, use: Used, layers: int, shapes: dict[str, Shape]) -> Call:
        """The shaped activation; constants that were found once are kept in ``shapes``."""
        if self.method == "tat" and use.name in _RECTIFIERS:
            slope = tailored_slope(layers)
            return scene.new(Shaped, scene.new(nn.LeakyReLU, slope), gamma=(2.0 / (1.0 + slope**2)) ** 0.5)
        plain = use.called or use.attribute
        phi = get_activation(use.name) if plain else activations.as_theory(use.place.module)
        if phi.name not in shapes:
            solve = tailored_shape if self.method == "tat" else deep_kernel_shape
            shapes[phi.name] = solve(phi, layers)
        shape = shapes[phi.name]
        inner = scene.new(activations.MODULES[use.name]) if plain else scene.ref(use.place.path)
        constants = {"alpha": shape.alpha, "beta": shape.beta, "gamma": shape.gamma, "delta": shape.delta}
        return scene.new(Shaped, inner, **constants)
