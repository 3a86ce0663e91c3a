"""Memory for long sequences: gated cells, or a plain net that starts as the identity.

Where the loss does not feel the early steps (EF103), a net that starts as the identity and
an LSTM with chrono biases go before all other remedies: at the start both carry the
gradient through the whole sequence, which neither a learning rate nor a norm can do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from torch import nn

from evenflow.diagnose import CauseName, Symptom
from evenflow.diagnose.rules.vanishing_through_time import VanishingThroughTime
from evenflow.fix.remedy import Case, Remedy
from evenflow.surgery import ClipGradient, InitRecurrent, Patch, ReplaceCell

FIRST = 2
"""Recipes tried before all others: identity recurrence and chrono biases."""


@final
class Remember(Remedy):
    """LSTM or GRU for a plain RNN; chrono and forget biases; identity and orthogonal recurrences."""

    name = "remember"
    causes: ClassVar = {CauseName.LONG_RECURRENCE: 1.0, CauseName.RECURRENT_GAIN_TOO_LARGE: 0.7}
    symptoms: ClassVar = {Symptom.VANISHING_GRADIENT: 0.6, Symptom.LOSS_NOT_DECREASING: 0.5}
    reference = "Hochreiter & Schmidhuber 1997; Le, Jaitly & Hinton 2015; Tallec & Ollivier, ICLR 2018"
    unless = "The model has no recurrent layer."

    def first(self, case: Case) -> int:
        """See :class:`Remedy`."""
        forgets = any(one.code == VanishingThroughTime.code for one in case.findings)
        return FIRST if forgets and case.modules(nn.RNN) else 0

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        clip = ClipGradient("norm", 1.0)
        if case.modules(nn.RNN, nn.RNNCell):
            yield Patch([InitRecurrent("identity"), clip])
            if case.sequence_length is not None:
                yield Patch([ReplaceCell("lstm"), InitRecurrent("chrono", longest=case.sequence_length)])
            yield Patch([ReplaceCell("lstm")])
            yield Patch([ReplaceCell("gru")])
            yield Patch([ReplaceCell("lstm"), clip])
            yield Patch([InitRecurrent("orthogonal")])
            yield Patch([InitRecurrent("orthogonal"), clip])
        if case.modules(nn.LSTM, nn.LSTMCell):
            yield Patch([InitRecurrent("forget_bias")])
            if case.sequence_length is not None:
                yield Patch([InitRecurrent("chrono", longest=case.sequence_length)])
