"""What experiments on plain chains share: the gradient by layer, measured, expected and drawn.

Batches are of many samples, each with a random gradient of its own at the
output. Their mean square then hardly scatters around the mean-field mean; the
gradient of a single sample lies lower and scatters more (``chain_profile``,
and the experiment *one-sample*).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from evenflow.lab.measuring import draw, gaussian, log10_norms, relative
from evenflow.lab.picture import Axis, Curve, Lines

FORMULA = "½ Σ log10(σ_w² E φ'(√q_l z)²)"
SOURCE = "Poole et al. 2016, eq. 7; Schoenholz et al. 2017, eq. 15"


def gradient_by_layer(
    build: Callable[[], nn.Module], *, inputs: int, batch: int, seed: int, ending: str = ".linear"
) -> list[float]:
    """log10 ‖δ_l‖/‖δ_L‖ at every linear layer of one random net, for one Gaussian batch."""
    flow = draw(build, gaussian(batch, inputs, seed=seed), seed)
    return relative(log10_norms(flow, ending))


def picture(
    curves: Iterable[Curve],
    *,
    name: str = "gradient",
    title: str = "Gradient by layer",
    more: str = "",
    x: str = "layer, input → loss",
) -> Lines:
    """The gradient by layer."""
    return Lines(
        name,
        title,
        "Length of the gradient at each layer, relative to that at the last one on the right; a decade is a "
        "factor of 10. A curve that falls to the left vanishes, one that rises to the left explodes. Drawn "
        "through: mean over random nets with its 95 % interval. Dashed: expected."
        + (f" {more}" if more else ""),
        Axis(x),
        Axis("‖δ_l‖/‖δ_L‖", decades=True),
        tuple(curves),
    )
