"""What Adam rescues in a net whose gradient vanishes, and what it cannot.

An SGD step is rate · g: where the gradient has vanished nothing moves. Adam's
first step is rate · g/(|g| + ε) for each weight: it does not care how small g is,
until g comes close to ε = 10⁻⁸ and the step dies after all. So Adam hides a
vanishing gradient for some layers more; what it follows there is as good as the
gradient's sign.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import nn

from evenflow.flow import Role
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.networks import DeepNet
from evenflow.lab.picture import Axis, Curve, Lines, Origin, over_seeds
from evenflow.lab.seeds import generator, seeded
from evenflow.lab.tasks import Digits
from evenflow.lab.training import OptimizerName, optimizer
from evenflow.lab.verdict import Comparison, near
from evenflow.measure import measure
from evenflow.theory import expect

OPTIMIZERS: tuple[OptimizerName, ...] = ("sgd", "adam")
EPSILON = 1e-8
"""PyTorch's ε of Adam."""


@final
@dataclass(frozen=True)
class AdaptiveSteps(Experiment):
    """See the module.

    Attributes:
        depths: Linear layers of the sigmoid nets.
        width: Units per layer.
        batch: Digits per step.
        rate: Learning rate of both optimizers; it cancels.
        seeds: Nets for each depth.
    """

    place = 16
    title = "Adam in a vanishing net"
    question = "How far does the first layer of a sigmoid net move in one step of SGD, and of Adam?"
    expectation = (
        "With SGD as far as the gradient says: by decades less for every few layers. With Adam a full step, "
        "whatever the depth, until the gradient comes near ε = 10⁻⁸; from there on it falls with the "
        "gradient."
    )
    quick: ClassVar = {"seeds": 4}

    depths: tuple[int, ...] = (3, 6, 9, 12, 15)
    width: int = 64
    batch: int = 64
    rate: float = 0.01
    seeds: int = 15

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        cases = [(depth, seed) for depth in self.depths for seed in range(self.seeds)]
        found = {case: self._measure(*case) for case in track(cases)}
        comparisons: list[Comparison] = []
        curves: list[Curve] = []
        for number, name in enumerate(OPTIMIZERS):
            measured = [[found[depth, seed][number] for depth in self.depths] for seed in range(self.seeds)]
            expected = [
                [found[depth, seed][number + 2] for depth in self.depths] for seed in range(self.seeds)
            ]
            formula, source = _FORMULAS[name]
            compared = self.depths[-1:] if name == "sgd" else self.depths  # SGD's step is g by definition
            for depth in compared:
                place = self.depths.index(depth)
                # Each net is held against its own gradient, so what scatters is the difference.
                gaps = tuple(m[place] - e[place] for m, e in zip(measured, expected, strict=True))
                quantity = f"{name}, {depth} layers: log10 of the step over what its gradient gives"
                comparisons.append(Comparison(quantity, near(0.0, 0.1, formula, source), gaps))
            curves.append(over_seeds(name, self.depths, measured))
            mean = over_seeds(name, self.depths, expected)
            curves.append(Curve(name, self.depths, mean.y, Origin.EXPECTED))
        picture = Lines(
            "step",
            "First step of the first layer",
            "RMS of the first update of the first layer's weights, in units of the learning rate, against "
            "the depth of a sigmoid net. Drawn through: measured. Dashed: from the size of the gradient.",
            Axis("linear layers"),
            Axis("RMS update / learning rate", decades=True),
            tuple(curves),
        )
        return Outcome(tuple(comparisons), (picture,))

    def _measure(self, depth: int, seed: int) -> tuple[float, float, float, float]:
        """log10 RMS step over the rate with each optimizer, and what the gradient lets expect."""
        with seeded(seed):
            net = DeepNet(inputs=64, width=self.width, depth=depth, outputs=10, act="sigmoid")
        task = Digits()
        inputs, targets = task.batch(self.batch, generator(seed))
        flow = measure(net, inputs, lambda output: task.loss(output, targets))
        level = flow.stats(Role.PARAMETER_GRADIENT)["layers.0.linear.weight"].log10_rms
        steps = [self._step(net, name, inputs, targets) for name in OPTIMIZERS]
        return steps[0], steps[1], level, _adam_step(level)

    def _step(
        self, net: nn.Module, name: OptimizerName, inputs: torch.Tensor, targets: torch.Tensor
    ) -> float:
        moved = copy.deepcopy(net).double()  # in float32 a small step is lost beside the weight
        before = moved.get_parameter("layers.0.linear.weight").detach().clone()
        stepper = optimizer(name, moved, self.rate)
        Digits().loss(moved(inputs.double()), targets).backward()
        stepper.step()
        update = moved.get_parameter("layers.0.linear.weight").detach() - before
        return math.log10(float(update.square().mean().sqrt()) / self.rate)


_FORMULAS = {
    "sgd": ("RMS g", "definition"),
    "adam": ("√E (g/(|g| + ε))² with g ~ N(0, RMS²)", "Kingma & Ba 2015, algorithm 1 at step 1"),
}


def _adam_step(log10_rms: float) -> float:
    scale = EPSILON / 10**log10_rms
    square = expect(lambda z: (z / (np.abs(z) + scale)) ** 2, 1.0, breakpoints=(0.0,))
    return 0.5 * math.log10(square)
