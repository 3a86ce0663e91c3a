"""Transformers: blocks of attention and feed-forward, normalised before, after, or by DeepNorm.

    pre:   x + f(norm(x))          deep:  norm(α x + f(x)), with weights of f scaled by β
    post:  norm(x + f(x))

Legend: B batch, T tokens, D width, H heads, K = D/H.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.errors import EvenflowError
from evenflow.lab.networks.pieces import ActivationName, activation
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
        q, k, v = (self._split(part(x_BTD)) for part in (self.query, self.key, self.value))
        scores_BHTT = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if self.causal:
            ahead = torch.ones(scores_BHTT.shape[-2:], dtype=torch.bool, device=x_BTD.device).triu(1)
            scores_BHTT = scores_BHTT.masked_fill(ahead, float("-inf"))
        mixed_BHTK = F.softmax(scores_BHTT, dim=-1) @ v
        y: Tensor = self.out(mixed_BHTK.transpose(1, 2).flatten(2))
        return y

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

    def __init__(self, branch: nn.Module, width: int, arrangement: Arrangement, alpha: float) -> None:
        super().__init__()
        self.branch = branch
        self.norm = nn.LayerNorm(width)
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
        causal: Whether a token sees only those before it (decoder).
        act: Activation of the feed-forward parts.

    Weights start with Glorot's init and biases at 0; with ``deep`` the value,
    output and feed-forward weights are scaled by β and skips by α.

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
    ) -> None:
        super().__init__()
        if arrangement not in ("pre", "post", "deep"):
            raise EvenflowError(f"A transformer is arranged 'pre', 'post' or 'deep', got {arrangement!r}.")
        constants = deepnorm(blocks) if arrangement == "deep" else None
        alpha = constants.alpha if constants else 1.0
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(longest, width)
        self.blocks = nn.Sequential(
            *(
                Residual(part, width, arrangement, alpha)
                for _ in range(blocks)
                for part in (Attention(width, heads, causal=causal), FeedForward(width, act))
            )
        )
        self.last_norm = nn.LayerNorm(width) if arrangement == "pre" else nn.Identity()
        self.head = nn.Linear(width, vocabulary if outputs is None else outputs)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                scaled = constants is not None and not name.endswith(("query", "key", "head"))
                nn.init.xavier_normal_(module.weight, gain=constants.beta if constants and scaled else 1.0)
                nn.init.zeros_(module.bias)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Tokens [B, T] to [B, T, outputs]."""
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTD = self.token(tokens_BT) + self.position(positions_T)
        y: Tensor = self.head(self.last_norm(self.blocks(x_BTD)))
        return y
