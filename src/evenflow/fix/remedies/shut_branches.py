"""Fixup: every residual branch starts at 0, so that the stream is of one size at any depth, without norms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.branches import branches
from evenflow.fix.remedy import NORMS, Case, Remedy
from evenflow.surgery import Fixup, Patch


@final
class ShutBranches(Remedy):
    """Fixup's init of the residual branches of a net without norms."""

    name = "shut_branches"
    causes: ClassVar = {CauseName.RESIDUAL_GROWTH: 1.0, CauseName.MISSING_NORMALIZATION: 0.9}
    symptoms: ClassVar = {Symptom.EXPLODING_GRADIENT: 0.5, Symptom.NON_FINITE: 0.5}
    reference = "Zhang, Dauphin & Ma, ICLR 2019, section 3"
    unless = "The model has norms, or no residual branch is a module of its own with two layers or more."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        if not case.modules(*NORMS) and (found := branches(case)):
            yield Patch([Fixup(tuple(found))])
