"""Pooling and resampling over spatial dimensions, taken as exchangeable.

* Average over windows of k: K(agree) → K(differ) + (K(agree) − K(differ))/k.
* Nearest-neighbour upsampling by s repeats each entry.
* Max over a window: simulated from the covariance within and between windows.
  Its cotangent goes to the largest entry alone. What the activation before did
  to that entry (a ReLU passes it unless all were negative) is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, final

import numpy as np
import torch

from evenflow.predict.axes import Array, plain
from evenflow.predict.fields import Field, Leaf, Made
from evenflow.predict.pointwise import Routed, as_scalar
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.scalar import Scalar
from evenflow.predict.table import Dims, Table

SAMPLES = 40_000
"""Simulated windows: a relative error of about 1/√40 000 = .5 %."""


def _spatial(x: Field, n: int) -> list[int]:
    return list(range(len(x.shape) - n, len(x.shape)))


def _per_dim(
    x: Field,
    shape: Sequence[int],
    dims: Sequence[int],
    change: Callable[[float, float, int, int], tuple[float, float]],
    key: Any,
) -> Field:
    """Change (differ, agree) of each spatial axis from its size to the new one by a linear map."""

    def of_table(table: Table) -> Table:
        for dim in dims:
            n, m = table.shape[dim], shape[dim]
            table = table.exchangeable(dim)
            at = table.first_axis(dim)
            second, mean = table.second, table.mean
            if not table.dims[dim]:
                second = np.stack([second, second], at)
                mean = None if mean is None else np.expand_dims(mean, at)
            rows = np.array([change(1.0, 0.0, n, m), change(0.0, 1.0, n, m)]).T  # [new class, old class]
            second = np.moveaxis(np.tensordot(rows, second, (1, at)), 0, at)
            scale = math.sqrt(abs(sum(change(1.0, 1.0, n, m)) / 2))
            mean = None if mean is None else mean * scale
            if m > 1:
                dims_: Dims = table.with_dim(dim, [plain(m)])
            else:
                second = np.take(second, 1, at)
                mean = None if mean is None else np.take(mean, 0, at)
                dims_ = table.with_dim(dim, [])
            table = Table(dims_, second, mean)
        return table

    return Made(shape, (x,), of_table, (key, tuple(shape)))


def _pool(x: Field, shape: Sequence[int], windows: Sequence[int]) -> Field:
    dims = _spatial(x, len(windows))
    for dim, k in zip(dims, windows, strict=True):
        target = [*x.shape[:dim], shape[dim], *x.shape[dim + 1 :]]

        def change(differ: float, agree: float, n: int, m: int, k: int = k) -> tuple[float, float]:
            return differ, differ + (agree - differ) / min(k, n)

        x = _per_dim(x, target, [dim], change, ("pool", dim, k))
    return x


def _pool_backward(g: Field, shape: Sequence[int], windows: Sequence[int]) -> Field:
    """Each entry of a window gets g/k."""
    dims = _spatial(g, len(windows))
    for dim, k in zip(dims, windows, strict=True):
        target = [*g.shape[:dim], shape[dim], *g.shape[dim + 1 :]]

        def change(differ: float, agree: float, m: int, n: int, k: int = k) -> tuple[float, float]:
            k = min(k, n)
            # The n input entries receive m·k shares; two of them lie in one window in a share of all pairs.
            density = m * k / n
            same = (k - 1) / max(n - 1, 1) if m * k <= n else m * k * (k - 1) / max(n * (n - 1), 1)
            apart = density**2 - same
            if m == 1:
                return agree * same / k**2, agree * density / k**2
            return (agree * same + differ * apart) / k**2, (
                agree * density + differ * (density**2 - density if density > 1 else 0)
            ) / k**2

        g = _per_dim(g, target, [dim], change, ("unpool", dim, k))
    return g


@rule("avg_pool2d", "avg_pool1d", "avg_pool3d")
def avg_pool(context: Context, output: Any, x: Field, kernel: Sequence[int], *args: Any) -> Field:
    """Mean of each window."""
    return _pool(x, tuple(output.shape), _full(kernel, x))


@rule("avg_pool2d_backward", "avg_pool3d_backward")
def avg_pool_backward(
    context: Context, output: Any, g: Field, x: Field, kernel: Sequence[int], *args: Any
) -> Field:
    """g/k to each entry of the window."""
    return _pool_backward(g, x.shape, _full(kernel, x))


def _full(kernel: Any, x: Field) -> list[int]:
    n = len(x.shape) - 2
    return list(kernel) * n if len(kernel) == 1 else list(kernel)


@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d")
def adaptive(context: Context, output: Any, x: Field, size: Any) -> Field:
    """Windows that share out the input."""
    n = len(x.shape) - 2
    return _pool(x, tuple(output.shape), [max(1, x.shape[2 + i] // output.shape[2 + i]) for i in range(n)])


@rule("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward")
def adaptive_backward(context: Context, output: Any, g: Field, x: Field) -> Field:
    """g/k to each entry of the window."""
    n = len(x.shape) - 2
    return _pool_backward(g, x.shape, [max(1, x.shape[2 + i] // g.shape[2 + i]) for i in range(n)])


@rule("upsample_nearest2d", "upsample_nearest1d", "upsample_nearest3d", "_upsample_nearest_exact2d")
def upsample(context: Context, output: Any, x: Field, *args: Any) -> Field:
    """Each entry repeated."""

    def change(differ: float, agree: float, n: int, m: int) -> tuple[float, float]:
        s = m / n
        return (((s - 1) * agree + (n - 1) * s * differ) / (m - 1) if m > 1 else differ), agree

    return _per_dim(x, tuple(output.shape), _spatial(x, len(x.shape) - 2), change, "upsample")


@rule(
    "upsample_nearest2d_backward",
    "upsample_nearest1d_backward",
    "upsample_nearest3d_backward",
    "_upsample_nearest_exact2d_backward",
)
def upsample_backward(context: Context, output: Any, g: Field, *args: Any) -> Field:
    """The sum over an entry's copies."""

    def change(differ: float, agree: float, m: int, n: int) -> tuple[float, float]:
        s = m / n
        return s * s * differ, s * agree + s * (s - 1) * differ

    return _per_dim(g, tuple(output.shape), _spatial(g, len(g.shape) - 2), change, "upsample backward")


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
    window = _Window(atom, function, _full(kernel, x))
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
