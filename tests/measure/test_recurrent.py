"""The numbers of the recurrent replay: against hand-unrolled cells, closed forms and the fused kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from evenflow.measure import recurrent
from evenflow.measure.recurrent import RecurrentCall
from tests.measure.replays import (
    BATCH,
    FEATURES,
    HIDDEN,
    KINDS,
    LENGTHS,
    TIME,
    Loss,
    Recurrent,
    assert_agree,
    assert_close,
    build,
    check_dense,
    everything,
    gradients_of,
    last,
    mean,
    normal,
    only_c_n,
    only_h_n,
    run,
    subset,
)
from tests.oracles.unrolled_cells import unrolled


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        yield


# Against hand-unrolled cells --------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [last, mean, subset, only_h_n, only_c_n, everything])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_cells(
    kind: str, num_layers: int, bidirectional: bool, batch_first: bool, loss: Loss
) -> None:
    if loss is only_c_n and kind != "lstm":
        return
    module = build(kind, num_layers=num_layers, bidirectional=bidirectional, batch_first=batch_first)
    check_dense(module, normal(TIME, BATCH, FEATURES, seed=5), loss)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{"bias": False}, {"num_layers": 3}, {"num_layers": 2, "bidirectional": True}]
)
def test_agrees_with_cells_from_a_given_state(kind: str, options: dict[str, Any]) -> None:
    module = build(kind, **options)
    count = module.num_layers * (1 + module.bidirectional)
    hx: Any = normal(count, BATCH, HIDDEN, seed=6)
    if kind == "lstm":
        hx = (hx, normal(count, BATCH, HIDDEN, seed=7))
    check_dense(module, normal(TIME, BATCH, FEATURES, seed=5), everything, hx)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_agrees_with_cells_with_a_projection(options: dict[str, Any], bias: bool) -> None:
    module = build("lstm", proj_size=2, bias=bias, **options)
    count = module.num_layers * (1 + module.bidirectional)
    hx = normal(count, BATCH, 2, seed=6), normal(count, BATCH, HIDDEN, seed=7)
    check_dense(module, normal(TIME, BATCH, FEATURES, seed=5), everything, hx)


@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_cells_without_a_batch(kind: str, batch_first: bool, with_hx: bool) -> None:
    module = build(kind, num_layers=2, bidirectional=True, batch_first=batch_first)
    x, hx = normal(TIME, FEATURES, seed=5), normal(4, HIDDEN, seed=6)
    given: Any = None if not with_hx else (hx, 2 * hx) if kind == "lstm" else hx
    states = None if not with_hx else (hx[:, None], 2 * hx[:, None])
    truth = unrolled(module, [x], states)
    everything(truth.padded[:, 0], truth.h_n[:, 0], None if truth.c_n is None else truth.c_n[:, 0]).backward()
    assert_agree(run(module, x, everything, given), truth, [TIME])


@pytest.mark.parametrize("loss", [everything, last])
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_cells_on_packed_sequences(
    kind: str, bidirectional: bool, is_sorted: bool, with_hx: bool, loss: Loss
) -> None:
    module = build(kind, num_layers=2, bidirectional=bidirectional)
    lengths = sorted(LENGTHS, reverse=True) if is_sorted else LENGTHS
    sequences = [normal(n, FEATURES, seed=10 + n) for n in lengths]
    hx = normal(2 + 2 * bidirectional, BATCH, HIDDEN, seed=6)
    given: Any = None if not with_hx else (hx, 2 * hx) if kind == "lstm" else hx
    truth = unrolled(module, sequences, (hx, 2 * hx) if with_hx else None)
    loss(truth.padded, truth.h_n, truth.c_n).backward()
    assert_agree(run(module, pack_sequence(sequences, enforce_sorted=is_sorted), loss, given), truth, lengths)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_cells_under_dropout(kind: str, batch_first: bool) -> None:
    module = build(kind, num_layers=3, bidirectional=True, dropout=0.4, batch_first=batch_first)
    with torch.random.fork_rng(devices=[]):
        masks = [F.dropout(torch.ones(TIME, BATCH, 2 * HIDDEN).double(), 0.4) for _ in range(2)]
    check_dense(module, normal(TIME, BATCH, FEATURES, seed=5), everything, masks=masks)


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_cells_under_dropout_on_packed_sequences(kind: str) -> None:
    module = build(kind, num_layers=2, dropout=0.4)
    sequences = [normal(n, FEATURES, seed=10 + n) for n in LENGTHS]
    packed = pack_sequence(sequences, enforce_sorted=False)
    with torch.random.fork_rng(devices=[]):
        ones = torch.ones(sum(LENGTHS), HIDDEN).double()
        mask = pad_packed_sequence(packed._replace(data=F.dropout(ones, 0.4)))[0]
    truth = unrolled(module, sequences, masks=[mask])
    everything(truth.padded, truth.h_n, truth.c_n).backward()
    assert_agree(run(module, packed, everything), truth, LENGTHS)


def test_dropout_in_eval_mode_draws_nothing() -> None:
    module = build("lstm", num_layers=2, dropout=0.4).eval()
    assert recurrent.random_state(module) is None
    check_dense(module, normal(TIME, BATCH, FEATURES, seed=5), everything)


def test_the_comparison_can_fail() -> None:
    truth = torch.tensor([1.0, -2.0])
    assert_close(truth * (1 + 1e-12), truth)
    with pytest.raises(AssertionError):
        assert_close(truth * (1 + 1e-6), truth)
    with pytest.raises(AssertionError):
        assert_close(None, truth)
    with pytest.raises(AssertionError):
        assert_close(truth[:1], truth)


# Closed forms and properties --------------------------------------------------------------------------------


def test_scalar_relu_net_has_powers_of_its_weight() -> None:
    """h_t = w h_{t−1} + x_t with all positive: ∂h_T/∂h_t = w^(T−t)."""
    module = nn.RNN(1, 1, nonlinearity="relu", bias=False).double()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.fill_(0.5 if name == "weight_hh_l0" else 1.0)
    result = gradients_of(run(module, torch.ones(30, 1, 1).double(), lambda out, h_n, c_n: h_n.sum()))
    found = [gradient.item() for gradient in result.hidden[0].gradients if gradient is not None]
    assert found == [0.5 ** (29 - t) for t in range(30)]


@pytest.mark.parametrize("when", [0, 3, TIME - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_one_contributing_step(kind: str, when: int) -> None:
    """The gradient starts where the loss looks, and goes against the direction of reading."""
    module = build(kind, bidirectional=True)
    seen = normal(BATCH, 2 * HIDDEN, seed=8)
    result = gradients_of(
        run(module, normal(TIME, BATCH, FEATURES, seed=5), lambda out, h_n, c_n: (out[when] * seen).sum())
    )
    for path, part in zip(result.hidden, seen.chunk(2, 1), strict=True):
        for t, gradient in enumerate(path.gradients):
            assert gradient is not None
            later = t < when if path.reverse else t > when
            assert (gradient == 0).all() == later
            if t == when:
                assert torch.equal(gradient, part)


def test_states_that_the_loss_does_not_depend_on_have_no_gradient() -> None:
    module = build("gru", num_layers=2)
    x = normal(TIME, BATCH, FEATURES, seed=5)
    result = module(x)
    call = recurrent.record(module, (x,), {}, result)
    assert isinstance(call, RecurrentCall)

    detached = gradients_of(recurrent.replay(call, None))
    assert [path.gradients for path in detached.hidden] == [(None,) * TIME] * 2

    below = gradients_of(recurrent.replay(call, None, torch.stack([torch.ones_like(result[1][0])] * 2)))
    assert all(gradient is not None for path in below.hidden for gradient in path.gradients)


def test_a_state_carried_from_call_to_call() -> None:
    """The gradient that a first call gets from a second one comes in through h_n."""
    module = build("lstm")
    x = normal(2 * TIME, BATCH, FEATURES, seed=5)
    whole = gradients_of(run(module, x, last))
    first = module(x[:TIME])
    call = recurrent.record(module, (x[:TIME],), {}, first)
    assert isinstance(call, RecurrentCall)
    second, _ = module(x[TIME:], first[1])
    h_n, c_n = torch.autograd.grad(last(second, *first[1]), first[1])
    halves = gradients_of(recurrent.replay(call, None, h_n, c_n))
    for found, truth in ((halves.hidden, whole.hidden), (halves.cell, whole.cell)):
        for t in range(TIME):
            gradient = truth[0].gradients[t]
            assert gradient is not None
            assert_close(found[0].gradients[t], gradient)


# Against the fused kernel itself ----------------------------------------------------------------------------


def split_kernel(module: Recurrent, x: Tensor, cut: int, seed: Tensor) -> Tensor:
    """∂L/∂h_t at t = ``cut`` of one layer, by the kernel's own backward: it is run up to t, and then on.

    L = Σ out · seed. The gradient comes from what follows, and from the output at t directly.
    """
    with torch.no_grad():
        _, carried = module(x[: cut + 1])
    states = carried if isinstance(carried, tuple) else (carried,)
    h: Tensor = states[0].requires_grad_()
    out, _ = module(x[cut + 1 :], (h, *states[1:]) if len(states) == 2 else h)
    return torch.autograd.grad((out * seed[cut + 1 :]).sum(), h)[0][0] + seed[cut]


@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [
        (torch.float32, None, 1e-5),
        (torch.bfloat16, None, 5e-2),
        (torch.float16, None, 1e-2),
        (torch.float32, torch.bfloat16, 5e-2),
        (torch.float64, torch.bfloat16, 1e-9),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_kernel_in_every_precision(
    kind: str, dtype: torch.dtype, autocast: torch.dtype | None, tolerance: float
) -> None:
    module = KINDS[kind](FEATURES, HIDDEN).to(dtype)
    x, seed = normal(TIME, BATCH, FEATURES, seed=5, dtype=dtype), normal(TIME, BATCH, HIDDEN, seed=9)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        result = module(x)
        call = recurrent.record(module, (x,), {}, result)
        truth = [split_kernel(module, x, t, seed) for t in range(TIME - 1)]
    assert isinstance(call, RecurrentCall)
    assert call.autocast_dtype == autocast
    (gradient,) = torch.autograd.grad((result[0] * seed).sum(), result[0])
    replayed = gradients_of(recurrent.replay(call, gradient))
    for t in range(TIME - 1):
        assert_close(replayed.hidden[0].gradients[t], truth[t], tolerance)


def loud(module: Recurrent, factor: float) -> Recurrent:
    """Scale the recurrent weights up, which makes the net chaotic and its gradients explode."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "weight_hh" in name:
                weight.mul_(factor)
    return module


def chained_kernel(module: Recurrent, x: Tensor, out: Tensor, seed: Tensor) -> list[Tensor]:
    """∂L/∂h_t for L = Σ out · seed by the chain rule: the kernel's own backward, step by step from out."""

    def step(t: int, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        final = module(x[t : t + 1], (h, c) if isinstance(module, nn.LSTM) else h)[1]
        return final if isinstance(final, tuple) else (final, c)

    zero = torch.zeros_like(out[:1])
    carried = [step(0, zero, zero)[1].detach()]  # c_t of an LSTM
    for t in range(1, len(x)):
        carried.append(step(t, out[t - 1 : t], carried[-1])[1].detach())
    arriving = [seed[-1:], torch.zeros_like(seed[-1:])]
    found = [seed[-1]]
    for t in range(len(x) - 1, 0, -1):
        before = [out[t - 1 : t].detach().requires_grad_(), carried[t - 1].requires_grad_()]
        arriving = list(torch.autograd.grad(step(t, *before), before, arriving))
        arriving[0] = arriving[0] + seed[t - 1]
        found.append(arriving[0][0])
    return found[::-1]


@pytest.mark.parametrize(("kind", "factor"), [("tanh", 4.0), ("lstm", 20.0), ("gru", 10.0)])
def test_follows_the_kernel_into_chaos(kind: str, factor: float) -> None:
    """Kernels differ in rounding, and chaos makes that as large as the states: anchored steps do not mind."""
    steps, width = 200, 32
    module = loud(KINDS[kind](FEATURES, width), factor)
    x, seed = normal(steps, BATCH, FEATURES, seed=5).float(), torch.zeros(steps, BATCH, width)
    seed[-1] = normal(BATCH, width, seed=9)
    result = gradients_of(run(module, x, lambda out, h_n, c_n: (out * seed).sum()))
    truth = chained_kernel(module, x, module(x)[0], seed)
    for gradient, expected in zip(result.hidden[0].gradients, truth, strict=True):
        assert_close(gradient, expected, 1e-4)
    assert truth[0].norm() > 1e9 * truth[-1].norm()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["tanh", "lstm", "gru"])
def test_lower_layers_follow_the_kernel_into_chaos(kind: str, bidirectional: bool) -> None:
    module = loud(KINDS[kind](FEATURES, 64, num_layers=3, bidirectional=bidirectional), 20.0)
    result = gradients_of(run(module, normal(100, 8, FEATURES, seed=5).float(), last))
    assert result.error < 1e-5
