"""Clipping, optimizers, warm-up, losses and scales against arithmetic of other making."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program
from evenflow.surgery import (
    Autocast,
    ClipGradient,
    GanLoss,
    InsertNorm,
    InsertSkip,
    LossScale,
    Patch,
    PatchError,
    SetLearningRate,
    SetLoss,
    SetOptimizer,
    SetOption,
    SpectralNorm,
    StandardiseInput,
    StandardiseTarget,
    UseLogits,
    WarmUp,
)  # fmt: skip
from tests.surgery.nets import built, chain, features


class Seen:
    """Gradients as the optimizer meets them: plain SGD with rate 1 moves the weights by them."""

    def __init__(self, *edits: Any, size: int = 50) -> None:
        self.p = nn.Parameter(torch.zeros(size))
        self.optimizer = Patch(edits).tune(torch.optim.SGD([self.p], 1.0))

    def step(self, gradient: Tensor) -> Tensor:
        before = self.p.detach().clone()
        self.p.grad = gradient.clone()
        self.optimizer.step()
        return before - self.p.detach()


def _norms(count: int, seed: int = 0) -> list[float]:
    norms = np.random.default_rng(seed).lognormal(0.0, 0.3, count)
    norms[30::7] *= 20
    return [float(norm) for norm in norms]


def _with_norm(norm: float) -> Tensor:
    direction = features(50)
    return norm * direction / direction.norm()


def test_clip_by_norm_and_value() -> None:
    assert Seen(ClipGradient(limit=2.0)).step(_with_norm(5.0)).norm().item() == pytest.approx(2.0, rel=1e-5)
    assert Seen(ClipGradient(limit=2.0)).step(_with_norm(1.0)).norm().item() == pytest.approx(1.0, rel=1e-5)
    got = Seen(ClipGradient("value", 0.1)).step(_with_norm(5.0))
    torch.testing.assert_close(got, _with_norm(5.0).clamp(-0.1, 0.1))


def test_agc_limits_each_unit_relative_to_its_weights() -> None:
    model = nn.Linear(6, 4)
    optimizer = Patch(ClipGradient("agc", 0.1)).tune(torch.optim.SGD(model.parameters(), 1.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {
        name: features(*p.shape) * torch.tensor([0.01, 1.0, 100.0, 0.0]).view(-1, *[1] * (p.ndim - 1))
        for name, p in model.named_parameters()
    }
    for name, p in model.named_parameters():
        p.grad = gradients[name].clone()
    optimizer.step()
    moved = (before["weight"] - model.weight).detach().numpy()
    for row, (weight, gradient) in enumerate(
        zip(before["weight"].numpy(), gradients["weight"].numpy(), strict=True)
    ):
        most = 0.1 * max(float(np.linalg.norm(weight)), 1e-3)
        size = float(np.linalg.norm(gradient))
        np.testing.assert_allclose(moved[row], gradient * min(1.0, most / max(size, 1e-12)), atol=1e-6)
    most = 0.1 * before["bias"].norm()
    torch.testing.assert_close((before["bias"] - model.bias).detach().norm(), most, rtol=1e-5, atol=0)


def test_autoclip_is_a_percentile_of_all_norms_so_far() -> None:
    seen, norms = Seen(ClipGradient("percentile", 30.0)), _norms(60)
    for step, norm in enumerate(norms, 1):
        expected = min(norm, float(np.percentile(norms[:step], 30.0)))
        assert seen.step(_with_norm(norm)).norm().item() == pytest.approx(expected, rel=1e-4)


def test_zclip_brings_spikes_down_and_lets_the_rest_pass() -> None:
    seen, norms = Seen(ClipGradient("zclip")), _norms(120)
    mean = variance = 0.0
    spikes = 0
    for step, norm in enumerate(norms):
        expected = norm
        if step == 25:
            mean, variance = float(np.mean(norms[:25])), float(np.var(norms[:25]))
        if step >= 25:
            z = (norm - mean) / (math.sqrt(variance) + 1e-6)
            if z > 2.5:
                expected, spikes = mean + 2.5**2 / z * math.sqrt(variance), spikes + 1
            mean = 0.97 * mean + 0.03 * expected
            variance = 0.97 * variance + 0.03 * (expected - mean) ** 2
        assert seen.step(_with_norm(norm)).norm().item() == pytest.approx(expected, rel=2e-3)
    assert 5 < spikes < 30


def test_a_norm_that_is_no_number_does_not_stay_in_zclip() -> None:
    seen = Seen(ClipGradient("zclip"))
    for norm in _norms(30):
        seen.step(_with_norm(norm))
    seen.step(torch.full((50,), math.nan))
    seen.p.data.zero_()
    assert torch.isfinite(seen.step(_with_norm(1.0))).all()


def test_clipping_comes_after_the_closure() -> None:
    p = nn.Parameter(torch.zeros(50))
    optimizer = Patch(ClipGradient(limit=1.0)).tune(torch.optim.SGD([p], 1.0))

    def closure() -> float:
        p.grad = _with_norm(9.0)
        return 0.25

    assert optimizer.step(closure) == 0.25
    assert p.norm().item() == pytest.approx(1.0, rel=1e-5)
    p.data.zero_()
    optimizer.step(closure=closure)
    assert p.norm().item() == pytest.approx(1.0, rel=1e-5)


def test_edits_meet_the_gradient_in_the_order_that_it_needs() -> None:
    edits = (ClipGradient(limit=1.0), LossScale(1024.0), SetOptimizer("sgd", 0.5))
    got = Seen(*edits).step(1024 * _with_norm(4.0))
    torch.testing.assert_close(got, 0.5 * _with_norm(1.0))


def test_an_overflow_of_the_scaled_loss_moves_nothing() -> None:
    assert not Seen(LossScale()).step(torch.tensor([math.inf] + [1.0] * 49)).any()


def test_the_loss_scale_saves_what_float16_would_lose() -> None:
    def moved(patch: Patch) -> float:
        model = nn.Linear(1, 1, bias=False).half()
        nn.init.ones_(model.weight)
        optimizer = patch.tune(torch.optim.SGD(model.parameters(), 1.0))
        loss = patch.loss(lambda net, x: (net(x).float() * 1e-9).mean())
        loss(model, torch.ones(4, 1).half()).backward()
        weight = model.weight
        assert weight.grad is not None
        small = weight.grad.float().item()
        optimizer.step()
        return small

    assert moved(Patch()) == 0.0
    assert moved(Patch(LossScale())) != 0.0


def test_warm_up_rises_in_a_line_and_leaves_the_rate_to_the_scheduler() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = Patch(WarmUp(4)).tune(torch.optim.SGD([p], 1.0))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    moved = []
    for _ in range(6):
        before = p.item()
        p.grad = torch.ones(1)
        optimizer.step()
        moved.append(before - p.item())
        scheduler.step()
    assert moved == pytest.approx([0.25, 0.5 * 0.5, 0.75 * 0.25, 0.125, 0.0625, 0.03125])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5**6)


def _grouped(model: nn.Module) -> torch.optim.Optimizer:
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.SGD(
        [{"params": decay, "weight_decay": 0.1, "lr": 0.2}, {"params": rest, "lr": 0.4}], lr=0.2
    )


def test_another_optimizer_keeps_groups_decay_and_ratios() -> None:
    optimizer = Patch([SetOptimizer("adamw", 0.01), SetOption("eps", 1e-6)]).tune(_grouped(chain()))
    assert isinstance(optimizer, torch.optim.AdamW)
    first, second = optimizer.param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.1, 0.0)
    assert (first["lr"], second["lr"]) == pytest.approx((0.01, 0.02))
    assert first["eps"] == second["eps"] == 1e-6
    tuned = Patch(SetLearningRate(0.5)).tune(_grouped(chain()))
    assert [group["lr"] for group in tuned.param_groups] == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize("edit", [InsertNorm("layer"), InsertSkip("rezero")])
def test_parameters_that_an_edit_adds_reach_the_optimizer(edit: Any) -> None:
    def named_layers(model: nn.Module) -> torch.optim.Optimizer:
        weights = [p for name, p in model.named_parameters() if name in known]
        groups: list[Any] = [{"params": weights, "weight_decay": 0.1}, {"params": []}]
        return torch.optim.SGD(groups, lr=0.1)

    model = built(chain)
    model[0].bias.requires_grad_(False)
    known = {name for name, _ in model.named_parameters() if name.endswith("weight")} | {
        f"{i}.body.0.weight" for i in range(10)
    }
    patch = Patch(edit)
    edited = patch.apply(model)
    optimizer = patch.optimizer(named_layers, edited)
    held = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    added = [
        p
        for name, p in edited.named_parameters()
        if "alpha" in name or (name.count(".") > 1 and ".0." in name and p.ndim == 1 and "body" not in name)
    ]
    assert len(added) >= 4
    assert all(id(p) in held[1] for p in added)
    assert not {id(edited[8].weight)} & held[1]
    untouched = model[2].bias
    assert all(id(untouched) not in one for one in held)


def test_an_optimizer_that_cannot_be_built_says_so() -> None:
    patch = Patch(SpectralNorm())
    edited = patch.apply(chain())
    with pytest.raises(PatchError, match="cannot be built for the patched model: AttributeError"):
        patch.optimizer(lambda model: torch.optim.SGD(model[0].wheight.parameters(), lr=0.1), edited)


# ------------------------------------------------------------------------------ losses


def _compare(edit: Any, loss: Any, better: Any, model: nn.Module, batch: Any) -> None:
    """The edited loss has the value and the gradients of another one."""
    got = Patch(edit).loss(loss)(model, batch)
    gradients = torch.autograd.grad(got, list(model.parameters()))
    expected = better(model, batch)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, list(model.parameters())))


LABELS = torch.tensor([0, 1, 2, 1, 0])
BITS = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])


def _cross_entropy(model: Any, x: Tensor) -> Tensor:
    return F.cross_entropy(_inner(model, x), LABELS)


def _squared(model: Any, x: Tensor) -> Tensor:
    return F.mse_loss(model(x)[:, 0], BITS)


def _inner(model: Any, x: Tensor) -> Tensor:
    out: Tensor = model[:-1](x)
    return out


@pytest.mark.parametrize(
    ("last", "out", "loss", "better"),
    [
        (nn.Softmax(-1), 3, lambda m, b: F.cross_entropy(m(b), LABELS), _cross_entropy),
        (nn.Softmax(-1), 3, lambda m, b: F.nll_loss(m(b), LABELS), _cross_entropy),
        (nn.LogSoftmax(-1), 3, lambda m, b: F.nll_loss(m(b), LABELS), lambda m, b: F.nll_loss(m(b), LABELS)),
        (
            nn.Sigmoid(), 1, lambda m, b: F.binary_cross_entropy(m(b).squeeze(-1), BITS),
            lambda m, b: F.binary_cross_entropy_with_logits(_inner(m, b)[:, 0], BITS),
        ),
        (
            nn.Sigmoid(), 1, lambda m, b: nn.BCEWithLogitsLoss()(m(b)[:, 0], BITS),
            lambda m, b: F.binary_cross_entropy_with_logits(_inner(m, b)[:, 0], BITS),
        ),
        (nn.Sigmoid(), 1, _squared, _squared),
    ],
)  # fmt: skip
def test_use_logits(last: nn.Module, out: int, loss: Any, better: Any) -> None:
    model = nn.Sequential(*built(lambda: chain(out=out)), last)
    _compare(UseLogits(), loss, better, model, features(5, 16))


def test_use_logits_revives_a_saturated_output_and_leaves_the_model_alone() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    x = features(5, 4)
    with torch.no_grad():
        model[0].bias.fill_(200.0)
    loss = Patch(UseLogits()).loss(lambda m, b: F.binary_cross_entropy(m(b), torch.zeros(5, 1)))
    loss(model, x).backward()
    assert model[0].bias.grad.item() == pytest.approx(1.0)
    assert torch.equal(model(x), torch.ones(5, 1))
    assert not hasattr(model(x), "known_logits")


@pytest.mark.parametrize(
    ("to", "last", "out", "targets", "better"),
    [
        ("cross_entropy", nn.Softmax(-1), 3, LABELS, _cross_entropy),
        ("cross_entropy", nn.Sigmoid(), 3, F.one_hot(LABELS).float(), _cross_entropy),
        (
            "bce_with_logits", nn.Sigmoid(), 1, BITS.long(),
            lambda m, b: F.binary_cross_entropy_with_logits(_inner(m, b)[:, 0], BITS),
        ),
        ("mse", nn.Sigmoid(), 3, LABELS, lambda m, b: F.mse_loss(m(b), F.one_hot(LABELS).float())),
    ],
)  # fmt: skip
def test_set_loss(to: str, last: nn.Module, out: int, targets: Tensor, better: Any) -> None:
    model = nn.Sequential(*built(lambda: chain(out=out)), last)
    x = features(5, 16)
    _compare(SetLoss(to), None, lambda m, b: better(m, x), model, (x, targets))


def test_autocast_computes_in_a_short_type() -> None:
    model, x = built(chain), features(5, 16)
    seen = []
    model[0].register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    value = Patch(Autocast()).loss(lambda m, b: m(b).mean())(model, x)
    assert seen == [torch.bfloat16]
    assert value.dtype == torch.float32


# -------------------------------------------------------------------- standardisation


@pytest.mark.parametrize("dimension", [None, 1])
def test_inputs_are_standardised_inside_the_model(dimension: int | None) -> None:
    x = 50 + torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1) * features(64, 3, 4, 4)
    edit = StandardiseInput.of(x, dimension)
    seen = []
    model = Patch(edit).apply(nn.Sequential(nn.Conv2d(3, 2, 1)))
    model[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(x)
    over = (0, 1, 2, 3) if dimension is None else (0, 2, 3)
    torch.testing.assert_close(seen[0].mean(over), torch.zeros_like(seen[0].mean(over)), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[0].std(over), torch.ones_like(seen[0].std(over)), atol=1e-2, rtol=0)
    assert "input_mean" in model.state_dict()


@pytest.mark.parametrize(("kind", "loss"), [("mse", F.mse_loss), ("mae", F.l1_loss)])
def test_targets_are_standardised_for_the_weights_and_nobody_else(kind: str, loss: Any) -> None:
    model, x = built(chain), features(5, 16)
    targets = 300 + 40 * features(5, 3)
    patch = Patch(StandardiseTarget.of(targets, kind))
    edited = patch.apply(model)
    value = patch.loss(lambda m, b: loss(m(b[0]), b[1]))(edited, (x, targets))
    by_hand = loss(model(x), (targets - targets.mean()) / targets.std(unbiased=False))
    torch.testing.assert_close(value, by_hand)
    torch.testing.assert_close(
        torch.autograd.grad(value, list(edited.parameters())),
        torch.autograd.grad(by_hand, list(model.parameters())),
    )
    assert abs(edited(x).mean() - 300) < 50


# -------------------------------------------------------------------------------- GANs


def _game(squash: bool) -> tuple[dict[str, nn.Module], Any, Tensor]:
    models = {
        "generator": built(lambda: chain(1, 4, nn.ReLU, 4)),
        "discriminator": nn.Sequential(
            *built(lambda: chain(1, 4, nn.Tanh, 1)), *([nn.Sigmoid()] if squash else [])
        ),
    }
    noise = features(5, 4)
    bce = F.binary_cross_entropy if squash else F.binary_cross_entropy_with_logits

    def d_loss(models: Any, batch: Any) -> Tensor:
        judge = models["discriminator"]
        fake, real = judge(models["generator"](noise).detach()), judge(batch[0])
        return bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))

    def g_loss(models: Any, batch: Any) -> Tensor:
        fake = models["discriminator"](models["generator"](noise))
        return -bce(fake, torch.zeros_like(fake))

    return models, {"discriminator": d_loss, "generator": g_loss}, noise


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("kind", ["non_saturating", "lsgan", "hinge", "wgan_gp", "r1"])
def test_adversarial_losses(kind: str, squash: bool) -> None:
    models, losses, noise = _game(squash)
    real = features(5, 4) + 1
    new = Patch(GanLoss(kind)).loss(losses)
    judge: Any = models["discriminator"][:2] if not squash else models["discriminator"][:-1]  # type: ignore[index]
    judge = models["discriminator"] if not squash else judge
    fake_points = models["generator"](noise).detach()
    d_real, d_fake = judge(real), judge(fake_points)
    log_sigmoid = F.logsigmoid
    expected = {
        "non_saturating": (
            -log_sigmoid(d_real).mean() - log_sigmoid(-d_fake).mean(),
            -log_sigmoid(d_fake).mean(),
        ),
        "lsgan": (((d_real - 1) ** 2).mean() / 2 + (d_fake**2).mean() / 2, ((d_fake - 1) ** 2).mean() / 2),
        "hinge": ((1 - d_real).clamp(min=0).mean() + (1 + d_fake).clamp(min=0).mean(), -d_fake.mean()),
        "wgan_gp": (d_fake.mean() - d_real.mean(), -d_fake.mean()),
        "r1": (-log_sigmoid(d_real).mean() - log_sigmoid(-d_fake).mean(), -log_sigmoid(d_fake).mean()),
    }[kind]
    penalty: Any = 0.0
    if kind in ("wgan_gp", "r1"):
        torch.manual_seed(4)
        mix = torch.rand(5, 1)
        points = (mix * real + (1 - mix) * fake_points if kind == "wgan_gp" else real).detach()
        slopes = torch.stack(
            [torch.autograd.functional.jacobian(judge, point[None]).reshape(-1) for point in points]
        )
        penalty = (
            10 * ((slopes.norm(dim=1) - 1) ** 2).mean()
            if kind == "wgan_gp"
            else 5 * (slopes**2).sum(1).mean()
        )
    torch.manual_seed(4)
    torch.testing.assert_close(new["discriminator"](models, (real, None)), expected[0] + penalty)
    torch.testing.assert_close(new["generator"](models, (real, None)), expected[1])
    new["generator"](models, (real, None)).backward()
    assert all(p.grad is not None for p in models["generator"].parameters())
    assert not models["discriminator"]._forward_hooks


def test_a_starved_generator_gets_a_gradient() -> None:
    models, losses, _ = _game(True)
    with torch.no_grad():
        models["discriminator"][-2].bias.fill_(-60.0)  # type: ignore[index]

    def gradient(loss: Any) -> float:
        models["generator"].zero_grad()
        loss["generator"](models, (features(5, 4), None)).backward()
        return sum(p.grad.abs().sum().item() for p in models["generator"].parameters() if p.grad is not None)

    assert gradient(losses) < 1e-6
    assert gradient(Patch(GanLoss("non_saturating")).loss(losses)) > 0.1


def test_a_game_cannot_be_changed_in_a_step_of_its_own() -> None:
    models, losses, _ = _game(False)
    program = Program(
        lambda seed: models, lambda m: {}, lambda seed: [], losses, step=lambda model, optimizer, batch: {}
    )
    with pytest.raises(
        PatchError, match="gan_loss does not fit a program with a step of its own: it needs the loss"
    ):
        Patch(GanLoss("hinge")).program(program)
    with pytest.raises(ValueError, match="asks the discriminator about 0 batches"):
        Patch(GanLoss("hinge")).loss({**losses, "generator": lambda m, b: torch.zeros(())})["generator"](
            models, ()
        )
