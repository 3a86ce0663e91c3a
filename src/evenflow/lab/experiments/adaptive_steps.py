"""What adaptive steps rescue in a net whose gradient vanishes, and what they cannot.

An SGD step is rate · g: where the gradient has vanished nothing moves. Momentum μ adds up what
keeps its direction, and gains 1/(1 − μ) at most: one decade at .9. Adam's first step is
rate · g/(|g| + ε) for each weight: it does not care how small g is, until g comes close to
ε = 10⁻⁸ and the step dies after all. AdamW also takes rate · λ w, and in the end does only
that: weights decay that learn nothing. So Adam hides a vanishing gradient for some layers more;
what it follows there is as good as the gradient's sign.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from torch import Tensor, nn

from evenflow.flow import Role
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.networks import DeepNet
from evenflow.lab.picture import Axis, Curve, Lines, beside
from evenflow.lab.seeds import generator, seeded
from evenflow.lab.tasks import Digits
from evenflow.lab.training import OptimizerName, optimizer
from evenflow.lab.verdict import Comparison, mean, near
from evenflow.measure import measure
from evenflow.theory import expect

OPTIMIZERS: tuple[OptimizerName, ...] = ("sgd", "momentum", "adam", "adamw")
EPSILON = 1e-8
"""PyTorch's ε of Adam."""
DECAY = 0.01
"""PyTorch's λ of AdamW."""
MOMENTUM = 0.9
GATHERED = 30
"""Steps of momentum before the one that is looked at; (1 − .9³⁰)/(1 − .9) = 9.6."""

_FORMULAS: dict[OptimizerName, tuple[str, str]] = {
    "sgd": ("RMS g", "definition"),
    "momentum": ("RMS g · (1 − μᵏ)/(1 − μ) at step k", "Polyak 1964; Goh 2017"),
    "adam": ("√E (g/(|g| + ε))² with g ~ N(0, RMS²)", "Kingma & Ba 2015, algorithm 1 at step 1"),
    "adamw": ("√(Adam² + λ² E w²)", "Loshchilov & Hutter 2019, algorithm 2"),
}


@final
@dataclass(frozen=True)
class AdaptiveSteps(Experiment):
    """See the module.

    Attributes:
        depths: Linear layers of the sigmoid nets.
        width: Units per layer.
        batch: Digits per step.
        rate: Learning rate of all optimizers; it cancels. Small enough for the gradient to stay
            the same while momentum gathers, and large enough for float64 to hold the step.
        seeds: Nets for each depth.
    """

    place = 16
    title = "Adaptive steps in a vanishing net"
    question = (
        "How far does the first layer of a sigmoid net move in a step of SGD, momentum, Adam and AdamW?"
    )
    expectation = (
        "With SGD as far as the gradient says: by decades less for every few layers; with momentum one "
        "decade more. With Adam a full step, whatever the depth, until the gradient comes near ε = 10⁻⁸; "
        "from there on it falls with the gradient, and with AdamW only the decay of the weights is left."
    )
    explains: ClassVar = {"optimizer_epsilon_dominates": "step"}
    quick: ClassVar = {"seeds": 6}

    depths: tuple[int, ...] = (3, 6, 9, 12, 15)
    width: int = 64
    batch: int = 64
    rate: float = 3e-4
    seeds: int = 15

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        cases = [(depth, seed) for depth in self.depths for seed in range(self.seeds)]
        found = {case: self._measure(*case) for case in track(cases)}
        comparisons: list[Comparison] = []
        by_depth: list[Curve] = []
        by_layer: list[Curve] = []
        deepest = self.depths[-1]
        for name in OPTIMIZERS:
            steps, theory = (
                {
                    depth: [found[depth, seed][name][which] for seed in range(self.seeds)]
                    for depth in self.depths
                }
                for which in (0, 1)
            )
            for depth in self.depths if name != "sgd" else (deepest,):  # SGD's step is g by definition
                # Each net is held against its own gradient, so what scatters is the difference.
                gaps = tuple(m[0] - e[0] for m, e in zip(steps[depth], theory[depth], strict=True))
                quantity = f"{name}, {depth} layers: log10 of the step over what its gradient gives"
                comparisons.append(Comparison(quantity, near(0.0, 0.1, *_FORMULAS[name]), gaps))
            by_depth += beside(
                name,
                self.depths,
                _first_layers(steps),
                [mean([one[0] for one in theory[depth]]) for depth in self.depths],
            )
            layers = range(1, deepest + 1)
            expected = [mean(column) for column in zip(*theory[deepest], strict=True)]
            by_layer += beside(name, tuple(layers), steps[deepest], expected)
        return Outcome(tuple(comparisons), _pictures(by_depth, by_layer, deepest))

    def _measure(self, depth: int, seed: int) -> dict[OptimizerName, tuple[list[float], list[float]]]:
        """For each optimizer and layer log10 RMS step over the rate, and what the gradient lets expect."""
        with seeded(seed):
            net = DeepNet(inputs=64, width=self.width, depth=depth, outputs=10, act="sigmoid")
        task = Digits()
        inputs, targets = task.batch(self.batch, generator(seed))
        flow = measure(net, inputs, lambda output: task.loss(output, targets))
        names = [f"layers.{layer}.linear.weight" for layer in range(depth)]
        levels = [flow.stats(Role.PARAMETER_GRADIENT)[name].log10_rms for name in names]
        sizes = [flow.stats(Role.PARAMETER)[name].rms for name in names]
        gathered = math.log10((1 - MOMENTUM ** (GATHERED + 1)) / (1 - MOMENTUM))
        expected: dict[OptimizerName, list[float]] = {
            "sgd": levels,
            "momentum": [level + gathered for level in levels],
            "adam": [_adam_step(level) for level in levels],
            "adamw": [
                math.log10(math.hypot(10 ** _adam_step(level), DECAY * size))
                for level, size in zip(levels, sizes, strict=True)
            ],
        }
        return {name: (self._steps(net, name, names, inputs, targets), expected[name]) for name in OPTIMIZERS}

    def _steps(
        self, net: nn.Module, name: OptimizerName, weights: list[str], inputs: Tensor, targets: Tensor
    ) -> list[float]:
        """Log10 RMS of the first step (of momentum, a later one) of each weight, over the rate."""
        moved = copy.deepcopy(net).double()  # in float32 a small step is lost beside the weight
        stepper = optimizer(name, moved, self.rate)
        before: list[Tensor] = []
        for _ in range(1 + (GATHERED if name == "momentum" else 0)):
            before = [moved.get_parameter(weight).detach().clone() for weight in weights]
            stepper.zero_grad()
            Digits().loss(moved(inputs.double()), targets).backward()
            stepper.step()
        updates = [moved.get_parameter(w).detach() - old for w, old in zip(weights, before, strict=True)]
        return [math.log10(float(update.square().mean().sqrt()) / self.rate) for update in updates]


def _adam_step(log10_rms: float) -> float:
    scale = EPSILON / 10**log10_rms
    square = expect(lambda z: (z / (np.abs(z) + scale)) ** 2, 1.0, breakpoints=(0.0,))
    return 0.5 * math.log10(square)


def _first_layers(steps: dict[int, list[list[float]]]) -> list[list[float]]:
    """For each seed, the first layer's step at each depth."""
    return [list(seed) for seed in zip(*([one[0] for one in nets] for nets in steps.values()), strict=True)]


def _pictures(by_depth: list[Curve], by_layer: list[Curve], deepest: int) -> tuple[Lines, ...]:
    y = Axis("RMS update / learning rate", decades=True)
    legend = "Drawn through: measured. Dashed: expected from the size of the gradient."
    return (
        Lines(
            "step",
            "Step of the first layer against depth",
            "RMS of the update of the first layer's weights, in units of the learning rate, against the "
            f"depth of a sigmoid net. {legend}",
            Axis("linear layers"),
            y,
            tuple(by_depth),
        ),
        Lines(
            "layers",
            f"Step of every layer, {deepest} layers",
            f"RMS of the update of each layer's weights in units of the learning rate. {legend}",
            Axis("layer, input → loss"),
            y,
            tuple(by_layer),
        ),
    )
