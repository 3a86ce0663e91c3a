"""The standard recipe, whole: norms, weights of a fitting size, Adam at its usual rate, clipping.

A training with several faults can resist each remedy alone. Where no single one was
confirmed, all of what most trainings have is put in place at once, and then taken away
again edit by edit, for as long as the gain stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from torch import nn

from evenflow.fix.remedy import NORMS, Case, Remedy
from evenflow.surgery import (
    ClipGradient,
    Edit,
    InitRecurrent,
    InsertNorm,
    Patch,
    Reinitialise,
    SetOptimizer,
    Unfreeze,
)


@final
class Standard(Remedy):
    """Normalisation, He's weights or a recurrence that keeps, nothing frozen, Adam at .001, clipping at 1."""

    name = "standard"
    last: ClassVar = True
    reference = (
        "Ioffe & Szegedy 2015; He et al. 2015; Kingma & Ba, ICLR 2015; Pascanu, Mikolov & Bengio, ICML 2013"
    )
    unless = "A single remedy is confirmed. What the model has already is left out."

    def promise(self, case: Case) -> float:
        """See :class:`Remedy`; it is for whatever nothing else has helped."""
        return 1.0

    def reason(self, case: Case) -> str:
        """See :class:`Remedy`."""
        return "no single remedy was confirmed"

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        rest: list[Edit] = []
        if case.modules(nn.RNN):
            rest.append(InitRecurrent("orthogonal"))
        elif case.modules(nn.LSTM):
            rest.append(InitRecurrent("forget_bias"))
        elif case.modules(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            rest.append(Reinitialise("he"))
        if case.frozen:
            rest.append(Unfreeze())
        rest += [SetOptimizer("adam", lr=1e-3), ClipGradient("norm", 1.0)]
        if not case.modules(*NORMS, nn.RNNBase):
            yield Patch([InsertNorm("batch" if case.batch_size >= 16 else "layer"), *rest])
        yield Patch(rest)
