"""Let frozen parameters learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

from evenflow.surgery.edit import Edit
from evenflow.surgery.scene import Place, Scene, Where, at
from evenflow.surgery.script import Step, call, step


@final
@dataclass(frozen=True)
class Unfreeze(Edit):
    """Switch on the gradient of parameters that have it off.

    Attributes:
        where: Glob over the paths of the modules that hold them.
    """

    name: ClassVar[str] = "unfreeze"
    where: Where = "*"

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"frozen parameters{at(self.where)} learn"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""

        def fits(place: Place) -> bool:
            return any(not p.requires_grad for p in place.module.parameters(recurse=False))

        for place in scene.select(self.where, fits, self.name, "modules with frozen parameters"):
            frozen = [name for name, p in place.module.named_parameters(recurse=False) if not p.requires_grad]
            refs = [scene.ref(place.path, name, "requires_grad_") for name in frozen]
            yield step(*(call(ref, True) for ref in refs), source=scene.line(place.path))
