"""Losses of adversarial nets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

from evenflow.surgery.edit import Edit, check_choice, check_number
from evenflow.surgery.pieces.adversarial import adversarial
from evenflow.surgery.script import Ref, Set, Step, call, step

_KINDS: dict[str, tuple[str, str | None]] = {
    "non_saturating": ("non_saturating", None),
    "lsgan": ("lsgan", None),
    "hinge": ("hinge", None),
    "wgan_gp": ("wgan", "gp"),
    "r1": ("non_saturating", "r1"),
}
"""Name → (game, penalty). WGAN-GP's weight 10: Gulrajani et al. 2017; R1's 10: Mescheder et al. 2018."""


@final
@dataclass(frozen=True)
class GanLoss(Edit):
    """Another adversarial loss, for programs with losses by role.

    Terms that the program adds to its own, such as a reconstruction error, are left out.

    Attributes:
        kind: ``non_saturating``, ``lsgan``, ``hinge``, ``wgan_gp`` or ``r1`` (non-saturating with R1).
        weight: Of the penalty, for ``wgan_gp`` and ``r1``.
        generator: The generator's role.
        discriminator: The discriminator's role.
    """

    name: ClassVar[str] = "gan_loss"
    reference: ClassVar[str] = (
        "Goodfellow et al. 2014, section 3; Mao et al. 2017 (LSGAN); Lim & Ye 2017 (hinge); "
        "Gulrajani et al. 2017 (WGAN-GP); Mescheder et al. 2018 (R1)"
    )
    by_role: ClassVar[bool] = True
    kind: str
    weight: float = 10.0
    generator: str = "generator"
    discriminator: str = "discriminator"

    def __post_init__(self) -> None:
        check_choice(self.name, "kind", self.kind, tuple(_KINDS))
        check_number(self.name, "weight", self.weight, 0.0)

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"the adversarial loss is {self.kind.replace('_', ' ')}"

    def loss_steps(self) -> Iterator[Step]:
        """See :class:`Edit`."""
        game, penalty = _KINDS[self.kind]
        given = {"generator": self.generator, "discriminator": self.discriminator}
        settings = {role: name for role, name in given.items() if name != role}
        extra = {"penalty": penalty, "weight": self.weight} if penalty else {}
        yield step(Set(Ref("loss"), call(adversarial, Ref("loss"), game, **settings, **extra)))
