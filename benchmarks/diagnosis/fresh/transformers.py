"""Transformers: encoders, causal language models, vision transformers."""

from __future__ import annotations

import math
from functools import cache

import torch
from benchmarks.diagnosis.fresh.entry import faulty, healthy
from benchmarks.diagnosis.fresh.kit import Split, cross_entropy, digits, integers, split, supervised
from benchmarks.diagnosis.recipe import adam, adamw, sgd, warmup
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


@cache
def majority() -> Split:
    """Which of three symbols comes most often among sixteen."""
    x = integers(3, 1600, 16, seed=61)
    return split(x, F.one_hot(x, 3).sum(1).argmax(1))


@cache
def counting() -> Split:
    """Sequences that step by a fixed stride modulo 16, and the same shifted by one."""
    start, stride = integers(16, 1500, 1, seed=62), integers(5, 1500, 1, seed=63) + 1
    series = (start + stride * torch.arange(17)) % 16
    return split(series[:, :-1], series[:, 1:])


class Encoder(nn.Module):
    """Token and position embeddings, PyTorch's encoder, the mean over the tokens."""

    def __init__(self, layers: int, width: int = 32, norm_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.fc = nn.Linear(width, 3)
        for p in self.encoder.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.encoder(self.embed(x) + self.position).mean(1))
        return out


class Attention(nn.Module):
    """Causal self-attention with its own projection; ``scale`` on the scores."""

    def __init__(self, width: int, heads: int, scale: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        q, k, v = self.qkv(x).view(count, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * self.scale
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(mask, float("-inf")).softmax(-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(count, length, width))
        return out


class GPTBlock(nn.Module):
    """Pre-LN: attention and a two-layer network, each added to the stream."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 2, scale)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln1(x))
        out: Tensor = x + self.mlp(self.ln2(x))
        return out


class GPT(nn.Module):
    """A small causal model; scores by the embedding's own weights if ``tied``."""

    def __init__(
        self,
        layers: int = 2,
        width: int = 32,
        tied: bool = False,
        end: nn.Module | None = None,
        scale: float | None = None,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16, width)
        self.positions = nn.Embedding(16, width)
        scale = 1 / math.sqrt(width // 2) if scale is None else scale
        self.blocks = nn.Sequential(*[GPTBlock(width, scale) for _ in range(layers)])
        self.ln = nn.LayerNorm(width)
        self.head = nn.Linear(width, 16, bias=False)
        self.end = end if end is not None else nn.Identity()
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        out: Tensor = self.end(self.head(self.ln(self.blocks(h))))
        return out


class ViT(nn.Module):
    """Patches of 2 by 2, a class token, PyTorch's encoder with the norm first."""

    def __init__(self, layers: int = 2, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1) + self.position
        out: Tensor = self.head(self.norm(self.encoder(tokens)[:, 0]))
        return out


@faulty(
    "transformer",
    source="https://discuss.pytorch.org/t/183958 (an encoder whose loss stays at its first value)",
    fix="the norm first, and warm-up",
    symptoms=("loss_not_decreasing", "vanishing_gradient"),
    causes=("post_ln_depth", "learning_rate_too_high"),
)
def post_norm_encoder(fixed: bool) -> Program:
    """Ten encoder layers with the norm last, Adam at .003 from the first step."""
    return supervised(
        lambda: Encoder(10, norm_first=fixed),
        majority(),
        cross_entropy,
        adam(1e-3 if fixed else 3e-3),
        150,
        batch=32,
        scheduler=warmup(50) if fixed else None,
    )


@faulty(
    "transformer",
    source="https://github.com/bkitano/llama-from-scratch/issues/5",
    fix="no softmax before cross_entropy",
    symptoms=("loss_not_decreasing",),
    causes=("wrong_loss_or_output",),
)
def softmaxed_logits(fixed: bool) -> Program:
    """A causal model that applies softmax to its logits, and cross_entropy to that."""
    return supervised(
        lambda: GPT(end=None if fixed else nn.Softmax(dim=-1)),
        counting(),
        cross_entropy,
        sgd(0.1, 0.9),
        250,
    )


@faulty(
    "transformer",
    source="modelled on attention written by hand without its 1/sqrt(d), and weights of deviation .5",
    fix="1/sqrt(d) and deviation .02",
    symptoms=("saturation", "loss_not_decreasing"),
    causes=("attention_collapse", "init_too_large"),
    places=("blocks.0.attention", "blocks.1.attention", "blocks"),
)
def unscaled_attention(fixed: bool) -> Program:
    """Scores of attention without 1/sqrt(d) from large weights: each query sees one key only."""
    return supervised(
        lambda: GPT() if fixed else GPT(scale=1.0, std=0.5), counting(), cross_entropy, adamw(1e-3), 250
    )


@faulty(
    "vit",
    source="https://github.com/fastai/fastai/issues/1736 (falls apart; a lower rate is the advice)",
    fix="rate of .001",
    symptoms=("loss_not_decreasing", "vanishing_gradient"),
    causes=("learning_rate_too_high",),
)
def rash_vit(fixed: bool) -> Program:
    """A vision transformer with Adam at .03."""
    return supervised(ViT, digits(image=True), cross_entropy, adam(1e-3 if fixed else 0.03), 200, batch=32)


@faulty(
    "vit",
    source="modelled on vision transformers trained with the rate of a convolutional network's SGD",
    fix="AdamW at .001",
    symptoms=("loss_not_decreasing",),
    causes=("learning_rate_too_low",),
)
def vit_by_sgd(fixed: bool) -> Program:
    """A vision transformer with SGD at .001 and no momentum."""
    return supervised(
        ViT, digits(image=True), cross_entropy, adamw(1e-3) if fixed else sgd(1e-3), 200, batch=32
    )


@faulty(
    "transformer",
    source="modelled on Noam schedules of 4 000 warm-up steps in trainings of a few hundred",
    fix="warm-up of 30 steps",
    symptoms=("loss_not_decreasing",),
    causes=("learning_rate_too_low",),
)
def endless_warmup(fixed: bool) -> Program:
    """The rate rises over 20 000 steps; the training has 200."""
    return supervised(
        GPT,
        counting(),
        cross_entropy,
        adam(3e-3),
        200,
        scheduler=warmup(30 if fixed else 20000),
    )


@faulty(
    "transformer",
    source="https://github.com/pytorch/pytorch/issues/14467 (an optimizer of parameters that were replaced)",
    fix="the optimizer is made of the parameters in use",
    symptoms=("loss_not_decreasing",),
    causes=("frozen_or_detached",),
    places=("head", "blocks", "blocks.0", "blocks.1", "positions", "tokens", "ln"),
)
def half_an_optimizer(fixed: bool) -> Program:
    """The optimizer got the embeddings and the final norm only; head and blocks stay as drawn."""

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        assert isinstance(model, GPT)
        part = [*model.tokens.parameters(), *model.ln.parameters()]
        return torch.optim.AdamW(model.parameters() if fixed else part, 3e-3)

    return supervised(GPT, counting(), cross_entropy, optimizer, 200)


# --- healthy ----------------------------------------------------------------------------


@healthy("transformer", 0.6, source="Press & Wolf 2017: tied weights")
def tied_causal() -> Program:
    """A causal model whose head shares the embedding's weights, with warm-up and clipping at 1."""
    return supervised(
        lambda: GPT(tied=True),
        counting(),
        cross_entropy,
        adamw(3e-3, weight_decay=0.1),
        250,
        clip=1.0,
        scheduler=warmup(40),
    )


@healthy("transformer", 0.85, source="Vaswani et al. 2017: the norm last, three layers, warm-up")
def warmed_post_norm() -> Program:
    """Three layers with the norm last and a rate that rises over 80 steps: nothing happens at first."""
    return supervised(
        lambda: Encoder(3), majority(), cross_entropy, adam(1e-3), 300, batch=32, scheduler=warmup(80)
    )


@healthy("vit", 0.8, source="own: a small vision transformer with cosine decay")
def calm_vit() -> Program:
    """Two layers, AdamW with weight decay .1, a rate that ends at 0."""
    return supervised(
        ViT,
        digits(image=True),
        cross_entropy,
        adamw(3e-3, weight_decay=0.1),
        250,
        batch=32,
        scheduler=lambda one: torch.optim.lr_scheduler.CosineAnnealingLR(one, 250),
    )
