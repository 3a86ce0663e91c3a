"""Inputs and targets of mean 0 and size 1, which every initialisation takes for granted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, StandardiseInput, StandardiseTarget


@final
class Standardise(Remedy):
    """Inputs, targets or both, inside the model."""

    name = "standardise"
    causes: ClassVar = {CauseName.UNSCALED_INPUT: 1.0, CauseName.UNSCALED_TARGET: 1.0}
    symptoms: ClassVar = {Symptom.EXPLODING_GRADIENT: 0.5, Symptom.NON_FINITE: 0.5, Symptom.DEAD_UNITS: 0.5}
    reference = "LeCun et al., Efficient BackProp, 1998, section 4.3"
    unless = "Inputs are whole numbers, such as token ids, or have mean 0 and size 1 already."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        if case.pair is None:
            return
        inputs, targets = case.pair
        on_inputs = []
        if inputs.is_floating_point():
            by_feature = (
                [StandardiseInput.of(inputs, 1 if inputs.dim() > 3 else -1)] if inputs.dim() > 1 else []
            )
            on_inputs = [*by_feature, StandardiseInput.of(inputs)]
        on_targets = []
        if targets.is_floating_point() and float(targets.std()) > 0:
            on_targets = [StandardiseTarget.of(targets)]
        yield from (Patch([one]) for one in on_inputs[:1])
        yield from (Patch([one]) for one in on_targets)
        yield from (Patch([one, other]) for one in on_inputs[:1] for other in on_targets)
        yield from (Patch([one]) for one in on_inputs[1:])
