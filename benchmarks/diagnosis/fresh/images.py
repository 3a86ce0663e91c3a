"""Convolutional networks, residual networks, segmentation."""

from __future__ import annotations

import torch
from benchmarks.diagnosis.fresh.entry import faulty, healthy
from benchmarks.diagnosis.fresh.kit import Split, cross_entropy, digits, noise, split, supervised, uniform
from benchmarks.diagnosis.recipe import adam, adamw, sgd
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


class LeNet(nn.Module):
    """Two convolutions and two linear layers, as tutorials have them; ``end`` is applied to the scores."""

    def __init__(self, end: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 2 * 2, 64)
        self.fc2 = nn.Linear(64, 10)
        self.end = end if end is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        out: Tensor = self.end(self.fc2(x))
        return out


@faulty(
    "cnn",
    source="https://github.com/MicrosoftDocs/ml-basics/issues/48",
    fix="no softmax before CrossEntropyLoss",
    symptoms=("loss_not_decreasing",),
    causes=("wrong_loss_or_output",),
)
def twice_softmax(fixed: bool) -> Program:
    """Softmax before CrossEntropyLoss: it learns, slowly, to a loss that cannot fall below 1.46."""
    return supervised(
        lambda: LeNet(None if fixed else nn.Softmax(dim=1)),
        digits(image=True),
        cross_entropy,
        sgd(0.05, 0.9),
        150,
    )


@faulty(
    "cnn",
    source="modelled on questions about images of 0 to 255 and a loss of 2.30",
    fix="pixels of 0 to 1",
    symptoms=("exploding_gradient", "dead_units", "loss_not_decreasing"),
    causes=("unscaled_input", "learning_rate_too_high", "dead_relu"),
)
def raw_pixels(fixed: bool) -> Program:
    """Pixels of 0 to 255 with SGD and momentum."""
    data = digits(image=True)
    return supervised(
        LeNet, data if fixed else data.map(x=lambda x: x * 255), cross_entropy, sgd(0.02, 0.9), 200
    )


@faulty(
    "cnn",
    source="own experience of VGG-like networks without BatchNorm from PyTorch's default weights",
    fix="BatchNorm after each convolution",
    symptoms=("vanishing_gradient", "loss_not_decreasing"),
    causes=("depth_without_skip", "missing_normalization", "init_too_small"),
)
def plain_vgg(fixed: bool) -> Program:
    """Fourteen convolutions in a row, PyTorch's default weights."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for i in range(14):
            layers += [nn.Conv2d(1 if i == 0 else 16, 16, 3, padding=1)]
            layers += [nn.BatchNorm2d(16)] if fixed else []
            layers += [nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if i == 6 else []
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    return supervised(build, digits(image=True), cross_entropy, sgd(0.02, 0.9), 150)


class Block(nn.Module):
    """x + f(x); with a norm in f, or a factor on f."""

    def __init__(self, width: int, norm: bool = False, zero: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=not norm)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=not norm)
        self.norm1 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(width) if norm else nn.Identity()
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if zero:
            nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(out)))


class ResNet(nn.Module):
    """A stem, blocks of one width, the mean over the image, a linear layer."""

    def __init__(self, blocks: int, norm: bool = False, zero: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(12, norm, zero) for _ in range(blocks)])
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        out: Tensor = self.fc(self.blocks(x).mean((2, 3)))
        return out


@faulty(
    "resnet",
    source="own experience: a residual network whose norms were taken out for small batches",
    fix="BatchNorm in the blocks",
    symptoms=("exploding_gradient", "dead_units", "vanishing_gradient"),
    causes=("residual_growth", "missing_normalization"),
)
def resnet_without_norm(fixed: bool) -> Program:
    """Sixteen blocks x + f(x) of Kaiming weights without a norm: the stream doubles its variance in each."""
    return supervised(
        lambda: ResNet(16, norm=fixed), digits(image=True), cross_entropy, sgd(0.02, 0.9), 100, batch=32
    )


@faulty(
    "cnn",
    source="modelled on questions with a ReLU after the last layer",
    fix="no ReLU after the last layer",
    symptoms=("dead_units", "loss_not_decreasing"),
    causes=("wrong_loss_or_output", "dead_relu"),
)
def relu_at_the_end(fixed: bool) -> Program:
    """A ReLU after the scores: classes whose score is negative for all samples never come back."""
    return supervised(
        lambda: LeNet(None if fixed else nn.ReLU()), digits(image=True), cross_entropy, sgd(0.1, 0.9), 200
    )


@faulty(
    "cnn",
    source="https://datascience.stackexchange.com/questions/28481 (learns, then 0.5 for all)",
    fix="rate of .01",
    symptoms=("loss_not_decreasing", "dead_units", "vanishing_gradient"),
    causes=("learning_rate_too_high", "dead_relu"),
)
def learned_and_lost(fixed: bool) -> Program:
    """Even or odd, with a rate so high that the network falls to one answer for all."""
    data = digits(image=True).map(y=lambda y: y % 2)

    def build() -> nn.Module:
        model = LeNet()
        model.fc2 = nn.Linear(64, 2)
        return model

    return supervised(build, data, cross_entropy, sgd(0.01 if fixed else 0.4, 0.9), 200)


def blobs() -> Split:
    """Images of 16 by 16 with a bright disc in noise, and the disc's mask."""
    count = 400
    centre = 3 + 10 * uniform(count, 2, 1, 1, seed=41)
    radius = 2 + 2 * uniform(count, 1, 1, seed=42)
    grid = torch.arange(16.0)
    inside = (grid[:, None] - centre[:, 0]) ** 2 + (grid - centre[:, 1]) ** 2 < radius**2
    mask = inside.float()[:, None]
    return split(mask + 0.7 * noise(count, 1, 16, 16, seed=43), mask)


class UNet(nn.Module):
    """Two levels down, two up, with skips across."""

    def __init__(self, end: nn.Module, norm: bool = True) -> None:
        super().__init__()
        self.norm = norm
        self.down1 = self.pair(1, 8)
        self.down2 = self.pair(8, 16)
        self.middle = self.pair(16, 16)
        self.up1 = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.dec1 = self.pair(32, 8)
        self.up2 = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.dec2 = self.pair(16, 8)
        self.out = nn.Conv2d(8, 1, 1)
        self.end = end

    def pair(self, inputs: int, outputs: int) -> nn.Sequential:
        norm = nn.BatchNorm2d if self.norm else nn.Identity
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            norm(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            norm(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.max_pool2d(b, 2))
        x = self.dec1(torch.cat([self.up1(c), b], 1))
        x = self.dec2(torch.cat([self.up2(x), a], 1))
        out: Tensor = self.end(self.out(x))
        return out


def dice(output: Tensor, target: Tensor) -> float:
    """Overlap of the mask that is said and the true one; scores above 0 are said."""
    said, true = output > 0, target > 0.5
    return float(2 * (said & true).sum() / (said.sum() + true.sum()).clamp_min(1))


def dice_of_half(output: Tensor, target: Tensor) -> float:
    """The same of probabilities."""
    return dice(output - 0.5, target)


@faulty(
    "unet",
    source="modelled on issues of U-Net repositories: Sigmoid and BCEWithLogitsLoss together",
    fix="no sigmoid in the network",
    symptoms=("loss_not_decreasing", "saturation"),
    causes=("wrong_loss_or_output",),
)
def twice_sigmoid(fixed: bool) -> Program:
    """A sigmoid in the network and another in the loss: most pixels are background, which it cannot say."""
    return supervised(
        lambda: UNet(nn.Identity() if fixed else nn.Sigmoid(), norm=False),
        blobs(),
        F.binary_cross_entropy_with_logits,
        adam(2e-3),
        200,
        batch=16,
        metric=dice if fixed else dice_of_half,
    )


@faulty(
    "cnn",
    source="modelled on threads where model.eval() or requires_grad_(False) was left from feature extraction",
    fix="the convolutions learn too",
    symptoms=("loss_not_decreasing",),
    causes=("frozen_or_detached",),
    places=("body", "body.0", "body.2", "body.4"),
)
def left_frozen(fixed: bool) -> Program:
    """A body of untrained weights under torch.no_grad(), left over from a feature extractor."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 2)
            )
            self.head = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(fixed and torch.is_grad_enabled()):
                h = self.body(x)
            out: Tensor = self.head(h.flatten(1))
            return out

    return supervised(Net, digits(image=True), cross_entropy, adam(5e-3), 250)


# --- healthy ----------------------------------------------------------------------------


@healthy("resnet", 0.85, source="Zhang et al. 2019 (Fixup), zero-initialised residual branches")
def zero_branches() -> Program:
    """Ten blocks without a norm whose branches start at zero: no gradient in half of the weights at first."""
    return supervised(
        lambda: ResNet(10, zero=True), digits(image=True), cross_entropy, adam(3e-3), 300, batch=32
    )


@healthy("cnn", 0.9, source="own: BatchNorm with a high rate")
def bold_batchnorm() -> Program:
    """A rate of .3 with momentum, which BatchNorm bears."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )

    return supervised(build, digits(image=True), cross_entropy, sgd(0.3, 0.9, weight_decay=1e-4), 200)


@healthy("unet", 0.75, source="own: segmentation in which nine of ten pixels are background")
def mostly_background() -> Program:
    """The loss falls at once, when all is called background, rests there, and falls again."""
    return supervised(
        lambda: UNet(nn.Identity()),
        blobs(),
        F.binary_cross_entropy_with_logits,
        adamw(3e-3),
        200,
        batch=16,
        metric=dice,
    )
