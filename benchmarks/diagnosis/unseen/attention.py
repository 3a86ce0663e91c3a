"""Transformers with attention of their own: language, patches, series, latents; adapters of low rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from benchmarks.diagnosis.fresh.kit import (
    Split,
    cross_entropy,
    digits,
    integers,
    noise,
    r2,
    split,
    supervised,
    uniform,
)
from benchmarks.diagnosis.recipe import adam, adamw, sgd, warmup
from benchmarks.diagnosis.unseen.collection import faulty, healthy
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


class Attention(nn.Module):
    """Heads written out."""

    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        batch, time, dim = x.shape
        q, k, v = (
            part.view(batch, time, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )
        score = q @ k.transpose(-1, -2) / math.sqrt(dim // self.heads)
        if self.causal:
            score = score.masked_fill(torch.ones(time, time, dtype=torch.bool).triu(1), -1e9)
        mixed = F.softmax(score, -1) @ v
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, time, dim))
        return out


class Block(nn.Module):
    """Attention and two layers; norms before, after or nowhere."""

    def __init__(self, dim: int, heads: int, causal: bool, norm: str) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, causal)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.norms = nn.ModuleList([nn.Identity() if norm == "none" else nn.LayerNorm(dim) for _ in range(2)])
        self.after = norm == "after"

    def forward(self, x: Tensor) -> Tensor:
        for norm, body in zip(self.norms, (self.attention, self.mlp), strict=True):
            x = norm(x + body(x)) if self.after else x + body(norm(x))
        return x


class Writer(nn.Module):
    """A small causal language model."""

    def __init__(
        self, layers: int, norm: str, *, dim: int = 32, tied: bool = False, std: float | None = None
    ) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, dim), nn.Embedding(24, dim)
        self.blocks = nn.Sequential(*[Block(dim, 4, True, norm) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim) if norm == "before" else nn.Identity()
        self.head = nn.Linear(dim, VOCABULARY, bias=not tied)
        if std is not None:
            nn.init.normal_(self.token.weight, std=std)
            nn.init.normal_(self.place.weight, std=std)
        if tied:
            self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        out: Tensor = self.head(self.norm(self.blocks(x)))
        return out


VOCABULARY = 20


@cache
def sentences() -> Split:
    """Each token follows from the two before it by a fixed table, one in twelve is random."""
    table = integers(VOCABULARY, VOCABULARY, 4, seed=141)
    chance = uniform(1600, 17, seed=142)
    free = integers(VOCABULARY, 1600, 17, seed=143)
    rows = [free[:, 0], free[:, 1]]
    for t in range(2, 17):
        next_one = table[rows[-1], rows[-2] % 4]
        rows.append(torch.where(chance[:, t] < 1 / 12, free[:, t], next_one))
    text = torch.stack(rows, 1)
    return split(text[:, :-1], text[:, 1:])


def writing(build: Callable[[], nn.Module], optimizer: Any, steps: int = 300, **more: Any) -> Program:
    """Predict the next token."""
    return supervised(
        build, sentences(), more.pop("criterion", cross_entropy), optimizer, steps, batch=32, **more
    )


@faulty(
    "transformer",
    source="https://github.com/pytorch/pytorch/issues/55270 (post-norm needs care when it is deep)",
    fix="norms before the layers",
    symptoms=("loss_not_decreasing", "vanishing_gradient"),
    causes=("post_ln_depth", "learning_rate_too_high"),
)
def twelve_post_norm_blocks(fixed: bool) -> Program:
    """Twelve blocks with norms after the sums, and no warm-up."""
    return writing(lambda: Writer(12, "before" if fixed else "after"), adam(2e-2), 80)


@faulty(
    "transformer",
    source="own: norms left out of a from-scratch transformer",
    fix="norms before the layers",
    symptoms=("loss_not_decreasing", "exploding_gradient", "non_finite", "oscillating"),
    causes=("missing_normalization", "residual_growth", "learning_rate_too_high", "init_too_large"),
)
def blocks_without_norms(fixed: bool) -> Program:
    """Six blocks that only add, with He's weights."""

    def build() -> nn.Module:
        model = Writer(6, "before" if fixed else "none")
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        return model

    return writing(build, adam(2e-3), 180)


@faulty(
    "transformer",
    source="own: clip_grad_value_ with the number of another optimizer's eps",
    fix="clipping by norm at 1",
    symptoms=("loss_not_decreasing",),
    causes=("clipping_always_active", "learning_rate_too_low"),
)
def clipped_by_value(fixed: bool) -> Program:
    """Each entry of a gradient is cut to 1e-5 before gradient descent."""

    def clip(model: nn.Module) -> None:
        if fixed:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        else:
            nn.utils.clip_grad_value_(model.parameters(), 1e-5)

    return writing(lambda: Writer(2, "before"), sgd(0.3, 0.9), 250, before_step=clip)


@faulty(
    "transformer",
    source="https://github.com/karpathy/nanoGPT/issues/136 (reduce the rate)",
    fix="a rate of 2e-3",
    symptoms=("loss_not_decreasing", "oscillating"),
    causes=("learning_rate_too_high",),
)
def writer_in_a_hurry(fixed: bool) -> Program:
    """AdamW at .3."""
    return writing(lambda: Writer(3, "before"), adamw(2e-3 if fixed else 0.3), 200)


# --- latents ----------------------------------------------------------------------------


class Latents(nn.Module):
    """A few learned queries read a picture's patches; then a classifier."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.patch, self.place = nn.Linear(4, 48), nn.Parameter(0.1 * torch.randn(16, 48))
        self.queries = nn.Parameter(std * torch.randn(4, 48))
        self.key, self.value = nn.Linear(48, 48), nn.Linear(48, 48)
        self.norm = nn.LayerNorm(48)
        self.head = nn.Sequential(nn.Linear(4 * 48, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, 2, 2).unfold(3, 2, 2).reshape(len(x), 16, 4)
        h = self.norm(self.patch(patches) + self.place)
        read = F.softmax(self.queries @ self.key(h).transpose(1, 2) / 48**0.5, -1) @ self.value(h)
        out: Tensor = self.head(read.flatten(1))
        return out


@faulty(
    "transformer",
    source="own: learned queries that start too large, as in cross-attention written by hand",
    fix="queries of deviation .1",
    symptoms=("saturation", "vanishing_gradient"),
    causes=("attention_collapse", "init_too_large"),
    places=("queries", "key", ""),
)
def queries_too_sure(fixed: bool) -> Program:
    """Each query looks at one patch only, and its gradient cannot tell it that there are others."""
    return supervised(
        lambda: Latents(0.1 if fixed else 60.0), digits(image=True), cross_entropy, adam(3e-3), 300
    )


# --- adapters ---------------------------------------------------------------------------


class Adapted(nn.Module):
    """A frozen layer, and a change of low rank to it."""

    def __init__(self, base: nn.Linear, rank: int, zero: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.zeros(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        if not zero:
            nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + 4.0 * (x @ self.down.T @ self.up.T)
        return out


@cache
def taught() -> dict[str, Tensor]:
    """Weights of a net that knows which of the digits 0 to 9 upside down is which."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = backbone()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        data = digits()
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(data.x.flip(1)), data.y).backward()
            optimizer.step()
    return model.state_dict()


def backbone() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def adapted(zero: bool, optimizer: Any, steps: int = 250) -> Program:
    """Fine-tune on digits the right way up, with adapters in all layers."""

    def build() -> nn.Module:
        model = backbone()
        model.load_state_dict(taught())
        return nn.Sequential(*[Adapted(m, 8, zero) if isinstance(m, nn.Linear) else m for m in model])

    return supervised(build, digits(), cross_entropy, optimizer, steps)


@faulty(
    "finetuning",
    source="https://github.com/nvidia-cosmos/cosmos-predict2.5/pull/15, https://github.com/Guitaricet/relora/issues/18",
    fix="one of both factors random",
    symptoms=("loss_not_decreasing",),
    causes=("zero_init_symmetry", "frozen_or_detached"),
)
def both_factors_zero(fixed: bool) -> Program:
    """Low-rank changes whose two factors both start at zero: neither gets a gradient, ever."""
    return adapted(not fixed, adam(5e-3))


# --- healthy ----------------------------------------------------------------------------


@healthy(
    "finetuning", 0.9, source="https://github.com/huggingface/peft/issues/793 (no update in the first step)"
)
def low_rank_changes() -> Program:
    """The backbone is frozen on purpose; at first one factor of each change gets no gradient."""
    return adapted(False, adam(5e-3))


@healthy(
    "transformer", 0.7, source="own: eight blocks with norms before, warm-up, clipping in nearly every step"
)
def eight_pre_norm_blocks() -> Program:
    """A rate that rises for 60 steps, gradients cut at .25 throughout."""
    return writing(lambda: Writer(8, "before"), adamw(3e-3), 220, clip=0.25, scheduler=warmup(60))


@healthy("transformer", 0.7, source="own: shared embeddings of GPT-2's size")
def quiet_shared_embedding() -> Program:
    """Tied weights, label smoothing: the loss cannot fall below .6."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out.flatten(0, 1), y.flatten(), label_smoothing=0.1)

    return writing(
        lambda: Writer(2, "before", dim=64, tied=True, std=0.02),
        adam(2e-3),
        criterion=loss,
    )


def series() -> Split:
    """Sums of two waves, and where they go next."""
    t = torch.arange(33.0)
    frequency, phase = 0.1 + 0.4 * uniform(900, 2, 1, seed=151), 6.28 * uniform(900, 2, 1, seed=152)
    wave = torch.sin(frequency * t + phase).sum(1) + 0.1 * noise(900, 33, seed=153)
    return split(wave[:, :32, None], wave[:, 32:])


class Reader(nn.Module):
    """An encoder of a series; the mean of its steps gives a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.place = nn.Linear(1, 32), nn.Parameter(0.1 * torch.randn(32, 32))
        self.blocks = nn.Sequential(*[Block(32, 4, False, "before") for _ in range(2)])
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.dropout(self.blocks(self.first(x) + self.place)[:, -1]))
        return out


@healthy("transformer", 0.6, source="own: a forecast with dropout, in small batches")
def forecast_with_dropout() -> Program:
    """Batches of 8 and dropout: the loss jumps about by a factor of three."""
    return supervised(Reader, series(), F.mse_loss, adam(1e-3), 600, batch=8, metric=r2)
