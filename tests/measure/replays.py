"""What the tests of the recurrent replay share: small nets, losses, one run, and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from evenflow.measure import recurrent
from evenflow.measure.recurrent import NotReplayed, RecurrentCall, RecurrentGradients
from tests.oracles.unrolled_cells import Unrolled, unrolled

Recurrent = nn.RNN | nn.LSTM | nn.GRU
Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(output [time, batch, features], h_n, c_n) → scalar."""

KINDS: dict[str, Callable[..., Recurrent]] = {
    "tanh": nn.RNN,
    "relu": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}
TIME, BATCH, FEATURES, HIDDEN = 7, 3, 4, 5
LENGTHS = [3, 7, 4]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def build(kind: str, **options: Any) -> Recurrent:
    return KINDS[kind](FEATURES, HIDDEN, **options).double()


def last(out: Tensor, h_n: Tensor, c_n: Tensor | None) -> Tensor:
    return (out[-1] * normal(*out[-1].shape, seed=1)).sum()


def mean(out: Tensor, h_n: Tensor, c_n: Tensor | None) -> Tensor:
    return out.mean(0).square().sum()


def subset(out: Tensor, h_n: Tensor, c_n: Tensor | None) -> Tensor:
    return (out.sin() * (normal(*out.shape, seed=2) > 0.5)).sum()


def only_h_n(out: Tensor, h_n: Tensor, c_n: Tensor | None) -> Tensor:
    return (h_n * normal(*h_n.shape, seed=3)).sum()


def only_c_n(out: Tensor, h_n: Tensor, c_n: Tensor | None) -> Tensor:
    assert c_n is not None
    return (c_n * normal(*c_n.shape, seed=4)).sum()


def everything(out: Tensor, h_n: Tensor, c_n: Tensor | None) -> Tensor:
    total = subset(out, h_n, c_n) + only_h_n(out, h_n, c_n)
    return total if c_n is None else total + only_c_n(out, h_n, c_n)


def run(
    module: Recurrent, x: Tensor | PackedSequence, loss: Loss, hx: Any = None
) -> RecurrentGradients | NotReplayed:
    """Forward, backward and replay, as the measurement does it."""
    state = recurrent.random_state(module)
    result = module(x, hx)
    call = recurrent.record(module, (x, hx), {}, result, state)
    assert isinstance(call, RecurrentCall)
    return recurrent.replay(call, *backward(module, result, loss))


def backward(module: Recurrent, result: Any, loss: Loss) -> list[Tensor | None]:
    """∂L/∂output, ∂L/∂h_n and, for an LSTM, ∂L/∂c_n."""
    out, final = result
    states = list(final) if isinstance(final, tuple) else [final]
    data = out.data if isinstance(out, PackedSequence) else out
    padded = pad_packed_sequence(out)[0] if isinstance(out, PackedSequence) else out
    if module.batch_first and isinstance(out, Tensor) and out.dim() == 3:
        padded = padded.transpose(0, 1)
    value = loss(padded, states[0], states[1] if len(states) == 2 else None)
    return list(torch.autograd.grad(value, [data, *states], allow_unused=True, retain_graph=True))


def gradients_of(result: RecurrentGradients | NotReplayed) -> RecurrentGradients:
    assert isinstance(result, RecurrentGradients), result.reason
    return result


def assert_close(found: Tensor | None, truth: Tensor, tolerance: float = 1e-9) -> None:
    """Agreement relative to the largest entry; None stands for zeros."""
    found = torch.zeros_like(truth) if found is None else found
    assert found.shape == truth.shape
    difference = (found.double() - truth.double()).abs().max().item()
    assert difference <= tolerance * truth.double().abs().max().item(), difference


def assert_agree(result: RecurrentGradients | NotReplayed, truth: Unrolled, lengths: list[int]) -> None:
    result = gradients_of(result)
    assert result.error < 1e-12
    pairs = [(result.hidden, truth.hidden)]
    if truth.c_n is not None:
        pairs.append((result.cell, truth.cell))
    else:
        assert result.cell == ()
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # stable: equal lengths keep their order
    for found, states in pairs:
        assert [(path.layer, int(path.reverse)) for path in found] == list(states)
        for path in found:
            sequences = states[path.layer, int(path.reverse)]
            assert len(path.gradients) == max(lengths)
            for t, gradient in enumerate(path.gradients):
                alive = [sequences[i][t] for i in order if lengths[i] > t]
                assert_close(
                    gradient, torch.cat([torch.zeros_like(h) if h.grad is None else h.grad for h in alive])
                )


def check_dense(module: Recurrent, x: Tensor, loss: Loss, hx: Any = None, masks: Any = None) -> None:
    """Replay against cells, for x [time, batch, features]."""
    states = None if hx is None else hx if isinstance(hx, tuple) else (hx,)
    truth = unrolled(module, list(x.unbind(1)), states, masks)
    loss(truth.padded, truth.h_n, truth.c_n).backward()
    result = run(module, x.transpose(0, 1) if module.batch_first else x, loss, hx)
    assert_agree(result, truth, [len(x)] * x.shape[1])


def reference(module: Recurrent, x: Tensor) -> RecurrentGradients:
    return gradients_of(run(module, x, everything))


def assert_same(found: RecurrentGradients | NotReplayed, truth: RecurrentGradients) -> None:
    found = gradients_of(found)
    for mine, other in zip(found.hidden + found.cell, truth.hidden + truth.cell, strict=True):
        assert (mine.layer, mine.reverse) == (other.layer, other.reverse)
        for gradient, expected in zip(mine.gradients, other.gradients, strict=True):
            assert expected is not None
            assert_close(gradient, expected)
