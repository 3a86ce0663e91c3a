"""A larger learning rate, where steps are too short to get anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, SetLearningRate


@final
class SpeedUp(Remedy):
    """Ten or a hundred times the learning rate."""

    name = "speed_up"
    causes: ClassVar = {CauseName.LEARNING_RATE_TOO_LOW: 1.0}
    symptoms: ClassVar = {Symptom.LOSS_NOT_DECREASING: 0.6}
    reference = "L. Smith, WACV 2017"

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        for factor in (10.0, 100.0, 1000.0):
            yield Patch([SetLearningRate(factor=factor)])
