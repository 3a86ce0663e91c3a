"""Pooling and resampling over spatial dimensions.

* Averages and nearest-neighbour upsampling are linear maps of positions
  (:mod:`evenflow.predict.rules.positions`).
* Max over a window: simulated from the covariance within and between windows,
  positions taken as exchangeable.
  Its cotangent goes to the largest entry alone. What the activation before did
  to that entry (a ReLU passes it unless all were negative) is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, final

import numpy as np
import torch

from evenflow.predict.axes import Array, plain
from evenflow.predict.expressions import Routed, as_scalar
from evenflow.predict.fields import Field, Leaf, Made
from evenflow.predict.lazy import cached_property
from evenflow.predict.rules.positions import Maps, backward, copies, mapped, shares, windows
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.scalar import Scalar
from evenflow.predict.table import Table

SAMPLES = 40_000
"""Simulated windows: a relative error of about 1/√40 000 = .5 %."""


def _mapped(x: Field, shape: Sequence[int], maps: Sequence[Maps]) -> Field:
    """Each of the last dimensions through its map."""
    first = len(x.shape) - len(maps)

    def of_table(table: Table) -> Table:
        for dim, each in enumerate(maps, start=first):
            table = mapped(table, dim, each)
        return table

    return Made(shape, (x,), of_table, ("positions", tuple(maps)))


def _back(maps: Sequence[Maps]) -> list[Maps]:
    return [backward(each) for each in maps]


def _full(values: Any, n: int) -> list[int]:
    return list(values) * n if len(values) == 1 else list(values)


def _windows(wide: Sequence[int], narrow: Sequence[int], options: Sequence[Any]) -> list[Maps]:
    """The maps of an average pool with these options."""
    given = [*options, *_DEFAULTS[len(options) :]]
    kernel, stride, padding, _ceil, counted, divisor = given
    if divisor is not None:
        raise NoRuleError("an average with a divisor of its own")
    n = len(wide) - 2
    per_dim = [_full(values, n) for values in (kernel, stride or kernel, padding)]
    sizes = zip(wide[2:], narrow[2:], *per_dim, strict=True)
    return [windows(*each, count_padding=counted) for each in sizes]


_DEFAULTS: list[Any] = [(1,), (), (0,), False, True, None]
"""Kernel, stride, padding, ceil mode, whether padding counts, divisor."""


@rule("avg_pool2d", "avg_pool1d", "avg_pool3d")
def avg_pool(context: Context, output: Any, x: Field, *options: Any) -> Field:
    """Mean of each window."""
    return _mapped(x, output.shape, _windows(x.shape, output.shape, options))


@rule("avg_pool2d_backward", "avg_pool3d_backward")
def avg_pool_backward(context: Context, output: Any, g: Field, x: Field, *options: Any) -> Field:
    """g/k to each entry of the window."""
    return _mapped(g, x.shape, _back(_windows(x.shape, g.shape, options)))


def _sizes(wide: Sequence[int], narrow: Sequence[int], of: Callable[[int, int], Maps]) -> list[Maps]:
    return [of(n, m) for n, m in zip(wide[2:], narrow[2:], strict=True)]


@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d")
def adaptive(context: Context, output: Any, x: Field, size: Any) -> Field:
    """Windows that share out the input."""
    return _mapped(x, output.shape, _sizes(x.shape, output.shape, shares))


@rule("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward")
def adaptive_backward(context: Context, output: Any, g: Field, x: Field) -> Field:
    """g/k to each entry of the window."""
    return _mapped(g, x.shape, _back(_sizes(x.shape, g.shape, shares)))


@rule("upsample_nearest2d", "upsample_nearest1d", "upsample_nearest3d", "_upsample_nearest_exact2d")
def upsample(context: Context, output: Any, x: Field, *args: Any) -> Field:
    """Each entry repeated."""
    return _mapped(x, output.shape, _sizes(x.shape, output.shape, copies))


@rule(
    "upsample_nearest2d_backward",
    "upsample_nearest1d_backward",
    "upsample_nearest3d_backward",
    "_upsample_nearest_exact2d_backward",
)
def upsample_backward(context: Context, output: Any, g: Field, *args: Any) -> Field:
    """The sum over an entry's copies."""
    return _mapped(g, output.shape, _back(_sizes(output.shape, g.shape, copies)))


# Max pooling


@lru_cache(maxsize=8)
def _normals(count: int) -> Array:
    generator = np.random.default_rng(0)
    half = generator.standard_normal((SAMPLES // 2, count))
    return np.concatenate([half, -half])


class _Window:
    """Simulated windows of one Gaussian field and their values under a function."""

    def __init__(self, field: Field, function: Scalar, kernel: Sequence[int]) -> None:
        table = field.table
        for dim in range(len(table.dims)):
            table = table.exchangeable(dim)
        self.rank = len(field.shape)
        second = table.second.reshape([2 if axes_of else 1 for axes_of in table.dims])
        self.mean = float(table.average)
        self.covariance = np.broadcast_to(second, (2,) * self.rank) - self.mean**2
        self.function, self.kernel = function, list(kernel)

    def pair(self, pattern: Sequence[int]) -> tuple[Array, Array]:
        """Windows at two places of the output that agree and differ as in ``pattern`` [samples, k] each."""
        k = math.prod(self.kernel)
        index = np.indices(self.kernel).reshape(len(self.kernel), k)
        same = (index[:, :, None] == index[:, None]).astype(int)  # [dim, k, k]
        within = self.covariance[(1, 1, *same)]
        # In a dimension where the windows agree, their entries agree as within one window.
        place = [same[d] if pattern[2 + d] else np.zeros_like(same[d]) for d in range(len(self.kernel))]
        between = self.covariance[(pattern[0], pattern[1], *place)]
        if all(pattern):
            values = self._draw(within)
            return values, values
        values = self._draw(np.block([[within, between], [between.T, within]]))
        return values[:, :k], values[:, k:]

    def _draw(self, covariance: Array) -> Array:
        eigenvalues, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(eigenvalues, 0))
        drawn: Array = _normals(len(covariance)) @ root.T + self.mean
        return drawn

    def values(self, latent: Array) -> Array:
        return self.function(torch.from_numpy(np.ascontiguousarray(latent))).numpy()


def _pattern_table(
    shape: Sequence[int], rank: int, of_pattern: Callable[[tuple[int, ...]], float], mean: float
) -> Table:
    second = np.empty((2,) * rank)
    for pattern in np.ndindex(*second.shape):
        second[pattern] = of_pattern(pattern)
    second = second[tuple(slice(None) if n > 1 else 1 for n in shape)]
    return Table(
        tuple((plain(n),) if n > 1 else () for n in shape), second, np.full((1,) * second.ndim, mean)
    )


@rule("max_pool2d_with_indices", "max_pool3d_with_indices")
def max_pool(context: Context, output: Any, x: Field, kernel: Sequence[int], *args: Any) -> list[Any]:
    """The largest entry of each window, and where it was."""
    atom, function = as_scalar(x)
    window = _Window(atom, function, _full(kernel, len(x.shape) - 2))
    largest = {p: [window.values(v).max(1) for v in window.pair(p)] for p in np.ndindex(*(2,) * window.rank)}
    table = _pattern_table(
        output[0].shape,
        window.rank,
        lambda p: float((largest[p][0] * largest[p][1]).mean()),
        float(largest[(1,) * window.rank][0].mean()),
    )
    where = Leaf(Table(table.dims, table.second * 0, table.mean * 0 if table.mean is not None else None))
    context.made["max pool", id(where)] = (where, x, window)
    return [Leaf(table), where]


@rule("max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward")
def max_pool_backward(
    context: Context,
    output: Any,
    g: Field,
    x: Field,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil: bool,
    where: Field,
) -> Field:
    """G to the largest entry of each window."""
    kept = context.made.get(("max pool", id(where)))
    if kept is None:
        raise NoRuleError("backward of a max pooling whose forward pass was not seen")
    atom, _ = as_scalar(x)
    return MaxCotangent(g, x.shape, kept[2], atom, None)


@final
class MaxCotangent(Routed):
    """g at the largest entry of each window, zero elsewhere, times a function of the entry."""

    def __init__(
        self, g: Field, shape: Sequence[int], window: _Window, source: Field, weight: Scalar | None
    ) -> None:
        super().__init__(shape, cotangent=True)
        self.g, self.window, self.source, self.weight = g, window, source, weight
        self.spread_from = (g,)

    def weighted(self, weight: Scalar) -> MaxCotangent:
        """Multiplied by a function of the source."""
        from evenflow.predict.scalar import times

        return MaxCotangent(
            self.g,
            self.shape,
            self.window,
            self.source,
            weight if self.weight is None else times(self.weight, weight),
        )

    @cached_property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        return self.g.tags

    @cached_property
    def table(self) -> Table:
        """Mean and pair table."""
        table = self.g.table
        for dim in range(len(table.dims)):
            table = table.exchangeable(dim)
        second = np.broadcast_to(
            table.second.reshape([2 if a else 1 for a in table.dims]), (2,) * self.window.rank
        )
        entries = math.prod(self.shape[2:])
        density = math.prod(self.g.shape[2:]) / entries

        def of(pattern: tuple[int, ...]) -> float:
            weight = 1.0
            if self.weight is not None:
                at = [
                    np.take_along_axis(v, self.window.values(v).argmax(1)[:, None], 1)[:, 0]
                    for v in self.window.pair(pattern)
                ]
                a, b = (self.weight(torch.from_numpy(values)).numpy() for values in at)
                weight = float((a * b).mean())
            same_place = all(pattern[2:])
            if same_place and not pattern[0]:
                return float(second[pattern]) * density * weight / math.prod(self.window.kernel)
            if same_place:
                return (
                    float(second[pattern])
                    * weight
                    * (density if pattern[1] else density / math.prod(self.window.kernel))
                )
            return float(second[pattern]) * density**2 * weight

        return _pattern_table(self.shape, self.window.rank, of, 0.0)
