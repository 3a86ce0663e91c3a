"""Branches scaled by 1/√depth, so that their sum does not outgrow the stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import DepthScaled, InsertNorm, Patch


@final
class ScaleBranches(Remedy):
    """Depth-scaled last weights of residual branches."""

    name = "scale_branches"
    causes: ClassVar = {CauseName.RESIDUAL_GROWTH: 1.0, CauseName.NORMALIZATION_EXPLOSION: 0.3}
    reference = "Radford et al. 2019, section 2.3; Hayou et al., AISTATS 2021"

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        yield Patch([DepthScaled()])
        yield Patch([InsertNorm("layer")])
