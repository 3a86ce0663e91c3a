"""What a user is told about a mistake, word by word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evenflow.flow import Role
from evenflow.store import StoreError
from evenflow.watch import WatchError, WatchWarning, watch

MODEL = nn.Linear(2, 2)
OPTIMIZER = torch.optim.SGD(MODEL.parameters(), 0.1)


class FullyShardedDataParallel(nn.Sequential):
    """Named like the one that cannot be watched, and that takes several processes to make."""


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: watch("model", OPTIMIZER),  # type: ignore[arg-type]
        "watch got a str for the model; expected an nn.Module, or a dict of them.",
    ),
    (
        lambda: watch({"generator": 3}, OPTIMIZER),  # type: ignore[dict-item]
        "watch got a int for the model 'generator'; expected an nn.Module, or a dict of them.",
    ),
    (
        lambda: watch(MODEL, [OPTIMIZER, 0.1]),  # type: ignore[list-item]
        "watch got a float for the optimizer '1'; expected a torch.optim.Optimizer, or several.",
    ),
    (
        lambda: watch(nn.Sequential(FullyShardedDataParallel(MODEL)), OPTIMIZER),
        "The model has a FullyShardedDataParallel (FSDP1) at '0', of which no rank can tell which part of "
        "which parameter it holds. Shard it with torch.distributed.fsdp.fully_shard (FSDP2), which can be "
        "watched.",
    ),
    (lambda: watch(MODEL, []), "watch got no optimizer; steps are found from it. Give at least one."),
    (
        lambda: watch(MODEL, OPTIMIZER, budget=1.5),
        "watch got budget=1.5; expected a share of the training time, such as 0.01 for 1 %, "
        "or None for everything at every step.",
    ),
    (
        lambda: watch(MODEL, OPTIMIZER, modules="("),
        "watch got modules='(', which is no regular expression: "
        "missing ), unterminated subpattern at position 0.",
    ),
]


@pytest.mark.parametrize(("mistake", "text"), MISTAKES)
def test_a_mistake_is_told(mistake: Callable[[], Any], text: str) -> None:
    with pytest.raises(WatchError) as caught:
        mistake()
    assert str(caught.value) == text


def stranger() -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)


def test_an_optimizer_that_holds_nothing_of_the_model_is_told_and_watched_all_the_same() -> None:
    model, optimizer = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), stranger()
    with pytest.warns(WatchWarning) as told:
        watched = watch(model, optimizer, budget=None)
    assert [str(one.message) for one in told] == [
        "The optimizer holds no parameter of the model: no step of it changes anything there. "
        "Make it from model.parameters() after the model has got its final parameters."
    ]
    assert told[0].filename == __file__, "the line that called watch"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with watched:
        for _ in range(3):
            model.zero_grad()
            loss = model(torch.ones(4, 2)).square().mean()
            loss.backward()
            optimizer.step()
            watched.log(loss=loss)
    assert watched.trouble is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    flow = watched.run.flow()
    assert [row.site.path for row in flow.select(Role.ACTIVATION_GRADIENT)] == ["0", "1"]
    for row in flow.select(Role.PARAMETER_GRADIENT):
        gradient = model.get_parameter(row.site.path).grad
        assert gradient is not None
        assert row.stats is not None
        assert row.stats.mean_square == pytest.approx(float(gradient.square().mean()), rel=1e-6)
    assert len(flow.select(Role.PARAMETER_GRADIENT)) == 4
    assert len(flow.select(Role.UPDATE)) == 0
    assert next(one.kind for one in watched.run.events) == "unmoved"


def test_one_such_optimizer_among_others_is_told_by_its_name_and_tells_of_nothing() -> None:
    model = nn.Linear(2, 2)
    own = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(WatchWarning, match=r"^The optimizer 'first' holds no parameter of the model"):
        watched = watch(model, {"first": stranger(), "own": own}, budget=None)
    with watched:
        for _ in range(2):
            model(torch.ones(4, 2)).square().mean().backward()
            own.step()
            own.zero_grad()
    assert watched.trouble is None
    assert len(watched.run.flow().select(Role.PARAMETER_GRADIENT)) == 2
    with pytest.warns(WatchWarning, match=r"^The optimizers 'a', 'b' hold no parameter of the model"):
        watch(model, {"a": stranger(), "b": stranger()}).close()


def test_what_cannot_be_logged() -> None:
    with watch(MODEL, OPTIMIZER) as run:
        with pytest.raises(WatchError) as caught:
            run.log(loss=torch.ones(3))
        assert str(caught.value) == (
            "log(loss=...) got a tensor of shape [3]; expected a single number. "
            "Log its mean, for instance: log(loss=value.mean())."
        )
        with pytest.raises(
            WatchError, match=r"^log\(note=\.\.\.\) got 'fine'; expected a number or a tensor"
        ):
            run.log(note="fine")  # type: ignore[arg-type]


def test_a_run_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    watch(MODEL, OPTIMIZER, path=tmp_path).close()
    with pytest.raises(StoreError, match=r"There is a run at .* already"):
        watch(MODEL, OPTIMIZER, path=tmp_path)
    assert OPTIMIZER._optimizer_step_pre_hooks == {}
    watch(MODEL, OPTIMIZER, path=tmp_path, overwrite=True).close()
