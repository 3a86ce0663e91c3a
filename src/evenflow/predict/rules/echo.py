"""Weights that are used both ways: Wᵀ f(W x) holds x itself.

With y = W x, W of m × n independent entries of variance σ², and any h that is a
function of y, Stein's lemma gives the mean over W

    E Σ_j W_jk h_j = σ² Σ_j E ∂h_j/∂y_j · x_k,      Wᵀ h = z + σ² m D x,

D = E ∂h_j/∂y_j, and z is Gaussian and independent of x, as if h had met fresh weights.
Where W was used on several x_a, D solves cov(h, y_b) = Σ_a D_a cov(y_a, y_b).

Decoders with the transposed weights of their encoder have this term, and so has
every gradient that holds activations: the residual e = W x − t of a squared error
goes back as Wᵀe = σ² m x + …, which for a layer of more outputs than inputs is
the larger part of it.

References:
    Yang, "Tensor Programs III: Neural Matrix Laws", 2020, of products with W and Wᵀ;
    in statistical physics, the Onsager correction.
"""

from __future__ import annotations

import numpy as np

from evenflow.predict.fields import Field, Sum, cross
from evenflow.predict.rules.registry import Context


def with_echo(context: Context, a: Field, matrix: Field, weight: tuple[int, bool], result: Field) -> Field:
    """A product a·W with what the uses of Wᵀ before it have left in a.

    Args:
        context: What rules share.
        a: [rows, m].
        matrix: W [m, n].
        weight: Which weight that is, and whether it is transposed.
        result: The product with fresh weights.
    """
    which, turned = weight
    uses = context.made.get(("drawn", which, not turned), ())
    context.made.setdefault(("drawn", which, turned), []).append((a, result))
    if not uses or (a.cotangent and not a.mixed):
        return result
    return _added(a, matrix, [(x, y) for x, y in uses if y.shape == a.shape], result)


def _added(a: Field, matrix: Field, uses: list[tuple[Field, Field]], result: Field) -> Field:
    shared = np.array([_covariance(a, y) for _, y in uses])
    if not shared.any():
        return result
    among = np.array([[_covariance(y, other) for _, other in uses] for _, y in uses])
    slopes = np.linalg.lstsq(among, shared, rcond=None)[0]
    size = matrix.mean_square * matrix.shape[0]
    terms = [(float(size * slope), x) for slope, (x, _) in zip(slopes, uses, strict=True) if slope]
    return Sum(result.shape, [(1.0, result), *terms])


def _covariance(x: Field, y: Field) -> float:
    """Of equal entries."""
    pair = cross(x, y)
    return 0.0 if pair is None else pair.mean_square - x.table.average * y.table.average
