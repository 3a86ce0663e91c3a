"""Memory for long sequences: gated cells, an orthogonal recurrence, a plain net that starts as the identity.

Where the loss does not feel the early steps (EF103), the identity and the orthogonal
recurrence go before all other remedies: through either the gradient passes any number of
steps undamped, which neither a learning rate nor a norm can do. A loss at every step hides
from EF103 how little of the gradient comes from afar. So they also go first where nothing
raised an alarm, yet the training is known to fail, if a plain net reads longer than it remembers.
Where a recurrence amplifies, an orthogonal one is what it should have started with.
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
"""Recipes tried before all others: the two that keep the gradient whole."""
LONG = 58
"""Time steps of which a plain tanh net with PyTorch's init feels less than half: a step costs it .25
decades (EF103), and it feels 7.2 of them."""


@final
class Remember(Remedy):
    """LSTM, GRU or an orthogonal RNN for a plain one; chrono and forget biases; identity recurrence."""

    name = "remember"
    causes: ClassVar = {CauseName.LONG_RECURRENCE: 1.0, CauseName.RECURRENT_GAIN_TOO_LARGE: 1.0}
    symptoms: ClassVar = {Symptom.VANISHING_GRADIENT: 0.6, Symptom.LOSS_NOT_DECREASING: 0.5}
    reference = (
        "Hochreiter & Schmidhuber 1997; Le, Jaitly & Hinton 2015; Tallec & Ollivier, ICLR 2018; "
        "Lezcano-Casado & Martínez-Rubio, ICML 2019"
    )
    unless = "The model has no recurrent layer."

    def promise(self, case: Case) -> float:
        """See :class:`Remedy`."""
        return 1.0 if self.first(case) else super().promise(case)

    def first(self, case: Case) -> int:
        """See :class:`Remedy`."""
        forgets = any(one.code == VanishingThroughTime.code for one in case.findings)
        hidden = case.report.healthy and (case.sequence_length or 0) > LONG
        return FIRST if (forgets or hidden) and case.modules(nn.RNN) else 0

    def reason(self, case: Case) -> str:
        """See :class:`Remedy`."""
        return super().reason(case) or str(CauseName.LONG_RECURRENCE).replace("_", " ")

    def patches(self, case: Case) -> Iterator[Patch]:
        """See :class:`Remedy`."""
        clip = ClipGradient("norm", 1.0)
        if case.modules(nn.RNN, nn.RNNCell):
            if CauseName.RECURRENT_GAIN_TOO_LARGE in case.causes and not self.first(case):
                yield Patch([InitRecurrent("orthogonal"), clip])  # of gain 1 from the start
            yield Patch([InitRecurrent("identity"), clip])
            yield Patch([ReplaceCell("orthogonal")])
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
