"""Pictures: classifiers, masks, sharper pictures, corners."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from benchmarks.diagnosis.fresh.kit import (
    Split,
    accuracy,
    cross_entropy,
    digits,
    half_accuracy,
    noise,
    r2,
    split,
    supervised,
    uniform,
)
from benchmarks.diagnosis.recipe import adam, sgd
from benchmarks.diagnosis.unseen.collection import faulty, healthy
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


def classifier(width: int, layers: int, norm: bool = False) -> nn.Sequential:
    """Convolutions of one width, a pool after the second, a linear layer."""
    parts: list[nn.Module] = []
    for i in range(layers):
        parts += [nn.Conv2d(1 if i == 0 else width, width, 3, padding=1)]
        parts += [*([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
        if i == 1:
            parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(16 * width, 10))


def initialised(model: nn.Module, change: Callable[[Tensor], object]) -> nn.Module:
    """The model with its matrices and kernels changed in place."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            change(layer.weight)
    return model


@faulty(
    "cnn",
    source="own: weights_init with normal_(0, 1), a zero lost on the way from DCGAN's .02",
    fix="normal_(0, .1)",
    symptoms=("exploding_gradient", "loss_not_decreasing", "oscillating"),
    causes=("init_too_large",),
)
def a_zero_lost(fixed: bool) -> Program:
    """Four convolutions with weights of deviation 1: logits of ten thousands."""
    return supervised(
        lambda: initialised(classifier(16, 4), lambda w: nn.init.normal_(w, std=0.1 if fixed else 1.0)),
        digits(image=True),
        cross_entropy,
        adam(2e-3),
        150,
        batch=32,
    )


@faulty(
    "cnn",
    source="https://github.com/facebookresearch/maskrcnn-benchmark/issues/295 (a rate for eight GPUs)",
    fix="a rate of .01",
    symptoms=("loss_not_decreasing", "non_finite", "dead_units", "exploding_gradient"),
    causes=("learning_rate_too_high", "dead_relu"),
)
def rate_for_many_machines(fixed: bool) -> Program:
    """Batches of 4, with the rate that was meant for 128."""
    return supervised(
        lambda: classifier(12, 3),
        digits(image=True),
        cross_entropy,
        sgd(0.01 if fixed else 0.4, 0.9),
        300,
        batch=4,
    )


class Tower(nn.Module):
    """Convolutions and batch norms, as they come or with skips."""

    def __init__(self, layers: int, skip: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, 3, padding=1)
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)) for _ in range(layers)]
        )
        self.head, self.skip = nn.Linear(12 * 16, 10), skip

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        for layer in self.layers:
            x = x + 0.3 * F.relu(layer(x)) if self.skip else F.relu(layer(x))
        out: Tensor = self.head(x.flatten(1))
        return out


@faulty(
    "cnn",
    source="Yang et al., A Mean Field Theory of Batch Normalization (2019)",
    fix="skips over all layers",
    symptoms=("exploding_gradient", "loss_not_decreasing", "vanishing_gradient"),
    causes=("normalization_explosion", "depth_without_skip"),
)
def norms_in_a_row(fixed: bool) -> Program:
    """Forty-eight convolutions with batch norms and no skip: gradients grow by a fifth with each."""
    return supervised(
        lambda: Tower(48, fixed), digits(image=True), cross_entropy, sgd(0.01, 0.9), 90, batch=32
    )


# --- masks ------------------------------------------------------------------------------


@cache
def discs() -> Split:
    """Bytes of discs on uneven ground, and where the discs are."""
    at = 3 + 6 * uniform(500, 2, seed=501)
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    inside = ((y - at[:, :1, None]) ** 2 + (x - at[:, 1:, None]) ** 2 < 7).float()[:, None]
    ground = 90 + 20 * noise(500, 1, 12, 12, seed=502) + 10 * x
    return split((ground + 60 * inside).clamp(0, 255), inside)


class Unet(nn.Module):
    """One level down, one up, probabilities at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 24, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(24, 12, 2, 2), nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down(x))
        b = F.relu(self.up(F.relu(self.low(F.max_pool2d(a, 2)))))
        return torch.sigmoid(self.last(torch.cat([a, b], 1)))


@faulty(
    "unet",
    source="https://github.com/NVIDIA/apex/issues/358 (a loss by hand: the log of a probability that is 0)",
    fix="binary_cross_entropy, which bounds its logarithms, and standardised inputs",
    symptoms=("non_finite",),
    causes=("wrong_loss_or_output", "unscaled_input"),
)
def masks_by_own_logarithms(fixed: bool) -> Program:
    """Pictures from 0 to 255; a sigmoid that is rounded to 1; the logarithm of 0."""
    data = discs()

    def loss(p: Tensor, y: Tensor) -> Tensor:
        if fixed:
            return F.binary_cross_entropy(p, y)
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()

    mean, std = data.x.mean(), data.x.std()
    return supervised(
        Unet,
        data.map(x=lambda x: (x - mean) / std) if fixed else data,
        loss,
        adam(3e-3),
        150,
        batch=16,
        metric=half_accuracy,
    )


# --- sharper pictures -------------------------------------------------------------------


class Sharpener(nn.Module):
    """Residual blocks without norms, scaled or not, and a finer picture."""

    def __init__(self, blocks: int, scale: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
                for _ in range(blocks)
            ]
        )
        self.last, self.scale = nn.Conv2d(16, 4, 3, padding=1), scale
        initialised(self, nn.init.kaiming_normal_)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + self.scale * block(x)
        return F.pixel_shuffle(self.last(x), 2)


@cache
def coarse() -> Split:
    """Digits at half their size, and as they are."""
    data = digits(image=True)
    return Split(F.avg_pool2d(data.x, 2), data.x, F.avg_pool2d(data.test_x, 2), data.test_x)


@faulty(
    "resnet",
    source="https://github.com/XPixelGroup/BasicSR/issues/121, "
    "https://github.com/JiahuiYu/wdsr_ntire2018/issues/14 (why residuals are scaled)",
    fix="residuals scaled by .1, as in EDSR",
    symptoms=("exploding_gradient", "loss_not_decreasing"),
    causes=("residual_growth", "missing_normalization", "init_too_large"),
)
def sharpener_without_scale(fixed: bool) -> Program:
    """Each of seventeen blocks trebles the variance."""
    return supervised(
        lambda: Sharpener(17, 0.1 if fixed else 1.0),
        coarse(),
        F.l1_loss,
        adam(1e-3),
        120,
        batch=32,
        metric=r2,
    )


# --- corners ----------------------------------------------------------------------------


@faulty(
    "cnn",
    source="modelled on threads about a network that says the same for every picture (keypoints, ages)",
    fix="a rate of 2e-3",
    symptoms=("dead_units", "loss_not_decreasing", "vanishing_gradient"),
    causes=("learning_rate_too_high", "dead_relu"),
)
def same_for_every_picture(fixed: bool) -> Program:
    """Where is the disc? Adam at .1 kills the ReLUs, and what is left is the mean."""
    data = discs()
    rows = torch.linspace(-1, 1, 12)

    def where(mask: Tensor) -> Tensor:
        weight = mask / mask.sum((2, 3), keepdim=True)
        return torch.cat([(weight.sum(3) * rows).sum(2), (weight.sum(2) * rows).sum(2)], 1)

    mean, std = data.x.mean(), data.x.std()

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(144, 48),
            nn.ReLU(),
            nn.Linear(48, 2),
        )

    return supervised(
        build,
        data.map(x=lambda x: (x - mean) / std, y=where),
        F.mse_loss,
        adam(2e-3 if fixed else 0.1),
        250,
        batch=32,
        metric=r2,
    )


# --- healthy ----------------------------------------------------------------------------


@healthy(
    "cnn", 0.85, source="Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks (2018)"
)
def against_attacks() -> Program:
    """Each picture is first changed for the worse: the loss stays high and the gradient on inputs is used."""

    def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        x = pair[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(x), pair[1]), x)
        return F.cross_entropy(model((x + 0.1 * slope.sign()).detach()), pair[1])

    data = digits(image=True)
    program = supervised(lambda: classifier(16, 2), data, cross_entropy, adam(3e-3), 150, batch=32)
    return Program(
        build=program.build,
        optimizer=program.optimizer,
        batches=program.batches,
        loss=loss,
        steps=program.steps,
        metric=program.metric,
    )


class Sparse(nn.Module):
    """Of 256 units the eight largest go on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        keep = h >= h.topk(8, 1).values[:, -1:]
        out: Tensor = self.last(h * keep)
        return out


@healthy("mlp", 0.9, source="own: winners take all")
def eight_of_many() -> Program:
    """Ninety-seven of a hundred activations are zero, on purpose."""
    return supervised(Sparse, digits(), cross_entropy, adam(3e-3), 250, metric=accuracy)


@healthy("unet", 0.93, source="own: standardised discs")
def masks_of_discs() -> Program:
    """Probabilities near 0 nearly everywhere, for most of a picture is ground."""
    data = discs()
    mean, std = data.x.mean(), data.x.std()
    return supervised(
        Unet,
        data.map(x=lambda x: (x - mean) / std),
        F.binary_cross_entropy,
        adam(3e-3),
        150,
        batch=16,
        metric=half_accuracy,
    )
