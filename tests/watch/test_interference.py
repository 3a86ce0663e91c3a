"""Do no harm: training computes the same bits with and without watching, whatever happens inside evenflow."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from evenflow.watch import Watch, WatchWarning, watch
from tests.watch.programs import ALL, Program, cnn, mlp


def train(program: Program, steps: int, run: Watch | None = None) -> tuple[list[Tensor], list[Tensor]]:
    losses = []
    torch.manual_seed(1)
    for _ in range(steps):
        loss = program.step()
        losses.append(loss.detach().clone())
        if run is not None:
            run.log(loss=loss)
    return losses, [*program.state(), torch.get_rng_state()]


def hooks(program: Program) -> int:
    """How many hooks there are on anything."""
    count = 0
    for model in program.models.values():
        for module in model.modules():
            count += len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for parameter in model.parameters():
            count += len(parameter._post_accumulate_grad_hooks or {}) + len(parameter._backward_hooks or {})
    for optimizer in program.optimizers.values():
        count += len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
    return count


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("budget", "steps"), [(None, 30), (0.05, 200), pytest.param(None, 200, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ALL)
def test_losses_and_weights_are_bitwise_the_same(name: str, budget: float | None, steps: int) -> None:
    plain = train(ALL[name](), steps)
    program = ALL[name]()
    with watch(program.models, program.optimizers, budget=budget) as run:
        watched = train(program, steps, run)
    assert run.trouble is None
    assert same(plain[0], watched[0])
    assert same(plain[1], watched[1])
    assert hooks(program) == 0
    assert len(run.run.scalars["loss"]) == steps
    assert (len(run.run.steps) == steps) is (budget is None)


def test_the_comparison_can_fail() -> None:
    plain = train(mlp(), 3)
    program = mlp()
    with torch.no_grad():
        next(program.models[""].parameters()).view(-1)[0].add_(1e-6)
    assert not same(plain[1], train(program, 3)[1])


PARTS = [
    "evenflow.watch.moments:Page.put",
    "evenflow.watch.moments:Page.put_all",
    "evenflow.watch.copies:Copies.take",
    "evenflow.watch.copies:Copies.put_changes",
    "evenflow.watch.passes:_made_from",
    "evenflow.watch.parameters:norms",
    "evenflow.watch.inventory:_contents",
    "evenflow.watch.watcher:Watch._figures",
    "evenflow.watch.watcher:Watch._end_step",
    "evenflow.watch.layout:Layout.rows",
]


@pytest.mark.parametrize("part", PARTS)
def test_a_failure_inside_is_one_warning_and_training_goes_on(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(cnn(), 12)
    program = cnn()
    run = watch(program.models, program.optimizers, budget=None)
    first = train(program, 4, run)[0]
    module, _, name = part.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    monkeypatch.setattr(owner, name, _broken)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        losses = first + [program.step().detach() for _ in range(8)]
        run.log(loss=1.0)
        run._writer.flush()
    assert [one.category for one in told] == [WatchWarning]
    assert str(told[0].message).endswith(
        "Training goes on as if it were not there; what was seen before is kept."
    )
    assert run.trouble == "RuntimeError: broken for a test"
    assert same(plain[0], losses)
    assert hooks(program) == 0
    run.close()
    assert run.run.metadata["state"] == "finished"
    assert "trouble" in {event.kind for event in run.run.events}


def _broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("broken for a test")


def test_it_comes_off_after_an_exception_too() -> None:
    program = mlp()
    run = watch(program.models, program.optimizers)

    def fail() -> None:
        with run:
            program.step()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert hooks(program) == 0
    assert run.run.metadata["state"] == "failed"
    assert [event.kind for event in run.run.events] == ["exception", "cost"]


def test_two_watches_do_not_disturb_each_other() -> None:
    plain = train(mlp(), 5)
    program = mlp()
    with watch(program.models, program.optimizers, budget=None) as a:  # noqa: SIM117
        with watch(program.models, program.optimizers, budget=None) as b:
            losses = train(program, 5)[0]
    assert same(plain[0], losses)
    assert a.run.flow(2).rms("update") == b.run.flow(2).rms("update")


def test_the_model_can_be_copied_and_saved_while_it_is_watched(tmp_path: Any) -> None:
    program = mlp()
    model = program.models[""]
    with watch(program.models, program.optimizers):
        program.step()
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        torch.save(program.optimizers[""].state_dict(), tmp_path / "optimizer.pt")
    assert isinstance(torch.load(tmp_path / "weights.pt"), dict)


def test_a_model_that_raises_is_watched_on() -> None:
    program = mlp()
    model = program.models[""]
    with watch(model, program.optimizers, budget=None) as run:
        program.step()
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(torch.randn(2, 99))
        program.step()
        program.step()
    assert run.trouble is None
    flows = [flow for _, flow in run.run.flows()]
    assert [flow.select("activation")[0].shape for flow in flows] == [(9, 8)] * 3
    assert [len(flow) for flow in flows] == [len(flows[0])] * 3


def test_nothing_is_kept_alive() -> None:
    import gc
    import weakref

    program = mlp()
    with watch(program.models, program.optimizers, budget=None) as run:
        program.step()
    gone = weakref.ref(program.models[""])
    del program
    gc.collect()
    assert gone() is None
    assert run.trouble is None
