"""An adaptive optimizer: each weight gets steps of its own size, however small its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

import torch

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import Patch, SetOptimizer


@final
class Adapt(Remedy):
    """Adam in place of plain gradient descent."""

    name = "adapt"
    causes: ClassVar = {
        CauseName.LEARNING_RATE_TOO_LOW: 0.8,
        CauseName.LEARNING_RATE_TOO_HIGH: 0.6,
        CauseName.SATURATING_ACTIVATION: 0.4,
        CauseName.INIT_TOO_SMALL: 0.5,
        CauseName.UNSCALED_INPUT: 0.5,
        CauseName.UNSCALED_TARGET: 0.4,
    }
    symptoms: ClassVar = {
        Symptom.VANISHING_GRADIENT: 0.7,
        Symptom.LOSS_NOT_DECREASING: 0.8,
        Symptom.EXPLODING_GRADIENT: 0.5,
        Symptom.OSCILLATING: 0.6,
    }
    reference = "Kingma & Ba, ICLR 2015"
    unless = "It hides small gradients, and rescues none that is lost to rounding."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        if any(isinstance(one, (torch.optim.Adam, torch.optim.AdamW)) for one in case.optimizers):
            return
        for lr in (1e-3, 1e-2, 1e-4):
            yield Patch([SetOptimizer("adam", lr=lr)])
