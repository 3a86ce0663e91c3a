"""Expectations over Gaussian variables, for functions with kinks, jumps and steep parts.

A wide random layer sums many independent terms, so its pre-activations are
Gaussian, and all that mean-field theory asks of an activation is

    E[f(u)],  u ~ N(mean, std²)      and      E[f(u₁) g(u₂)],  corr(u₁, u₂) = c.

Gauss–Hermite rules converge slowly on kinks (ReLU) and miss steep parts (tanh
of a large argument). Here the line −12 … 12 (in units of std) is cut into
panels at every *breakpoint* of f, each panel gets a Gauss–Legendre rule, and a
panel whose two halves together disagree with it is cut again. Panels touch
breakpoints only at their ends, where no node lies, so kinks and jumps cost
nothing and need no care.

Accuracy, with all breakpoints declared: 1e-10 of E|f| for one variable and of
√(E f² E g²) for two. A panel is accepted when halving changes it by less than
1e-12 of that, and what is kept is the better, halved value; tests against
closed forms see less than 1e-13. An *undeclared* kink or jump is mostly closed
in upon, but one that hides between a panel's end and its first node costs up
to 1e-5 (kink) or 2e-3 (jump): declare them, or let
:meth:`~evenflow.theory.activation.Activation.from_callable` find them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from evenflow.theory.errors import TheoryError

Array: TypeAlias = npt.NDArray[np.float64]
ScalarFunction: TypeAlias = Callable[[Array], npt.NDArray[np.floating[Any]]]
"""A real function applied to each entry of an array, such as ``np.tanh``."""

REACH = 12.0
"""Half-width of the line, in standard deviations: the Gaussian mass beyond is 4e-33,
so functions growing as fast as exp(4|z|) still keep 15 digits."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_GRID = np.linspace(-REACH, REACH + 0.7, 14)
"""Panel ends to begin with. Off centre, so that neither end nor middle of a panel is at 0:
there an undeclared kink is likeliest, and once rounded by another Gaussian it cannot be seen."""
_STEEP = 4.0
"""Above this std, panels are graded towards 0, where activations have their features."""
_STEEP_UNIT = 1.1
"""First graded panel end, in units of u: about 1, but no likely breakpoint."""
_DENORMAL = 1e-290
"""Values below this have lost digits; no accuracy is asked of them."""
_MAX_LEVELS = 60
_MAX_PANELS = 4_000
_BLOCK = 2_048
"""Integrals done at once; bounds the memory to some tens of MB."""


def expect(
    f: ScalarFunction,
    std: float = 1.0,
    mean: float = 0.0,
    *,
    breakpoints: Sequence[float] = (),
    tolerance: float = 1e-12,
) -> float:
    """E[f(u)] for u ~ N(mean, std²).

    Args:
        f: Function of an array, applied to each entry.
        std: Standard deviation of u, ≥ 0.
        mean: Mean of u.
        breakpoints: Where f has a kink or a jump, in units of u.
        tolerance: Largest change, relative to E|f|, that halving a panel may
            still make. Raise it for an f that is only known to few digits.

    Raises:
        TheoryError: f is not finite somewhere, or too rough to integrate.
    """
    _check_std(std)
    if std == 0.0:
        return float(values(f, np.array([mean]))[0])
    return float(_expect_each(f, np.array([mean]), std, breakpoints, tolerance)[0])


def expect_pair(
    f: ScalarFunction,
    g: ScalarFunction,
    c: float,
    std_f: float = 1.0,
    std_g: float = 1.0,
    *,
    breakpoints_f: Sequence[float] = (),
    breakpoints_g: Sequence[float] = (),
    tolerance: float = 1e-12,
) -> float:
    """E[f(u₁) g(u₂)] for zero-mean Gaussians u₁, u₂ with correlation c.

    With z₁, z₂ ~ N(0, 1) independent, u₁ = std_f z₁ and
    u₂ = std_g (c z₁ + √(1−c²) z₂): the inner expectation over z₂ is that of g
    around the mean std_g c z₁, the outer one runs over z₁.

    Args:
        f: Function of u₁, applied to each entry of an array.
        g: Function of u₂, likewise.
        c: Correlation, −1 … 1.
        std_f: Standard deviation of u₁, ≥ 0.
        std_g: Standard deviation of u₂, ≥ 0.
        breakpoints_f: Kinks and jumps of f, in units of u₁.
        breakpoints_g: Kinks and jumps of g, in units of u₂.
        tolerance: As in :func:`expect`.

    Raises:
        TheoryError: c is no correlation; f or g not finite, or too rough.
    """
    if not -1.0 <= c <= 1.0:
        raise TheoryError(f"a correlation lies between -1 and 1, got c = {c}")
    _check_std(std_f)
    _check_std(std_g)
    if std_f == 0.0 or std_g == 0.0 or c == 0.0:
        return expect(f, std_f, breakpoints=breakpoints_f, tolerance=tolerance) * expect(
            g, std_g, breakpoints=breakpoints_g, tolerance=tolerance
        )
    inner_std = std_g * math.sqrt((1.0 - c) * (1.0 + c))
    rms_f = _root_mean_square(f, std_f, breakpoints_f, tolerance)
    rms_g = _root_mean_square(g, std_g, breakpoints_g, tolerance)

    def inner(z: Array) -> Array:
        mean = std_g * c * z
        if inner_std == 0.0:
            return values(g, mean)
        return _expect_each(g, mean, inner_std, breakpoints_g, tolerance)

    def product(_: npt.NDArray[np.intp], z: Array) -> Array:
        return values(f, std_f * z) * inner(z.ravel()).reshape(z.shape)

    # Seen from z₁, g has its landmarks too, rounded to this width.
    rounding = inner_std / (std_g * abs(c))
    marks = np.concatenate(
        [
            _landmarks(breakpoints_f, std_f) / std_f,
            _landmarks(breakpoints_g, std_g) / (std_g * c),
            _graded(np.asarray(breakpoints_g) / (std_g * c), rounding),
        ]
    )
    return float(_integrate(product, _edges(marks[np.newaxis, :]), tolerance, rms_f * rms_g)[0])


def _root_mean_square(f: ScalarFunction, std: float, breakpoints: Sequence[float], tolerance: float) -> float:
    return math.sqrt(expect(lambda x: f(x) ** 2, std, breakpoints=breakpoints, tolerance=tolerance))


def _expect_each(
    f: ScalarFunction,
    mean: Array,
    std: float,
    breakpoints: Sequence[float],
    tolerance: float,
) -> Array:
    """E[f(mean + std z)] for every mean [n]."""
    landmarks = _landmarks(breakpoints, std)

    def block(mean: Array) -> Array:
        edges = _edges((landmarks - mean[:, np.newaxis]) / std)
        return _integrate(lambda owner, z: values(f, mean[owner] + std * z), edges, tolerance, _DENORMAL)

    blocks = np.array_split(mean, math.ceil(mean.size / _BLOCK))
    return np.concatenate([block(part) for part in blocks])


def _landmarks(breakpoints: Sequence[float], std: float) -> Array:
    """Where panels must end, in units of u: breakpoints and, if f is steep, ends graded towards 0."""
    points = np.asarray(breakpoints, dtype=np.float64)
    if std <= _STEEP:
        return points
    return np.concatenate([points, _graded(np.zeros(1), _STEEP_UNIT, REACH * std)[1:]])


def _graded(centres: Array, unit: float, reach: float = 1.0) -> Array:
    """Each centre, and points at unit · 1, 2, 4, … up to ``reach`` on both sides of it."""
    if unit == 0.0 or unit >= reach:
        return centres
    steps = unit * 2.0 ** np.arange(math.ceil(math.log2(reach / unit)))
    return np.concatenate([centres, *(centres + step for step in steps), *(centres - step for step in steps)])


def _edges(marks: Array) -> Array:
    """Sorted panel ends [n, panels + 1] in units of std, from the marks [n, m] of each integral."""
    inside = np.clip(marks, _GRID[0], _GRID[-1])
    return np.sort(np.concatenate([np.broadcast_to(_GRID, (len(marks), _GRID.size)), inside], axis=1), axis=1)


def _integrate(
    integrand: Callable[[npt.NDArray[np.intp], Array], Array],
    edges: Array,
    tolerance: float,
    scale: float,
) -> Array:
    """∫ integrand(z) exp(−z²/2)/√(2π) dz for n integrals at once.

    Args:
        integrand: From (which integral [p, 1], z [p, nodes]) to values [p, nodes].
        edges: Panel ends [n, panels + 1], sorted.
        tolerance: See :func:`expect`.
        scale: What ``tolerance`` is relative to, where that exceeds ∫ |integrand|.
    """

    def rule(owner: npt.NDArray[np.intp], left: Array, right: Array) -> tuple[Array, Array]:
        """Of each panel ∫ and ∫ of |·|."""
        half = 0.5 * (right - left)[:, np.newaxis]
        z = 0.5 * (left + right)[:, np.newaxis] + half * _NODES
        weight = half * _WEIGHTS * np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        terms = weight * integrand(owner[:, np.newaxis], z)
        return terms.sum(axis=1), np.abs(terms).sum(axis=1)

    n = len(edges)
    left, right = edges[:, :-1].ravel(), edges[:, 1:].ravel()
    owner = np.repeat(np.arange(n), edges.shape[1] - 1)
    wide = right > left
    owner, left, right = owner[wide], left[wide], right[wide]
    whole, magnitude = rule(owner, left, right)
    allowed = tolerance * np.maximum(np.bincount(owner, magnitude, n), scale)
    total = np.zeros(n)
    for _ in range(_MAX_LEVELS):
        middle = 0.5 * (left + right)
        owner, left, right = np.tile(owner, 2), np.append(left, middle), np.append(middle, right)
        parts, _ = rule(owner, left, right)
        change = np.abs(parts.reshape(2, -1).sum(axis=0) - whole)
        settled = np.tile(change <= allowed[owner[: change.size]], 2)
        total += np.bincount(owner[settled], parts[settled], n)
        if settled.all():
            return total
        rough = ~settled
        owner, left, right, whole = owner[rough], left[rough], right[rough], parts[rough]
        if owner.size > _MAX_PANELS + 50 * n:
            break
    raise TheoryError(
        f"the function is too rough to integrate to {tolerance:g}: its values do not settle near "
        f"{0.5 * (left[0] + right[0]):.6g} standard deviations. Declare its breakpoints, make it return "
        "float64, or pass a larger tolerance."
    )


def values(f: ScalarFunction, x: Array) -> Array:
    """f(x) in float64, checked to be finite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        y = np.asarray(f(x), dtype=np.float64)
    if y.shape != x.shape:
        raise TheoryError(
            f"a function of an array must return its shape: from {x.shape} came {y.shape}. "
            "Write it with numpy operations, or wrap it in np.vectorize."
        )
    finite = np.isfinite(y)
    if not finite.all():
        where = np.unravel_index(int(np.argmin(finite)), x.shape)
        raise TheoryError(f"the function is {y[where]} at x = {x[where]:.6g}; its expectation does not exist")
    return y


def _check_std(std: float) -> None:
    if not (std >= 0.0 and math.isfinite(std)):
        raise TheoryError(f"a standard deviation is a finite number ≥ 0, got {std}")
