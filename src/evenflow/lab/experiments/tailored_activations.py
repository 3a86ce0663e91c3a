"""A thousand plain layers, without skips or norms, by the activation alone.

With ReLU and He's init the gradient's mean square is the same at every layer, in the mean over
nets. What fails is subtler: each layer makes inputs a little more alike, so that after a thousand
the output says nothing of the input. Tailored activations slow this down to fit the depth. TAT
takes a leaky ReLU for which two unrelated inputs end with a correlation of .9; DKS bends a smooth
activation so little that unrelated inputs stay unrelated (E φ̂ = 0) and the gradient's mean
square grows to 1.5 over the whole net. Weights are orthogonal, σ_w² = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from evenflow.lab import chain
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.measuring import draw, log10_norms, relative
from evenflow.lab.networks import DeepNet, Tailored, dks, tailored_leaky_relu
from evenflow.lab.networks.tailored import ALIKE, GROWTH, leaky_correlation
from evenflow.lab.picture import Axis, Curve, Lines, Origin, beside, over_seeds
from evenflow.lab.seeds import generator, seeded
from evenflow.lab.tasks import Digits
from evenflow.lab.training import fresh_loss, train
from evenflow.lab.verdict import Comparison, at_least, at_most, near

KINDS: dict[str, Callable[[int], nn.Module]] = {
    "ReLU": lambda _layers: Tailored(nn.ReLU(), gamma=math.sqrt(2)),
    "leaky ReLU, TAT": tailored_leaky_relu,
    "tanh, DKS": cache(lambda layers: dks("tanh", layers)),
}
"""Name of the curve, and its activation for so many layers."""

LEARNS = 0.5
"""Share of ln 10, the loss of a blind guess, below which a net learns (as in *trainable-depth*)."""

MARTENS, ZHANG = "Martens et al. 2021, section 3", "Zhang et al. 2022, section 4"


@final
@dataclass(frozen=True)
class TailoredActivations(Experiment):
    """See the module.

    Attributes:
        depth: L, linear layers.
        width: Units per layer.
        batch: Inputs that are orthogonal to each other.
        seeds: Random nets for each activation.
        steps: Adam's steps with the nets that are trained.
        rate: Adam's learning rate times depth: every layer moves, and the output by all of them.
        trained: Nets for each activation that are trained.
    """

    place = 11
    title = "A thousand plain layers"
    question = "Can a plain net of a thousand layers learn by its activation alone?"
    expectation = (
        "With ReLU it cannot: all inputs have become the same long before the end. With a leaky ReLU or a "
        "tanh that is tailored to the depth it can, within a few dozen steps."
    )
    quick: ClassVar = {"depth": 150, "trained": 3}

    depth: int = 1000
    width: int = 128
    batch: int = 16
    seeds: int = 10
    steps: int = 60
    rate: float = 0.03
    trained: int = 3

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        comparisons: list[Comparison] = []
        alike: list[Curve] = []
        gradient: list[Curve] = []
        losses: list[Curve] = []
        for name in track(list(KINDS)):
            samples = [self._measure(name, seed) for seed in range(self.seeds)]
            runs = [self._train(name, seed) for seed in range(self.trained)]
            comparisons += self._compare(name, samples, [end for _, end in runs])
            layers = tuple(range(1, self.depth + 1))
            alike += beside(name, layers, [c for c, _ in samples], self._correlations(name))
            gradient.append(over_seeds(name, layers, [levels for _, levels in samples]))
            if name != "ReLU":
                line = tuple(self._gain(name) * (self.depth - layer) / (self.depth - 1) for layer in layers)
                gradient.append(Curve(name, layers, line, Origin.EXPECTED))
            losses.append(over_seeds(name, range(1, self.steps + 1), [history for history, _ in runs]))
        blind = Digits().baseline
        losses.append(Curve("blind guess", (1, self.steps), (blind, blind), Origin.EXPECTED))
        notes = ("The gradient of single ReLU nets is not compared: at such a depth they differ by decades.",)
        return Outcome(tuple(comparisons), (_alike(alike), chain.picture(gradient), _losses(losses)), notes)

    def _compare(
        self, name: str, samples: list[tuple[list[float], list[float]]], ends: list[float]
    ) -> list[Comparison]:
        expected = self._correlations(name)[-1]
        formula, source = {
            "ReLU": ("L-fold (√(1 − c²) + (π − arccos c) c)/π", "Cho & Saul 2009, eq. 6"),
            "leaky ReLU, TAT": (f"C(0) = {ALIKE:g}", ZHANG),
            "tanh, DKS": ("E φ̂ = 0", MARTENS),
        }[name]
        tolerance = 2 / math.sqrt(self.width)
        found = [
            Comparison(
                f"{name}: correlation of unrelated inputs after {self.depth} layers",
                # One pair scatters by 1/√n at width n; twice that for what many layers add.
                near(expected, tolerance if expected < 0.99 else 0.02, formula, source),
                tuple(correlations[-1] for correlations, _ in samples),
            )
        ]
        if name != "ReLU":
            gain = self._gain(name)
            found.append(
                Comparison(
                    f"{name}: log10 ‖δ₁‖/‖δ_L‖",
                    near(gain, 0.1, "½ log10 1.5" if gain else "0: E φ̂'² = 1", MARTENS if gain else ZHANG),
                    tuple(levels[0] for _, levels in samples),
                )
            )
        limit = LEARNS * Digits().baseline
        bound = (
            at_least(limit, "does not learn", ZHANG)
            if name == "ReLU"
            else at_most(limit, "learns", ZHANG if "TAT" in name else MARTENS)
        )
        found.append(Comparison(f"{name}: loss on fresh digits after {self.steps} steps", bound, tuple(ends)))
        return found

    def _gain(self, name: str) -> float:
        """log10 ‖δ₁‖/‖δ_L‖ of the tailored activations."""
        return 0.5 * math.log10(GROWTH) if "DKS" in name else 0.0

    def _net(self, name: str, inputs: int, outputs: int, seed: int) -> DeepNet:
        with seeded(seed):
            return DeepNet(
                inputs=inputs,
                width=self.width,
                depth=self.depth,
                outputs=outputs,
                act=lambda: KINDS[name](self.depth - 1),
                init="orthogonal",
            )

    def _measure(self, name: str, seed: int) -> tuple[list[float], list[float]]:
        """By layer: the mean correlation of inputs that are orthogonal, and the gradient (log10)."""
        inputs = torch.empty(self.batch, self.width)
        nn.init.orthogonal_(inputs, gain=math.sqrt(self.width), generator=generator(seed))
        net = self._net(name, self.width, self.width, seed)
        correlations: list[float] = []

        def look(_module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> None:
            unit = out.detach() / out.detach().norm(dim=1, keepdim=True)
            pairs = self.batch * (self.batch - 1)
            correlations.append((float(unit.sum(dim=0).square().sum()) - self.batch) / pairs)

        hooks = [layer.get_submodule("linear").register_forward_hook(look) for layer in net.layers]
        with torch.no_grad():
            net(inputs)
        for hook in hooks:
            hook.remove()
        return correlations, relative(log10_norms(draw(lambda: net, inputs, seed), ".linear"))

    def _correlations(self, name: str) -> list[float]:
        """What theory expects of the correlation at every layer."""
        if name == "tanh, DKS":
            return [0.0] * self.depth
        act = KINDS[name](self.depth - 1)
        assert isinstance(act, Tailored)
        slope = act.inner.negative_slope if isinstance(act.inner, nn.LeakyReLU) else 0.0
        return [leaky_correlation(slope, layers) for layers in range(self.depth)]

    def _train(self, name: str, seed: int) -> tuple[list[float], float]:
        """The loss at every step, and on fresh digits afterwards."""
        net = self._net(name, 64, 10, seed)
        history = [
            loss
            for loss, _ in train(
                net, Digits(), self.steps, rate=self.rate / self.depth, optimizer_name="adam", seed=seed
            )
        ]
        history += [math.inf] * (self.steps - len(history))
        return history, fresh_loss(net, Digits())


def _alike(curves: list[Curve]) -> Lines:
    return Lines(
        "alike",
        "How alike inputs become",
        "Mean correlation of inputs that have nothing in common, layer by layer. At 1 the net has forgotten "
        "which input it got. Drawn through: measured. Dashed: expected.",
        Axis("layer"),
        Axis("correlation"),
        tuple(curves),
    )


def _losses(curves: list[Curve]) -> Lines:
    return Lines(
        "loss",
        "Loss over training",
        "Cross-entropy on digits. At the level line a net knows nothing.",
        Axis("step"),
        Axis("loss, nats"),
        tuple(curves),
    )
