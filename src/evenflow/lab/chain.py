"""What experiments on plain chains share: the gradient by layer, measured, expected and drawn.

Batches are of many samples, each with a random gradient of its own at the
output. Their mean square then hardly scatters around the mean-field mean; the
gradient of a single sample lies lower and scatters more (``chain_profile``,
and the experiment *one-sample*).
"""

from __future__ import annotations

from collections.abc import Iterable

from evenflow.lab.measuring import draw, gaussian, log10_norms, relative
from evenflow.lab.networks import DeepNet
from evenflow.lab.networks.pieces import ActivationName, InitLike, NormName
from evenflow.lab.picture import Axis, Curve, Lines
from evenflow.lab.verdict import Comparison, near

FORMULA = "½ Σ log10(σ_w² E φ'(√q_l z)²)"
SOURCE = "Poole et al. 2016, eq. 7; Schoenholz et al. 2017, eq. 15"


FINITE_WIDTH = 0.1
"""Decades that a measured mean may lie from theory's for infinitely wide nets, at 128 units and more."""


def gradient_by_layer(
    *,
    width: int,
    depth: int,
    batch: int,
    seed: int,
    act: ActivationName = "relu",
    init: InitLike = "default",
    norm_name: NormName = "none",
) -> list[float]:
    """log10 ‖δ_l‖/‖δ_L‖ at every linear layer of one random net, for one Gaussian batch."""
    flow = draw(
        lambda: DeepNet(inputs=width, width=width, depth=depth, act=act, init=init, norm_name=norm_name),
        gaussian(batch, width, seed=seed),
        seed,
    )
    return relative(log10_norms(flow, ".linear"))


def compare(
    name: str,
    expected: float,
    ratios: tuple[float, ...],
    *,
    formula: str = FORMULA,
    known: tuple[float, float] | None = None,
) -> list[Comparison]:
    """The gradient at the first layer against theory and, where it is known, an earlier simulation.

    Args:
        name: What kind of net.
        expected: log10 ‖δ₁‖/‖δ_L‖ by theory.
        ratios: The same, measured once per seed.
        formula: Where ``expected`` comes from.
        known: A simulated value and its tolerance (THEORY.md, section 4).
    """
    quantity = f"{name}: log10 ‖δ₁‖/‖δ_L‖"
    found = [Comparison(quantity, near(expected, FINITE_WIDTH, formula, SOURCE), ratios)]
    if known is not None:
        earlier = near(*known, "simulated", "THEORY.md, section 4")
        found.append(Comparison(f"{quantity} (earlier simulation)", earlier, ratios))
    return found


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
