"""Half precision: weights, gradients and activations in 16 bits; and rare classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from benchmarks.diagnosis.fresh.entry import faulty, healthy
from benchmarks.diagnosis.fresh.kit import Split, cross_entropy, digits, noise, split, supervised
from benchmarks.diagnosis.recipe import adam, adamw, sgd
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


class Net(nn.Module):
    """Three linear layers that compute in ``dtype``; scores come back in 32 bits."""

    def __init__(self, dtype: torch.dtype = torch.float32, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, classes)
        ).to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x.to(self.dtype))
        return out.float()


@faulty(
    "mixed_precision",
    source="https://github.com/pytorch/pytorch/issues/8860",
    fix="weights in 32 bits",
    symptoms=("non_finite",),
    causes=("precision_underflow", "precision_overflow", "optimizer_epsilon_dominates"),
)
def adam_in_half(fixed: bool) -> Program:
    """model.half() and Adam: its epsilon of 1e-8 is zero in float16, and a zero gradient gives 0/0."""
    return supervised(
        lambda: Net(torch.float32 if fixed else torch.float16), digits(), cross_entropy, adam(1e-3), 150
    )


@faulty(
    "mixed_precision",
    source="https://github.com/hp-l33/AiM/issues/10 and https://github.com/meta-pytorch/torchtune/issues/2254",
    fix="weights in 32 bits",
    symptoms=("loss_not_decreasing",),
    causes=("update_lost_to_rounding",),
)
def rounded_away(fixed: bool) -> Program:
    """Weights in bfloat16 and plain SGD at .01: most steps are less than half a unit in the last place."""
    return supervised(
        lambda: Net(torch.float32 if fixed else torch.bfloat16), digits(), cross_entropy, sgd(0.01), 1500
    )


@faulty(
    "mixed_precision",
    source="modelled on mean losses in float16 without a GradScaler",
    fix="32 bits",
    symptoms=("vanishing_gradient", "loss_not_decreasing"),
    causes=("precision_underflow",),
)
def underflowing_gradients(fixed: bool) -> Program:
    """A loss divided by 2¹⁸ in float16, without a scaler; the rate makes up for it."""
    return supervised(
        lambda: Net(torch.float32 if fixed else torch.float16),
        digits(),
        lambda out, y: cross_entropy(out, y) / 2**18,
        sgd(0.05 * 2**18),
        250,
    )


@faulty(
    "mixed_precision",
    source="modelled on float16 activations of unscaled inputs that reach 65 504",
    fix="inputs of size 1",
    symptoms=("non_finite",),
    causes=("precision_overflow", "unscaled_input"),
)
def beyond_half(fixed: bool) -> Program:
    """Sensor counts of tens of thousands into a network that computes in float16."""
    data = digits().map(x=lambda x: x if fixed else x * 30000)
    return supervised(
        lambda: Net(torch.float32 if fixed else torch.float16), data, cross_entropy, sgd(0.05), 200
    )


def rare() -> Split:
    """One sample in thirty is of the second class."""
    x = noise(3000, 64, seed=95)
    score = x[:, :6].sum(1) / 6**0.5
    return split(x, (score > 1.83).long())


def balanced(output: Tensor, target: Tensor) -> float:
    """Mean recall of the two classes."""
    said = output.argmax(-1)
    return sum(float((said[target == k] == k).float().mean()) for k in (0, 1)) / 2


@faulty(
    "imbalanced",
    source="modelled on fraud detectors with class weights of thousands",
    fix="weights in the ratio of the classes",
    symptoms=("oscillating", "exploding_gradient", "loss_not_decreasing"),
    causes=("learning_rate_too_high", "wrong_loss_or_output"),
)
def overweighted(fixed: bool) -> Program:
    """A sum of losses in which one rare sample counts 2 000 times, with SGD."""
    weight = torch.tensor([1.0, 30.0 if fixed else 2000.0])

    def loss(out: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(out, y, weight=weight, reduction="none")
        return each.mean() / 10

    return supervised(lambda: Net(classes=2), rare(), loss, sgd(0.05, 0.9), 300, metric=balanced)


# --- healthy ----------------------------------------------------------------------------


@healthy("mixed_precision", 0.93, source="own: autocast in bfloat16 with weights in 32 bits")
def autocast_bf16() -> Program:
    """Autocast around the forward pass, as the manual has it."""

    def loss(model: Any, pair: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(pair[0])
        return F.cross_entropy(out.float(), pair[1])

    return replace(supervised(Net, digits(), cross_entropy, adamw(1e-3), 250), loss=loss)


@healthy("imbalanced", 0.8, source="own: a rare class with weights in the ratio of the classes")
def weighted_rarity() -> Program:
    """One in thirty counts thirty times: a noisy loss, since few batches have many of them."""
    weight = torch.tensor([1.0, 30.0])
    return supervised(
        lambda: Net(classes=2),
        rare(),
        lambda out, y: F.cross_entropy(out, y, weight=weight),
        adam(1e-3, weight_decay=1e-4),
        200,
        metric=balanced,
    )
