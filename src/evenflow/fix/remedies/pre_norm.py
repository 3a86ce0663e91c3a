"""Norms moved into the branches of a transformer, or its residuals scaled up.

In a stack so deep that EF403 remarks on it pre-LN goes before all other remedies: its
gradients are of one size from the first block to the last, so it trains at the full
learning rate at once, where post-LN of 18 layers diverges even with a warm-up (Liu et
al., EMNLP 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName
from evenflow.diagnose.rules.post_ln_depth import PostLnDepth
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import DeepNormScaling, Patch, PreNorm, WarmUp


@final
class Prenormalise(Remedy):
    """Pre-LN from post-LN; DeepNorm; a warm-up."""

    name = "pre_norm"
    causes: ClassVar = {CauseName.POST_LN_DEPTH: 1.0}
    reference = "Xiong et al., ICML 2020; Wang et al., DeepNet, 2022"
    unless = "The model has no transformer layers with the norm behind the sum."

    def promise(self, case: Case) -> float:
        """See :class:`Remedy`; what EF403 remarks on is a suspect though it be a note beside alarms."""
        return 1.0 if _is_deep(case) else super().promise(case)

    def first(self, case: Case) -> int:
        """See :class:`Remedy`."""
        return 1 if _is_deep(case) else 0

    def reason(self, case: Case) -> str:
        """See :class:`Remedy`."""
        return super().reason(case) or "post ln depth"

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        yield Patch([PreNorm()])
        yield Patch([DeepNormScaling()])
        yield Patch([WarmUp(max(10, case.program.steps // 10))])


def _is_deep(case: Case) -> bool:
    return any(one.code == PostLnDepth.code for one in case.report.findings)
