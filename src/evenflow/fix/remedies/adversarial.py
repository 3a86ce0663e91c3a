"""Adversarial losses whose slope does not die where the discriminator is sure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import GanLoss, Patch, SetLearningRate


@final
class Adversarial(Remedy):
    """Non-saturating, hinge, least squares, Wasserstein with a penalty."""

    name = "adversarial"
    causes: ClassVar = {CauseName.DISCRIMINATOR_SATURATION: 1.0}
    reference = "Goodfellow et al. 2014, section 3; Lim & Ye 2017; Mao et al. 2017; Gulrajani et al. 2017"
    unless = "The program has no generator and discriminator by role."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        for kind in ("non_saturating", "hinge", "lsgan", "wgan_gp"):
            yield Patch([GanLoss(kind)])
        yield Patch([GanLoss("non_saturating"), SetLearningRate(factor=0.3)])
