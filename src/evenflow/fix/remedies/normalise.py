"""Normalisation before the activations: the size of the weights no longer matters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from torch import nn

from evenflow.diagnose import CauseName, Symptom
from evenflow.fix.remedy import NORMS, Case, Remedy
from evenflow.surgery import InsertNorm, Patch, Reinitialise


@final
class Normalise(Remedy):
    """BatchNorm or LayerNorm in every hidden layer."""

    name = "normalise"
    causes: ClassVar = {
        CauseName.MISSING_NORMALIZATION: 1.0,
        CauseName.SATURATING_ACTIVATION: 0.7,
        CauseName.INIT_TOO_SMALL: 0.7,
        CauseName.INIT_TOO_LARGE: 0.7,
        CauseName.UNSCALED_INPUT: 0.6,
        CauseName.DEPTH_WITHOUT_SKIP: 0.6,
        CauseName.DEAD_RELU: 0.6,
    }
    symptoms: ClassVar = {
        Symptom.VANISHING_GRADIENT: 0.8,
        Symptom.EXPLODING_GRADIENT: 0.6,
        Symptom.DEAD_UNITS: 0.6,
        Symptom.SATURATION: 0.6,
    }
    reference = "Ioffe & Szegedy 2015; Ba, Kiros & Hinton 2016"
    unless = "The model normalises already, or is recurrent."

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        if case.modules(*NORMS, nn.RNNBase):
            return
        if case.batch_size >= 16:
            yield Patch([InsertNorm("batch")])
        yield Patch([InsertNorm("layer")])
        yield Patch([InsertNorm("layer"), Reinitialise("he")])
