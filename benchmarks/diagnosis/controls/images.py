"""Healthy nets for images: plain, normalised, residual, dense, separable, U-shaped, and a small ViT."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.diagnosis.controls.dense import changed
from benchmarks.diagnosis.layers import FirstToken, GlobalAvgPool2d, PatchEmbed
from benchmarks.diagnosis.recipe import Recipe, accuracy, adam, adamw, bits, cross_entropy, sgd, task
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.lab.networks import PlainCNN, ResNet
from evenflow.lab.tasks import Digits, Shapes


def shapes(name: str, build: Any, optimizer: Any, threshold: float = 0.8, **more: Any) -> Recipe:
    """A net on drawn discs, squares, triangles and crosses, 16×16."""
    more = {
        "data": task(Shapes()),
        "loss": cross_entropy,
        "metric": accuracy,
        "kind": "cnn",
        "batch": 32,
        "steps": 200,
        **more,
    }
    return Recipe(name=name, build=build, optimizer=optimizer, threshold=threshold, **more)


def unit(inputs: int, outputs: int, stride: int = 1, groups: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 4),
    )


def lenet_tanh() -> nn.Module:
    """The first of its kind: tanh and mean pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.Tanh(),
        nn.Linear(64, 4),
    )


def vgg() -> nn.Module:
    return nn.Sequential(
        unit(1, 16),
        unit(16, 16),
        nn.MaxPool2d(2),
        unit(16, 32),
        unit(32, 32),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(512, 4),
    )


def mobile() -> nn.Module:
    """Depthwise separable convolutions."""
    separable = [unit(16 << i, 16 << i, groups=16 << i, stride=1 + i % 2) for i in range(2)]
    points = [unit(16 << i, 32 << i, kernel=1) for i in range(2)]
    parts = [part for pair in zip(separable, points, strict=True) for part in pair]
    return nn.Sequential(unit(1, 16, stride=2), *parts, GlobalAvgPool2d(), nn.Linear(64, 4))


class Dense(nn.Module):
    """Each layer reads all before it."""

    def __init__(self, layers: int = 6, growth: int = 8) -> None:
        super().__init__()
        self.stem = unit(1, 16, stride=2)
        self.layers = nn.ModuleList(unit(16 + growth * i, growth) for i in range(layers))
        self.head = nn.Linear(16 + growth * layers, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Squeeze(nn.Module):
    """Channels are weighted by sigmoid gates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = unit(1, 16, stride=2), unit(16, 32)
        self.gate = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 32), nn.Sigmoid())
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        x = x * self.gate(x.mean((2, 3)))[..., None, None]
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class UNet(nn.Module):
    """Down, down, up, up, with the finer maps handed across."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.middle, self.coarse = unit(1, 8), unit(8, 16), unit(16, 32)
        self.up_middle, self.up_fine = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.join_middle, self.join_fine = unit(32, 16), unit(16, 8)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        middle = self.middle(F.max_pool2d(fine, 2))
        coarse = self.coarse(F.max_pool2d(middle, 2))
        middle = self.join_middle(torch.cat([middle, self.up_middle(coarse)], 1))
        fine = self.join_fine(torch.cat([fine, self.up_fine(middle)], 1))
        out: Tensor = self.head(fine)
        return out


def _masks(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy shapes, and where their ink is."""
    clean, _ = Shapes(noise=0.0).batch(size, generator)
    return clean + 0.5 * torch.randn(clean.shape, generator=generator), clean


def _corrected(output: Tensor, target: Tensor) -> Tensor:
    """Dice and cross-entropy, as segmentation has it."""
    p = output.sigmoid()
    dice = 1 - 2 * (p * target).sum() / (p.sum() + target.sum() + 1)
    return dice + F.binary_cross_entropy_with_logits(output, target)


def _zero_last_norms(model: nn.Module) -> None:
    """The last BatchNorm of every residual branch starts at 0 (Goyal et al. 2017, section 5.1)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and "branch.1" in name:
            module.weight.zero_()


def vit() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    return nn.Sequential(PatchEmbed(1, 16, 4, 32), body, FirstToken(), nn.LayerNorm(32), nn.Linear(32, 4))


def recipes() -> list[Recipe]:
    def resnet(**more: Any) -> Any:
        return lambda: ResNet(channels=16, outputs=4, **more)

    small: Any = {"data": task(Digits(images=True)), "batch": 64}
    return [
        shapes("lenet-adam", lenet, adam()),
        shapes("lenet-sgd", lenet, sgd(0.05, 0.9)),
        shapes("lenet-tanh", lenet_tanh, adam(3e-3), steps=400),
        shapes("vgg-batchnorm", vgg, sgd(0.02, 0.9), steps=300),
        shapes("vgg-adadelta", vgg, lambda m: torch.optim.Adadelta(m.parameters(), 1.0)),
        shapes("mobile", mobile, adam(3e-3)),
        shapes("densenet", Dense, adam(3e-3), steps=300),
        shapes("squeeze-excite", Squeeze, adam(3e-3)),
        shapes("vit-small", vit, adamw(2e-3, weight_decay=0.05), steps=400, threshold=0.7),
        shapes("unet", UNet, adam(3e-3), data=_masks, loss=_corrected, metric=bits, threshold=0.93, batch=16),
        shapes("cnn-he-8", lambda: PlainCNN(depth=8, channels=16), adam(), threshold=0.8, **small),
        shapes("cnn-batchnorm-10", lambda: PlainCNN(depth=10, norm_name="batch"), sgd(0.05, 0.9), **small),
        shapes("cnn-groupnorm-8", lambda: PlainCNN(depth=8, norm_name="group"), adam(2e-3), **small),
        shapes("resnet-basic", resnet(units=3), sgd(0.05, 0.9)),
        shapes("resnet-bottleneck", resnet(units=4, kind="bottleneck"), sgd(0.05, 0.9)),
        shapes("resnet-zero-gamma", changed(resnet(units=4), _zero_last_norms), sgd(0.05, 0.9)),
        shapes("resnet-groupnorm", resnet(units=3, norm_name="group"), adam(2e-3)),
    ]
