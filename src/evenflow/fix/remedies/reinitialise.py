"""Weights drawn at the size that keeps gradients, for the activation at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, Reinitialise


@final
class Redraw(Remedy):
    """Critical, He, Glorot or orthogonal weights."""

    name = "reinitialise"
    causes: ClassVar = {
        CauseName.INIT_TOO_SMALL: 1.0,
        CauseName.INIT_TOO_LARGE: 1.0,
        CauseName.ZERO_INIT_SYMMETRY: 1.0,
        CauseName.SATURATING_ACTIVATION: 0.5,
        CauseName.DEAD_RELU: 0.5,
        CauseName.DEPTH_WITHOUT_SKIP: 0.5,
    }
    symptoms: ClassVar = {Symptom.VANISHING_GRADIENT: 0.6, Symptom.EXPLODING_GRADIENT: 0.6}
    reference = "Glorot & Bengio 2010; He et al. 2015; Saxe et al. 2014; Pennington et al. 2017"
    unless = "Weights that were trained before are lost by it."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        for scheme in ("he", "glorot", "critical", "orthogonal"):
            yield Patch([Reinitialise(scheme)])
