"""A Program trains as the plain loop would, with roles, schedules, clipping and closures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evenflow as ef
from evenflow.errors import ModelError, ProgramError
from evenflow.flow import Role
from evenflow.measure.first import first_flows

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :1].sin()


def build(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 1))


def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(32, generator=torch.Generator().manual_seed(seed))
    for pick in order.split(8):
        yield X[pick], Y[pick]


def mse(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


PROGRAM = ef.Program(build, sgd, batches, mse, steps=6, name="sine")


def gan() -> ef.Program:
    def d_loss(nets: dict[str, nn.Module], real: Tensor) -> Tensor:
        fake = nets["generator"](torch.randn(8, 2)).detach()
        return (
            F.softplus(-nets["discriminator"](real)).mean() + F.softplus(nets["discriminator"](fake)).mean()
        )

    def g_loss(nets: dict[str, nn.Module], real: Tensor) -> Tensor:
        return F.softplus(-nets["discriminator"](nets["generator"](torch.randn(8, 2)))).mean()

    return ef.Program(
        lambda seed: {"generator": nn.Linear(2, 4), "discriminator": nn.Linear(4, 1)},
        lambda nets: {role: sgd(net) for role, net in nets.items()},
        lambda seed: X.split(8),
        {"discriminator": d_loss, "generator": g_loss},
        steps=4,
    )


def test_it_trains_as_the_plain_loop_does() -> None:
    training = PROGRAM.start(3)
    losses = [float(figures["loss"]) for figures in training.run()]
    torch.manual_seed(3)
    model = build(3)
    optimizer = sgd(model)
    torch.manual_seed(3)
    expected = []
    for batch in [*batches(3), *batches(3 + 1_000_003)][:6]:
        optimizer.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == expected
    assert all(
        torch.equal(a, b) for a, b in zip(training.model.parameters(), model.parameters(), strict=True)
    )


def test_the_scheduler_steps_after_each_step_and_clipping_comes_before() -> None:
    norms = []

    def clip(model: nn.Module) -> None:
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.01))

    def halve(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    training = replace(PROGRAM, scheduler=halve, before_step=clip).start()
    rates = [training.optimizer.param_groups[0]["lr"] for _ in training.run(3)]
    assert rates == [0.1, 0.05, 0.025]
    assert len(norms) == 3
    gradients = [parameter.grad for parameter in training.model.parameters()]
    assert torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])) <= 0.0101


def test_each_role_lowers_its_own_loss() -> None:
    training = gan().start()
    before = {role: net.weight.clone() for role, net in training.models.items()}  # type: ignore[operator]
    figures = next(training.run(1))
    assert list(figures) == ["loss/discriminator", "loss/generator"]
    assert all(not torch.equal(before[role], net.weight) for role, net in training.models.items())  # type: ignore[arg-type]


def test_lbfgs_gets_its_closure() -> None:
    program = replace(PROGRAM, optimizer=lambda model: torch.optim.LBFGS(model.parameters(), 0.5), steps=5)
    losses = [float(figures["loss"]) for figures in program.start().run()]
    assert losses[-1] < 0.5 * losses[0]


def test_a_step_of_its_own_replaces_the_usual_one() -> None:
    program = replace(PROGRAM, step=lambda model, optimizer, batch: {"loss": 7.0, "accuracy": 1.0})
    assert list(program.start().run(2)) == [{"loss": 7.0, "accuracy": 1.0}] * 2


def test_roles_that_do_not_fit_are_told() -> None:
    with pytest.raises(ProgramError) as caught:
        replace(gan(), optimizer=lambda nets: sgd(nets["generator"])).start()
    assert str(caught.value) == (
        "The program's parts do not fit: build gives roles generator, discriminator, "
        "optimizer gives a single one, loss gives roles discriminator, generator. "
        "Give one of each, or mappings with the same roles from build, optimizer and loss."
    )


def test_batches_that_are_spent_are_told() -> None:
    spent = iter([(X, Y)])
    with pytest.raises(
        ProgramError, match=r"^The program's batches\(1000003\) gave no batch\. Return something"
    ):
        list(replace(PROGRAM, batches=lambda seed: spent).start().run(2))


def test_watching_changes_nothing_and_sees_every_step() -> None:
    from evenflow.watch import watch_training

    bare = [float(figures["loss"]) for figures in PROGRAM.start(1).run()]
    state = torch.get_rng_state()
    run = watch_training(PROGRAM, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert run.scalars["loss"].values.tolist() == bare
    assert run.steps == tuple(range(6))
    assert run.metadata["config"] == {"program": "sine", "seed": 1}


def test_watching_ends_when_the_loss_stays_no_number() -> None:
    from evenflow.watch import watch_training

    program = replace(PROGRAM, loss=lambda model, batch: mse(model, batch) * float("nan"), steps=100)
    run = watch_training(program)
    assert len(run.scalars["loss"]) == 30
    assert run.events[-2].kind == "stopped"


def test_an_allowance_that_is_too_small_for_all_steps_takes_some() -> None:
    from evenflow.watch import watch_training

    run = watch_training(replace(PROGRAM, steps=200), seconds=0.0)
    assert 1 <= len(run.steps) < 100
    assert len(run.scalars["loss"]) == 200


def test_check_judges_the_first_batch_and_the_training() -> None:
    report = ef.check(PROGRAM)
    assert report.run is not None
    assert report.flow is report.flows[""]
    assert len(report.run.steps) == 6
    assert report.healthy


@pytest.mark.parametrize(
    ("first_batch", "seconds", "watching"), [(3.0, 5.0, "2 s"), (9.0, 5.0, "1 s"), (9.0, 0.5, "0.5 s")]
)
def test_what_the_first_batch_took_comes_off_what_watching_may_take(
    monkeypatch: pytest.MonkeyPatch, first_batch: float, seconds: float, watching: str
) -> None:
    clock = iter([0.0, first_batch])
    monkeypatch.setattr(sys.modules["evenflow.check"], "thread_time", lambda: next(clock))
    run = ef.check(PROGRAM, seconds=seconds).run
    assert run is not None
    (cost,) = (event for event in run.events if event.kind == "cost")
    assert f"budget {watching} over 6 steps" in cost.text


def test_check_of_roles_measures_each_loss_without_the_others_parameters() -> None:
    report = ef.check(gan())
    assert list(report.flows) == ["discriminator", "generator"]
    for role, flow in report.flows.items():
        assert {row.site.path for row in flow.select(Role.PARAMETER_GRADIENT)} == {
            f"{role}.weight",
            f"{role}.bias",
        }
        assert flow.metadata["role"] == role


def test_a_model_that_raises_is_told_with_its_place() -> None:
    with pytest.raises(ModelError, match=r"^The model raised RuntimeError in 0 \(Linear\).*\n"):
        ef.check(replace(PROGRAM, batches=lambda seed: [(X[:, :3], Y)]))


def test_the_first_flow_knows_what_the_optimizer_holds() -> None:
    program = replace(PROGRAM, optimizer=lambda model: torch.optim.SGD([*model.parameters()][:1], 0.1))
    (flow,) = first_flows(program).values()
    names = [name for name, _ in program.start().model.named_parameters()]
    assert flow.metadata["optimized"] == names[:1]
