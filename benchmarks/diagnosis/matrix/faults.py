"""The list of faults: what each changes, which controls it fits, and what may rightly be said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from benchmarks.diagnosis.matrix.changes import (
    built,
    dark,
    detached,
    ended,
    fed,
    filled,
    frozen,
    hoarding,
    in_format,
    left_out,
    scaled,
    skipless,
    squares,
    swapped,
    then,
    tuned,
    waiting,
)
from benchmarks.diagnosis.recipe import Recipe, cross_entropy, warmup
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.lab.networks import RecurrentNet
from evenflow.lab.networks.deep import ResidualBlock
from evenflow.lab.networks.images import ResidualUnit

WILD = "oscillating exploding_gradient non_finite dead_units saturation vanishing_gradient"
_ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Mish, nn.Softplus, nn.SELU, nn.PReLU)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_GATED = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""PyTorch's own blocks, whose parts cannot be exchanged."""


@dataclass(frozen=True)
class Probe:
    """A control, its model and two samples, to see which faults fit."""

    recipe: Recipe
    model: nn.Module
    x: Any
    y: Any

    def has(self, *kinds: type[nn.Module]) -> int:
        return sum(isinstance(module, kinds) for module in self.model.modules())

    @property
    def numbers(self) -> bool:
        return isinstance(self.x, Tensor) and self.x.is_floating_point()

    @property
    def rate(self) -> torch.optim.Optimizer:
        one: torch.optim.Optimizer = self.recipe.optimizer(self.model)
        return one


@dataclass(frozen=True)
class Fault:
    """What is done to a recipe, which it fits, and what may rightly be said of it."""

    change: Callable[[Recipe], Recipe]
    causes: str
    symptoms: str = ""
    fits: Callable[[Probe], bool] = lambda probe: True


def _times(factor: float) -> Callable[[Recipe], Recipe]:
    return tuned(lr=lambda lr: factor * lr)


def _chained(probe: Probe) -> bool:
    chain = getattr(probe.model, "layers", probe.model)
    return isinstance(chain, nn.Sequential) and len(chain) > 2


def _classes(probe: Probe) -> bool:
    return probe.recipe.loss is cross_entropy


def _squared(probe: Probe) -> bool:
    return probe.recipe.loss is F.mse_loss and probe.y.shape[-1] == 1


def _bare_parts(probe: Probe) -> bool:
    return not probe.has(*_GATED)


def _sgd(probe: Probe) -> bool:
    return isinstance(probe.rate, torch.optim.SGD)


def _adam(probe: Probe) -> bool:
    return not _sgd(probe)


def faults() -> dict[str, Fault]:
    high, low, wrong = "learning_rate_too_high", "learning_rate_too_low", "wrong_loss_or_output"
    fast, large = f"{high} dead_relu", "init_too_large recurrent_gain_too_large saturating_activation"
    rounding = "update_lost_to_rounding precision_underflow"
    gone = "frozen_or_detached"
    return {
        "rate-x10": Fault(_times(10), fast, WILD),
        "rate-x30": Fault(_times(30), fast, WILD),
        "rate-x100": Fault(_times(100), fast, WILD),
        "rate-over-100": Fault(_times(0.01), low),
        "rate-over-1000": Fault(_times(0.001), low),
        "warmup-too-long": Fault(lambda one: replace(one, scheduler=warmup(100_000)), low),
        "decays-early": Fault(
            lambda one: replace(
                one, scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.7)
            ),
            low,
        ),
        "momentum-99": Fault(
            then(_times(5), tuned(momentum=lambda _: 0.99)), fast, WILD, _sgd
        ),
        "loss-x1e4": Fault(
            lambda one: replace(one, loss=lambda o, y: 1e4 * one.loss(o, y)),
            f"{fast} unscaled_target {wrong}", WILD, _sgd,
        ),
        "loss-x1e-4": Fault(
            lambda one: replace(one, loss=lambda o, y: 1e-4 * one.loss(o, y)), low, "vanishing_gradient", _sgd
        ),
        "clip-1e-3": Fault(lambda one: replace(one, clip=1e-3), f"clipping_always_active {low}"),
        "eps-1e-1": Fault(tuned(eps=lambda _: 0.1), f"optimizer_epsilon_dominates {low}", "", _adam),
        "decay-1": Fault(
            tuned(weight_decay=lambda _: 1.0), "unknown init_too_small", "vanishing_gradient dead_units"
        ),
        "decay-30": Fault(tuned(weight_decay=lambda _: 30.0), f"unknown init_too_small {high}", WILD),
        "no-zero-grad": Fault(hoarding, f"{high} unknown", WILD),
        "weights-x10": Fault(built(scaled(10.0)), large, WILD, _bare_parts),
        "weights-x3": Fault(built(scaled(3.0)), large, WILD),
        "weights-over-10": Fault(built(scaled(0.1)), "init_too_small", "vanishing_gradient dead_units"),
        "weights-over-30": Fault(built(scaled(1 / 30)), "init_too_small", "vanishing_gradient dead_units"),
        "weights-zero": Fault(built(filled(0.0)), "zero_init_symmetry", "vanishing_gradient dead_units"),
        "weights-constant": Fault(
            built(filled(0.1)), "zero_init_symmetry init_too_large", "vanishing_gradient exploding_gradient"
        ),
        "norms-removed": Fault(
            built(swapped(_NORMS, lambda _: nn.Identity())),
            f"missing_normalization init_too_small init_too_large depth_without_skip {high} residual_growth",
            WILD,
            lambda probe: probe.has(*_NORMS) > 1 and _bare_parts(probe),
        ),
        "sigmoids": Fault(
            built(swapped(_ACTIVATIONS, lambda _: nn.Sigmoid())),
            "saturating_activation depth_without_skip", "vanishing_gradient saturation",
            lambda probe: probe.has(*_ACTIVATIONS) > 2 and _bare_parts(probe),
        ),
        "skips-removed": Fault(
            built(swapped((ResidualBlock, ResidualUnit), skipless)),
            "depth_without_skip init_too_small normalization_explosion zero_init_symmetry", WILD,
            lambda probe: probe.has(ResidualBlock, ResidualUnit) > 2,
        ),
        "biases-minus-5": Fault(
            built(dark), "dead_relu", "dead_units vanishing_gradient",
            lambda probe: probe.has(nn.ReLU) > 1 and not probe.has(*_NORMS),
        ),
        "dropout-95": Fault(
            built(swapped(_ACTIVATIONS, lambda act: nn.Sequential(act, nn.Dropout(0.95)))), "unknown", WILD,
            lambda probe: probe.has(*_ACTIVATIONS) > 2 and _bare_parts(probe),
        ),
        "double-softmax": Fault(ended(lambda: nn.Softmax(-1)), wrong, "", _classes),
        "softmax-nll": Fault(
            ended(lambda: nn.Softmax(-1), lambda o, y: F.nll_loss(o.flatten(0, -2), y.flatten())), wrong, "",
            _classes,
        ),
        "sigmoid-squares": Fault(
            lambda one: replace(one, loss=squares), f"{wrong} saturating_activation {low}",
            "vanishing_gradient saturation", lambda probe: _classes(probe) and probe.y.dim() == 1,
        ),
        "softmax-of-one": Fault(ended(lambda: nn.Softmax(-1)), wrong, "vanishing_gradient", _squared),
        "sigmoid-output": Fault(ended(nn.Sigmoid), wrong, "saturation vanishing_gradient", _squared),
        "relu-output": Fault(
            ended(nn.ReLU), f"{wrong} dead_relu", "dead_units vanishing_gradient",
            lambda probe: _squared(probe) or _classes(probe),
        ),
        "inputs-x100": Fault(
            fed(lambda x: 100 * x), f"unscaled_input {high} dead_relu saturating_activation", WILD,
            lambda probe: probe.numbers,
        ),
        "inputs-plus-50": Fault(
            fed(lambda x: x + 50), f"unscaled_input {high} dead_relu saturating_activation", WILD,
            lambda probe: probe.numbers,
        ),
        "inputs-over-1000": Fault(
            fed(lambda x: x / 1000), f"unscaled_input init_too_small {low}", "vanishing_gradient",
            lambda probe: probe.numbers,
        ),
        "targets-x1000": Fault(
            fed(targets=lambda y: 1000 * y), f"unscaled_target {high} {low}", WILD, _squared
        ),
        "targets-plus-300": Fault(
            fed(targets=lambda y: 300 + y), f"unscaled_target {high} {low}", WILD, _squared
        ),
        "frozen": Fault(built(frozen), gone),
        "detached": Fault(built(detached), gone, "vanishing_gradient", _chained),
        "not-in-optimizer": Fault(left_out, gone),
        "half": Fault(
            in_format(torch.float16), f"{rounding} precision_overflow",
            "non_finite vanishing_gradient exploding_gradient", lambda probe: probe.numbers,
        ),
        "half-scaled-down": Fault(
            then(in_format(torch.float16), lambda one: replace(one, loss=lambda o, y: 1e-6 * one.loss(o, y))),
            f"{rounding} precision_overflow", "non_finite vanishing_gradient",
            lambda probe: probe.numbers and _bare_parts(probe),
        ),
        "bfloat16-gently": Fault(
            then(in_format(torch.bfloat16), _times(0.03)), f"{rounding} {low}", "",
            lambda probe: probe.numbers,
        ),
        "waits-60": Fault(
            fed(waiting), "long_recurrence saturating_activation", "vanishing_gradient saturation",
            lambda probe: probe.has(RecurrentNet) > 0 and probe.numbers,
        ),
        "recurrent-x5": Fault(
            built(
                lambda model: [
                    p.mul_(5.0) for name, p in model.named_parameters() if "weight_hh" in name
                ]
            ),
            "recurrent_gain_too_large init_too_large saturating_activation", WILD,
            lambda probe: probe.has(nn.RNNBase) > 0,
        ),
    }  # fmt: skip
