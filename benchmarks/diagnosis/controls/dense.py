"""Healthy feed-forward nets: every activation, norm, init and optimizer of common practice, and its traps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.diagnosis.recipe import (
    Recipe,
    accuracy,
    adam,
    adamw,
    bits,
    cross_entropy,
    mapped,
    sgd,
    task,
    warmup,
)
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.lab.networks import DeepNet, Init, ResidualNet
from evenflow.lab.tasks import Digits, Spirals

Change = Callable[[nn.Module], object]


def digits(
    name: str, build: Callable[[], nn.Module], optimizer: Any, threshold: float = 0.9, **more: Any
) -> Recipe:
    """A net on the handwritten digits."""
    more = {"data": task(Digits()), "loss": cross_entropy, "metric": accuracy, "kind": "mlp", **more}
    return Recipe(name=name, build=build, optimizer=optimizer, threshold=threshold, **more)


def net(depth: int, act: str = "relu", init: Any = "default", norm: Any = "none", width: int = 64) -> Any:
    return lambda: DeepNet(
        inputs=64, width=width, depth=depth, outputs=10, act=act, init=init, norm_name=norm
    )


def residual(blocks: int, branch: Any, norm: Any = "none", **more: Any) -> Any:
    return lambda: ResidualNet(
        inputs=64, width=64, blocks=blocks, outputs=10, branch=branch, norm_name=norm, **more
    )


def changed(build: Callable[[], nn.Module], change: Change) -> Callable[[], nn.Module]:
    """The model after a change in place."""

    def make() -> nn.Module:
        model = build()
        with torch.no_grad():
            change(model)
        return model

    return make


def zero_head(model: nn.Module) -> None:
    *_, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    last.weight.zero_()
    last.bias.zero_()


class Highway(nn.Module):
    """T f(x) + (1 − T) x with gates T that start almost shut.

    References:
        R. Srivastava et al., 2015, section 2.2: gate biases −1 … −3.
    """

    def __init__(self, width: int = 64, depth: int = 20) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.parts = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for gate in self.gates:
            nn.init.constant_(gate.bias, -2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part, gate in zip(self.parts, self.gates, strict=True):
            open_ = gate(x).sigmoid()
            x = open_ * part(x).relu() + (1 - open_) * x
        out: Tensor = self.head(x)
        return out


class Experts(nn.Module):
    """Each sample goes to the two of eight experts that its gate likes best."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 8)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)) for _ in range(8)
        )

    def forward(self, x: Tensor) -> Tensor:
        best, which = self.gate(x).topk(2)
        weights = torch.zeros(len(x), 8).scatter(1, which, best.softmax(-1))
        said = torch.stack([expert(x) for expert in self.experts], 1)
        return (weights[..., None] * said).sum(1)


def _accumulate(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> Any:
    """Four micro-batches, one step."""
    optimizer.zero_grad()
    total = torch.zeros(())
    for x, y in zip(batch[0].chunk(4), batch[1].chunk(4), strict=True):
        loss = cross_entropy(model(x), y) / 4
        loss.backward()
        total += loss.detach()
    optimizer.step()
    return {"loss": total}


def _rare(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Is it a three? 0 or 1, one in ten."""
    x, y = Digits().batch(size, generator)
    return x, (y == 3).float()[:, None]


def _several(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Even? prime? above four? round? as bits."""
    x, y = Digits().batch(size, generator)
    prime, round_ = torch.tensor([2, 3, 5, 7]), torch.tensor([0, 6, 8, 9])
    return x, torch.stack([y % 2 == 0, torch.isin(y, prime), y > 4, torch.isin(y, round_)], 1).float()


def _mixed(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mixup: two digits laid over each other, and both labels."""
    x, y = Digits().batch(size, generator)
    other, z = Digits().batch(size, generator)
    share = 0.5 + 0.5 * torch.rand(size, 1, generator=generator)
    return share * x + (1 - share) * other, share * F.one_hot(y, 10) + (1 - share) * F.one_hot(z, 10)


def recipes() -> list[Recipe]:
    def wide(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight)

    def weighted(output: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, target, pos_weight=torch.tensor(9.0))

    def balanced(output: Tensor, target: Tensor) -> float:
        hit = ((output > 0) == (target > 0.5)).float()
        return 0.5 * float(hit[target > 0.5].mean() + hit[target < 0.5].mean())

    def soft(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    cosine = lambda one: torch.optim.lr_scheduler.CosineAnnealingLR(one, 400)  # noqa: E731
    tanh = Init("glorot", bias_std=0.0)
    return [
        digits("relu-adam", net(4), adam()),
        digits("relu-sgd", net(3), sgd(0.1), steps=400),
        digits("relu-he-momentum", net(6, init="he"), sgd(0.02, 0.9)),
        digits("tanh-glorot-momentum", net(5, "tanh", tanh), sgd(0.02, 0.9)),
        digits("sigmoid-lr3", net(2, "sigmoid"), sgd(3.0), steps=400),
        digits("sigmoid-adam", net(3, "sigmoid", "glorot"), adam(5e-3), steps=400),
        digits("gelu-adamw", net(8, "gelu", "he"), adamw()),
        digits("silu-adam", net(5, "silu"), adam(2e-3)),
        digits("mish-adam", net(5, "mish", "he"), adam()),
        digits("elu-sgd", net(6, "elu", "lecun"), sgd(0.05)),
        digits("selu-16", net(16, "selu", "lecun"), sgd(0.01, 0.9)),
        digits("leaky-relu", net(8, "leaky_relu", "he"), adam()),
        digits("prelu", net(8, "prelu", "he"), adam()),
        digits("softplus-adam", net(3, "softplus"), adam(3e-3)),
        digits("hardtanh", net(4, "hardtanh", "glorot"), sgd(0.05, 0.9)),
        digits("softsign-glorot", net(5, "softsign", "glorot"), adam(2e-3)),
        digits("relu-he-30", net(30, init="he"), adam(3e-4), steps=400),
        digits("tanh-orthogonal-30", net(30, "tanh", "orthogonal"), sgd(0.01, 0.9)),
        digits("tanh-glorot-17", net(17, "tanh", "glorot"), sgd(0.02, 0.9)),
        digits("batchnorm-12", net(12, init="he", norm="batch"), sgd(0.05, 0.9)),
        digits("layernorm-12", net(12, init="he", norm="layer"), adam()),
        digits("rmsnorm-gelu-12", net(12, "gelu", "he", "rms"), adam()),
        digits("unit-variance-batchnorm", changed(net(5, norm="batch"), wide), sgd(0.1, 0.9), steps=400),
        digits("unit-variance-layernorm", changed(net(5, norm="layer"), wide), adam(3e-2), steps=400),
        digits("residual-plain-6", residual(6, "plain"), adam(3e-4), steps=400),
        digits("residual-scaled-24", residual(24, "scaled"), adam(5e-4)),
        digits("skipinit-24", residual(24, "skipinit"), sgd(0.02, 0.9)),
        digits("fixup-16", residual(16, "fixup"), sgd(0.02, 0.9), steps=400),
        digits("residual-layernorm-24", residual(24, "plain", "layer"), adam(5e-4)),
        digits("highway-20", Highway, adam(2e-3)),
        digits("zero-head", changed(net(4, init="he"), zero_head), adam()),
        digits("logistic-zero", changed(net(1), zero_head), sgd(0.2)),
        digits(
            "dropout-half",
            lambda: nn.Sequential(
                nn.Linear(64, 128),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(128, 128),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(128, 10),
            ),
            adam(2e-3),
        ),
        digits("adadelta-1", net(4), lambda m: torch.optim.Adadelta(m.parameters(), 1.0)),
        digits("adagrad", net(4), lambda m: torch.optim.Adagrad(m.parameters(), 0.05)),
        digits("rmsprop", net(4), lambda m: torch.optim.RMSprop(m.parameters(), 1e-3)),
        digits("nadam", net(4), lambda m: torch.optim.NAdam(m.parameters(), 2e-3)),
        digits(
            "rprop-whole", net(3), lambda m: torch.optim.Rprop(m.parameters(), 1e-3), batch=1024, steps=60
        ),
        digits(
            "lbfgs", net(2), lambda m: torch.optim.LBFGS(m.parameters(), 0.5, max_iter=5), batch=512, steps=20
        ),
        digits("adamw-decay", net(4), adamw(2e-3, weight_decay=0.1)),
        digits("sgd-decay-nesterov", net(4, init="he"), sgd(0.02, 0.9, nesterov=True, weight_decay=5e-4)),
        digits("adam-tiny-eps", net(4), adam(1e-3, eps=1e-12)),
        digits("adam-amsgrad-beta", net(4), adam(2e-3, amsgrad=True, betas=(0.8, 0.95))),
        digits(
            "label-smoothing", net(4), adam(), loss=lambda o, y: F.cross_entropy(o, y, label_smoothing=0.1)
        ),
        digits("warmup-cosine", net(6, init="he"), sgd(0.1, 0.9), scheduler=cosine, clip=1.0, steps=400),
        digits("warmup-adam", net(6, init="he"), adam(3e-3), scheduler=warmup(100)),
        digits("clip-often", net(4), sgd(0.3), clip=0.5, steps=400),
        digits("batch-4", net(3), sgd(0.01, 0.9), batch=4, steps=800, threshold=0.85),
        digits("batch-1-linear", net(1), sgd(0.01), batch=1, steps=1000, threshold=0.8),
        digits("accumulation", net(4), adam(), more={"step": _accumulate}),
        digits("one-hidden-wide", net(2, width=1024), sgd(0.05)),
        digits(
            "funnel",
            lambda: nn.Sequential(
                nn.Linear(64, 256),
                nn.ReLU(),
                nn.Linear(256, 32),
                nn.ReLU(),
                nn.Linear(32, 8),
                nn.ReLU(),
                nn.Linear(8, 10),
            ),
            adam(3e-3),
            steps=500,
            threshold=0.85,
        ),
        digits(
            "maxout",
            lambda: nn.Sequential(
                nn.Linear(64, 128),
                nn.Unflatten(1, (1, 128)),
                nn.MaxPool1d(4),
                nn.Flatten(),
                nn.Linear(32, 10),
            ),
            adam(3e-3),
        ),
        digits("experts-top2", Experts, adam(3e-3), steps=500),
        digits(
            "double-precision",
            lambda: net(4)().double(),
            adam(),
            data=mapped(task(Digits()), lambda x: x.double()),
        ),
        digits("rare-class", net_bits(1), adam(3e-3), data=_rare, loss=weighted, metric=balanced, steps=400),
        digits(
            "several-labels",
            net_bits(4),
            adam(2e-3),
            data=_several,
            metric=bits,
            loss=F.binary_cross_entropy_with_logits,
        ),
        digits(
            "mixup",
            net(4, init="he"),
            adam(2e-3),
            data=_mixed,
            loss=soft,
            steps=500,
            metric=lambda o, y: accuracy(o, y.argmax(-1)),
            threshold=0.75,
        ),
        digits("multi-margin", net(3), adam(2e-3), loss=F.multi_margin_loss),
        digits(
            "log-softmax-nll",
            lambda: nn.Sequential(net(3)(), nn.LogSoftmax(-1)),
            adam(2e-3),
            loss=F.nll_loss,
        ),
        digits(
            "spirals-tanh",
            lambda: DeepNet(inputs=2, width=64, depth=4, outputs=2, act="tanh"),
            adam(5e-3),
            data=task(Spirals()),
            steps=600,
        ),
    ]


def net_bits(outputs: int) -> Any:
    return lambda: DeepNet(inputs=64, width=64, depth=3, outputs=outputs)
