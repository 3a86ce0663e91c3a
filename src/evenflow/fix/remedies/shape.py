"""Plain depth made trainable without skips or norms: shaped activations and orthogonal weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, Reinitialise, ShapeActivation


@final
class Shape(Remedy):
    """Tailored activations (TAT, DKS), or weights at the edge of chaos."""

    name = "shape"
    causes: ClassVar = {CauseName.DEPTH_WITHOUT_SKIP: 0.9}
    symptoms: ClassVar = {Symptom.VANISHING_GRADIENT: 0.5}
    reference = "Zhang, Botev & Martens, ICLR 2022; Xiao et al., ICML 2018"
    unless = "It is for long plain chains; with skips or norms there is no need."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        yield Patch([Reinitialise("critical")])
        yield Patch([ShapeActivation("tat"), Reinitialise("orthogonal")])
        yield Patch([ShapeActivation("dks"), Reinitialise("orthogonal")])
