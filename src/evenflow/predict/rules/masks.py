"""What an attention mask does to pairs of queries and keys.

Query i sees n_i keys, a_ij = 1/n_i where it sees j. The softmax of masked scores
(:mod:`evenflow.predict.rules.softmax`) needs products a_ij a_i'j' averaged over the
query and key pairs of each class. Masks repeat from layer to layer: each is averaged once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary

from evenflow.predict.axes import Array, Axis, Indices, joined, plain

MASKS = 64
"""Masks remembered."""
DIFFERENT = 8
"""Masks of one batch that are told apart; Swin's shifted windows have four."""


@dataclass(frozen=True, eq=False)
class Mask:
    """What a mask does to pairs of queries and keys.

    Attributes:
        queries, keys: Axes whose segments it needs.
        seen: Σ a_ij over key segments, mean over query segments [S_q, S_k].
        agree: Mean of a_ij a_i'j over pairs [C_q, S_k].
        differ: Mean of a_ij a_i'j', j ≠ j' [C_q, S_k, S_k].
        overlap: Mean of ω [C_q].
        count: Mean number of keys [C_q].
        left, right: Query segments of the pairs [C_q].

    Where all queries see the same keys C_q is 1.
    """

    queries: Axis | None
    keys: Axis
    seen: Array
    agree: Array
    differ: Array
    overlap: Array
    count: Array
    left: Indices
    right: Indices


def _graded(n: int) -> Axis:
    """Positions 1, 1, 2, 4, 8, …: early ones of a causal sequence differ most."""
    sizes, left = [], n
    size = 1
    while left > 0:
        take = min(size, left) if left - size >= size else left
        sizes.append(take)
        left -= take
        if len(sizes) > 1:
            size *= 2
    return Axis(tuple(sizes))


_masks: dict[tuple[Any, ...], Mask] = {}
_parted: dict[tuple[Any, ...], list[tuple[float, torch.Tensor | None]]] = {}
_names = WeakIdKeyDictionary()


def distinct_masks(keep: torch.Tensor | None) -> list[tuple[float, torch.Tensor | None]]:
    """The different masks of a batch (padded samples, shifted windows), and the share of each.

    More than :data:`DIFFERENT` of them count as one: what most of them let through.
    """
    if keep is None or keep.ndim < 3:
        return [(1.0, keep)]
    name = _name(keep)
    if name not in _parted:
        if len(_parted) > MASKS:
            _parted.clear()
        leading = tuple(slice(1) if stride == 0 else slice(None) for stride in keep.stride()[:-2])
        flat = keep[leading].reshape(-1, *keep.shape[-2:])
        each, counts = torch.unique(flat, dim=0, return_counts=True)
        if len(each) > DIFFERENT:
            _parted[name] = [(1.0, flat.float().mean(0) > 0.5)]
        else:
            shares = (counts.double() / counts.sum()).tolist()
            _parted[name] = list(zip(shares, each.unbind(), strict=True))
    return _parted[name]


def averages(keep: torch.Tensor | None, queries: Axis | None, keys: Axis) -> Mask:
    """Averages over the pairs of each class; without a mask all keys are seen."""
    name = (None if keep is None else _name(keep), queries, keys)
    if name not in _masks:
        if len(_masks) > MASKS:
            _masks.clear()
        _masks[name] = _averaged(keep, queries, keys)
    return _masks[name]


def _name(keep: torch.Tensor) -> tuple[Any, ...]:
    """What tells a mask from others: its shape and a digest of its entries."""
    if keep not in _names:
        distinct = keep[tuple(slice(1) if stride == 0 else slice(None) for stride in keep.stride())]
        entries = np.packbits(distinct.contiguous().numpy())
        _names[keep] = (tuple(keep.shape), tuple(distinct.shape), hashlib.sha1(entries.tobytes()).digest())
    name: tuple[Any, ...] = _names[keep]
    return name


def _averaged(keep: torch.Tensor | None, queries: Axis | None, keys: Axis) -> Mask:
    n_q = 1 if queries is None else queries.n
    if keep is None:
        return _mask_averages(np.ones((n_q, keys.n), dtype=bool), queries, keys)
    matrix = keep if keep.ndim > 1 else keep.reshape(1, -1)
    visible = np.broadcast_to((matrix if matrix.shape[0] in (1, n_q) else matrix[:1]).numpy(), (n_q, keys.n))
    if not (visible == visible[:1]).all():
        if queries is not None:
            queries = joined(_graded(n_q), queries)
        keys = joined(_graded(keys.n), keys)
    return _mask_averages(visible, queries, keys)


def _mask_averages(visible: np.ndarray, axis: Axis | None, keys: Axis) -> Mask:
    queries = axis or plain(1)
    pairs_of = slice(None) if axis else queries.agree
    count = visible.sum(1)
    a = visible / np.maximum(count, 1)[:, None]
    q_of = np.repeat(np.arange(queries.segments), queries.sizes)
    k_of = np.repeat(np.arange(keys.segments), keys.sizes)
    to_q = (q_of[None] == np.arange(queries.segments)[:, None]).astype(float)
    to_k = (k_of[:, None] == np.arange(keys.segments)).astype(float)
    by_key = a @ to_k  # [T_q, S_k]
    by_query = to_q @ a  # [S_q, T_k]
    square = to_q @ (a**2 @ to_k)  # Σ_i Σ_j a_ij² [S_q, S_k]
    sums = to_q @ by_key  # [S_q, S_k]
    same = np.einsum("ai,ik,il->akl", to_q, by_key, by_key)  # Σ_i B_ik B_il
    S = queries.segments
    agree = np.zeros((queries.classes, keys.segments))
    both = np.zeros((queries.classes, keys.segments, keys.segments))
    for c in range(queries.classes):
        left, right = queries.left[c], queries.right[c]
        if c >= S * S:
            agree[c], both[c] = square[left], same[left]
        else:
            agree[c] = (by_query[left] * by_query[right]) @ to_k
            both[c] = np.outer(sums[left], sums[right])
            if left == right:
                agree[c] -= square[left]
                both[c] -= same[left]
    pairs = np.maximum(queries.counts, 1)
    agree, both = agree / pairs[:, None], both / pairs[:, None, None]
    overlap = agree.sum(1)
    size = np.array(keys.sizes, float)
    differ = both.copy()
    differ[:, range(keys.segments), range(keys.segments)] -= agree
    counts = np.outer(size, size) - np.diag(size)
    differ = np.divide(differ, counts, out=np.zeros_like(differ), where=counts > 0)
    mean_count = np.array([(to_q[s] * count).sum() / queries.sizes[s] for s in range(S)])
    n = np.sqrt(np.maximum(mean_count[queries.left] * mean_count[queries.right], 1))
    seen = sums / np.array(queries.sizes)[:, None]
    agree = (agree / size)[pairs_of]
    sides = queries.left[pairs_of], queries.right[pairs_of]
    return Mask(axis, keys, seen, agree, differ[pairs_of], overlap[pairs_of], n[pairs_of], *sides)
