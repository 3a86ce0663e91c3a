"""A smaller ε, where it is larger than the roots of Adam's second moments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, SetOption


@final
class Epsilon(Remedy):
    """ε of 1e-12."""

    name = "epsilon"
    causes: ClassVar = {CauseName.OPTIMIZER_EPSILON_DOMINATES: 1.0}
    symptoms: ClassVar = {}
    reference = "Kingma & Ba, ICLR 2015, algorithm 1"
    unless = "The optimizer has no ε."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        if all("eps" in one.defaults for one in case.optimizers):
            yield Patch([SetOption("eps", 1e-12)])
