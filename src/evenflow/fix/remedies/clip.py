"""Clipped gradients: one bad step cannot throw the weights far."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import ClipGradient, Patch, SetLearningRate


@final
class Clip(Remedy):
    """The norm of the whole gradient, at most 1."""

    name = "clip"
    causes: ClassVar = {
        CauseName.RECURRENT_GAIN_TOO_LARGE: 1.0,
        CauseName.INIT_TOO_LARGE: 0.5,
        CauseName.LEARNING_RATE_TOO_HIGH: 0.6,
        CauseName.UNSCALED_TARGET: 0.6,
    }
    symptoms: ClassVar = {
        Symptom.EXPLODING_GRADIENT: 1.0,
        Symptom.NON_FINITE: 0.8,
        Symptom.OSCILLATING: 0.5,
    }
    reference = "Pascanu, Mikolov & Bengio, ICML 2013"

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        yield Patch([ClipGradient("norm", 1.0)])
        yield Patch([ClipGradient("norm", 0.1)])
        yield Patch([ClipGradient("norm", 1.0), SetLearningRate(factor=0.1)])
