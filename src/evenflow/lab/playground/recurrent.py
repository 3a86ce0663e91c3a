"""A recurrent net over time: RNN, LSTM or GRU, read at the last step.

Theory: the rate per time step of :mod:`evenflow.theory.recurrent`, the same at
every step, so the expected profile is a straight line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast, final

from torch import nn

from evenflow.lab.measuring import draw, gaussian, relative
from evenflow.lab.networks import RecurrentNet
from evenflow.lab.networks.recurrent import Cell, RecurrentInit
from evenflow.lab.playground.control import Choice, Control, Slider
from evenflow.lab.playground.net import Net, Profile
from evenflow.theory import gru_rate, lstm_rate, rnn_rate

BATCH = 8
"""Sequences that a real net is measured with."""

DEFAULT = 1 / 3
"""σ² of PyTorch's U(±1/√hidden)."""


@final
@dataclass(frozen=True)
class Recurrent(Net):
    """See the module.

    Attributes:
        cell: ``rnn``, ``lstm`` or ``gru``.
        steps: Time steps.
        hidden: Units of the state, and features of the input, which is N(0, 1) at every step.
        init: Of the weights from state to state.
        gain: Multiplies them, but not PyTorch's default.
        forget_bias: Of an LSTM.
    """

    places: ClassVar = "time step of the sequence"
    controls: ClassVar[tuple[Control, ...]] = (
        Choice("cell", "Cell", (("rnn", "RNN, tanh"), ("lstm", "LSTM"), ("gru", "GRU")), "What is repeated."),
        Slider("steps", "Time steps", 2, 200, 1, "Length of the sequence."),
        Slider("hidden", "State", 16, 256, 16, "Units of the state."),
        Choice(
            "init",
            "Recurrent weights",
            (("default", "PyTorch's default"), ("normal", "normal"), ("orthogonal", "orthogonal")),
            "How weights from state to state start.",
        ),
        Slider("gain", "Gain", 0.25, 4, 0.05, "Multiplies these weights: σ_w of the recurrence."),
        Slider("forget_bias", "Forget bias", 0, 5, 0.25, "Opens the gate that keeps an LSTM's memory."),
    )

    cell: str = "rnn"
    steps: int = 50
    hidden: int = 128
    init: str = "default"
    gain: float = 1.0
    forget_bias: float = 0.0

    @property
    def idle(self) -> frozenset[str]:
        """The default init has no gain, and only an LSTM a forget gate."""
        return frozenset(
            name
            for name, idle in (("gain", self.init == "default"), ("forget_bias", self.cell != "lstm"))
            if idle
        )

    def expected(self) -> Profile:
        """See :class:`Net`."""
        gain = self._gain_per_step()
        return Profile(tuple(gain * (self.steps - 1 - time) for time in range(self.steps)))

    def measured(self, seed: int = 0) -> Profile:
        """See :class:`Net`; the state is the hidden one, and of an LSTM the cell's."""
        flow = draw(self.build, gaussian(BATCH, self.steps, self.hidden, seed=seed), seed)
        state = "cell:cell_l0" if self.cell == "lstm" else "cell:hidden_l0"
        profile = flow.time_profile()[state]
        return Profile(tuple(relative([profile[time].log10_norm for time in range(self.steps)])))

    def build(self) -> nn.Module:
        """The real net; it draws from PyTorch's global state."""
        return RecurrentNet(
            inputs=self.hidden,
            hidden=self.hidden,
            cell=cast("Cell", self.cell),
            recurrent_init=cast("RecurrentInit", self.init),
            gain=self.gain,
            forget_bias=self.forget_bias if self.cell == "lstm" else None,
        )

    def _gain_per_step(self) -> float:
        """log10 ‖gradient‖ per step back."""
        weight = DEFAULT if self.init == "default" else self.gain**2
        drive = 1.0 if self.init == "normal" else DEFAULT  # what the input adds
        if self.cell == "lstm":  # with a forget bias all others are 0
            return lstm_rate(weight, drive, forget_bias=self.forget_bias, steps=self.steps).log10_gain(1)
        biases = 2 * DEFAULT / self.hidden  # two vectors of PyTorch's default
        if self.cell == "gru":
            return gru_rate(weight, drive + biases, steps=self.steps).log10_gain(1)
        return 0.5 * math.log10(rnn_rate("tanh", weight, drive + biases))
