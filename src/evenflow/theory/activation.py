"""An activation: a scalar function with its derivative and breakpoints.

Mean-field theory needs no more of φ than φ(x), φ'(x) and the places where
either has a kink or a jump, so that integrals can be cut there. The field's own
activations are in :mod:`evenflow.theory.activations` under PyTorch's names;
any other numpy function becomes one through :meth:`Activation.from_callable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from evenflow.theory.errors import TheoryError
from evenflow.theory.gaussian import Array, ScalarFunction
from evenflow.theory.numerical import derivative as numerical_derivative
from evenflow.theory.numerical import find_breakpoints


@dataclass(frozen=True, slots=True)
class Activation:
    """A scalar activation φ.

    Attributes:
        name: As PyTorch spells it, with settings that are not its default,
            e.g. ``"leaky_relu(negative_slope=0.2)"``.
        f: φ, from an array to an array of the same shape, float64.
        derivative: φ', likewise; at a kink the value that PyTorch's autograd takes.
        breakpoints: Kinks and jumps of φ or φ', ascending.
    """

    name: str
    f: ScalarFunction = field(repr=False)
    derivative: ScalarFunction = field(repr=False)
    breakpoints: tuple[float, ...] = ()

    def __call__(self, x: Array) -> Array:
        """φ(x), entry by entry."""
        return np.asarray(self.f(x), dtype=np.float64)

    @classmethod
    def from_callable(
        cls,
        f: ScalarFunction,
        name: str | None = None,
        *,
        derivative: ScalarFunction | None = None,
        breakpoints: Sequence[float] | None = None,
    ) -> Activation:
        """An activation from any scalar function, such as ``lambda x: x * np.tanh(x)``.

        Args:
            f: Applied to a float64 array, gives an array of the same shape.
            name: For messages and tables; by default the function's own name.
            derivative: φ'; by default numerical, to 1e-11 of max(1, |φ'|) for
                functions that vary on a scale of 1 (see :mod:`evenflow.theory.numerical`).
            breakpoints: Kinks and jumps; by default searched within −32 … 32.

        Raises:
            TheoryError: f does not map arrays to arrays of their shape, is not
                finite, or is rough nearly everywhere (for instance computed in float32).
        """
        name = name if name is not None else getattr(f, "__name__", type(f).__name__)
        try:
            found = find_breakpoints(f) if breakpoints is None else tuple(sorted(map(float, breakpoints)))
        except TheoryError as error:
            raise TheoryError(f"{name} cannot be used as an activation: {error}") from error
        return cls(name, f, derivative or numerical_derivative(f, found), found)
