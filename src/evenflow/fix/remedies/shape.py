"""Plain depth made trainable without skips or norms: shaped activations and orthogonal weights.

In such a net every layer's step reaches the output undamped, so their changes add up.
Adam moves each weight by about its learning rate r, and so a layer's outputs, for
inputs of size 1, by up to r × fan-in; all layers together by r × the sum of fan-ins.
A learning rate that fits the depth keeps this at 1.

From :data:`DEEP` layers on no single one of the three is enough: the recipe is tried whole,
and before all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

import torch
from torch import nn

from evenflow.diagnose import CauseName, Symptom
from evenflow.diagnose.rules.depth_without_skip import DepthWithoutSkip
from evenflow.fix.remedy import NORMS, Case, Remedy
from evenflow.surgery import Patch, Reinitialise, SetLearningRate, ShapeActivation

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

DEEP = 50
"""Layers of a plain chain that shaped activations made as trainable as with skips and norms, and other
inits did not (Zhang, Botev & Martens 2022, 50 and 101 layers on ImageNet)."""
FIRST = 2
"""Recipes tried before all others: tailored activations, and the edge of chaos with the net's own."""


@final
class Shape(Remedy):
    """Tailored activations (TAT, DKS), or weights at the edge of chaos; steps that fit the depth."""

    name = "shape"
    causes: ClassVar = {CauseName.DEPTH_WITHOUT_SKIP: 0.9}
    symptoms: ClassVar = {Symptom.VANISHING_GRADIENT: 0.5}
    reference = "Zhang, Botev & Martens, ICLR 2022; Xiao et al., ICML 2018"
    unless = "It is for long plain chains; with skips or norms there is no need."

    def promise(self, case: Case) -> float:
        """See :class:`Remedy`."""
        return 1.0 if self.first(case) else super().promise(case)

    def first(self, case: Case) -> int:
        """See :class:`Remedy`."""
        return FIRST if _plain_layers(case) > DEEP and not case.modules(*NORMS, nn.RNNBase) else 0

    def reason(self, case: Case) -> str:
        """See :class:`Remedy`."""
        return super().reason(case) or str(CauseName.DEPTH_WITHOUT_SKIP).replace("_", " ")

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        shapes = (
            Patch([ShapeActivation("tat"), Reinitialise("orthogonal")]),
            Patch([Reinitialise("critical")]),
            Patch([ShapeActivation("dks"), Reinitialise("orthogonal")]),
        )
        slower = _rate(case)
        if slower is not None:
            for shape in shapes:
                yield shape + Patch([SetLearningRate(lr=slower)])
        yield from shapes


def _plain_layers(case: Case) -> float:
    """Layers in a row without a skip; 0 if they are too few to be found."""
    code = DepthWithoutSkip.code
    return max(
        (one.evidence[0].value or 0.0 for one in case.report.findings if one.code == code), default=0.0
    )


def _rate(case: Case) -> float | None:
    """Adam's learning rate that fits the depth, to two digits; None for others, or if it is that small."""
    if not all(isinstance(one, (torch.optim.Adam, torch.optim.AdamW)) for one in case.optimizers):
        return None
    fans = [module.weight[0].numel() for _, module in case.modules(*_LAYERS) if isinstance(module, _LAYERS)]
    rate = float(f"{1.0 / max(1, sum(fans)):.1e}")
    return rate if all(group["lr"] > rate for one in case.optimizers for group in one.param_groups) else None
