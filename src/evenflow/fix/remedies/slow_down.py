"""A smaller learning rate, where steps overshoot."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, SetLearningRate

FAR = 100
"""A rate that is further above its default is no matter of a tenth or two."""


@final
class SlowDown(Remedy):
    """A third, a tenth, a hundredth of the learning rate; of one far too high, the optimizer's default."""

    name = "slow_down"
    causes: ClassVar = {
        CauseName.LEARNING_RATE_TOO_HIGH: 1.0,
        CauseName.DEAD_RELU: 0.7,
        CauseName.UNSCALED_INPUT: 0.5,
        CauseName.UNSCALED_TARGET: 0.5,
        CauseName.RECURRENT_GAIN_TOO_LARGE: 0.4,
    }
    symptoms: ClassVar = {
        Symptom.OSCILLATING: 1.0,
        Symptom.NON_FINITE: 0.9,
        Symptom.LOSS_NOT_DECREASING: 0.6,
        Symptom.EXPLODING_GRADIENT: 0.5,
        Symptom.DEAD_UNITS: 0.6,
    }
    reference = "LeCun et al., Efficient BackProp, 1998, section 4.7"

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        usual = _usual(case)
        if usual is not None:
            yield Patch([SetLearningRate(lr=usual)])
        for factor in (0.1, 0.01, 0.3, 0.001):
            yield Patch([SetLearningRate(factor=factor)])


def _usual(case: Case) -> float | None:
    """PyTorch's default of the optimizers' kind, if they all exceed it by more than :data:`FAR`."""
    rates = {inspect.signature(type(one)).parameters["lr"].default for one in case.optimizers}
    usual = rates.pop() if len(rates) == 1 else None
    if not isinstance(usual, float):
        return None
    far = all(group["lr"] > FAR * usual for one in case.optimizers for group in one.param_groups)
    return usual if far else None
