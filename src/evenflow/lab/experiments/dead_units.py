"""One step that is too large kills ReLU units; inputs that are not centred make it worse.

A unit is dead when no input lifts it above 0: its gradient is 0 then and stays so. Here one
layer of ReLU units with weights w, |w| = 1, reads inputs x ~ N(m, 1), and a target far below
the output (error T at every sample) pulls everything down in one SGD step of rate η. A unit
with outgoing weight v > 0 gets

    Δw = −s E[x 1(h > 0)] = −s (p μ + φ(a) w),    Δb = −s p,    s = η T v,

where a = w·μ is the unit's mean pre-activation, p = Φ(a), and |μ|² = n m². On fresh inputs
its pre-activation is then Gaussian with

    mean      a − s (n m² p + φ(a) a + p),
    variance  (1 − s φ(a))² − 2 (1 − s φ(a)) s p a + s² p² n m² + s² n Var(x 1(h > 0))/B,

the last term from the batch of B, and it is dead on N inputs with probability
Φ(−mean/std)^N. Centred inputs (m = 0) push a unit down by s/2 only, and for larger steps
turn its weights around, which brings it back; inputs with a mean push it down along μ by
n m² p, far below anything that they can lift.

References:
    The Gaussian integrals are elementary. Y. LeCun et al., "Efficient backprop", 1998,
    section 4.3 (centring inputs). L. Lu et al., "Dying ReLU and initialization", 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from scipy import special

from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.measuring import gaussian
from evenflow.lab.networks import DeepNet
from evenflow.lab.picture import Axis, Curve, Lines, beside
from evenflow.lab.seeds import seeded
from evenflow.lab.training import optimizer
from evenflow.lab.verdict import Comparison, near

ERROR = 1000.0
"""T: so far off is the target that the output itself, about 1, does not matter."""


@final
@dataclass(frozen=True)
class DeadUnits(Experiment):
    """See the module.

    Attributes:
        steps: ηT, the learning rate times the error.
        means: m, mean of every input feature; its standard deviation is 1.
        width: n, features and units; the weights are orthogonal, so |w| = 1.
        batch: B, samples of the step.
        fresh: N, inputs on which no unit that counts as dead is active.
        seeds: Nets for each mean.
    """

    place = 23
    title = "Dead ReLUs and the learning rate"
    question = "How many ReLU units does one large step kill?"
    expectation = (
        "All that it pushes down, if the step is large and inputs are not centred: their mean adds up over "
        "the features and pulls the units below everything that they will ever see. With centred inputs "
        "only some die, and only at step sizes that just cancel their weights."
    )
    explains: ClassVar = {"dead_units": "dead", "dead_relu": "dead"}
    quick: ClassVar = {"seeds": 16}

    steps: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    means: tuple[float, ...] = (0.0, 0.5, 1.0)
    width: int = 128
    batch: int = 4096
    fresh: int = 256
    seeds: int = 40

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        found = {
            mean: [[self._measure(step, mean, seed) for step in self.steps] for seed in range(self.seeds)]
            for mean in track(self.means)
        }
        comparisons: list[Comparison] = []
        curves: list[Curve] = []
        for mean, samples in found.items():
            expected = [self._expected(step, mean) for step in self.steps]
            name = "centred inputs" if mean == 0 else f"inputs of mean {mean:g}"
            for place, step in enumerate(self.steps):
                comparisons.append(
                    Comparison(
                        f"{name}, ηT = {step:g}: share of dead units",
                        # Sums over n features are Gaussian up to 1/√n = 9 %, here of a share of ½.
                        near(expected[place], 0.05, "E Φ(−mean/std)^N", "Gaussian integrals, see the module"),
                        tuple(sample[place] for sample in samples),
                    )
                )
            curves += beside(name, self.steps, samples, expected)
        picture = Lines(
            "dead",
            "Units that one step kills",
            "Share of the units pushed down by one SGD step that no fresh input activates any more, against "
            "the learning rate times the error. Drawn through: measured, mean with its 95 % interval. "
            "Dashed: expected.",
            Axis("learning rate × error", log=True),
            Axis("share dead"),
            tuple(curves),
        )
        return Outcome(tuple(comparisons), (picture,))

    def _measure(self, step: float, mean: float, seed: int) -> float:
        """Share of dead units among those with a positive outgoing weight, after one step."""
        with seeded(seed):
            net = DeepNet(inputs=self.width, width=self.width, depth=2, outputs=1, init="orthogonal")
        pushed_down = net.get_parameter("layers.1.linear.weight").detach()[0] > 0
        inputs = mean + gaussian(self.batch, self.width, seed=seed)
        stepper = optimizer("sgd", net, step / ERROR)
        (0.5 * (net(inputs) + ERROR).square().mean()).backward()
        stepper.step()
        with torch.no_grad():
            active = net.layers[0](mean + gaussian(self.fresh, self.width, seed=seed + self.seeds)) > 0
        return float((~active.any(dim=0))[pushed_down].float().mean())

    def _expected(self, step: float, mean: float) -> float:
        """The probability above, over a ~ N(0, m²) and v ~ |N(0, 1/n)|."""
        z = np.linspace(-6.0, 6.0, 601)
        weight = np.exp(-0.5 * z**2)
        reach = mean * math.sqrt(self.width)  # a = w·μ is |μ| at most
        a = np.clip(mean * z, -reach, reach)[:, None]
        s = step * np.abs(z)[None, :] / math.sqrt(self.width)
        p, phi = special.ndtr(a), np.exp(-0.5 * a**2) / math.sqrt(2 * math.pi)
        squared_mean = self.width * mean**2
        centre = a - s * (squared_mean * p + phi * a + p)
        kept = 1 - s * phi
        noise = s**2 * self.width * (p * (1 + mean**2) - (p * mean) ** 2) / self.batch
        variance = kept**2 - 2 * kept * s * p * a + (s * p) ** 2 * squared_mean + noise
        dead = special.ndtr(-centre / np.sqrt(variance)) ** self.fresh
        return float((weight[:, None] * weight[None, :] * dead).sum() / weight.sum() ** 2)
