"""Queries and keys of a bounded length, so that attention does not collapse on one token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, QKNorm


@final
class SoftenAttention(Remedy):
    """QK-norm."""

    name = "soften_attention"
    causes: ClassVar = {CauseName.ATTENTION_COLLAPSE: 1.0}
    reference = "Henry et al. 2020; Dehghani et al., ICML 2023"

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        yield Patch([QKNorm()])
