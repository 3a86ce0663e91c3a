"""Which calls of recurrent modules can be replayed, which are refused, and that no trace is left."""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from evenflow.measure import recurrent, unroll
from evenflow.measure.recurrent import NotReplayed, RecurrentCall, RecurrentGradients
from tests.measure.replays import (
    BATCH,
    FEATURES,
    HIDDEN,
    KINDS,
    TIME,
    assert_same,
    backward,
    build,
    check_dense,
    everything,
    gradients_of,
    mean,
    normal,
    reference,
    run,
)


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        yield


# What can be recorded ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_changed_in_place(kind: str) -> None:
    module, x = build(kind, num_layers=2, bidirectional=True), normal(TIME, BATCH, FEATURES, seed=5)
    truth = reference(module, x)
    result = module(x)
    call = recurrent.record(module, (x,), {}, result)
    assert isinstance(call, RecurrentCall)
    arriving = backward(module, result, everything)
    with torch.no_grad():
        result[0].mul_(3.0)
    assert_same(recurrent.replay(call, *arriving), truth)


def test_arguments_by_name() -> None:
    module, x = build("lstm"), normal(TIME, BATCH, FEATURES, seed=5)
    hx = normal(1, BATCH, HIDDEN, seed=6), normal(1, BATCH, HIDDEN, seed=7)
    truth = gradients_of(run(module, x, everything, hx))
    result = module(input=x, hx=hx)
    call = recurrent.record(module, (), {"input": x, "hx": hx}, result)
    assert isinstance(call, RecurrentCall)
    assert_same(recurrent.replay(call, *backward(module, result, everything)), truth)


def test_subclasses_that_keep_forward() -> None:
    class Named(nn.GRU):
        pass

    module = Named(FEATURES, HIDDEN).double()
    check_dense(module, normal(TIME, BATCH, FEATURES, seed=5), everything)


def test_weights_of_the_call_and_not_those_of_later() -> None:
    """As with torch.func.functional_call, which lends a module other weights for one call."""
    module, other = build("gru", num_layers=2), build("gru", num_layers=2)
    x = normal(TIME, BATCH, FEATURES, seed=5)
    truth = reference(other, x)
    calls: list[Any] = []
    module.register_forward_hook(lambda m, args, out: calls.append(recurrent.record(module, args, {}, out)))
    result = torch.func.functional_call(module, dict(other.named_parameters()), (x,))
    module(x)
    assert_same(recurrent.replay(calls[0], *backward(module, result, everything)), truth)


def test_parametrized_weights() -> None:
    module, x = build("gru", num_layers=2), normal(TIME, BATCH, FEATURES, seed=5)
    parametrizations.spectral_norm(module, "weight_hh_l0").eval()
    plain = build("gru", num_layers=2)
    plain.load_state_dict({name: getattr(module, name) for name in plain.state_dict()})
    assert_same(run(module, x, everything), reference(plain, x))


def test_an_empty_batch() -> None:
    result = gradients_of(run(build("gru"), torch.zeros(TIME, 0, FEATURES).double(), mean))
    assert [g.shape for g in result.hidden[0].gradients if g is not None] == [(0, HIDDEN)] * TIME


def test_states_that_overflow() -> None:
    """h_t = 1e30 h_{t−1} is infinite from the second step on, and has finite gradients all the same."""
    module = nn.RNN(1, 1, nonlinearity="relu", bias=False)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.fill_(1e30 if name == "weight_hh_l0" else 1.0)
    x = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)
    out, h_n = module(x)
    assert out.flatten().tolist() == [1.0, pytest.approx(1e30), float("inf")]
    call = recurrent.record(module, (x,), {}, (out, h_n))
    assert isinstance(call, RecurrentCall)
    result = gradients_of(recurrent.replay(call, None, torch.ones(1, 1, 1)))
    found = [gradient.item() for gradient in result.hidden[0].gradients if gradient is not None]
    assert found == [float("inf"), pytest.approx(1e30), 1.0]


# What is refused --------------------------------------------------------------------------------------------


class _OwnForward(nn.LSTM):
    def forward(self, *args: Any) -> Any:
        return super().forward(*args)


def _patched() -> nn.GRU:
    module = nn.GRU(FEATURES, HIDDEN)
    module.forward = lambda *args: args  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (_OwnForward(FEATURES, HIDDEN), "_OwnForward has a forward of its own in place of that of nn.LSTM"),
        (_patched(), "GRU has a forward of its own in place of that of nn.GRU"),
        (nn.Linear(2, 2), "Linear is not an nn.RNN, nn.LSTM or nn.GRU"),
    ],
)
def test_modules_that_are_refused(module: Any, reason: str) -> None:
    assert recurrent.record(module, (), {}, None) == NotReplayed(f"not replayed: {reason}")


class _Named(Tensor):
    pass


def test_other_kinds_of_tensors_are_refused() -> None:
    module, x = build("gru"), normal(TIME, BATCH, FEATURES).as_subclass(_Named)
    assert recurrent.record(module, (x,), {}, module(x)) == NotReplayed(
        "not replayed: it works on tensors of type _Named, not on plain ones"
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_calls_without_gradients_are_refused(mode: Any) -> None:
    module, x = build("gru"), normal(TIME, BATCH, FEATURES)
    with mode():
        result = module(x)
    assert recurrent.record(module, (x,), {}, result) == NotReplayed(
        "not replayed: it ran without gradients, so that none can reach its states"
    )


def test_dropout_without_its_random_state_is_refused() -> None:
    module, x = build("gru", num_layers=2, dropout=0.5), normal(TIME, BATCH, FEATURES)
    assert recurrent.record(module, (x,), {}, module(x)) == NotReplayed(
        "not replayed: the random state before the call was not kept"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_other_dropout_masks_are_noticed(kind: str, dtype: torch.dtype) -> None:
    module, x = build(kind, num_layers=2, dropout=0.2).to(dtype), normal(TIME, BATCH, FEATURES, dtype=dtype)
    state = recurrent.random_state(module)
    call = recurrent.record(module, (x,), {}, module(x), state)
    assert isinstance(call, RecurrentCall)
    assert isinstance(recurrent.replay(call, None), RecurrentGradients)
    torch.rand(1)
    result = recurrent.replay(replace(call, random_state=torch.get_rng_state()), None)
    assert isinstance(result, NotReplayed)


@pytest.mark.parametrize("what", ["input", "hx", "weights", "output", "final"])
@pytest.mark.parametrize("kind", KINDS)
def test_changed_tensors_are_noticed(kind: str, what: str) -> None:
    module, x = build(kind, num_layers=2), normal(TIME, BATCH, FEATURES, seed=5)
    hx: Any = torch.zeros(2, BATCH, HIDDEN).double()
    call = recurrent.record(module, (x,), {"hx": (hx, hx) if kind == "lstm" else hx}, module(x))
    assert isinstance(call, RecurrentCall)
    value = getattr(call, what)
    changed = [t.clone() for t in value] if isinstance(value, tuple) else [value.clone()]
    changed[0][-1, -1] += 0.1
    edits: dict[str, Any] = {what: tuple(changed) if isinstance(value, tuple) else changed[0]}
    if what == "output":
        edits["output_version"] = changed[0]._version
    assert isinstance(recurrent.replay(replace(call, **edits), None), NotReplayed)


@pytest.mark.parametrize(
    ("dropout", "masks"),
    [(0.0, ""), (0.2, ", or the kernel draws dropout masks in a way of its own, as cuDNN does")],
)
def test_the_text_of_a_disagreement(dropout: float, masks: str) -> None:
    module, x = build("gru", num_layers=2, dropout=dropout), normal(TIME, BATCH, FEATURES, seed=5)
    state = recurrent.random_state(module)
    call = recurrent.record(module, (x,), {}, module(x), state)
    assert isinstance(call, RecurrentCall)
    x.zero_()
    result = recurrent.replay(call, None)
    assert isinstance(result, NotReplayed)
    assert re.sub(r"\d\.\de[+-]\d\d", "#", result.reason) == (
        "not replayed: step by step, the states differ from the recorded ones by # of their size, "
        "and 1e-09 is allowed in float64. Either a tensor of the call "
        f"was changed in place after it, or the kernel rounds more coarsely than the replay{masks}"
    )


def test_autocast_sets_the_tolerance() -> None:
    """A GRU under autocast returns float32, but it multiplies in bfloat16."""
    module, x = nn.GRU(FEATURES, HIDDEN), normal(TIME, BATCH, FEATURES, seed=5).float()
    with torch.autocast("cpu", torch.bfloat16):
        call = recurrent.record(module, (x,), {}, module(x))
    assert isinstance(call, RecurrentCall)
    assert isinstance(call.output, Tensor)
    assert call.output.dtype == torch.float32
    x.zero_()
    result = recurrent.replay(call, None)
    assert isinstance(result, NotReplayed)
    assert "5e-02 is allowed in bfloat16" in result.reason


def test_relative_error() -> None:
    """Per step, against the largest entry so far in the order of the steps."""
    known = torch.tensor([[1.0], [10.0], [2.0]])
    found = known + torch.tensor([[0.0], [0.0], [1.0]])
    assert unroll.relative_error(found, known, [1, 1, 1]) == 0.1
    assert unroll.relative_error(found, known, [1, 1, 1], reverse=True) == 0.5
    assert unroll.relative_error(found, known, [3]) == 0.1
    assert unroll.relative_error(found, torch.zeros(3, 1), [1, 1, 1]) == float("inf")
    assert unroll.relative_error(known, known, [2, 1]) == 0
    assert unroll.relative_error(torch.full((3, 1), torch.nan), known, [2, 1]).isnan()
    assert unroll.relative_error(known, torch.full((3, 1), torch.inf), [2, 1]) == 0


# No traces --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_no_trace(kind: str) -> None:
    module, x = (
        build(kind, num_layers=2, bidirectional=True, dropout=0.3),
        normal(TIME, BATCH, FEATURES, seed=5),
    )
    x.requires_grad_()
    state = recurrent.random_state(module)
    out, final = module(x)
    arriving = backward(module, (out, final), everything)
    out.square().sum().backward()

    parameters = dict(module.named_parameters())
    before = copy.deepcopy({name: (p, p.grad) for name, p in parameters.items()})
    tensors = [x, out, *(final if isinstance(final, tuple) else [final]), *parameters.values()]
    versions, x_grad = [t._version for t in tensors], x.grad
    attributes, flat = dict(module.__dict__), list(module._flat_weights)
    random_state = torch.get_rng_state()
    call = recurrent.record(module, (x,), {}, (out, final), state)
    assert isinstance(call, RecurrentCall)
    assert isinstance(recurrent.replay(call, *arriving), RecurrentGradients)

    assert torch.equal(torch.get_rng_state(), random_state)
    assert [t._version for t in tensors] == versions
    assert x.grad is x_grad
    assert module.__dict__ == attributes
    assert all(a is b for a, b in zip(module._flat_weights, flat, strict=True))
    for name, (value, gradient) in before.items():
        assert torch.equal(parameters[name], value)
        grad = parameters[name].grad
        assert grad is not None
        assert gradient is not None
        assert torch.equal(grad, gradient)


def test_random_state_is_put_back_after_a_failure() -> None:
    module, x = build("gru", num_layers=2, dropout=0.3), normal(TIME, BATCH, FEATURES, seed=5)
    state = recurrent.random_state(module)
    call = recurrent.record(module, (x,), {}, module(x), state)
    assert isinstance(call, RecurrentCall)
    now = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        recurrent.replay(replace(call, input=torch.zeros(TIME, BATCH, 1).double()), None)
    assert torch.equal(torch.get_rng_state(), now)


@pytest.mark.parametrize("kind", KINDS)
def test_does_not_mind_the_surroundings(kind: str) -> None:
    module, x = build(kind, num_layers=2).float(), normal(TIME, BATCH, FEATURES, seed=5).float()
    result = module(x)
    call = recurrent.record(module, (x,), {}, result)
    assert isinstance(call, RecurrentCall)
    arriving = backward(module, result, everything)
    truth = gradients_of(recurrent.replay(call, *arriving))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert_same(recurrent.replay(call, *arriving), truth)
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_grad_enabled()


def test_holds_no_graph() -> None:
    module, x = build("lstm"), normal(TIME, BATCH, FEATURES, seed=5).requires_grad_()
    call = recurrent.record(module, (x,), {}, module(x))
    assert isinstance(call, RecurrentCall)
    kept = itertools.chain([call.input, call.output], call.final, call.weights)
    assert not any(t.requires_grad for t in kept if isinstance(t, Tensor))
