"""Heads that are the embedding table: every position has one logit that stands out.

With logits y = a Wᵀ and a residual stream that still holds the embedding W[u_i] of
its own token, the logit of that token is

    y_i,u = Σ_k a_ik W_uk = c + s,   c = K · E a_ik W_uk (K the width),

and all others are sums of independent terms, s ~ N(0, D). So p_u = q = σ(c + s − L)
with L = ln Σ e^s of the others, which share 1 − q as a softmax of their own, p̃.
For labels l, with e = p − 1[l] the gradient of a cross-entropy,

    E Σ_v e_v² = (1 − q)² (1 + P)                            where l = u,
                 q² + (1 − q)² P + 1 − 2 (1 − q)/(n − 1)     elsewhere,   P = E Σ p̃²,

and for two positions Σ_v e_v e'_v follows from how often u, u', l and l' coincide.
Rows of e add up to zero, which settles pairs of different classes.

Where the label is the position's own token and c is large, nothing is left to learn
and the gradient is that of the few positions where s is lowest: no mean tells it,
and the prediction abstains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from evenflow.predict.axes import Array, plain
from evenflow.predict.expressions import Expression
from evenflow.predict.fields import Field, Leaf, Made, Sum, cross
from evenflow.predict.rules.peaked import effective_ratio, log_sum
from evenflow.predict.rules.registry import Context
from evenflow.predict.table import Table

WIDE = 1.0
"""Variance D of the logits beyond which the mean D of Σ (p − 1[l]) s exceeds its standard deviation √D."""
SLIGHT = 0.05
"""A logit moved by less changes no probability by more than 5 %."""
HEAVY = 10.0
"""E (1 − q)⁴ over (E (1 − q)²)²: beyond it fewer than one position in ten makes the gradient (a judgement:
so few are no average)."""


@dataclass(frozen=True)
class Own:
    """The logits that stand out.

    Attributes:
        height: c.
        tokens: u, one per row.
        logits: The logits without them, [rows, classes].
        width: K.
    """

    height: float
    tokens: torch.Tensor
    logits: Field
    width: int

    @property
    def classes(self) -> int:
        """N."""
        return self.logits.shape[-1]

    def spread(self) -> tuple[float, float]:
        """D, and the covariance of the logits of one class in two rows, less that of two classes."""
        second = self.logits.table.exchangeable(0).exchangeable(1).second
        if second.ndim < 2:
            return float(second[-1] - second[0]), 0.0
        return float(second[1, 1] - second[1, 0]), float(second[0, 1] - second[0, 0])

    def nodes(self) -> tuple[Array, Array, float]:
        """Values of c + s, their weights, and L.

        Of a, the share cos² = c²/(K D) lies along W_u and adds nothing to s. |W_u|² has the
        relative variance 2/K, and a behind a norm has lost half of what it gains by it.
        """
        z, weights = np.polynomial.hermite_e.hermegauss(61)
        spread = max(self.spread()[0], 1e-30)
        along = min(self.height**2 / (self.width * spread), 1.0)
        std = math.sqrt(spread * (1 - along) + 2 * (self.height * (1 - along / 2)) ** 2 / self.width)
        return self.height + std * z, weights / weights.sum(), log_sum(self.classes - 1, spread)

    def shares(self) -> tuple[Array, Array, Array, Array]:
        """Values of c + s, their weights, q and 1 − q."""
        y, weights, rest = self.nodes()
        q, left = (1 / (1 + np.exp(np.clip(sign * (rest - y), -700, 700))) for sign in (1, -1))
        return y, weights, q, left

    def log_sum(self) -> float:
        """E ln Σ e^y."""
        y, weights, rest = self.nodes()
        return rest + float(weights @ np.logaddexp(0.0, y - rest))


# Forward


def note_lookup(context: Context, weight: Field, index: torch.Tensor, result: Field) -> None:
    """Remember that rows of a weight were looked up."""
    context.made.setdefault(("looked up", id(weight)), []).append((weight, index, result))


def with_own_logits(context: Context, a: Field, weight: int, turned: bool, result: Field) -> Field:
    """A product a Wᵀ, with the logits that stand out if W was looked up for its rows."""
    from evenflow.predict.rules.losses import one_hot
    from evenflow.predict.rules.views import view

    if not turned:
        return result
    for _, index, rows in context.made.get(("looked up", weight), ()):
        if index.numel() * a.shape[-1] != math.prod(a.shape):
            continue
        pair = cross(a, view(context, None, rows, a.shape))
        height = 0.0 if pair is None else pair.mean_square * a.shape[-1]
        if abs(height) < SLIGHT:
            continue
        own = Own(height, index.reshape(-1), result, a.shape[-1])
        hot = Leaf(one_hot(own.tokens, own.classes, -1, result.shape))
        found = Sum(result.shape, [(1.0, result), (height, hot)])
        context.made["own", id(found)] = (found, own)
        return found
    return result


def own_of(context: Context, x: Field) -> Own | None:
    """What stands out in logits, in views and slices of them too."""
    if (found := context.made.get(("own", id(x)))) is not None:
        own: Own = found[1]
        return own
    if isinstance(x, Sum):
        each = (own_of(context, part) for factor, part in x.terms if factor == 1.0)
        return next((own for own in each if own is not None), None)
    if not isinstance(x, Made) or len(x.parts) != 1 or not isinstance(x.key, tuple):
        return None
    source = x.parts[0]
    kind, *options = x.key
    if x.shape[-1:] != source.shape[-1:] or kind not in ("view", "slice"):
        return None
    inner = own_of(context, source)
    if inner is None or kind == "view":
        return inner
    dim, start, stop, step = options
    rows = inner.tokens.reshape(source.shape[:-1])
    return replace(inner, tokens=rows[(slice(None),) * dim + (slice(start, stop, step),)].reshape(-1))


def none_stands_out(x: Field) -> Own | None:
    """Widely spread logits of a head of its own: c = 0 at any class, say the first."""
    if len(x.shape) != 2 or x.shape[-1] < 3:
        return None
    own = Own(0.0, torch.zeros(x.shape[0], dtype=torch.long), x, 1)
    return own if own.spread()[0] > WIDE else None


# Losses


def share_of_own(own: Own, labels: torch.Tensor, ignored: int) -> float:
    """How often the label is the position's own token."""
    valid = labels.reshape(-1) != ignored
    if own.tokens.numel() != valid.numel():
        return 0.0
    return float((labels.reshape(-1) == own.tokens)[valid].double().mean())


def cotangent(
    context: Context, own: Own, labels: torch.Tensor, ignored: int, scale: float, shape: Sequence[int]
) -> Field:
    """Scale · (p − 1[label]), zero where a label is ignored, and its inner products with the logits."""
    n, rows = own.classes, labels.numel()
    spread, shared = own.spread()
    y, weights, q, left = own.shares()
    ratio = float(effective_ratio(n - 1, spread, np.array([spread]))[0])
    same = ratio / (ratio + n - 2)
    labels = labels.reshape(-1)
    valid, is_own = labels != ignored, labels == own.tokens
    count = int(valid.sum())
    matched = float(is_own[valid].double().mean()) if own.height else 0.0
    _tell_if_settled(context, matched, weights, left)
    o, o2 = float(weights @ left), float(weights @ left**2)
    of_row = matched * o2 * (1 + same) + (1 - matched) * (
        float(weights @ q**2) + o2 * same + 1 - 2 * o / (n - 1)
    )
    met = Met.of(own.tokens, labels, valid)
    shares = np.array([met.valid, count / rows])
    result = Leaf(
        cotangent_table(own, of_row * shares[1] * scale**2, met, scale, rows).viewed(shape), cotangent=True
    )
    ll = met.labels
    # Σ_v e_v y_v: the mean score of p̃ by Stein's lemma, E Σ p̃ s = D (1 − P).
    typical = spread * (1 - same)
    at_own, elsewhere = left * (typical - y), q * y + left * typical
    mean = float(matched * (weights @ at_own) + (1 - matched) * (weights @ elsewhere))
    square = float(matched * (weights @ at_own**2) + (1 - matched) * (weights @ elsewhere**2 + spread))
    inner = np.array([mean**2 + (1 - matched) * shared * ll, square]) * shares * scale**2
    _tell_if_along(context, matched, mean**2 / square if square > 0 else 0.0)
    inner_table = Table(((plain(rows),),), inner, np.array([mean * scale * count / rows]))
    context.made["aligned", id(result)] = (result, Leaf(inner_table, cotangent=True))

    def among(pairs: Met, logits: Field) -> Leaf:
        there = replace(own, logits=logits)
        table = cotangent_table(there, of_row * shares[1] * scale**2, pairs, scale, rows)
        return Leaf(table.viewed(shape), cotangent=True)

    context.made["among", id(result)] = (result, own.logits, among)
    return result


@dataclass(frozen=True)
class Met:
    """How often tokens and labels of two different positions are equal.

    Attributes:
        valid: Share of the pairs in which no label is ignored; of these,
        tokens, labels, crosswise: those with u = u', l = l', and u = l'.
    """

    valid: float
    tokens: float
    labels: float
    crosswise: float

    @staticmethod
    def of(tokens: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor) -> Met:
        """Of all pairs."""
        rows, count = labels.numel(), int(valid.sum())
        own, label = tokens[valid], labels[valid]
        share = count * (count - 1.0) / max(rows * (rows - 1.0), 1.0)
        return Met(share, coincide(own, own), coincide(label, label), coincide(own, label))

    @staticmethod
    def alike(tokens: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor) -> Met:
        """Of those with u = u'."""
        own, label = tokens[valid], labels[valid]
        equal = _ordered_pairs(own)
        _, at = torch.unique(own, return_inverse=True)
        others = torch.bincount(at)[at] - 1
        both = _ordered_pairs(torch.stack([own, label], 1))
        crosswise = float(others[own == label].sum())
        pairs = max(equal, 1.0)
        return Met(equal / max(_ordered_pairs(tokens), 1.0), 1.0, both / pairs, crosswise / pairs)


def _ordered_pairs(x: torch.Tensor) -> float:
    """Pairs of different rows that are equal."""
    _, counts = torch.unique(x, dim=0, return_counts=True)
    return float((counts.double() * (counts - 1)).sum())


def cotangent_table(own: Own, of_row: float, met: Met, scale: float, rows: int) -> Table:
    """The table of scale · (p − 1[label]) where positions meet as they do.

    Args:
        own: The logits.
        of_row: Σ_v e_v², its mean over positions.
        met: How often.
        scale: The factor.
        rows: Positions.
    """
    n = own.classes
    spread, shared = own.spread()
    _, weights, q, left = own.shares()
    ratio = float(effective_ratio(n - 1, spread, np.array([shared]))[0])
    apart = ratio / (ratio + n - 2)
    m, o = float(weights @ q), float(weights @ left)
    of_rows = (
        m**2 * met.tokens
        + 2 * m * o / (n - 1) * (1 - met.tokens)
        + o**2 * apart
        - 2 * m * met.crosswise
        - 2 * o / (n - 1) * (1 - met.crosswise)
        + met.labels
    )
    by_row = np.array([of_rows * met.valid * scale**2, of_row])
    return _rows_table(np.stack([-by_row / (n * (n - 1.0)), by_row / n], -1), rows, n)


def aligned_with(context: Context, e: Field) -> Field | None:
    """Σ_v e_v y_v of such a cotangent, also where the loss saw a part of the rows; None for others."""
    from evenflow.predict.rules.joining import Joined, padded
    from evenflow.predict.rules.views import view

    found = context.made.get(("aligned", id(e)))
    if found is not None:
        inner: Field = found[1]
        return inner
    if isinstance(e, Made) and e.key[0] == "view":  # type: ignore[index]
        rows = aligned_with(context, e.parts[0]) if e.shape[-1] == e.parts[0].shape[-1] else None
        return None if rows is None else view(context, None, rows, e.shape[:-1])
    if isinstance(e, Joined) and e.dim < len(e.shape) - 1:
        each = [aligned_with(context, part) for part in e.parts]
        at = next((i for i, part in enumerate(each) if part is not None), None)
        if at is None or any(part.mean_square for i, part in enumerate(e.parts) if i != at):
            return None
        before, after = (
            sum(part.shape[e.dim] for part in some) for some in (e.parts[:at], e.parts[at + 1 :])
        )
        rows = each[at]
        assert rows is not None
        return padded(context, view(context, None, rows, e.parts[at].shape[:-1]), e.dim, before, after)
    return None


def _tell_if_settled(context: Context, matched: float, weights: Array, left: Array) -> None:
    square = float(weights @ left**2)
    if matched > 0.5 and float(weights @ left**4) > HEAVY * square**2:
        context.abstentions[
            "The labels are the positions' own tokens, and the head is the embedding: their logits "
            "stand out so far that hardly any loss is left. What gradient there is comes from a few "
            "positions: measure a batch, or scale the logits."
        ] += 1


def _tell_if_along(context: Context, matched: float, common: float) -> None:
    """Where Σ_v e_v y_v has one sign, gradients have it with all activations that led to y."""
    if matched > 0.5 and common > 0.5:
        context.abstentions[
            "The labels are the positions' own tokens, and the head is the embedding: gradients point "
            "along the activations that they belong to. The gradients of weights, and of the norms' pow, "
            "mean, add and rsqrt, are predicted as if they did not, and may be half a decade off: measure "
            "a batch, or take labels that are not the inputs."
        ] += 1


def coincide(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of pairs of different positions at which a and b are equal."""
    n = a.numel()
    size = int(max(a.max(), b.max())) + 1
    pairs = float(torch.bincount(a, minlength=size).double() @ torch.bincount(b, minlength=size).double())
    return (pairs - float((a == b).sum())) / max(n * (n - 1.0), 1.0)


def _rows_table(second: Array, rows: int, n: int) -> Table:
    return Table(((plain(rows),), (plain(n),)), second, np.zeros((1, 1)))


def labels_of(context: Context, g: Field) -> tuple[torch.Tensor, int, float] | None:
    """Labels, the ignored one, and the factor of the one-hot rows that a cotangent is a multiple of."""
    if not isinstance(g, Expression):
        return None
    for atom in g.atoms:
        found: tuple[Any, torch.Tensor, int] | None = context.made.get(("labels", id(atom)))
        if found is not None and atom.mean_square > 0:
            return found[1], found[2], math.sqrt(g.mean_square / atom.mean_square)
    return None
