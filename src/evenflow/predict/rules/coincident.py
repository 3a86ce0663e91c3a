"""Positions with the same token: they are alike in activations, and in gradients too.

Pair tables hold means over pairs. The gradient of a weight, Σ_b g_b x_b over N positions,
has the covariance of both over the pairs besides the product of the means: with U the
pairs of positions that hold the same token, a share f of all,

    E_pairs[K_g K_x] = K_g K_x + f/(1 − f) · (K_g|U − K_g)(K_x|U − K_x).

K|U is the table of the same field where all pairs are in U: rows looked up by these tokens
all agree, and labels agree as often as they do in U. So it is found by making the field
once more from such leaves, op by op. Where pairs in U have no more of the gradient than
others do, as with the next token for a label, there is nothing to add.

Attention mixes positions: what goes through it counts as alike no more than on average.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from evenflow.predict.axes import agreeing, plain
from evenflow.predict.combine import align
from evenflow.predict.expressions import Expression, Term
from evenflow.predict.fields import Field, Leaf, Made, Sum, rearranged_leaf
from evenflow.predict.rules.adjoint import Inner
from evenflow.predict.rules.indexing import gathered
from evenflow.predict.rules.joining import Joined
from evenflow.predict.rules.normalised import Normalised, NormCotangent
from evenflow.predict.rules.registry import Context
from evenflow.predict.rules.softmax import Softmax
from evenflow.predict.rules.tied import Met, coincide
from evenflow.predict.table import Table

SLIGHT = 0.05
"""Share of the square of a gradient, at most, below which it is not worth the time: .01 decades."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of positions that hold the same token.

    Attributes:
        tokens: One per position.
        share: f.
        rows: How many positions gradients may be summed over.
        fields: From a field to that of the pairs in U; both are kept, so that ids stay theirs.
    """

    tokens: torch.Tensor
    share: float
    rows: frozenset[int]
    fields: dict[int, tuple[Field, Field]] = field(default_factory=dict)

    def alike(self, x: Field) -> Field:
        """The field, of which all pairs are in U."""
        known = self.fields.get(id(x))
        if known is None:
            known = self.fields[id(x)] = (x, self._made(x))
        return known[1]

    def _made(self, x: Field) -> Field:
        if isinstance(x, Expression):
            return self._expression(x)
        if isinstance(x, Made):
            return self._output(x)
        if isinstance(x, Sum):
            terms = [(factor, self.alike(part)) for factor, part in x.terms]
            return Sum(x.shape, terms) if _changed(x.terms, terms) else x
        if isinstance(x, Joined):
            parts = [self.alike(part) for part in x.parts]
            return Joined(x.shape, parts, x.dim) if _changed(x.parts, parts) else x
        if isinstance(x, Normalised):
            inner = self.alike(x.x)
            return x if inner is x.x else Normalised(inner, x.over, x.eps, centring=x.centring)
        if isinstance(x, Inner):
            direct, moved = self.alike(x.direct), self.alike(x.moved)
            return x if direct is x.direct and moved is x.moved else Inner(direct, moved)
        if isinstance(x, NormCotangent):
            g, hat = self.alike(x.g), self.alike(x.normalised)
            along = None if x.sum_along is None else self.alike(x.sum_along.parts[0])
            assert isinstance(hat, Normalised)
            return x if g is x.g and hat is x.normalised else NormCotangent(g, hat, along)
        if isinstance(x, Softmax) and len(x.shape) == 2 and x.g is None:  # over classes
            inner = self.alike(x.x)
            return x if inner is x.x else Softmax(inner, x.dim)
        return x

    def _output(self, x: Made) -> Field:
        if x.key == "same":
            source = self.alike(x.parts[0])
            return x if source is x.parts[0] else source.as_one or x  # type: ignore[attr-defined]
        mixes = x.key[0] == "contract" and not any(rearranged_leaf(part) for part in x.parts)  # type: ignore[index]
        parts = x.parts if mixes else tuple(self.alike(part) for part in x.parts)
        return Made(x.shape, parts, x.rule, x.key) if _changed(x.parts, parts) else x

    def _expression(self, x: Expression) -> Field:
        atoms = {atom: self.alike(atom) for atom in x.atoms}
        if all(atom is other for atom, other in atoms.items()):
            return x
        terms = [Term(t.factor, tuple((atoms[atom], f) for atom, f in t.functions)) for t in x.terms]
        result = Expression(x.shape, terms)
        result.alike = True
        if x.as_one is not None:
            result.as_one = Made(x.shape, (result,), lambda table: table, "same")
        return result

    def change(self, x: Field) -> Table | None:
        """K|U − K; None if there is none."""
        other = self.alike(x)
        if other is x:
            return None
        dims, (mine, its) = align([x.table, other.table], x.shape)
        return Table(dims, its.second - mine.second, None)

    @property
    def weight(self) -> float:
        """The factor f/(1 − f)."""
        return self.share / (1 - self.share)

    def added(self, x: Made) -> Table | None:
        """What the gradient of a weight has beyond the product of the means."""
        first, second = (self.change(part) for part in x.parts)
        return None if first is None or second is None else x.rule(first, second).scaled(self.weight**0.5)

    def added_to_rows(self, x: Made) -> Table | None:
        """The same of the gradient of the table that the tokens are rows of: they meet there, U = 1."""
        change = self.change(x.parts[0])
        if change is None:
            return None
        table = x.rule(change)
        return Table(table.dims, np.where(agreeing(table.axes, [0]), table.second, 0.0), None)


def _changed(before: object, after: object) -> bool:
    return any(
        (a[1] is not b[1]) if isinstance(a, tuple) else (a is not b)
        for a, b in zip(before, after, strict=True)  # type: ignore[call-overload]
    )


def over_tokens(context: Context, x: Made) -> Made:
    """A product of a gradient and a tensor, with what positions of the same token add to it."""
    pairs: Pairs | None = context.made.get("pairs")
    if pairs is None or x.parts[0].cotangent == x.parts[1].cotangent:
        return x
    if x.parts[0].shape[-1] not in pairs.rows or x.added is None:
        return x
    before = x.added

    def added(made: Made) -> Table | None:
        more = pairs.added(made)
        return before(made) if more is None else more

    x.added = added
    return x


def by_tokens(context: Context, tokens: torch.Tensor, x: Made) -> Made:
    """The gradient of looked-up rows, with what positions of the same token add to it."""
    pairs: Pairs | None = context.made.get("pairs")
    if pairs is not None and torch.equal(pairs.tokens, tokens):
        x.added = pairs.added_to_rows
    return x


def note_pairs(context: Context, e: Field, g: Field, labels: torch.Tensor, ignored: int) -> None:
    """Look which tokens were looked up, and whether the gradient of the loss is alike where they are.

    Args:
        context: What rules share.
        e: The gradient of the logits.
        g: That of their log-softmax.
        labels: One per position.
        ignored: The label that does not count.
    """
    labels = labels.reshape(-1)
    for key, uses in list(context.made.items()):
        if not isinstance(key, tuple) or key[0] != "looked up" or len(e.shape) != 2:
            continue
        for weight, index, _ in uses:
            tokens = _matching(index, labels.numel())
            share = 0.0 if tokens is None else coincide(tokens, tokens)
            if tokens is None or not 0 < share < 1:
                continue
            pairs = Pairs(index, share, frozenset({index.numel(), labels.numel()}))
            for other, same, rows in uses:
                if other is weight and torch.equal(same, index):
                    pairs.fields[id(rows)] = rows, gathered(weight, index, rows.shape, alike=True)
            _add_loss(context, pairs, e, g, Met.alike(tokens, labels, labels != ignored))
            change = pairs.change(e)
            if change is not None and _excess(change, e) * pairs.weight > SLIGHT:
                context.made["pairs"] = pairs
                return


def _excess(change: Table, e: Field) -> float:
    """Σ over other positions of what those in U have more, in units of the mean square."""
    rows = change.exchangeable(0).exchangeable(1)
    return abs(float(rows.second[0, 1])) / max(e.mean_square, 1e-300) * e.shape[0]


def _matching(index: torch.Tensor, labels: int) -> torch.Tensor | None:
    """The tokens at which labels stand: all, or in a loss on the next token all but the last."""
    if index.numel() == labels:
        return index.reshape(-1)
    if index.ndim == 2 and index.shape[0] * (index.shape[1] - 1) == labels:
        return index[:, :-1].reshape(-1)
    return None


def _add_loss(context: Context, pairs: Pairs, e: Field, g: Field, met: Met) -> None:
    """What the gradient of the loss is made from, for the pairs in U."""
    if (found := context.made.get(("among", id(e)))) is not None:
        pairs.fields[id(e)] = e, found[2](met, pairs.alike(found[1]))
    elif isinstance(g, Expression):
        for atom in g.atoms:
            if ("labels", id(atom)) in context.made and len(atom.shape) == 2:
                pairs.fields[id(atom)] = atom, _hot(atom, met)


def _hot(hot: Field, met: Met) -> Leaf:
    """One-hot rows that agree as often as labels do in U."""
    (n, classes), share = hot.shape, hot.mean_square * hot.shape[1]
    second = np.zeros((2, 2))
    second[1, 1] = share / classes
    second[0, 1] = met.valid * met.labels / classes
    second[0, 0] = met.valid * (1 - met.labels) / (classes * (classes - 1.0))
    return Leaf(Table(((plain(n),), (plain(classes),)), second, np.full((1, 1), share / classes)))
