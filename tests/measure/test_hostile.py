"""Every hostile model gives a Flow or a clear error, and is left bitwise as it was."""

from __future__ import annotations

import contextlib
import copy
import gc
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evenflow.errors import EvenflowError
from evenflow.flow import Role, Status
from evenflow.measure import measure
from evenflow.trace.statistics import tensor_stats
from evenflow.trace.structure import tensors_in
from tests.measure.hostile import CASES, Case

SEED = 7
WITHOUT_LOSS = ("dataclass_output_without_loss", "custom_function_as_last_op")


def build(name: str) -> Case:
    torch.manual_seed(SEED)
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002
    return CASES[name]()


def bits(tensor: Tensor | None) -> Any:
    """A tensor's memory as bytes."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return (
        tensor.contiguous().view(torch.uint8 if tensor.ndim else tensor.dtype).numpy().tobytes()
        if tensor.dtype is not torch.bfloat16
        else tensor.contiguous().view(torch.int16).numpy().tobytes()
    )


def trace(case: Case) -> dict[str, Any]:
    """All of the outer world that measuring must not change."""
    found: dict[str, Any] = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "python": random.getstate(),
        "inputs": [bits(tensor) for tensor in tensors_in(case.inputs)],
        "input gradients": [bits(t.grad) if t.is_leaf else None for t in tensors_in(case.inputs)],
        "grad mode": torch.is_grad_enabled(),
    }
    if not isinstance(case.model, nn.Module):
        return found
    for path, module in case.model.named_modules():
        found[f"mode of {path}"] = module.training
        found[f"attributes of {path}"] = {name: id(value) for name, value in module.__dict__.items()}
        found[f"hooks of {path}"] = [
            list(hooks)
            for name, hooks in module.__dict__.items()
            if name.endswith("_hooks") and hooks is not None
        ]
    for name, tensor in [*case.model.named_parameters(), *case.model.named_buffers()]:
        if not isinstance(tensor, nn.UninitializedParameter):
            gradient = tensor.grad if tensor.is_leaf else None
            found[name] = (id(tensor), bits(tensor), tensor.requires_grad, id(gradient), bits(gradient))
    return found


def run(case: Case) -> Any:
    with case.context() if case.context else contextlib.nullcontext():
        return measure(case.model, case.inputs, case.loss)


@pytest.mark.parametrize("name", CASES)
def test_measured_or_refused_without_a_trace(name: str) -> None:
    case = build(name)
    before = trace(case)
    if case.error is None:
        flow = run(case)
        assert flow.select(Role.ACTIVATION)
        assert flow.select(Role.ACTIVATION_GRADIENT)
        assert flow.notes == ()
    else:
        with pytest.raises(EvenflowError) as refusal:
            run(case)
        assert case.error in str(refusal.value)
        assert len(str(refusal.value).splitlines()) <= 4
    after = trace(case)
    assert {key for key in before if before[key] != after[key]} == set()


@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in WITHOUT_LOSS and build(name).error is None]
)
def test_gradients_are_those_of_a_plain_step(name: str) -> None:
    """The Flow's parameter gradients are bitwise those of an unobserved step from the same random state."""
    case = build(name)
    flow = run(case)
    other = build(name)
    model = other.model.module if isinstance(other.model, nn.DataParallel) else other.model
    for parameter in model.parameters():
        parameter.grad = None
        if parameter._post_accumulate_grad_hooks:
            parameter._post_accumulate_grad_hooks.clear()
    args, kwargs = ((), other.inputs) if isinstance(other.inputs, dict) else (other.inputs, {})
    args = args if isinstance(args, tuple) else (args,)
    with other.context() if other.context else contextlib.nullcontext():
        output = model(*args, **kwargs)
        loss = other.loss(output) if other.loss else getattr(output, "loss", None)
    assert loss is not None
    loss.backward()
    expected = {n: tensor_stats(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    assert flow.stats(Role.PARAMETER_GRADIENT) == expected
    assert flow.metadata["loss"] == pytest.approx(float(loss.detach()), nan_ok=True, abs=0)


def test_the_trace_sees_a_change() -> None:
    """The helper that all of the above relies on can fail."""
    case = build("batch_norm_and_dropout_in_training")
    before = trace(case)
    case.model(case.inputs)
    after = trace(case)
    changed = {key for key in before if before[key] != after[key]}
    assert changed >= {"1.running_mean", "1.running_var", "torch"}


def test_status_says_why_there_is_no_gradient() -> None:
    frozen, unused, detached = (
        run(build(n)).status() for n in ("frozen_backbone", "unused_parameter", "detached_branch")
    )
    assert frozen == {
        "0.weight": Status.FROZEN,
        "0.bias": Status.FROZEN,
        "2.weight": Status.OK,
        "2.bias": Status.OK,
    }
    assert unused == {
        "a.weight": Status.OK,
        "a.bias": Status.OK,
        "b.weight": Status.UNUSED,
        "b.bias": Status.UNUSED,
    }
    assert detached == {
        "a.weight": Status.DETACHED,
        "a.bias": Status.DETACHED,
        "b.weight": Status.OK,
        "b.bias": Status.OK,
    }


def test_wrapped_models_keep_their_own_paths() -> None:
    assert list(run(build("data_parallel_wrapper")).rms("activation")) == ["0", "1"]


def test_checkpointing_changes_nothing() -> None:
    """The same net plain, checkpointed and reentrantly checkpointed gives the same rows."""

    def rows(reentrant: bool | None) -> Any:
        case = build("checkpoint_with_reentry")
        from torch.utils.checkpoint import checkpoint

        def forward(m: Any, x: Tensor) -> Tensor:
            h = m.stem(x)
            for block in (m.a, m.b):
                h = block(h) if reentrant is None else checkpoint(block, h, use_reentrant=reentrant)
            return m.head(h)

        case.model._function = forward
        case.model.eval()
        return {(row.site, row.inputs, row.output_of, row.stats) for row in run(case)}

    assert rows(None) == rows(False) == rows(True)


def test_a_deep_copy_gives_the_same_flow() -> None:
    """Nothing in a Flow depends on object identities."""
    case = build("unbound_steps_of_a_hand_written_recurrence")
    first = run(case)
    case.model = copy.deepcopy(case.model)
    assert run(case).rows == first.rows


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_looked_for_afterwards_as_before(enabled: bool) -> None:
    seen = []

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(gc.isenabled())
            if x.shape[0] > 2:
                raise ValueError("too many")
            out: Tensor = self.layer(x)
            return out

    try:
        gc.enable() if enabled else gc.disable()
        measure(Looks(), torch.ones(2, 3))
        assert gc.isenabled() is enabled
        with pytest.raises(EvenflowError, match="too many"):
            measure(Looks(), torch.ones(3, 3))
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
    assert seen == [False, False]
