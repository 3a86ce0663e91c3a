"""Fixup: every residual branch starts at 0, so that the stream is of one size at any depth, without norms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.branches import BranchesError, branches
from evenflow.fix.remedy import NORMS, Case, Remedy
from evenflow.surgery import Advice, Fixup, Patch


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
        if case.modules(*NORMS):
            return
        try:
            found = branches(case)
        except BranchesError as error:
            why = f"they could not be looked for, since the first batch ended in {error}"
            yield Patch([Advice(f"if the model has residual branches, try Fixup on them; {why}")])
        else:
            if found:
                yield Patch([Fixup(tuple(found))])
