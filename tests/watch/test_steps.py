"""What is recorded, against a loop that looks by hand: retained gradients, clones, plain norms.

Each test trains twice from the same seed: once watched, once with the double
that keeps what it needs itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from evenflow.flow import Role, Run, Status
from evenflow.watch import Watch, parameters, watch
from tests.watch.programs import gan

Loss = Callable[[Tensor], Tensor]


def net(seed: int = 0, *, inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(inplace=inplace), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)
    )


def batch(seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 4, generator=generator), torch.randint(3, (size,), generator=generator)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9)


def rms(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def agree(found: dict[str, float], expected: dict[str, float], relative: float = 1e-6) -> None:
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=relative, abs=0.0)


def watched(model: nn.Module, optimizer: torch.optim.Optimizer, loop: Callable[[Watch], object]) -> Run:
    with watch(model, optimizer, budget=None) as run:
        loop(run)
    assert run.trouble is None
    return run.run


def plain_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, clip: float | None = None
) -> Tensor:
    x, y = batch(seed)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss


@pytest.mark.parametrize("inplace", [False, True])
def test_every_role_of_every_step(inplace: bool) -> None:
    model = net(inplace=inplace)
    optimizer = sgd(model)

    def loop(run: Watch) -> None:
        for seed in range(3):
            run.log(loss=plain_step(model, optimizer, seed))

    run = watched(model, optimizer, loop)

    double = net()
    optimizer = sgd(double)
    assert run.steps == (0, 1, 2)
    for step, flow in run.flows():
        x, y = batch(step)
        outputs = {}
        for name, module in double.named_children():
            x = module(x)
            x.retain_grad()
            outputs[name] = x
        loss = F.cross_entropy(x, y)
        loss.backward()
        agree(flow.rms("activation"), {name: rms(x) for name, x in outputs.items()})
        agree(flow.rms("activation_gradient"), {name: rms(x.grad) for name, x in outputs.items()})
        before = {name: p.detach().clone() for name, p in double.named_parameters()}
        agree(flow.rms("parameter"), {name: rms(p) for name, p in before.items()})
        agree(flow.rms("parameter_gradient"), {name: rms(g) for name, g in gradients(double).items()})
        optimizer.step()
        updates = {name: p.detach() - before[name] for name, p in double.named_parameters()}
        agree(flow.rms("update"), {name: rms(u) for name, u in updates.items()}, relative=1e-5)
        stats = flow.stats("update")["0.weight"]
        assert stats.mean == pytest.approx(updates["0.weight"].mean().item(), rel=1e-4)
        ratio = {name: norm([u]) / norm([before[name]]) for name, u in updates.items()}
        assert run.update_to_weight_ratio(step) == pytest.approx(ratio, rel=1e-5)
        assert flow.metadata["loss"] == pytest.approx(loss.item())
        assert flow.metadata["lr"] == 0.1
        optimizer.zero_grad()


def test_the_gain_budget_of_a_step_adds_up() -> None:
    model = net()
    optimizer = sgd(model)
    flow = watched(model, optimizer, lambda run: plain_step(model, optimizer, 0)).flow(0)
    ends = [flow.stats("activation_gradient")[place].log10_norm for place in ("0", "4")]
    assert flow.budget().total == pytest.approx(ends[0] - ends[1], abs=1e-9)
    assert [link.place for link in flow.budget()] == ["1", "2", "3", "4"]


def test_residual_blocks_form_the_chain() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x).tanh()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Block(), Block(), nn.Linear(4, 3))
    optimizer = sgd(model)
    flow = watched(model, optimizer, lambda run: plain_step(model, optimizer, 0)).flow()
    assert [row.site.path for row in flow.chain()] == ["0", "1", "2", "3"]
    assert list(flow.rms("activation")) == ["0", "1.inner", "1:output", "2.inner", "2:output", "3"]


@pytest.fixture(params=["together", "one by one"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients read at the end of the backward pass, as small ones are, or each when it is complete."""
    monkeypatch.setattr(parameters, "_WORTH_A_CALL", 1 << 30 if request.param == "together" else 1)


@pytest.mark.usefixtures("reading")
def test_clipping_is_seen_from_both_sides() -> None:
    model, optimizer = (m := net()), sgd(m)
    run = watched(
        model, optimizer, lambda run: [plain_step(model, optimizer, i, clip=0.05) for i in range(3)]
    )
    double = net()
    optimizer = sgd(double)
    for step, flow in run.flows():
        x, y = batch(step)
        F.cross_entropy(double(x), y).backward()
        raw = gradients(double)
        nn.utils.clip_grad_norm_(double.parameters(), 0.05)
        clipped = gradients(double)
        agree(flow.rms("parameter_gradient"), {name: rms(g) for name, g in raw.items()})
        for name, gradient in clipped.items():
            found = run.parameter("gradient_norm_after_clipping")[name].at(step)
            assert found == pytest.approx(norm([gradient]), rel=1e-6)
        assert flow.metadata["gradient_norm_before_clipping"] == pytest.approx(
            norm(list(raw.values())), rel=1e-6
        )
        assert flow.metadata["gradient_norm_after_clipping"] == pytest.approx(
            norm(list(clipped.values())), rel=1e-6
        )
        optimizer.step()
        optimizer.zero_grad()


def test_a_clip_that_autograd_cannot_see() -> None:
    model, optimizer = (m := net()), sgd(m)

    def loop(run: Watch) -> None:
        x, y = batch(0)
        F.cross_entropy(model(x), y).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.data.clamp_(-1e-3, 1e-3)
        optimizer.step()

    figures = watched(model, optimizer, loop).flow().metadata
    assert figures["gradient_norm_after_clipping"] < 0.1 * figures["gradient_norm_before_clipping"]


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulation_over_micro_batches(set_to_none: bool) -> None:
    model, optimizer = (m := net()), sgd(m)

    def loop(run: Watch) -> None:
        for step in range(2):
            for micro in range(3):
                x, y = batch(10 * step + micro)
                (F.cross_entropy(model(x), y) / 3).backward()
                run.log(loss=float(micro))
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)

    run = watched(model, optimizer, loop)
    double = net()
    optimizer = sgd(double)
    for step, flow in run.flows():
        outputs = []
        for micro in range(3):
            x, y = batch(10 * step + micro)
            hidden = double[:2](x)
            hidden.retain_grad()
            outputs.append(hidden)
            (F.cross_entropy(double[2:](hidden), y) / 3).backward()
        assert flow.stats("activation")["1"].count == 3 * 8 * 6
        assert flow.rms("activation")["1"] == pytest.approx(rms(torch.cat(outputs)), rel=1e-6)
        joint = torch.cat([hidden.grad for hidden in outputs if hidden.grad is not None])
        assert flow.rms("activation_gradient")["1"] == pytest.approx(rms(joint), rel=1e-6)
        agree(flow.rms("parameter_gradient"), {name: rms(g) for name, g in gradients(double).items()})
        assert flow.metadata["loss"] == 1.0, "the mean of what was logged"
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.usefixtures("reading")
def test_scaling_accumulation_and_clipping_together() -> None:
    model, optimizer = (m := net()), sgd(m)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)

    def loop(run: Watch) -> None:
        for step in range(2):
            for micro in range(2):
                x, y = batch(10 * step + micro)
                loss = F.cross_entropy(model(x), y)
                scaler.scale(loss / 2).backward()
                run.log(loss=loss)
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    run = watched(model, optimizer, loop)
    double = net()
    optimizer = sgd(double)
    for step, flow in run.flows():
        arrived, losses = [], []
        for micro in range(2):
            x, y = batch(10 * step + micro)
            hidden = double[0](x)
            hidden.retain_grad()
            losses.append(F.cross_entropy(double[1:](hidden), y))
            (losses[-1] / 2).backward()
            arrived.append(hidden.grad)
        raw = gradients(double)
        nn.utils.clip_grad_norm_(double.parameters(), 0.05)
        clipped = gradients(double)
        assert flow.rms("activation_gradient")["0"] == pytest.approx(rms(torch.cat(arrived)), rel=1e-5)
        agree(flow.rms("parameter_gradient"), {name: rms(g) for name, g in raw.items()}, relative=1e-5)
        figures = flow.metadata
        assert figures["loss"] == pytest.approx(sum(loss.item() for loss in losses) / 2)
        assert figures["loss_scale"] == 512.0
        assert figures["gradient_norm_before_clipping"] == pytest.approx(norm(list(raw.values())), rel=1e-5)
        assert figures["gradient_norm_after_clipping"] == pytest.approx(
            norm(list(clipped.values())), rel=1e-5
        )
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("named", [True, False])
def test_gradients_are_reported_unscaled_and_skipped_steps_marked(named: bool) -> None:
    model, optimizer = (m := net()), sgd(m)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watch(model, optimizer, budget=None, scaler=scaler if named else None) as run:
        for step in range(4):
            x, y = batch(step)
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss * math.inf if step == 2 else loss).backward()
            if step == 1:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            run.log(loss=loss)
    assert run.trouble is None
    assert "step" not in scaler.__dict__, "the scaler is as it was"
    seen = run.run
    assert seen.steps == (0, 1, 2, 3)
    assert [event.step for event in seen.events if event.kind == "skipped_step"] == [2]
    assert list(seen.scalars["skipped"].steps) == [2]
    assert [seen.scalars["loss_scale"].at(step) for step in (1, 2, 3)] == [1024.0, 1024.0, 512.0]
    assert seen.flow(2).select(Role.UPDATE) == ()
    broken = seen.flow(2).stats("parameter_gradient")["0.weight"]
    assert broken.nonfinite_count == broken.count

    double = net()
    optimizer = sgd(double)
    for step, flow in seen.flows():
        x, y = batch(step)
        hidden = double[0](x)
        hidden.retain_grad()
        F.cross_entropy(double[1:](hidden), y).backward()
        raw = gradients(double)
        if step == 1:
            nn.utils.clip_grad_norm_(double.parameters(), 0.01)
        if step != 2:
            assert flow.rms("activation_gradient")["0"] == pytest.approx(rms(hidden.grad), rel=1e-5)
            agree(flow.rms("parameter_gradient"), {n: rms(g) for n, g in raw.items()}, relative=1e-5)
            after = norm(list(gradients(double).values()))
            assert flow.metadata["gradient_norm_after_clipping"] == pytest.approx(after, rel=1e-5)
            optimizer.step()
        optimizer.zero_grad()


def test_a_fused_optimizer_under_a_scaler() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with watch(model, optimizer, budget=None) as run:
        for step in range(3):
            x, y = batch(step)
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss * math.inf if step == 1 else loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    seen = run.run
    assert list(seen.scalars["skipped"].steps) == [1]
    double = net()
    x, y = batch(0)
    F.cross_entropy(double(x), y).backward()
    expected = norm(list(gradients(double).values()))
    for name in ("gradient_norm_before_clipping", "gradient_norm_after_clipping"):
        assert seen.flow(0).metadata[name] == pytest.approx(expected, rel=1e-5)


def test_autocast() -> None:
    model, optimizer = (m := net()), sgd(m)

    def loop(run: Watch) -> None:
        x, y = batch(0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    flow = watched(model, optimizer, loop).flow()
    double = net()
    x, y = batch(0)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = double[0](x)
        hidden.retain_grad()
        F.cross_entropy(double[1:](hidden), y).backward()
    assert flow.select("activation")[0].dtype == "bfloat16"
    assert flow.rms("activation")["0"] == pytest.approx(rms(hidden), rel=1e-6)
    assert flow.rms("activation_gradient")["0"] == pytest.approx(rms(hidden.grad), rel=1e-6)


def test_evaluation_is_left_out() -> None:
    model, optimizer = (m := net()), sgd(m)

    def loop(run: Watch) -> None:
        for step in range(3):
            plain_step(model, optimizer, step)
            model.eval()
            with torch.no_grad():
                model(100 * batch(50)[0])
            model(100 * batch(51)[0])  # with gradients on, but nobody asks for them
            model.train()

    run = watched(model, optimizer, loop)
    double = net()
    optimizer = sgd(double)
    for step, flow in run.flows():
        assert flow.rms("activation")["0"] == pytest.approx(rms(double[0](batch(step)[0])), rel=1e-6)
        plain_step(double, optimizer, step)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_not_counted_twice(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = net()

        def forward(self, x: Tensor) -> Tensor:
            x = self.layers[0](x)
            x = checkpoint(self.layers[1:4], x, use_reentrant=reentrant)
            return self.layers[4](x)

    model = Checkpointed()
    optimizer = sgd(model)
    run = watched(model, optimizer, lambda run: [plain_step(model, optimizer, i) for i in range(2)])
    plain = net()
    optimizer = sgd(plain)
    expected = watched(plain, optimizer, lambda run: [plain_step(plain, optimizer, i) for i in range(2)])
    for (_, flow), (_, other) in zip(run.flows(), expected.flows(), strict=True):
        for role in Role:
            found = {path.removeprefix("layers."): stats for path, stats in flow.stats(role).items()}
            assert found.keys() == other.stats(role).keys()
            for path, stats in other.stats(role).items():
                assert found[path].count == stats.count
                assert found[path].mean_square == pytest.approx(stats.mean_square, rel=1e-9)


def test_a_shared_module_has_a_row_for_each_call() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(torch.tanh(self.layer(x))))

    torch.manual_seed(0)
    model = Shared()
    optimizer = sgd(model)
    flow = watched(model, optimizer, lambda run: [plain_step(model, optimizer, i) for i in range(2)]).flow(1)
    rows = flow.select("activation")
    assert [(row.site.path, row.site.call) for row in rows] == [("layer", 0), ("layer", 1), ("head", 0)]
    assert [row.inputs for row in flow.select("activation_gradient")] == [(), (0,), (1,)]


def test_tied_weights_have_one_row() -> None:
    model = net()
    model[2].weight = model[4].weight = nn.Parameter(torch.randn(6, 6) * 0.3)
    model[4].bias = nn.Parameter(torch.zeros(6))
    optimizer = sgd(model)
    flow = watched(model, optimizer, lambda run: plain_step(model, optimizer, 0)).flow()
    assert [row.site.path for row in flow.select("parameter")].count("2.weight") == 1
    assert "4.weight" not in flow.stats("parameter")


def test_parameters_frozen_added_and_unused() -> None:
    model = net()
    model[1].register_module("spare", nn.Linear(2, 2))  # nobody calls it
    optimizer = sgd(model)

    def loop(run: Watch) -> None:
        plain_step(model, optimizer, 0)
        model[0].weight.requires_grad_(False)
        model[0].bias.requires_grad_(False)
        plain_step(model, optimizer, 1)
        head = nn.Linear(3, 3)
        model.append(head)
        optimizer.add_param_group({"params": head.parameters(), "lr": 0.01})
        plain_step(model, optimizer, 2)
        plain_step(model, optimizer, 3)

    run = watched(model, optimizer, loop)
    assert run.flow(0).status()["1.spare.weight"] is Status.UNUSED
    assert run.flow(0).status()["0.weight"] is Status.OK
    assert run.flow(1).status()["0.weight"] is Status.FROZEN
    assert "0.weight" not in run.flow(1).stats("update")
    assert "0.weight" in run.flow(1).stats("parameter")
    assert "5.weight" not in run.flow(1).status()
    assert run.flow(3).status()["5.weight"] is Status.OK
    assert "5" in run.flow(3).stats("activation_gradient")
    assert run.scalars["lr/1"].values.tolist() == [0.01, 0.01]


def test_a_parameter_that_no_optimizer_has() -> None:
    model = net()
    optimizer = torch.optim.SGD(model[2:].parameters(), 0.1)
    flow = watched(model, optimizer, lambda run: plain_step(model, optimizer, 0)).flow()
    assert flow.status()["0.weight"] is Status.OK, "it has a gradient"
    assert "0.weight" not in flow.stats("update"), "and is not moved"


def test_a_frozen_backbone_called_by_itself() -> None:
    backbone, head = net(0).requires_grad_(False), nn.Linear(3, 3)
    model = nn.ModuleDict({"backbone": backbone, "head": head})
    optimizer = sgd(head)

    def loop(run: Watch) -> None:
        x, y = batch(0)
        F.cross_entropy(head(backbone(x)), y).backward()
        optimizer.step()

    flow = watched(model, optimizer, loop).flow()
    assert list(flow.stats("activation")) == [*(f"backbone.{i}" for i in range(5)), "head"]
    assert list(flow.stats("activation_gradient")) == ["head"]
    assert flow.status()["backbone.0.weight"] is Status.FROZEN


def test_a_closure_is_reported_at_the_weights_that_the_step_began_with() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)

    def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        x, y = batch(seed)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]

    def loop(run: Watch) -> None:
        for seed in range(2):
            step(model, optimizer, seed)

    run = watched(model, optimizer, loop)
    double = net()
    optimizer = torch.optim.LBFGS(double.parameters(), max_iter=4)
    for index, flow in run.flows():
        before = {name: p.detach().clone() for name, p in double.named_parameters()}
        x, y = batch(index)
        double.zero_grad()
        F.cross_entropy(double(x), y).backward()
        agree(flow.rms("parameter_gradient"), {name: rms(g) for name, g in gradients(double).items()})
        assert flow.stats("activation")["0"].count == 8 * 6
        step(double, optimizer, index)
        updates = {name: rms(p.detach() - before[name]) for name, p in double.named_parameters()}
        agree(flow.rms("update"), updates, relative=1e-4)


def test_a_gan_with_two_optimizers() -> None:
    program = gan()
    with watch(program.models, program.optimizers, budget=None) as run:
        for _ in range(3):
            run.log(loss=program.step())
    seen = run.run
    assert seen.steps == (0, 1, 2)
    flow = seen.flow(1)
    assert flow.stats("activation")["generator.0"].count == 5 * 8
    assert flow.stats("activation")["discriminator.0"].count == 2 * 5 * 8, "its own turn: real and fake"
    assert {path.split(".")[0] for path in flow.stats("update")} == {"generator", "discriminator"}
    assert len(flow.select("update")) == 8
    assert {"lr/generator", "lr/discriminator"} <= set(seen.scalars)

    double = gan()
    g, d = double.models["generator"], double.models["discriminator"]
    at_step: dict[str, dict[str, Tensor]] = {}

    def keep(name: str, model: nn.Module) -> Callable[..., None]:
        def hook(*_: object) -> None:
            at_step[name] = gradients(model)

        return hook

    double.optimizers["generator"].register_step_pre_hook(keep("generator", g))
    double.optimizers["discriminator"].register_step_pre_hook(keep("discriminator", d))
    double.step()
    expected = {f"{role}.{name}": rms(g) for role, grads in at_step.items() for name, g in grads.items()}
    assert seen.flow(0).rms("parameter_gradient") == pytest.approx(expected, rel=1e-6)


def test_a_critic_that_takes_several_turns() -> None:
    critic, actor = net(0), net(1)
    optimizers = {"critic": sgd(critic), "actor": sgd(actor)}
    with watch({"critic": critic, "actor": actor}, optimizers, budget=None) as run:
        for seed in range(2):
            for turn in range(3):
                plain_step(critic, optimizers["critic"], 10 * seed + turn)
            plain_step(actor, optimizers["actor"], seed)
    flows = [flow for _, flow in run.run.flows()]
    roles = [{path.split(".")[0] for path in flow.stats("update")} for flow in flows]
    assert roles == [{"critic"}, {"critic"}, {"critic", "actor"}] * 2


def test_two_optimizers_on_one_model() -> None:
    model = net()
    first, second = torch.optim.SGD(model[:2].parameters(), 0.1), torch.optim.Adam(model[2:].parameters())
    with watch(model, [first, second], budget=None) as run:
        for seed in range(2):
            x, y = batch(seed)
            F.cross_entropy(model(x), y).backward()
            first.step()
            second.step()
            first.zero_grad()
            second.zero_grad()
    flow = run.run.flow(1)
    assert len(flow.stats("update")) == len(flow.stats("parameter_gradient")) == 6
    assert len(flow.stats("activation_gradient")) == 5
    moments = run.run.parameter("second_moment_mean")
    assert list(moments) == ["2.weight", "2.bias", "4.weight", "4.bias"]
    weight = model[2].weight
    assert isinstance(weight, Tensor)
    kept = second.state[weight]["exp_avg_sq"]
    assert moments["2.weight"].at(1) == pytest.approx(float(kept.mean()), rel=1e-6)


def test_only_the_modules_that_were_asked_for() -> None:
    model = net()
    optimizer = sgd(model)
    with watch(model, optimizer, budget=None, modules=r"[02]") as run:
        plain_step(model, optimizer, 0)
    assert list(run.run.flow().stats("activation")) == ["0", "2"]


def test_a_vanished_gradient_is_not_taken_for_zero() -> None:
    model = net()
    optimizer = sgd(model)

    def loop(run: Watch) -> None:
        x, y = batch(0)
        (1e-24 * F.cross_entropy(model(x), y)).backward()
        optimizer.step()

    flow = watched(model, optimizer, loop).flow()
    assert all(1e-28 < value < 1e-23 for value in flow.rms("parameter_gradient").values())
    assert 1e-25 < flow.metadata["gradient_norm_after_clipping"] < 1e-23
