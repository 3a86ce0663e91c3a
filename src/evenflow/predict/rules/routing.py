"""Mixtures of experts: which token goes where, and products with the experts' weights.

Which expert a token takes is decided by the largest of random scores. That choice is
*drawn once*, from Gaussian scores with the table's second moments, and from then on the
indices are known numbers: what is sorted, counted and looked up by them is computed.
The values that go with them are known as a table, the mean over draws. So are the slopes
of the chosen probabilities: a softmax multiplies cotangents by its entries, and those
that were chosen are the largest.

With one-hot entries h of known indices, both reading and writing by index are products,

    gather   out_tk = Σ_e x_te h_tke,      scatter   out_te = Σ_k x_tk h_tke,

and so is a grouped product of rows s, each with the weights of its group e(s).

References:
    Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated
    Mixture-of-Experts Layer", 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evenflow.predict.axes import Array
from evenflow.predict.expressions import as_scalar
from evenflow.predict.fields import Field, Leaf
from evenflow.predict.rules.adjoint import GROUPED, remember, weight_of
from evenflow.predict.rules.indexing import gathered, known_values
from evenflow.predict.rules.linear import contraction
from evenflow.predict.rules.registry import Context, NoRuleError, makes, rule
from evenflow.predict.rules.softmax import Softmax
from evenflow.predict.rules.views import view
from evenflow.predict.table import Table, constant, measured

DRAWS = 16
"""Over which the table of the selected values is averaged; the mean square of 128 tokens is then
known to √(2/2048), 3 %, or .007 decades of RMS."""
LARGEST = 1 << 24
"""Entries of a one-hot tensor, beyond which selection has no rule: 64 MiB."""


def drawn(table: Table, draws: int) -> torch.Tensor:
    """Gaussian tensors [draws, …] with the table's moments, all axes taken as exchangeable.

    Any exchangeable table is a sum of independent parts, one for each set of axes A along
    which the part varies, K(agree on S) = Σ_{A ⊆ S} σ_A²; so the σ_A² follow by differences.
    """
    for dim in range(len(table.dims)):
        table = table.exchangeable(dim)
    parts: Array = table.second - table.average**2
    for axis in range(parts.ndim):
        differ, agree = np.take(parts, 0, axis), np.take(parts, 1, axis)
        parts = np.stack([differ, agree - differ], axis)
    generator = torch.Generator().manual_seed(0)
    sizes = [axis.n for axis in table.axes]
    x = torch.full((draws, *sizes), table.average)
    for pattern in np.ndindex(*parts.shape):
        shape = [n if varies else 1 for n, varies in zip(sizes, pattern, strict=True)]
        x = x + torch.randn(draws, *shape, generator=generator) * max(float(parts[pattern]), 0.0) ** 0.5
    return x.reshape(draws, *table.shape)


def _scores(x: Field, draws: int) -> torch.Tensor:
    """Draws of a field: a softmax of draws of its scores, or a function of one Gaussian field."""
    if isinstance(x, Softmax) and x.g is None:
        if x.keep is not None or x.x.keep is not None:
            raise NoRuleError("a choice among masked scores")
        return drawn(x.x.table, draws).softmax(x.dim + 1)
    atom, function = as_scalar(x)
    if isinstance(atom, Softmax) and atom is not x:
        return function(_scores(atom, draws).double()).float()
    return function(drawn(atom.table, draws).double()).float()


def _mean_table(draws: torch.Tensor) -> Table:
    tables = [measured(draw) for draw in draws]
    means = [table.mean for table in tables if table.mean is not None]
    return Table(
        tables[0].dims, np.mean([table.second for table in tables], 0), np.mean(means, 0) if means else None
    )


@dataclass(frozen=True)
class _Choice:
    """What the largest entries were chosen from, in draws.

    Attributes:
        source: It.
        scores: Its entries [draws, …, e].
        places: Where the chosen ones are [draws, …, k].
    """

    source: Field
    scores: torch.Tensor
    places: torch.Tensor

    def slopes(self) -> Table:
        """∂p_(k)/∂s_e [k, e] of the chosen among p = softmax(s): p_e (h_ke − p_(k)), h one-hot."""
        draws = max(
            1, min(len(self.scores), LARGEST // max(self.places[0].numel() * self.scores.shape[-1], 1))
        )
        scores, places = self.scores[:draws], self.places[:draws]
        hot = torch.nn.functional.one_hot(places, scores.shape[-1])
        return _mean_table(scores.unsqueeze(-2) * (hot - scores.gather(-1, places).unsqueeze(-1)))


def _chosen(context: Context, values: torch.Tensor, choice: _Choice) -> list[Field]:
    context.remarks["a choice by random scores: the chosen indices are those of one draw"] += 1
    places = Leaf(None, choice.places[0])
    context.made["choice", id(places)] = (places, choice)
    return [Leaf(_mean_table(values)), places]


@rule("topk")
def topk(
    context: Context,
    output: Any,
    x: Field,
    k: int,
    dim: int = -1,
    largest: bool = True,
    in_order: bool = True,
) -> list[Field]:
    """The k largest entries, and where they are."""
    scores = _scores(x, DRAWS)
    values, places = scores.topk(k, dim % len(x.shape) + 1, largest, in_order)
    return _chosen(context, values, _Choice(x, scores, places))


@rule("max")
def largest(context: Context, output: Any, x: Field, dim: Any = None, keep: bool = False) -> list[Field]:
    """The largest entry of each row, and where it is: a row of scores that some keys are hidden from, too."""
    if not isinstance(dim, int) or not isinstance(output, (list, tuple)):
        raise NoRuleError("the largest of all entries")
    size = math.prod(x.shape)
    if size > LARGEST:
        raise NoRuleError(f"the largest among {size} entries")
    scores = _scores(x, max(1, min(DRAWS, LARGEST // size)))
    if x.keep is not None:
        scores = scores.masked_fill(~x.keep, -math.inf)
    dim %= len(x.shape)
    values, places = scores.max(dim + 1, keepdim=True)
    found = _chosen(context, values, _Choice(x, scores, places))
    return found if keep else [view(context, None, each, output[0].shape) for each in found]


@rule("sort")
def sort(context: Context, output: Any, x: Field, *args: Any, **options: Any) -> list[Field]:
    """Noise that the model drew by itself, in order: a random order of what it stands for."""
    if not isinstance(x, Leaf) or x.cotangent:
        raise NoRuleError("no rule for it")
    dim = options.get("dim", next((a for a in args if type(a) is int), -1)) % len(x.shape)
    descending = options.get("descending", bool(args and args[-1] is True))
    scores = _scores(x, DRAWS)
    values, places = scores.sort(dim=dim + 1, descending=descending)
    return _chosen(context, values, _Choice(x, scores, places))


def _one_hot(index: torch.Tensor, size: int) -> Field:
    if index.numel() * size > LARGEST:
        raise NoRuleError(f"a choice of {index.numel()} among {size}")
    hot = torch.nn.functional.one_hot(index, size).float()
    return Leaf(measured(hot))


def _letters(rank: int, dim: int) -> tuple[str, str, str]:
    """Names of the dimensions of x, of the index, and of the one-hot tensor."""
    names = "abcdfghij"[:rank]
    chosen = names[:dim] + "k" + names[dim + 1 :]
    full = names[:dim] + "e" + names[dim + 1 :]
    return full, chosen, chosen + "e"


@rule("gather")
def gather(context: Context, output: Any, x: Field, dim: int, index: Field, **options: Any) -> Field:
    """Entries at known indices along a dimension."""
    dim, at = dim % len(x.shape), known_values(index)
    if tuple(n for d, n in enumerate(at.shape) if d != dim) != (*x.shape[:dim], *x.shape[dim + 1 :]):
        raise NoRuleError("a gather that leaves out rows")
    full, chosen, hot = _letters(len(x.shape), dim)
    return contraction(output.shape, x, _one_hot(at, x.shape[dim]), f"{full},{hot}->{chosen}")


@rule("scatter_add")
def scatter_add(context: Context, output: Any, x: Field, dim: int, index: Field, source: Field) -> Field:
    """X plus entries sent to known indices along a dimension."""
    dim, at = dim % len(x.shape), known_values(index)
    if tuple(n for d, n in enumerate(at.shape) if d != dim) != (*x.shape[:dim], *x.shape[dim + 1 :]):
        raise NoRuleError("a scatter that leaves out rows")
    full, chosen, hot = _letters(len(x.shape), dim)
    sent = contraction(output.shape, source, _one_hot(at, x.shape[dim]), f"{chosen},{hot}->{full}")
    if not x.table.second.any():
        return sent
    raise NoRuleError("a scatter into a tensor that is not zero")


@rule("scatter")
def scatter(
    context: Context, output: Any, x: Field, dim: int, index: Field, source: Any, **options: Any
) -> Field:
    """Entries sent to known indices of a tensor of zeros, each at most once."""
    if options or not isinstance(source, Field):
        raise NoRuleError("a scatter of a number")
    if not source.table.second.any() and not x.table.second.any():
        return Leaf(constant(output.shape, 0.0), cotangent=source.cotangent)
    at = known_values(index).movedim(dim, -1).sort(-1).values
    if bool((at[..., 1:] == at[..., :-1]).any()):
        raise NoRuleError("a scatter that overwrites")
    sent = scatter_add(context, output, x, dim, index, source)
    choice: _Choice | None = context.made.get(("choice", id(index)), (None, None))[1]
    if source.cotangent and choice is not None and isinstance(choice.source, Softmax):
        _note_way_back(context, sent, dim % len(x.shape), source, choice)
    return sent


def _note_way_back(context: Context, sent: Field, dim: int, g: Field, choice: _Choice) -> None:
    """What a softmax makes of cotangents that its largest entries got: it multiplies by these entries."""
    p = choice.source
    if not isinstance(p, Softmax) or p.dim != dim or dim != len(p.shape) - 1:
        return
    full, chosen, hot = _letters(len(p.shape), dim)
    slopes = Leaf(choice.slopes())
    back = contraction(p.shape, g, slopes, f"{chosen},{hot}->{full}")
    context.made["way back", id(sent)] = (sent, p, back)


@rule("histc")
def histc(context: Context, output: Any, x: Field, bins: int = 100, low: float = 0, high: float = 0) -> Field:
    """Counts of known numbers; the CPU counts no whole ones."""
    return Leaf(None, torch.histc(known_values(x).double(), bins, low, high).to(output.dtype))


@makes("_grouped_mm")
def grouped_shape(
    a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None = None, *_: Any, **__: Any
) -> Any:
    """What a grouped product returns; on the meta device it refuses formats that the CPU takes."""
    if offs is None:
        return torch.empty(*a.shape[:-1], b.shape[-1], dtype=a.dtype, device="meta")
    if a.ndim == 2 and b.ndim == 2:
        return torch.empty(len(offs), a.shape[0], b.shape[1], dtype=a.dtype, device="meta")
    return torch.empty(a.shape[-2], b.shape[-1], dtype=a.dtype, device="meta")


def _groups(offsets: torch.Tensor, rows: int) -> torch.Tensor:
    """The group of each row."""
    return torch.bucketize(torch.arange(rows), offsets.long(), right=True).clamp(max=len(offsets) - 1)


@rule("_grouped_mm")
def grouped_mm(
    context: Context, output: Any, a: Field, b: Field, offs: Field | None = None, *args: Any, **options: Any
) -> Field:
    """[s, i] × [e, i, j] by group, or [i, s] × [s, j] summed within each group."""
    offs = options.get("offs", offs)
    if offs is None:
        return contraction(output.shape, a, b, "eik,ekj->eij")
    if len(a.shape) == 2 and len(b.shape) == 3:
        group = _groups(known_values(offs), a.shape[0])
        weights = gathered(b, group, (len(group), *b.shape[1:]))
        result = contraction(output.shape, a, weights, GROUPED[1])
        if (weight := weight_of(b)) is not None:
            remember(context, a, weight, result)
        return result
    if len(a.shape) == 2 and len(b.shape) == 2:
        group = _groups(known_values(offs), a.shape[1])
        hot = _one_hot(group, output.shape[0])
        apart = contraction((a.shape[0], *hot.shape), a, hot, "is,se->ise")
        return contraction(output.shape, apart, b, "ise,sj->eij")
    raise NoRuleError("groups of columns")
