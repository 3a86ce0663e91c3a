"""Clipping the gradient of an exploding RNN.

A ReLU RNN whose recurrent matrix is twice an orthogonal one multiplies what it
remembers by up to 2 per step: loss and gradient are astronomic, and one plain
SGD step throws the weights out of reach. Clipping by norm keeps the direction
and bounds the step, so that the same net gets back to where it can learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.networks import RecurrentNet
from evenflow.lab.picture import Axis, Curve, Lines
from evenflow.lab.seeds import seeded
from evenflow.lab.tasks import Adding
from evenflow.lab.training import train
from evenflow.lab.verdict import Comparison, at_least, at_most

SOURCE = "Pascanu et al. 2013, section 3.2 and algorithm 1"


@final
@dataclass(frozen=True)
class Clipping(Experiment):
    """See the module.

    Attributes:
        length: Steps of the adding problem.
        hidden: Units of the state.
        gain: The recurrent matrix is this times an orthogonal one.
        steps: SGD steps.
        rate: Learning rate.
        clip: Largest norm of the clipped gradient.
        seeds: Nets.
    """

    place = 12
    title = "Clipping an exploding RNN"
    question = "Does clipping the gradient save an RNN whose gradient explodes?"
    expectation = (
        "Without clipping the loss is gone, as NaN or beyond all bounds, within a few steps. With clipping "
        "it falls by orders of magnitude. Clipping does not mend the net: it only keeps steps small."
    )
    explains: ClassVar = {"clipping_always_active": "loss"}
    quick: ClassVar = {"seeds": 6}

    length: int = 40
    hidden: int = 64
    gain: float = 2.0
    steps: int = 150
    rate: float = 0.01
    clip: float = 1.0
    seeds: int = 10

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        runs = [(self._train(None, seed), self._train(self.clip, seed)) for seed in track(range(self.seeds))]
        free, clipped = zip(*runs, strict=True)
        comparisons = (
            Comparison(
                "log10 of the first gradient's norm",
                at_least(3.0, "grows up to 2^T on its way back", SOURCE),
                tuple(math.log10(history[0][1]) for history in clipped),
            ),
            Comparison(
                "not clipped: steps until there are no numbers",
                at_most(10.0, "a step of the size rate · ‖g‖", SOURCE),
                tuple(float(len(history)) for history in free),
            ),
            Comparison(
                f"clipped at {self.clip:g}: log10 of the last loss over the first",
                at_most(-2.0, "steps of the size rate · clip at most", SOURCE),
                tuple(_fall(history) for history in clipped),
            ),
        )
        curves = [
            Curve(name, tuple(range(len(history))), tuple(_log10(loss) for loss, _ in history))
            for name, histories in (("clipped", clipped), ("not clipped", free))
            for history in histories
        ]
        picture = Lines(
            "loss",
            "Loss over training",
            "One line for each net. A line ends where there are no numbers any more: nets that are not "
            "clipped have only their first point.",
            Axis("step"),
            Axis("loss", decades=True),
            tuple(curves),
        )
        return Outcome(comparisons, (picture,))

    def _train(self, clip: float | None, seed: int) -> list[tuple[float, float]]:
        with seeded(seed):
            net = RecurrentNet(
                cell="rnn",
                hidden=self.hidden,
                nonlinearity="relu",
                recurrent_init="orthogonal",
                gain=self.gain,
            )
        return train(net, Adding(self.length), self.steps, rate=self.rate, clip=clip, seed=seed)


def _log10(loss: float) -> float | None:
    return math.log10(loss) if 0.0 < loss < math.inf else None


def _fall(history: list[tuple[float, float]]) -> float:
    """log10 of the last loss over the first; inf where there is no last one."""
    first, last = _log10(history[0][0]), _log10(history[-1][0])
    return math.inf if first is None or last is None else last - first
