"""Players of a game that learn at one rate: neither is far ahead before the other has begun."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, final

import torch

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, SetLearningRate

APART = 4.0
"""Times as fast as the other that a player may learn with nothing to balance: .0004 beside .0001 is usual
(Zhang et al., SAGAN, ICML 2019, implementation details)."""
USUAL = 2e-4
"""Of both players with Adam (Radford, Metz & Chintala, ICLR 2016, section 4)."""


@final
class Balance(Remedy):
    """One learning rate for all players: the usual one, that between theirs, the lower, the higher."""

    name = "balance"
    causes: ClassVar = {CauseName.DISCRIMINATOR_SATURATION: 1.0}
    symptoms: ClassVar = {
        Symptom.VANISHING_GRADIENT: 0.9,
        Symptom.SATURATION: 0.8,
        Symptom.LOSS_NOT_DECREASING: 0.8,
        Symptom.OSCILLATING: 0.6,
    }
    reference = "Radford, Metz & Chintala, ICLR 2016, section 4"
    unless = "There is one player, or their rates are not far apart, or their optimizers differ."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        rates = [group["lr"] for one in case.optimizers for group in one.param_groups]
        low, high = float(min(rates)), float(max(rates))
        kinds = {type(one) for one in case.optimizers}
        if len(case.optimizers) < 2 or len(kinds) > 1 or not 0 < APART * low < high:
            return
        adam = kinds <= {torch.optim.Adam, torch.optim.AdamW}
        between = float(f"{math.sqrt(low * high):.2g}")
        for lr in ([USUAL] if adam and low <= USUAL <= high else []) + [between, low, high]:
            yield Patch([SetLearningRate(lr=lr)])
