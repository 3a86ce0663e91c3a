"""A recurrent net built by hand from nn.RNNCell, nn.LSTMCell and nn.GRUCell, one sequence after another.

It shares nothing with the replay: no batches, no packing, no hand-written cell.
Every state keeps its own gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Unrolled:
    """What the hand-built net returned, and its states.

    ``hidden[layer, direction][sequence][t]`` is h_t, of shape [1, hidden]; likewise ``cell``.
    """

    padded: Tensor  # [time, batch, directions · hidden]
    h_n: Tensor
    c_n: Tensor | None
    hidden: dict[tuple[int, int], list[list[Tensor]]]
    cell: dict[tuple[int, int], list[list[Tensor]]]


def unrolled(
    module: nn.RNN | nn.LSTM | nn.GRU,
    sequences: list[Tensor],
    hx: tuple[Tensor, ...] | None = None,
    masks: list[Tensor] | None = None,
) -> Unrolled:
    """Run the cells.

    Args:
        module: Where the weights come from.
        sequences: One [time, features] tensor for each member of the batch.
        hx: (h_0,) or (h_0, c_0), each [layers · directions, batch, hidden].
        masks: For each layer but the last, the dropout mask with its scale [time, batch, features].
    """
    directions = 2 if module.bidirectional else 1
    hidden_size, dtype = module.hidden_size, sequences[0].dtype
    output_size = module.proj_size or hidden_size
    hidden: dict[tuple[int, int], list[list[Tensor]]] = {}
    cells: dict[tuple[int, int], list[list[Tensor]]] = {}
    last_h, last_c = [], []
    layer_inputs = sequences
    for layer in range(module.num_layers):
        outputs: list[list[Tensor]] = [[] for _ in sequences]
        for direction in range(directions):
            k = layer * directions + direction
            with torch.random.fork_rng(devices=[]):  # cells draw initial weights
                cell = _cell(module, layer, direction)
            hidden[layer, direction], cells[layer, direction] = [], []
            for index, sequence in enumerate(layer_inputs):
                h = torch.zeros(1, output_size, dtype=dtype)
                c = torch.zeros(1, hidden_size, dtype=dtype)
                if hx is not None:
                    h = hx[0][k, index : index + 1]
                    c = hx[-1][k, index : index + 1]
                hs, cs = [h] * len(sequence), [c] * len(sequence)
                times = range(len(sequence))
                for t in reversed(times) if direction else times:
                    x = sequence[t : t + 1]
                    if isinstance(cell, _ProjectedCell | nn.LSTMCell):
                        h, c = cell(x, (h, c))
                        c.retain_grad()
                    else:
                        h = cell(x, h)
                    h.retain_grad()
                    hs[t], cs[t] = h, c
                hidden[layer, direction].append(hs)
                cells[layer, direction].append(cs)
                outputs[index].append(torch.cat(hs))
                last_h.append(h)
                last_c.append(c)
        layer_inputs = [torch.cat(parts, 1) for parts in outputs]
        if masks is not None and layer < module.num_layers - 1:
            layer_inputs = [x * masks[layer][: len(x), i] for i, x in enumerate(layer_inputs)]
    shape = (module.num_layers * directions, len(sequences), -1)
    return Unrolled(
        pad_sequence(layer_inputs),
        torch.cat(last_h).reshape(shape),
        torch.cat(last_c).reshape(shape) if isinstance(module, nn.LSTM) else None,
        hidden,
        cells,
    )


def _cell(module: nn.RNN | nn.LSTM | nn.GRU, layer: int, direction: int) -> nn.Module:
    suffix = f"_l{layer}" + ("_reverse" if direction else "")
    weights = {
        name.removesuffix(suffix): w.detach().clone()
        for name, w in module.named_parameters()
        if name.endswith(suffix)
    }
    features, hidden = weights["weight_ih"].shape[1], module.hidden_size
    options: dict[str, Any] = {"bias": bool(module.bias), "dtype": weights["weight_ih"].dtype}
    cell: nn.Module
    if isinstance(module, nn.RNN):
        cell = nn.RNNCell(features, hidden, nonlinearity=module.nonlinearity, **options)
    elif isinstance(module, nn.GRU):
        cell = nn.GRUCell(features, hidden, **options)
    elif module.proj_size:
        return _ProjectedCell(weights, hidden, options)
    else:
        cell = nn.LSTMCell(features, hidden, **options)
    cell.load_state_dict(weights)
    return cell


class _ProjectedCell(nn.Module):
    """An LSTMCell with h = W_hr (o ⊙ tanh c).

    nn.LSTMCell knows no projection: h_{t−1} comes in as further input, and the recurrent weight is zero.
    """

    def __init__(self, weights: dict[str, Tensor], hidden: int, options: dict[str, Any]) -> None:
        super().__init__()
        weight_ih = torch.cat([weights["weight_ih"], weights["weight_hh"]], 1)
        self.cell = nn.LSTMCell(weight_ih.shape[1], hidden, **options)
        self.cell.load_state_dict(
            self.cell.state_dict()
            | {name: w for name, w in weights.items() if name.startswith("bias")}
            | {"weight_ih": weight_ih, "weight_hh": torch.zeros(4 * hidden, hidden)}
        )
        self.weight_hr = weights["weight_hr"]

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        full, c = self.cell(torch.cat([x, h], 1), (torch.zeros_like(c), c))
        return full @ self.weight_hr.T, c
