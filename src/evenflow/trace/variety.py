"""How much differs within a tensor: samples, tokens, the keys of an attention, the units of a layer.

* *Spread* of samples: 1 − E⟨x_a, x_b⟩ / E‖x_a‖² over pairs of different samples, the
  1 − c of mean-field theory. It is 1 for independent samples of mean zero and 0
  where all are alike. From the variance over samples: Σ Var_b(x) / mean_b ‖x_b‖².
* *Entropy* of an attention row p over n keys in sight: −Σ p log p / log n.
* *Twins*: rows of a matrix that equal another row.

References:
    Poole et al., "Exponential expressivity in deep neural networks through
    transient chaos", NeurIPS 2016, eq. 5 (c); Zhai et al., "Stabilizing
    Transformer Training by Preventing Attention Entropy Collapse", ICML 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_MOST = 1 << 18
"""Entries read at most; of larger tensors the spread is that of some units, evenly chosen."""
_MOST_QUERIES = 64
"""Queries of each head that are looked at in fused attention, evenly chosen."""
_OUT_OF_SIGHT = 5000.0
"""A score this far below the largest of its row is masked: masks are −∞, the format's end or −10⁴."""
_EQUAL = 1e-6
"""Relative distance up to which rows are twins: a few roundings of float32."""
_SOFTMAX = ("_softmax", "_safe_softmax")
_FUSED = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def sample_spread(x: Tensor) -> float | None:
    """Spread along the first axis of ``x`` [samples, …]; None for fewer than two, or nothing but zeros."""
    if x.ndim < 2 or x.shape[0] < 2 or x.layout is not torch.strided:
        return None
    return _spread(x.flatten(1).unsqueeze(0))


def token_spread(x: Tensor) -> float | None:
    """Spread along the second axis of ``x`` [batch, tokens, units]; None for other shapes."""
    if x.ndim != 3 or x.shape[1] < 2 or x.layout is not torch.strided:
        return None
    return _spread(x)


def _spread(x: Tensor) -> float | None:
    """Spread along the second axis of ``x`` [groups, members, units], over pairs of one group."""
    stride = -(-x.numel() // _MOST)
    x = x[..., ::stride]
    x = x.abs() if x.is_complex() else x
    x = x.double() if x.device.type != "mps" else x.float()
    square = float(x.square().sum()) / x.shape[1]
    if not square > 0.0 or not math.isfinite(square):
        return None
    return float(x.var(dim=1).sum()) / square


def entropy(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> float | None:
    """Mean entropy of attention rows over that of even rows; None for other ops.

    Args:
        func: The op.
        args: Its positional arguments.
        kwargs: Its named arguments.
        output: Its output.
    """
    name = func._schema.name.split("::")[1]
    if name in _SOFTMAX and output.ndim > 2:
        axis = args[1] % output.ndim
        return _mean_entropy(output.movedim(axis, -1), args[0].movedim(axis, -1))
    if name in _FUSED:
        names = [argument.name for argument in func._schema.arguments]
        scores = _scores(**dict(zip(names, args, strict=False)), **kwargs)
        return None if scores is None else _mean_entropy(scores.softmax(-1), scores)
    return None


def _mean_entropy(weights: Tensor, scores: Tensor) -> float | None:
    """Mean over rows of ``weights`` [..., keys]; the ``scores`` behind them tell which keys are in sight."""
    in_sight = (scores > scores.amax(-1, keepdim=True) - _OUT_OF_SIGHT).sum(-1)
    rows = in_sight > 1
    if not rows.any():
        return None
    found = torch.special.entr(weights.float()).sum(-1)[rows] / in_sight[rows].float().log()
    value = float(found.double().mean())
    return value if math.isfinite(value) else None


def _scores(
    query: Tensor,
    key: Tensor,
    *,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    scale: float | None = None,
    **_: Any,
) -> Tensor | None:
    """What fused attention takes the softmax of, for some queries [batch, heads, queries, keys]."""
    if query.ndim != 4 or query.shape[1] != key.shape[1]:
        return None
    stride = -(-query.shape[2] // _MOST_QUERIES)
    picked = torch.arange(0, query.shape[2], stride, device=query.device)
    scores = query[:, :, picked].float() @ key.float().transpose(-1, -2)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    mask = attn_mask if attn_mask is not None else attn_bias
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], query.shape[2], key.shape[2])[..., picked, :]
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    if is_causal:
        keys = torch.arange(key.shape[2], device=query.device)
        scores = scores.masked_fill(keys > picked[:, None], -math.inf)
    return scores


def twin_fraction(matrix: Tensor | None) -> float | None:
    """Share of the rows of ``matrix`` [rows, …] that are not zero and equal another one, but for rounding.

    Rows are compared by their products with two fixed directions, which differ unless rows do not.
    """
    if matrix is None or matrix.ndim < 2 or matrix.is_meta or matrix.layout is not torch.strided:
        return None
    if matrix.shape[0] < 2 or matrix.is_complex() or not matrix.is_floating_point():
        return None
    with torch.no_grad():
        rows = matrix.detach().flatten(1).double().cpu()
        sizes = rows.norm(dim=1)
        steps = torch.arange(1.0, rows.shape[1] + 1.0, dtype=torch.float64) ** 2
        images = (rows @ torch.stack([steps.sin(), steps.cos()], 1))[sizes > 0]
    if not torch.isfinite(images).all():
        return None
    if images.shape[0] < 2:
        return 0.0
    near = (images[images[:, 0].argsort()].diff(dim=0).abs() <= _EQUAL * sizes.max()).all(1)
    edge = near.new_zeros(1)
    return float((torch.cat([near, edge]) | torch.cat([edge, near])).sum()) / matrix.shape[0]
