"""The recurrent layers of the corpus, Keras' variants included."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.diagnosis.data import UnbuildableError
from torch import Tensor, nn


def _hard_sigmoid(v: Tensor) -> Tensor:
    """clip(0.2 v + 0.5, 0, 1), Keras' definition; PyTorch divides by 6."""
    return (0.2 * v + 0.5).clamp(0, 1)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "linear": lambda v: v,
    "hard_sigmoid": _hard_sigmoid,
}


class Recurrent(nn.Module):
    """nn.RNN, nn.LSTM or nn.GRU, giving only the outputs; the state can be detached every so many steps."""

    def __init__(self, core: nn.RNNBase, detach_every: int = 0) -> None:
        super().__init__()
        self.core, self.detach_every = core, detach_every

    def forward(self, x: Tensor) -> Tensor:
        if not self.detach_every:
            out: Tensor = self.core(x)[0]
            return out
        state, outs = None, []
        for piece in x.split(self.detach_every, 1):
            out, state = self.core(piece, state)
            state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
            outs.append(out)
        return torch.cat(outs, 1)


class LoopedRNN(nn.Module):
    """h_t = f(W x_t + U h_{t−1} + b) with any f."""

    def __init__(self, n_in: int, hidden: int, nonlinearity: str) -> None:
        super().__init__()
        self.weight_ih, self.weight_hh = nn.Linear(n_in, hidden), nn.Linear(hidden, hidden)
        self.act = _ACTIVATIONS[nonlinearity]

    def forward(self, x: Tensor) -> Tensor:
        h, outs = x.new_zeros(len(x), self.weight_hh.out_features), []
        for drive in self.weight_ih(x).unbind(1):
            h = self.act(drive + self.weight_hh(h))
            outs.append(h)
        return torch.stack(outs, 1)


class LoopedLSTM(nn.Module):
    """Keras' LSTM with free activations; steps that are zero throughout are skipped if ``mask``."""

    def __init__(self, n_in: int, hidden: int, cell: str, gate: str, *, mask: bool) -> None:
        super().__init__()
        self.kernel, self.recurrent = nn.Linear(n_in, 4 * hidden), nn.Linear(hidden, 4 * hidden, bias=False)
        nn.init.xavier_uniform_(self.kernel.weight)
        nn.init.orthogonal_(self.recurrent.weight)
        nn.init.zeros_(self.kernel.bias)
        nn.init.ones_(self.kernel.bias[hidden : 2 * hidden])  # unit_forget_bias
        self.hidden, self.mask = hidden, mask
        self.cell, self.gate = _ACTIVATIONS[cell], _ACTIVATIONS[gate]

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.hidden)
        c, outs = torch.zeros_like(h), []
        live = (x != 0).any(-1, keepdim=True) if self.mask else None
        for t, drive in enumerate(self.kernel(x).unbind(1)):
            i, f, g, o = (drive + self.recurrent(h)).chunk(4, -1)
            c_new = self.gate(f) * c + self.gate(i) * self.cell(g)
            h_new = self.gate(o) * self.cell(c_new)
            if live is not None:
                h_new, c_new = torch.where(live[:, t], h_new, h), torch.where(live[:, t], c_new, c)
            h, c = h_new, c_new
            outs.append(h)
        return torch.stack(outs, 1)


def recurrent_layer(spec: dict[str, Any]) -> nn.Module:
    """A layer of type RNN, LSTM or GRU as a module from [B, T, in] to [B, T, hidden]."""
    kind, n_in, hidden = spec["type"], spec["in"], spec["hidden"]
    init, depth = spec.get("init", "pytorch_default"), spec.get("num_layers", 1)
    if kind == "LSTM" and "cell_activation" in spec:
        return LoopedLSTM(
            n_in, hidden, spec["cell_activation"], spec["gate_activation"], mask=spec["masking"]
        )
    nonlinearity = spec.get("nonlinearity", "tanh")
    if kind == "RNN" and nonlinearity not in ("tanh", "relu"):
        return LoopedRNN(n_in, hidden, nonlinearity)
    kinds: dict[str, Callable[[], nn.RNNBase]] = {
        "RNN": lambda: nn.RNN(n_in, hidden, depth, batch_first=True, nonlinearity=nonlinearity),
        "LSTM": lambda: nn.LSTM(n_in, hidden, depth, batch_first=True),
        "GRU": lambda: nn.GRU(n_in, hidden, depth, batch_first=True),
    }
    core = kinds[kind]()
    normal = re.match(r"W_hh normal\(0,([\d.]+)\)", init)
    if normal:
        for name, p in core.named_parameters():
            if "hh" in name and p.dim() > 1:
                nn.init.normal_(p, 0, float(normal.group(1)))
    elif init != "pytorch_default":
        raise UnbuildableError(f"unknown recurrent initialiser {init!r}")
    if "forget_bias" in spec:
        for name, p in core.named_parameters():
            if name.startswith("bias"):
                nn.init.constant_(p[hidden : 2 * hidden], spec["forget_bias"] if "ih" in name else 0.0)
    return Recurrent(core, int(spec.get("detach_every", 0)))
