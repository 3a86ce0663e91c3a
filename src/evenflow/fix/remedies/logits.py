"""The loss that belongs to the output: logits, and one softmax instead of none or two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

import torch

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, RemoveOutputActivation, SetLoss, SetOutputActivation, UseLogits


@final
class Logits(Remedy):
    """Cross-entropy from logits, for the kind of targets that there are."""

    name = "logits"
    causes: ClassVar = {CauseName.WRONG_LOSS_OR_OUTPUT: 1.0}
    symptoms: ClassVar = {Symptom.LOSS_NOT_DECREASING: 0.7, Symptom.SATURATION: 0.4}
    reference = "Bishop, Pattern Recognition and Machine Learning, 2006, section 4.3.6 (canonical links)"

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        yield Patch([UseLogits()])
        pair = case.pair
        if pair is not None:
            _, targets = pair
            if not targets.is_floating_point():
                yield Patch([SetLoss("cross_entropy")])
                yield Patch([SetOutputActivation("softmax")])  # for a loss that takes probabilities
                yield Patch([RemoveOutputActivation(), SetLoss("cross_entropy")])
            if _is_binary(targets):
                yield Patch([SetLoss("bce_with_logits")])
                yield Patch([SetOutputActivation("sigmoid")])  # a softmax over one unit is always 1
            elif targets.is_floating_point():
                yield Patch([RemoveOutputActivation()])
                yield Patch([RemoveOutputActivation(), SetLoss("mse")])
        yield Patch([RemoveOutputActivation()])


def _is_binary(targets: torch.Tensor) -> bool:
    return bool(((targets == 0) | (targets == 1)).all())
