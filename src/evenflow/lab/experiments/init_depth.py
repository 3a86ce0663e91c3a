"""Glorot, He, orthogonal and PyTorch's default against depth.

Which init keeps gradients depends on the activation: ReLU halves the mean square
and needs σ_w² = 2 (He); tanh is nearly linear near 0 and lives with σ_w² = 1
(Glorot, for square layers); PyTorch's default has σ_w² = ⅓ for every activation,
which is too small for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenflow.lab import chain
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.networks import Init
from evenflow.lab.picture import Curve, beside
from evenflow.lab.verdict import Comparison
from evenflow.theory import (
    ChainProfile,
    WeightInit,
    chain_profile,
    kaiming,
    orthogonal,
    torch_default,
    torch_default_bias_variance,
    xavier,
)


@dataclass(frozen=True, slots=True)
class Case:
    """One curve.

    Attributes:
        act: Activation.
        name: Of the init.
        init: The init.
        known: log10 ‖δ₁‖/‖δ_L‖ at n = 128 and the depth of the activation's
            picture, with its tolerance (THEORY.md, section 4), where given.
    """

    act: str
    name: str
    init: Init
    known: tuple[float, float] | None = None

    def weight(self, width: int) -> WeightInit:
        """What theory knows of it."""
        shape, gain = (width, width), self.init.gain
        kinds = {
            "default": lambda: torch_default(shape),
            "glorot": lambda: xavier(shape, gain),
            "he": lambda: kaiming(shape),
            "orthogonal": lambda: orthogonal(shape, gain),
        }
        return kinds[self.init.name]()


CASES = (
    Case("relu", "default", Init("default"), (-7.39, 0.2)),
    Case("relu", "Glorot", Init("glorot"), (-2.86, 0.2)),
    Case("relu", "He", Init("he"), (0.0, 0.2)),
    Case("relu", "orthogonal, gain √2", Init("orthogonal", gain=2**0.5)),
    Case("tanh", "default", Init("default")),
    Case("tanh", "Glorot", Init("glorot"), (-0.92, 0.1)),
    Case("tanh", "Glorot, gain 5/3", Init("glorot", gain=5 / 3), (1.90, 0.1)),
    Case("tanh", "orthogonal", Init("orthogonal")),
)


@final
@dataclass(frozen=True)
class InitDepth(Experiment):
    """See the module.

    Attributes:
        relu_depth: Linear layers of the ReLU nets.
        tanh_depth: Linear layers of the tanh nets.
        width: Units per layer.
        batch: Samples.
        seeds: Random nets for each curve.
    """

    place = 4
    title = "Initialisations against depth"
    question = "Which initialisation keeps gradients alive in a deep plain net?"
    expectation = (
        "The one that fits the activation. ReLU keeps its gradient with He's init and loses it with Glorot's "
        "and with PyTorch's default; tanh nearly keeps it with Glorot's, and explodes with the gain of 5/3 "
        "that is often recommended."
    )
    explains: ClassVar = {"init_too_small": "relu", "uneven_gradient": "tanh"}
    quick: ClassVar = {"seeds": 8}

    relu_depth: int = 20
    tanh_depth: int = 50
    width: int = 128
    batch: int = 64
    seeds: int = 60

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        comparisons: list[Comparison] = []
        curves: dict[str, list[Curve]] = {"relu": [], "tanh": []}
        for case in track(CASES):
            depth = self._depth(case)
            layers = tuple(range(1, depth + 1))
            levels = [self._measure(case, seed) for seed in range(self.seeds)]
            expected = self._expected(case).log10_gradient_norm
            comparisons += chain.compare(
                f"{case.act}, {case.name}, L = {depth}",
                expected[0],
                tuple(level[0] for level in levels),
                known=case.known if self._as_known() else None,
            )
            curves[case.act] += beside(case.name, layers, levels, expected)
        pictures = tuple(
            chain.picture(drawn, name=act, title=f"Gradient by layer, {act}") for act, drawn in curves.items()
        )
        return Outcome(tuple(comparisons), pictures)

    def _depth(self, case: Case) -> int:
        return self.relu_depth if case.act == "relu" else self.tanh_depth

    def _measure(self, case: Case, seed: int) -> list[float]:
        return chain.gradient_by_layer(
            width=self.width,
            depth=self._depth(case),
            batch=self.batch,
            seed=seed,
            act=case.act,
            init=case.init,
        )

    def _expected(self, case: Case) -> ChainProfile:
        weight = case.weight(self.width)
        default = case.init.name == "default"
        return chain_profile(
            case.act,
            depth=self._depth(case),
            width=self.width,
            sigma_w2=weight.sigma_w2,
            sigma_b2=torch_default_bias_variance((self.width, self.width)) if default else 0.0,
            orthogonal=weight.orthogonal,
        )

    def _as_known(self) -> bool:
        """Whether nets have the shapes of the earlier simulation."""
        return (self.relu_depth, self.tanh_depth, self.width) == (20, 50, 128)
