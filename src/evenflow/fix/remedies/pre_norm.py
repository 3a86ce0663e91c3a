"""Norms moved into the branches of a transformer, or its residuals scaled up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import DeepNormScaling, Patch, PreNorm, WarmUp


@final
class Prenormalise(Remedy):
    """Pre-LN from post-LN; DeepNorm; a warm-up."""

    name = "pre_norm"
    causes: ClassVar = {CauseName.POST_LN_DEPTH: 1.0}
    reference = "Xiong et al., ICML 2020; Wang et al., DeepNet, 2022"
    unless = "The model has no transformer layers with the norm behind the sum."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        yield Patch([PreNorm()])
        yield Patch([DeepNormScaling()])
        yield Patch([WarmUp(max(10, case.program.steps // 10))])
