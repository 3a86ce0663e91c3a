"""Fused scaled dot-product attention.

    P = softmax(scale · Q Kᵀ + mask),   O = P V,

and backward, with S the scores:

    g_P = g V^T,   g_V = P^T g,   g_S = P (g_P − Σ P g_P),   g_Q = scale · g_S K,   g_K = scale · g_S^T Q.

On the meta device PyTorch would take attention apart; on the CPU it runs one
fused op where it can. :func:`fused_attention` makes the same choice as the CPU
(aten/src/ATen/native/transformers/sdp_utils_cpp.cpp), so that predicted and
measured Flows name the same ops.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from evenflow.predict.fields import Field, Leaf
from evenflow.predict.pointwise import MASKED, product
from evenflow.predict.rules.indexing import with_mask
from evenflow.predict.rules.linear import contraction
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.rules.softmax import Softmax
from evenflow.predict.table import constant

_OP = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Let attention without dropout run as the CPU's fused op while the block runs."""
    functional = torch.nn.functional
    original = functional.scaled_dot_product_attention

    def attend(*args: Any, **options: Any) -> Any:
        call = _fusible(*args, **options)
        return original(*args, **options) if call is None else _OP(*call[0], **call[1])[0]

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def _fusible(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    same = query.ndim == key.ndim == value.ndim == 4 and query.shape[-1] == value.shape[-1] == key.shape[-1]
    alike = same and query.shape[:2] == key.shape[:2] == value.shape[:2]
    mask_fits = attn_mask is None or (
        attn_mask.ndim in (2, 4) and not attn_mask.requires_grad and not is_causal
    )
    if enable_gqa and same and query.shape[1] % key.shape[1] == 0:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        alike = True
    if not (alike and mask_fits) or dropout_p:
        return None
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
    return (query, key, value, 0.0, is_causal), {"attn_mask": attn_mask, "scale": scale}


@lru_cache(maxsize=8)
def _causal(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril()


def _probabilities(
    q: Field, k: Field, causal: bool, mask: Field | None, scale: float | None
) -> tuple[Softmax, float]:
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    shape = (*q.shape[:3], k.shape[2])
    scores = product(shape, contraction(shape, q, k, "bhid,bhjd->bhij"), factor)
    if causal:
        scores = with_mask(scores, _causal(*shape[2:]), shape, -math.inf)
    elif mask is not None:
        if not isinstance(mask, Leaf) or mask.values is None:
            raise NoRuleError("attention with a mask that is not known")
        low = mask.values < MASKED
        if bool(low.any()):
            scores = with_mask(scores, ~low, shape, -math.inf)
    return Softmax(scores, 3), factor


@rule("_scaled_dot_product_flash_attention_for_cpu")
def attention(
    context: Context,
    output: Any,
    q: Field,
    k: Field,
    v: Field,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: Field | None = None,
    scale: float | None = None,
) -> list[Field]:
    """O, and the logarithms of the sums (of no use here)."""
    p, factor = _probabilities(q, k, causal, attn_mask, scale)
    shape = (*q.shape[:3], v.shape[3])
    out = contraction(shape, p, v, "bhij,bhjd->bhid")
    context.made["attention", id(out)] = (out, p, factor)
    return [out, Leaf(constant(output[1].shape, 0.0))]


@rule("_scaled_dot_product_flash_attention_for_cpu_backward")
def attention_backward(
    context: Context,
    output: Any,
    g: Field,
    q: Field,
    k: Field,
    v: Field,
    out: Field,
    *args: Any,
    **options: Any,
) -> list[Field]:
    """g_Q, g_K, g_V."""
    kept = context.made.get(("attention", id(out)))
    if kept is None:
        raise NoRuleError("backward of attention whose forward pass was not seen")
    _, p, factor = kept
    scores = p.shape
    g_s = Softmax(p.x, 3, contraction(scores, g, v, "bhid,bhjd->bhij"), p)
    g_q = product(q.shape, contraction(q.shape, g_s, k, "bhij,bhjd->bhid"), factor)
    g_k = product(k.shape, contraction(k.shape, g_s, q, "bhij,bhid->bhjd"), factor)
    return [g_q, g_k, contraction(v.shape, p, g, "bhij,bhid->bhjd")]
