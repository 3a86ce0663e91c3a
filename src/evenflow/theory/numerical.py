"""Breakpoints and derivative of a scalar function that is only known as a callable.

Both rest on one idea: between breakpoints a function is close to a polynomial
on every short enough interval. An interval is *resolved* when the function's last
Chebyshev coefficients there, from 13 Chebyshev–Lobatto points, have died away.

* Breakpoints: intervals that are not resolved are halved; where even a width of
  1e-5 does not help there is a kink or a jump, and halving goes on to place it.
* Derivative: that of the polynomial on a short interval around x that crosses
  no breakpoint and so is one-sided next to one. Of ever shorter intervals the
  one is kept whose error, (last coefficients + rounding) / width, is smallest.

Accuracy of the derivative, for a function computed to float64 rounding and
varying on a scale of 1: 1e-11 of max(1, |f'|), up to the very breakpoint, where
it is the derivative from the left. The function's value at a jump does not count.

References:
    L. N. Trefethen, "Approximation Theory and Approximation Practice" (2013),
    ch. 3 and 4, for Chebyshev coefficients as a test of resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.polynomial import chebyshev

from evenflow.theory.errors import TheoryError
from evenflow.theory.gaussian import Array, ScalarFunction, values

SEARCH_REACH = 32.0
"""Breakpoints are looked for in about −32 … 32."""
KINK_WIDTH = 1e-5
"""An interval this short that is still not resolved holds a breakpoint."""

_RESOLVED = 1e-12
"""Largest last coefficients of a resolved interval, relative to the largest one."""
_EPS = float(np.finfo(np.float64).eps)
_NOISE = 8 * _EPS
"""Coefficients below this, relative to the function's magnitude, may be rounding: the
GELU far left, x (1 + erf(x/√2))/2, is nothing but the rounding of 1 + erf."""
_MAX_UNRESOLVED = 2_000
_SEARCH_CELLS = 128
_SEARCH_SHIFT = 0.1234
"""Keeps round numbers, where kinks like to be, off the ends of the cells."""
_PLACED = 1e-13
"""Width, relative to max(1, |x|), at which a breakpoint counts as placed."""

_DERIVATIVE_RADIUS = 0.25
"""Half-width of the first interval, in units of max(1, |x|/4)."""
_DERIVATIVE_LEVELS = 20


def find_breakpoints(f: ScalarFunction) -> tuple[float, ...]:
    """Kinks and jumps of f within −32 … 32, ascending.

    Found are jumps of f, f' and f'' of a size comparable with f itself; they
    are placed to about 1e-12 (jumps of f and f') or 1e-6 (of f''), and moved to
    the roundest number within that. A smooth part steeper than 1e5 is listed as
    well, which does no harm.

    Raises:
        TheoryError: f is not finite there, or rough nearly everywhere.
    """
    edges = np.linspace(-SEARCH_REACH, SEARCH_REACH, _SEARCH_CELLS + 1) + _SEARCH_SHIFT
    left, right = edges[:-1], edges[1:]
    noise = _NOISE * _magnitude(f)
    while right[0] - left[0] > KINK_WIDTH:
        rough = _tails(f, left, right, noise) > _RESOLVED
        left, right = left[rough], right[rough]
        if left.size == 0:
            return ()
        if left.size > _MAX_UNRESOLVED:
            raise TheoryError(
                f"the function is rough nearly everywhere, first near x = {left[0]:.6g}. It should return "
                "float64 (float32 rounding looks like roughness) and vary on a scale of about 1."
            )
        middle = 0.5 * (left + right)
        left, right = np.append(left, middle), np.append(middle, right)
    rough = _tails(f, left, right, noise) > _RESOLVED
    # A breakpoint on the border of two intervals shows in both.
    places = sorted(
        _place(f, a, b, noise) for a, b in zip(left[rough].tolist(), right[rough].tolist(), strict=True)
    )
    apart = [x for x, before in zip(places, [-np.inf, *places], strict=False) if x - before > KINK_WIDTH]
    return tuple(apart)


def derivative(f: ScalarFunction, breakpoints: Sequence[float] = ()) -> ScalarFunction:
    """The numerical derivative of f, as a function of an array.

    Args:
        f: Function of an array, applied to each entry, in float64.
        breakpoints: Its kinks and jumps, as from :func:`find_breakpoints`.
    """
    magnitude = _magnitude(f)
    ends = np.concatenate([[-np.inf], np.sort(np.asarray(breakpoints, dtype=np.float64)), [np.inf]])

    def at(x: Array) -> Array:
        flat = np.ravel(np.asarray(x, dtype=np.float64))
        piece = np.searchsorted(ends, flat, side="left")
        low, high = ends[piece - 1], ends[piece]
        width = np.minimum(2 * _DERIVATIVE_RADIUS * np.maximum(1.0, np.abs(flat) / 4), high - low)
        best, least_error = np.zeros(flat.shape), np.full(flat.shape, np.inf)
        todo = np.arange(flat.size)
        for _ in range(_DERIVATIVE_LEVELS):
            slope, tail, largest = _slope(f, flat[todo], low[todo], high[todo], width[todo])
            rounding = _EPS * (np.maximum(largest, magnitude) + np.abs(flat[todo] * slope))
            error = (tail + rounding) / width[todo]
            better = error < least_error[todo]
            best[todo[better]], least_error[todo[better]] = slope[better], error[better]
            todo = todo[tail > rounding]
            if todo.size == 0:
                break
            width[todo] *= 0.5
        return best.reshape(np.shape(x))

    return at


def _slope(f: ScalarFunction, x: Array, low: Array, high: Array, width: Array) -> tuple[Array, Array, Array]:
    """f'(x) [n] from the polynomial on an interval of the width [n] around x within low … high.

    Also the size of its last coefficients and of the largest.
    """
    left = np.minimum(np.maximum(x - 0.5 * width, low), high - width)
    coefficients = _coefficients(f, left, left + width)
    place = 2.0 * (x - left) / width - 1.0
    slope = chebyshev.chebval(place, chebyshev.chebder(coefficients, axis=0), tensor=False) * 2.0 / width
    size = np.abs(coefficients)
    return slope, size[-3:].max(axis=0), size.max(axis=0)


_N = 13  # enough for tanh on the first interval of a derivative; more would amplify rounding
_LOBATTO = np.cos(np.pi * np.arange(_N) / (_N - 1))
_TO_COEFFICIENTS = np.linalg.inv(chebyshev.chebvander(_LOBATTO, _N - 1))


def _coefficients(f: ScalarFunction, left: Array, right: Array) -> Array:
    """Chebyshev coefficients [13, n] of f on each interval [n]."""
    x = 0.5 * (left + right) + 0.5 * (right - left) * _LOBATTO[:, np.newaxis]
    return np.asarray(_TO_COEFFICIENTS @ values(f, x))


def _magnitude(f: ScalarFunction) -> float:
    """The largest value in −4 … 4, where activations have theirs."""
    return float(np.abs(values(f, np.linspace(-4.0, 4.0, 65))).max())


def _tails(f: ScalarFunction, left: Array, right: Array, noise: float) -> Array:
    """How large the last three coefficients are, relative to the largest, on each interval [n].

    What may be noise counts as nothing.
    """
    size = np.abs(_coefficients(f, left, right))
    tail = np.maximum(size[-3:].max(axis=0) - noise, 0.0)
    return np.asarray(tail / np.maximum(size.max(axis=0), np.finfo(np.float64).tiny))


def _place(f: ScalarFunction, left: float, right: float, noise: float) -> float:
    """The breakpoint within an interval that is not resolved: the roundest number that it may be."""
    while right - left > _PLACED * max(1.0, abs(left)):
        middle = 0.5 * (left + right)
        tails = _tails(f, np.array([left, middle]), np.array([middle, right]), noise)
        if tails.max() <= _RESOLVED:
            break
        left, right = (left, middle) if tails[0] > tails[1] else (middle, right)
    middle = 0.5 * (left + right)
    return next((x for x in (round(middle, digits) for digits in range(16)) if left <= x <= right), middle)
