"""Skip connections: the gradient has a way around every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from torch import nn

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import InsertSkip, Patch, layers


@final
class Skip(Remedy):
    """x + α f(x) around layers that give as they take; α starts at 1/√depth, or is 1."""

    name = "skip"
    causes: ClassVar = {CauseName.DEPTH_WITHOUT_SKIP: 1.0, CauseName.SATURATING_ACTIVATION: 0.4}
    symptoms: ClassVar = {Symptom.VANISHING_GRADIENT: 0.7}
    reference = "He et al. 2016; De & Smith, NeurIPS 2020 (SkipInit)"
    unless = "No layer has as many outputs as inputs."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        depth = sum(layers.preserves_shape(module) for _, module in case.modules(nn.Module))
        if depth:  # at α = 0 the first layer has no gradient on the first batch, and would be screened out
            yield Patch([InsertSkip("skipinit", alpha=float(f"{depth**-0.5:.3g}"))])
        yield Patch([InsertSkip("plain")])
