"""Inputs and targets of mean 0 and size 1, which every initialisation takes for granted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

import torch
from torch import Tensor

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, StandardiseInput, StandardiseTarget

ENOUGH = 512
"""Samples whose mean and size are taken: the mean's standard error is 1/√512 = 4 % of the size."""


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
        inputs, targets = _samples(case)
        first = inputs[0]
        on_inputs = []
        if first.is_floating_point():
            by_feature = (
                [StandardiseInput.of(inputs, 1 if first.dim() > 3 else -1)] if first.dim() > 1 else []
            )
            on_inputs = [*by_feature, StandardiseInput.of(inputs)]
        on_targets = []
        if targets[0].is_floating_point() and any(
            bool((one != targets[0].flatten()[0]).any()) for one in targets
        ):
            on_targets = [StandardiseTarget.of(targets)]
        yield from (Patch([one]) for one in on_inputs[:1])
        yield from (Patch([one]) for one in on_targets)
        yield from (Patch([one, other]) for one in on_inputs[:1] for other in on_targets)
        yield from (Patch([one]) for one in on_inputs[1:])


def _samples(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and targets of so many batches as hold enough samples: one batch may be a single sample."""
    inputs, targets, count = list[Tensor](), list[Tensor](), 0
    with torch.random.fork_rng(devices=[]):
        for batch in case.program.batches(case.training.seed):
            inputs.append(batch[0])
            targets.append(batch[1])
            count += len(batch[0]) if batch[0].dim() else 1
            if count >= ENOUGH:
                break
    return inputs, targets
