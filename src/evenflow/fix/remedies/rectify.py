"""Rectifiers in place of saturating activations: their slope is 1 wherever they are on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, Reinitialise, SwapActivation


@final
class Rectify(Remedy):
    """ReLU with He's weights, or GELU."""

    name = "rectify"
    causes: ClassVar = {CauseName.SATURATING_ACTIVATION: 1.0}
    symptoms: ClassVar = {Symptom.SATURATION: 0.8}
    reference = "Glorot, Bordes & Bengio, AISTATS 2011; He et al. 2015, eq. 10"
    unless = "Gates of LSTM and GRU are meant to saturate and are left alone."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        swap = SwapActivation(to="relu")
        yield Patch([swap, Reinitialise("he", activation="relu")])
        yield Patch([swap])
        yield Patch([SwapActivation(to="tanh"), Reinitialise("glorot")])
