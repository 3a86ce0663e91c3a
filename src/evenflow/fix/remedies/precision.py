"""Numbers that the format can hold: scaled losses, wider formats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from evenflow.diagnose import CauseName
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Autocast, LossScale, Patch, SetDtype


@final
class Precision(Remedy):
    """Loss scaling, bfloat16 or float32."""

    name = "precision"
    causes: ClassVar = {
        CauseName.PRECISION_UNDERFLOW: 1.0,
        CauseName.PRECISION_OVERFLOW: 1.0,
        CauseName.UPDATE_LOST_TO_ROUNDING: 1.0,
    }
    reference = "Micikevicius et al., ICLR 2018; Kalamkar et al. 2019"

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        yield Patch([SetDtype("float32")])
        if CauseName.PRECISION_UNDERFLOW in case.causes:
            yield Patch([LossScale()])
        yield Patch([Autocast("bfloat16")])
