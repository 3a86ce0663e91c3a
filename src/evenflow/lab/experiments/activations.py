"""An activation and its derivative: what one nonlinearity lets through.

Backwards an activation multiplies each entry of the gradient by φ'(h). The
largest φ' bounds what a layer can pass on; E φ'² over pre-activations h ~ N(0, 1)
is what it passes on to the mean square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from evenflow.flow import Role
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.measuring import draw, gaussian
from evenflow.lab.networks import DeepNet, Init, activation
from evenflow.lab.picture import Axis, Curve, Lines
from evenflow.lab.verdict import Comparison, near
from evenflow.theory import moments

LARGEST_SLOPE = {
    "sigmoid": (0.25, "φ' = φ(1 − φ) ≤ ¼"),
    "tanh": (1.0, "φ' = 1 − φ² ≤ 1"),
    "relu": (1.0, "φ' is 0 or 1"),
    "leaky_relu": (1.0, "φ' is 0.01 or 1"),
    "prelu": (1.0, "φ' is 0.25 (at the start) or 1"),
    "elu": (1.0, "φ' = min(1, eˣ)"),
    "gelu": (
        0.5 * (1 + math.erf(1.0)) + math.sqrt(2) * math.exp(-1.0) / math.sqrt(2 * math.pi),
        "φ'' = 0 at x = √2: Φ(√2) + √2 φ(√2)",
    ),
    "silu": (1.0998393, "φ'' = 0 where x tanh(x/2) = 2, at x = 2.39936"),
}
"""Largest derivative of each activation, from its own formula."""

_REACH = 5.0


@final
@dataclass(frozen=True)
class Activations(Experiment):
    """See the module.

    Attributes:
        width: Units of the layer.
        batch: Samples.
        seeds: Random layers.
    """

    place = 1
    title = "An activation beside its derivative"
    question = (
        "How much of a gradient can each activation pass on, and how much does it pass on at the start?"
    )
    expectation = (
        "Sigmoid passes on a quarter at best and so shrinks every gradient. Tanh and ReLU reach 1, GELU and "
        "SiLU slightly more. On standard normal pre-activations each keeps the share E φ'² of the mean "
        "square."
    )
    explains: ClassVar = {"saturating_activation": "slope", "saturation": "slope"}
    quick: ClassVar = {"seeds": 5}

    width: int = 512
    batch: int = 128
    seeds: int = 20

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        x = torch.linspace(-_REACH, _REACH, 2001, dtype=torch.float64)
        values, slopes, comparisons = [], [], []
        for name in track(list(LARGEST_SLOPE)):
            y, slope = _both(name, x)
            values.append(_curve(name, x, y))
            slopes.append(_curve(name, x, slope))
            largest, formula = LARGEST_SLOPE[name]
            comparisons.append(
                Comparison(
                    f"{name}: largest φ'",
                    near(largest, 1e-4, formula, "calculus"),
                    (float(slope.max()),),
                    exact=True,
                )
            )
            expected = moments(name).derivative_mean_square
            comparisons.append(
                Comparison(
                    f"{name}: E φ'²",
                    near(expected, 0.03 * expected, "E φ'(z)², z ~ N(0, 1)", "THEORY.md, section 4"),
                    tuple(self._passed_on(name, seed) for seed in range(self.seeds)),
                )
            )
        return Outcome(tuple(comparisons), _pictures(values, slopes))

    def _passed_on(self, name: str, seed: int) -> float:
        """Mean square of the gradient before the activation over that after it."""
        flow = draw(
            lambda: DeepNet(inputs=self.width, width=self.width, depth=2, act=name, init=Init("normal")),
            gaussian(self.batch, self.width, seed=seed),
            seed,
        )
        rms = flow.rms(Role.ACTIVATION_GRADIENT)
        return (rms["layers.0.linear"] / rms["layers.0.act"]) ** 2


def _both(name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The activation and, by autograd, its derivative."""
    at = x.clone().requires_grad_()
    y = activation(name).double()(at)
    (slope,) = torch.autograd.grad(y.sum(), at)
    return y.detach(), slope


def _curve(name: str, x: torch.Tensor, y: torch.Tensor) -> Curve:
    every = 20  # of 2001 points; the eye needs no more
    return Curve(name, tuple(x[::every].tolist()), tuple(y[::every].tolist()))


def _pictures(values: list[Curve], slopes: list[Curve]) -> tuple[Lines, ...]:
    x = Axis("pre-activation h")
    return (
        Lines(
            "slope",
            "The derivative φ'(h)",
            "By how much each activation multiplies a gradient on its way back. The sigmoid never reaches "
            "more than ¼; where a curve is near 0 the activation is saturated or dead and passes nothing on.",
            x,
            Axis("φ'(h)"),
            tuple(slopes),
        ),
        Lines("value", "The activation φ(h)", "The functions themselves.", x, Axis("φ(h)"), tuple(values)),
    )
