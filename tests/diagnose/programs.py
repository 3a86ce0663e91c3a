"""Programs of one batch: healthy ones that must raise no alarm, and parts to build faulty ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Init = Callable[[Tensor], Any]
Loss = Callable[[Any], Tensor]


@dataclass
class Program:
    """What ``measure`` takes."""

    model: nn.Module
    inputs: Any
    loss: Loss | None = None


HEALTHY: dict[str, Callable[[], Program]] = {}
"""Name → program; each is built from a fresh seed."""


def healthy(build: Callable[[], Program]) -> Callable[[], Program]:
    HEALTHY[build.__name__] = build
    return build


he: Init = nn.init.kaiming_normal_
glorot: Init = nn.init.xavier_normal_


def wide(weight: Tensor) -> Tensor:
    """Unit variance, as old code and scale-invariant nets have it."""
    return nn.init.normal_(weight)


def narrow(weight: Tensor) -> Tensor:
    """GPT-2's standard deviation."""
    return nn.init.normal_(weight, std=0.02)


def initialised(model: nn.Module, init: Init) -> nn.Module:
    """All matrices and kernels by ``init``, all biases zero."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def mlp(
    layers: int,
    activation: Callable[[], nn.Module],
    init: Init | None = None,
    *,
    norm: Callable[[int], nn.Module] | None = None,
    units: int = 128,
    inputs: int = 64,
    outputs: int = 10,
) -> nn.Sequential:
    """A plain stack of ``layers`` linear layers."""
    stack: list[nn.Module] = []
    for i in range(layers - 1):
        stack.append(nn.Linear(units if i else inputs, units))
        if norm is not None:
            stack.append(norm(units))
        stack.append(activation())
    model = nn.Sequential(*stack, nn.Linear(units, outputs))
    if init is not None:
        initialised(model, init)
    return model


def classify(model: nn.Module, inputs: Tensor, classes: int = 10) -> Program:
    """Cross-entropy on random labels."""
    labels = torch.randint(0, classes, (len(inputs),))
    return Program(model, inputs, lambda output: F.cross_entropy(output, labels))


def batch(size: int = 128, features: int = 64) -> Tensor:
    return torch.randn(size, features)


def images(size: int = 8, side: int = 16) -> Tensor:
    return torch.randn(size, 3, side, side)


class Branch(nn.Module):
    """x + scale · f(x)."""

    def __init__(self, body: nn.Module, scale: float | nn.Parameter = 1.0) -> None:
        super().__init__()
        self.body, self.scale = body, scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.body(x)


class Sequence(nn.Module):
    """A recurrent layer and a head on its last step, or on the mean of all."""

    def __init__(self, layer: nn.Module, units: int, *, mean: bool = False) -> None:
        super().__init__()
        self.layer, self.head, self.mean = layer, nn.Linear(units, 10), mean

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.layer(x)
        return self.head(output.mean(1) if self.mean else output[:, -1])


class Loop(nn.Module):
    """A cell that Python runs step by step."""

    def __init__(self, cell: nn.Module, units: int = 32) -> None:
        super().__init__()
        self.cell, self.head, self.units = cell, nn.Linear(units, 10), units

    def forward(self, x: Tensor) -> Tensor:
        state = zero = x.new_zeros(len(x), self.units)
        memory = zero
        for t in range(x.shape[1]):
            if isinstance(self.cell, nn.LSTMCell):
                state, memory = self.cell(x[:, t], (state, memory))
            else:
                state = self.cell(x[:, t], state)
        return self.head(state)


class Attention(nn.Module):
    """One head with a mask [T, T] of the places that must not be looked at."""

    def __init__(self, mask: Tensor, units: int = 32) -> None:
        super().__init__()
        self.qkv, self.out, self.mask = nn.Linear(units, 3 * units), nn.Linear(units, 10), mask

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(self.mask, float("-inf")).softmax(-1)
        return self.out((weights @ v).mean(1))


@healthy
def tanh_17_glorot() -> Program:
    return classify(mlp(17, nn.Tanh, glorot), batch())


@healthy
def tanh_50_glorot() -> Program:
    return classify(mlp(50, nn.Tanh, glorot), batch())


@healthy
def relu_20_he() -> Program:
    return classify(mlp(20, nn.ReLU, he), batch())


@healthy
def relu_50_he_narrow() -> Program:
    return classify(mlp(50, nn.ReLU, he, units=16), batch())


@healthy
def relu_6_default() -> Program:
    return classify(mlp(6, nn.ReLU), batch())


@healthy
def selu_20_lecun() -> Program:
    def lecun(weight: Tensor) -> Tensor:
        return nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    return classify(mlp(20, nn.SELU, lecun), batch())


@healthy
def textbook_sigmoid_of_two_layers() -> Program:
    """Nielsen, chapter 1: 30 hidden units, weights of unit variance, squared error, learning rate 3."""
    model = nn.Sequential(nn.Linear(784, 30), nn.Sigmoid(), nn.Linear(30, 10), nn.Sigmoid())
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    digits = (torch.rand(10, 784) < 0.19).float()
    labels = torch.eye(10)
    return Program(model, digits, lambda output: F.mse_loss(output, labels))


@healthy
def lenet_sigmoid_glorot() -> Program:
    """Dive into Deep Learning, section 7.6."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 5, padding=2), nn.Sigmoid(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10),
    )  # fmt: skip
    return classify(initialised(model, glorot), images())


@healthy
def residual_20_scaled() -> Program:
    blocks = [Branch(mlp(2, nn.ReLU, he, inputs=128, outputs=128), 9**-0.5) for _ in range(9)]
    return classify(nn.Sequential(nn.Linear(64, 128), *blocks, nn.Linear(128, 10)), batch())


@healthy
def rezero() -> Program:
    blocks = [
        Branch(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), nn.Parameter(torch.zeros(()))) for _ in range(12)
    ]
    return classify(nn.Sequential(*blocks, nn.Linear(64, 10)), batch())


@healthy
def fixup() -> Program:
    bodies = [mlp(2, nn.ReLU, he, inputs=64, outputs=64) for _ in range(12)]
    for body in bodies:
        last = body[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
    model = nn.Sequential(nn.Linear(64, 64), *map(Branch, bodies), nn.Linear(64, 10))
    nn.init.zeros_(model[-1].weight)  # type: ignore[arg-type]
    return classify(model, batch())


@healthy
def head_of_zeros() -> Program:
    model = mlp(4, nn.ReLU, he)
    nn.init.zeros_(model[-1].weight)  # type: ignore[arg-type]
    return classify(model, batch())


@healthy
def logistic_regression_from_zeros() -> Program:
    return classify(initialised(nn.Linear(64, 10), nn.init.zeros_), batch())


@healthy
def batchnorm_20() -> Program:
    return classify(mlp(20, nn.ReLU, norm=nn.BatchNorm1d), batch())


@healthy
def batchnorm_unit_variance() -> Program:
    return classify(mlp(20, nn.ReLU, wide, norm=nn.BatchNorm1d), batch())


@healthy
def layernorm_50_unit_variance() -> Program:
    return classify(mlp(50, nn.ReLU, wide, norm=nn.LayerNorm), batch())


@healthy
def rmsnorm_tiny_weights() -> Program:
    return classify(mlp(20, nn.GELU, narrow, norm=nn.RMSNorm), batch())


@healthy
def batchnorm_in_eval_mode() -> Program:
    return classify(mlp(6, nn.ReLU, he, norm=nn.BatchNorm1d).eval(), batch())


@healthy
def dropout() -> Program:
    return classify(mlp(6, lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), he), batch())


@healthy
def convolutions_with_residuals() -> Program:
    def block() -> nn.Module:
        body = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16),
        )  # fmt: skip
        return nn.Sequential(Branch(body), nn.ReLU())

    stem = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return classify(nn.Sequential(stem, *[block() for _ in range(8)], tail), images())


@healthy
def frozen_backbone() -> Program:
    backbone = mlp(4, nn.ReLU, he, outputs=64).requires_grad_(False)
    return classify(nn.Sequential(backbone, nn.Linear(64, 10)), batch())


@healthy
def unused_parameters() -> Program:
    class WithSpare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = mlp(3, nn.ReLU, he), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    return classify(WithSpare(), batch())


@healthy
def auxiliary_head_that_this_loss_does_not_read() -> Program:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.main, self.pooler = mlp(3, nn.ReLU, he), nn.Linear(10, 10), nn.Linear(10, 10)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.trunk(x)
            return self.main(features), self.pooler(features)

    labels = torch.randint(0, 10, (128,))
    return Program(TwoHeads(), batch(), lambda output: F.cross_entropy(output[0], labels))


@healthy
def detached_target() -> Program:
    """The target is computed by the same net and cut off on purpose."""
    model = mlp(3, nn.ReLU, he)
    return Program(model, batch(), lambda output: F.mse_loss(output, output.detach().roll(1, 0)))


@healthy
def sparse_embeddings() -> Program:
    model = nn.Sequential(
        nn.EmbeddingBag(1000, 64, sparse=True), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    return classify(model, torch.randint(0, 1000, (64, 12)))


@healthy
def one_hot_inputs() -> Program:
    return classify(mlp(4, nn.ReLU, inputs=1000), F.one_hot(torch.randint(0, 1000, (64,)), 1000).float())


@healthy
def small_gradients_of_a_mean_over_many_elements() -> Program:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
    return Program(model, images(side=32), lambda output: 1e-8 * output.square().mean())


@healthy
def large_gradients_everywhere() -> Program:
    program = classify(mlp(4, nn.ReLU, he), batch())
    loss = program.loss
    assert loss is not None
    return Program(program.model, program.inputs, lambda output: 1e9 * loss(output))


@healthy
def batch_of_two() -> Program:
    return classify(mlp(4, nn.ReLU, he), batch(2))


@healthy
def batch_of_one() -> Program:
    return classify(mlp(4, nn.ReLU, he), batch(1))


@healthy
def sparse_trained_rectifiers() -> Program:
    """Units that are active for one sample in twenty, on a batch of eight."""
    model = mlp(3, nn.ReLU, he)
    first = model[0]
    assert isinstance(first, nn.Linear)
    nn.init.constant_(first.bias, -1.64 * 2**0.5)
    return classify(model, batch(8))


@healthy
def sigmoid_autoencoder() -> Program:
    pixels = torch.rand(64, 64)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64), nn.Sigmoid())
    return Program(model, pixels, lambda output: F.mse_loss(output, pixels))


@healthy
def binary_cross_entropy_of_probabilities() -> Program:
    labels = torch.randint(0, 2, (128, 1)).float()
    model = nn.Sequential(mlp(3, nn.ReLU, he, outputs=1), nn.Sigmoid())
    return Program(model, batch(), lambda output: F.binary_cross_entropy(output, labels))


@healthy
def confident_sigmoid_output() -> Program:
    """A trained classifier is saturated where it is right."""
    inputs = batch()
    labels = (inputs[:, :1] > 0).float()
    model = nn.Sequential(nn.Linear(64, 1, bias=False), nn.Sigmoid())
    model[0].weight.data = 50.0 * torch.eye(64)[:1]
    return Program(model, inputs, lambda output: F.binary_cross_entropy(output, labels))


@healthy
def log_softmax_and_nll() -> Program:
    labels = torch.randint(0, 10, (128,))
    model = nn.Sequential(mlp(3, nn.ReLU, he), nn.LogSoftmax(-1))
    return Program(model, batch(), lambda output: F.nll_loss(output, labels))


@healthy
def scaled_tanh_logits() -> Program:
    labels = torch.randint(0, 10, (128,))
    model = nn.Sequential(mlp(3, nn.ReLU, he), nn.Tanh())
    return Program(model, batch(), lambda output: F.cross_entropy(30.0 * output, labels))


@healthy
def hinge_loss_that_is_met() -> Program:
    inputs = batch()
    model = nn.Linear(64, 1, bias=False)
    model.weight.data = 1e3 * torch.eye(64)[:1]
    sign = inputs[:, :1].sign()
    keep = inputs[:, 0].abs() > 0.1
    return Program(model, inputs[keep], lambda output: F.relu(1 - sign[keep] * output).mean())


@healthy
def causal_mask_of_infinities() -> Program:
    return classify(Attention(torch.ones(6, 6).triu(1).bool()), torch.randn(8, 6, 32))


@healthy
def open_gates() -> Program:
    """A squeeze-and-excite gate that has learned to stay open."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.value, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
            nn.init.constant_(self.gate.bias, 8.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.value(x) * self.gate(x).sigmoid())

    return classify(Gated(), batch())


@healthy
def transformer_encoder_post_ln() -> Program:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 6), nn.Flatten(), nn.Linear(320, 10))
    return classify(model, torch.randn(4, 10, 32))


@healthy
def lstm_28_steps() -> Program:
    """Digits row by row, the commonest tutorial."""
    return classify(Sequence(nn.LSTM(28, 64, batch_first=True), 64), torch.randn(8, 28, 28))


@healthy
def rnn_28_steps() -> Program:
    return classify(Sequence(nn.RNN(28, 64, batch_first=True), 64), torch.randn(8, 28, 28))


@healthy
def gru_100_steps_read_out_at_each() -> Program:
    return classify(Sequence(nn.GRU(8, 32, batch_first=True), 32, mean=True), torch.randn(8, 100, 8))


@healthy
def bidirectional_lstm() -> Program:
    layer = nn.LSTM(8, 32, 2, batch_first=True, bidirectional=True)
    return classify(Sequence(layer, 64), torch.randn(8, 20, 8))


@healthy
def cells_in_a_loop() -> Program:
    return classify(Loop(nn.RNNCell(8, 32)), torch.randn(8, 20, 8))
