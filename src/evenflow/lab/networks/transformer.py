"""Transformers: blocks of attention and feed-forward, normalised before, after, or by DeepNorm.

    pre:   x + f(norm(x))          deep:  norm(α x + f(x)), with weights of f scaled by β
    post:  norm(x + f(x))

Legend: B batch, T tokens, D width, H heads, K = D/H. Scores are q·k/√K.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.errors import EvenflowError
from evenflow.lab.networks.pieces import ActivationName, InitLike, NormName, activation, as_init, norm
from evenflow.theory import deepnorm

Arrangement: TypeAlias = Literal["pre", "post", "deep"]


class Attention(nn.Module):
    """Softmax attention over the tokens, causal in a decoder."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        if width % heads:
            raise EvenflowError(
                f"The width of a transformer is a multiple of its heads, got {width} and {heads}."
            )
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.heads = heads
        self.causal = causal

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        shares_BHTT = F.softmax(self.scores(x_BTD), dim=-1)
        mixed_BHTK = shares_BHTT @ self._split(self.value(x_BTD))
        y: Tensor = self.out(mixed_BHTK.transpose(1, 2).flatten(2))
        return y

    def scores(self, x_BTD: Tensor) -> Tensor:
        """What each token (rows) gives each token (columns) before the softmax [B, H, T, T]."""
        q_BHTK, k_BHTK = self._split(self.query(x_BTD)), self._split(self.key(x_BTD))
        scores_BHTT: Tensor = q_BHTK @ k_BHTK.transpose(-1, -2) * q_BHTK.shape[-1] ** -0.5
        if self.causal:
            ahead = torch.ones(scores_BHTT.shape[-2:], dtype=torch.bool, device=x_BTD.device).triu(1)
            scores_BHTT = scores_BHTT.masked_fill(ahead, float("-inf"))
        return scores_BHTT

    def _split(self, x_BTD: Tensor) -> Tensor:
        x_BHTK: Tensor = x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return x_BHTK


class FeedForward(nn.Module):
    """Two linear layers around an activation, four times as wide inside."""

    def __init__(self, width: int, act: ActivationName) -> None:
        super().__init__()
        self.first = nn.Linear(width, 4 * width)
        self.act = activation(act)
        self.second = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        y: Tensor = self.second(self.act(self.first(x)))
        return y


class Residual(nn.Module):
    """One branch with its skip and norm."""

    def __init__(
        self, branch: nn.Module, width: int, arrangement: Arrangement, alpha: float, norm_name: NormName
    ) -> None:
        super().__init__()
        self.branch = branch
        self.norm = norm(norm_name, width) or nn.Identity()
        self.before = arrangement == "pre"
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        y: Tensor = (
            x + self.branch(self.norm(x)) if self.before else self.norm(self.alpha * x + self.branch(x))
        )
        return y


class Transformer(nn.Module):
    """A language model (decoder) or a reader of sequences (encoder).

    Args:
        vocabulary: Number of tokens.
        longest: Positions that have an embedding.
        width: D.
        heads: H.
        blocks: Blocks of attention and feed-forward.
        outputs: Features per token of the output; by default ``vocabulary``.
        arrangement: ``pre``, ``post`` or ``deep``.
        causal: Whether a token sees only those before it (decoder) or all (encoder).
        act: Activation of the feed-forward parts.
        init: How linear layers start; embeddings are N(0, 1). With ``deep`` the value,
            output and feed-forward weights are then scaled by β, and skips by α.
        norm_name: ``layer``, ``rms`` or ``none``; the others look across tokens.

    References:
        A. Vaswani et al. 2017 (post). R. Xiong et al., ICML 2020 (pre and post).
        H. Wang et al., "DeepNet", 2022, fig. 2 (deep).
    """

    def __init__(
        self,
        *,
        vocabulary: int = 16,
        longest: int = 64,
        width: int = 64,
        heads: int = 4,
        blocks: int = 6,
        outputs: int | None = None,
        arrangement: Arrangement = "pre",
        causal: bool = True,
        act: ActivationName = "relu",
        init: InitLike = "glorot",
        norm_name: NormName = "layer",
    ) -> None:
        super().__init__()
        if norm_name in ("batch", "group"):
            raise EvenflowError(
                f"A transformer is normalised by 'layer', 'rms' or 'none', got {norm_name!r}."
            )
        if arrangement not in ("pre", "post", "deep"):
            raise EvenflowError(f"A transformer is arranged 'pre', 'post' or 'deep', got {arrangement!r}.")
        constants = deepnorm(blocks) if arrangement == "deep" else None
        alpha = constants.alpha if constants else 1.0
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(longest, width)
        self.blocks = nn.Sequential(
            *(
                Residual(part, width, arrangement, alpha, norm_name)
                for _ in range(blocks)
                for part in (Attention(width, heads, causal=causal), FeedForward(width, act))
            )
        )
        self.last_norm = (norm(norm_name, width) if arrangement == "pre" else None) or nn.Identity()
        self.head = nn.Linear(width, vocabulary if outputs is None else outputs)
        as_init(init).apply(self)
        if constants:
            for name, module in self.blocks.named_modules():
                if isinstance(module, nn.Linear) and not name.endswith(("query", "key")):
                    module.weight.detach().mul_(constants.beta)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Tokens [B, T] to [B, T, outputs]."""
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTD = self.token(tokens_BT) + self.position(positions_T)
        y: Tensor = self.head(self.last_norm(self.blocks(x_BTD)))
        return y
