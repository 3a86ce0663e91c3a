"""Parameters that were switched off, switched on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, Unfreeze


@final
class Thaw(Remedy):
    """Frozen parameters learn."""

    name = "unfreeze"
    causes: ClassVar = {CauseName.FROZEN_OR_DETACHED: 1.0}
    symptoms: ClassVar = {Symptom.LOSS_NOT_DECREASING: 0.8}
    reference = "Yosinski et al., NeurIPS 2014: features fixed at random serve the worse the deeper they are"
    unless = "No parameter is frozen. Weights that were trained before may be frozen on purpose."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        if case.frozen:
            yield Patch([Unfreeze()])
