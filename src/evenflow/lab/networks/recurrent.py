"""Recurrent nets: RNN, LSTM or GRU, and a linear layer that reads the states."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from evenflow.errors import EvenflowError

Cell: TypeAlias = Literal["rnn", "lstm", "gru"]
RecurrentInit: TypeAlias = Literal["default", "normal", "orthogonal", "identity"]


class RecurrentNet(nn.Module):
    """Sequence in, one output out (or one per step).

    Args:
        inputs: Features of one time step.
        hidden: Units of the state.
        outputs: Features of the output.
        cell: ``rnn``, ``lstm`` or ``gru``.
        layers: Stacked layers.
        nonlinearity: Of the ``rnn``: ``tanh`` or ``relu``.
        recurrent_init: Of the weights from state to state, gate by gate.
            ``default`` leaves PyTorch's U(±1/√hidden), σ² = ⅓; ``normal`` draws
            N(0, gain²/hidden) for these and N(0, 1/inputs) for those from the
            input; ``orthogonal`` and ``identity`` are scaled by ``gain``.
        gain: See ``recurrent_init``.
        forget_bias: Of an ``lstm``; both of its bias vectors together. With it
            all other biases are 0. None leaves PyTorch's.
        chrono: Longest memory T that the task needs: forget biases ln U(1, T−1),
            input biases their negative. Wins over ``forget_bias``.
        every_step: Whether to give an output for every step.

    References:
        R. Jozefowicz et al., ICML 2015 (forget bias). C. Tallec & Y. Ollivier,
        ICLR 2018, eq. 16 (chrono). Q. Le et al. 2015 (identity).
    """

    def __init__(
        self,
        *,
        inputs: int = 2,
        hidden: int = 128,
        outputs: int = 1,
        cell: Cell = "lstm",
        layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        recurrent_init: RecurrentInit = "default",
        gain: float = 1.0,
        forget_bias: float | None = None,
        chrono: int | None = None,
        every_step: bool = False,
    ) -> None:
        super().__init__()
        if cell == "rnn":
            self.cell: nn.RNNBase = nn.RNN(
                inputs, hidden, layers, nonlinearity=nonlinearity, batch_first=True
            )
        elif cell in ("lstm", "gru"):
            self.cell = (nn.LSTM if cell == "lstm" else nn.GRU)(inputs, hidden, layers, batch_first=True)
        else:
            raise EvenflowError(f"There is no recurrent cell {cell!r} in the lab. It has: rnn, lstm, gru.")
        if cell != "lstm" and (forget_bias is not None or chrono is not None):
            raise EvenflowError(f"forget_bias and chrono are for the cell 'lstm', got {cell!r}.")
        self.head = nn.Linear(hidden, outputs)
        self.every_step = every_step
        for name, parameter in self.cell.named_parameters():
            if name.startswith("weight_hh"):
                _recurrent_weight(parameter, recurrent_init, gain)
            elif name.startswith("weight_ih") and recurrent_init == "normal":
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif name.startswith("bias") and (forget_bias is not None or chrono is not None):
                nn.init.zeros_(parameter)
        for layer in range(layers):
            bias = getattr(self.cell, f"bias_ih_l{layer}")
            if chrono is not None:
                _chrono(bias, hidden, chrono)
            elif forget_bias is not None:
                with torch.no_grad():
                    bias[hidden : 2 * hidden] = forget_bias

    def forward(self, x: Tensor) -> Tensor:
        """[B, steps, inputs] to [B, outputs], or to [B, steps, outputs] with ``every_step``."""
        states, _ = self.cell(x)
        y: Tensor = self.head(states if self.every_step else states[:, -1])
        return y


def _recurrent_weight(weight: Tensor, init: RecurrentInit, gain: float) -> None:
    """Each gate has a square matrix of its own; they are stacked in one weight."""
    hidden = weight.shape[1]
    for gate in weight.detach().split(hidden):
        if init == "normal":
            nn.init.normal_(gate, std=gain * hidden**-0.5)
        elif init == "orthogonal":
            nn.init.orthogonal_(gate, gain=gain)
        elif init == "identity":
            nn.init.eye_(gate).mul_(gain)


def _chrono(bias: Tensor, hidden: int, longest: int) -> None:
    """PyTorch's order of gates is input, forget, cell, output."""
    if longest < 3:
        raise EvenflowError(f"chrono draws ln U(1, T − 1) and needs T of at least 3, got {longest}.")
    with torch.no_grad():
        forget = torch.empty(hidden).uniform_(1.0, longest - 1.0).log_()
        bias[hidden : 2 * hidden] = forget
        bias[:hidden] = -forget
