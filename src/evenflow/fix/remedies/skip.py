"""Skip connections: the gradient has a way around every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import InsertSkip, Patch


@final
class Skip(Remedy):
    """x + α f(x) around layers that give as they take."""

    name = "skip"
    causes: ClassVar = {CauseName.DEPTH_WITHOUT_SKIP: 1.0, CauseName.SATURATING_ACTIVATION: 0.4}
    symptoms: ClassVar = {Symptom.VANISHING_GRADIENT: 0.7}
    reference = "He et al. 2016; De & Smith, NeurIPS 2020"
    unless = "No layer has as many outputs as inputs."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        yield Patch([InsertSkip("skipinit")])
        yield Patch([InsertSkip("plain")])
