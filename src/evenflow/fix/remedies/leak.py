"""Leaky rectifiers in place of dead ones: a unit that is off still learns its way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, Reinitialise, SwapActivation


@final
class Leak(Remedy):
    """Leaky ReLU or ELU for ReLU."""

    name = "leak"
    causes: ClassVar = {CauseName.DEAD_RELU: 1.0}
    symptoms: ClassVar = {Symptom.DEAD_UNITS: 1.0}
    reference = "Maas, Hannun & Ng, ICML 2013; Clevert et al., ICLR 2016"
    unless = "It helps no unit that another fault keeps killing, such as a learning rate that is too high."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        leaky = SwapActivation(to="leaky_relu", from_="relu", settings={"negative_slope": 0.1})
        yield Patch([leaky])
        yield Patch([leaky, Reinitialise("he", activation="leaky_relu")])
        yield Patch([SwapActivation(to="elu", from_="relu")])
