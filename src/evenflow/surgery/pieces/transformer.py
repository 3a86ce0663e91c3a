"""Parts of transformers: a fixed scale, and attention with normalised queries and keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Scale(nn.Module):
    """Times a fixed number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return self.factor * x

    def extra_repr(self) -> str:
        """The factor, for print(model)."""
        return f"{self.factor:.6g}"


class QKNormAttention(nn.MultiheadAttention):
    """Multi-head attention whose queries and keys are divided by their root mean square, head by head.

    Scores then cannot grow with the weights. Each has a learned scale per feature of a head.

    References:
        A. Henry et al., "Query-key normalization for transformers", EMNLP 2020; M.
        Dehghani et al., "Scaling vision transformers to 22 billion parameters", 2023, section 2.
    """

    norm_query: nn.RMSNorm
    norm_key: nn.RMSNorm

    @staticmethod
    def of(attention: nn.MultiheadAttention) -> QKNormAttention:
        """The same attention, its parameters shared, with the norms in it."""
        made = QKNormAttention.__new__(QKNormAttention)
        nn.Module.__init__(made)
        for key, value in vars(attention).items():
            vars(made)[key] = value.copy() if isinstance(value, dict) else value
        like = attention.out_proj.weight
        for name in ("norm_query", "norm_key"):
            setattr(made, name, nn.RMSNorm(attention.head_dim, device=like.device, dtype=like.dtype))
        return made

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As in ``nn.MultiheadAttention``."""
        batched = query.ndim == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), *self.projections(), strict=True)
        )
        q, k = self.norm_query(q), self.norm_key(k)
        mask = self.merged_mask(q, k, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        scores = None
        if need_weights:
            raw = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            scores = torch.softmax(raw if mask is None else raw + mask, -1)
            mixed = F.dropout(scores, dropout) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if scores is not None and average_attn_weights:
            scores = scores.mean(1)
        if not batched:
            return y.squeeze(0), None if scores is None else scores.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), scores

    def projections(self) -> tuple[Any, Any]:
        """Weights and biases of query, key and value."""
        whole: Any = self.in_proj_weight
        bias: Any = self.in_proj_bias
        apart = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = apart if whole is None else whole.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return weights, biases

    def merged_mask(self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Both masks as one that is added to the scores [B, heads, T, S]."""

        def added(one: Tensor) -> Tensor:
            if one.dtype != torch.bool:
                return one.to(q.dtype)
            return torch.zeros_like(one, dtype=q.dtype).masked_fill(one, float("-inf"))

        merged = None
        if mask is not None:
            merged = added(mask)
            if merged.ndim == 3:
                merged = merged.unflatten(0, (q.shape[0], q.shape[1]))
        if padding is not None:
            hidden = added(padding)[:, None, None, :]
            merged = hidden if merged is None else merged + hidden
        return merged
