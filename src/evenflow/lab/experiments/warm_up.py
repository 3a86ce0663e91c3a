"""Post-LN without warm-up: what its large last-layer gradient costs in training.

At the start the last layers of a post-LN transformer get a gradient that does not shrink
with depth (see *transformer-depth*). Adam then takes full steps there before anything useful
has been learned, and what lies below never recovers. A learning rate that rises slowly
avoids it; so do pre-LN and DeepNorm, which need no warm-up.

Decoders learn a small language of nested brackets. Who knows only how often each token comes
has the loss of the baseline; a net *learns* when it closes a tenth of the gap between this and
the entropy rate, which no model can beat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.networks import Transformer
from evenflow.lab.networks.transformer import Arrangement
from evenflow.lab.picture import Axis, Curve, Lines, Origin, over_seeds
from evenflow.lab.seeds import seeded
from evenflow.lab.tasks import Grammar
from evenflow.lab.tasks.grammar import VOCABULARY
from evenflow.lab.training import fresh_loss, train
from evenflow.lab.verdict import Comparison, at_least, at_most, mean

CASES: dict[str, tuple[Arrangement, bool]] = {
    "pre-LN": ("pre", False),
    "DeepNorm": ("deep", False),
    "post-LN": ("post", False),
    "post-LN, warm-up": ("post", True),
}
"""Name of the curve: arrangement, and whether the learning rate warms up."""

LEARNS = 0.1
"""Share of the gap from the token frequencies to the entropy rate that counts as learning. In a few
hundred steps nobody closes much of it; chance in a fresh batch moves it by about a hundredth."""

SMOOTH = 20
"""Steps that one point of the picture is the mean of."""

SOURCES: dict[str, tuple[str, str]] = {
    "pre-LN": ("learns without warm-up", "Xiong et al. 2020, section 4"),
    "DeepNorm": ("learns without warm-up", "Wang et al. 2022, section 4"),
    "post-LN": ("does not learn without warm-up", "Xiong et al. 2020, section 3 and fig. 2"),
    "post-LN, warm-up": ("learns with warm-up", "Xiong et al. 2020, section 3 and fig. 2"),
}


@final
@dataclass(frozen=True)
class WarmUp(Experiment):
    """See the module.

    Attributes:
        blocks: Of attention and feed-forward.
        width: D, features of a token.
        tokens: Of a sequence.
        batch: Sequences per step.
        steps: Updates; half of them are the warm-up where there is one.
        rate: Adam's learning rate.
        seeds: Nets for each curve.
    """

    place = 19
    title = "Post-LN and the warm-up"
    question = "Which transformers learn without a warm-up of the learning rate?"
    expectation = (
        "Pre-LN and DeepNorm do. Post-LN learns with a warm-up and, from a moderate depth on, not without."
    )
    quick: ClassVar = {"seeds": 4}

    blocks: int = 8
    width: int = 32
    tokens: int = 24
    batch: int = 16
    steps: int = 300
    rate: float = 3e-3
    seeds: int = 6

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        task = Grammar(self.tokens)
        gap = task.baseline - task.entropy_rate
        cases = [(name, seed) for name in CASES for seed in range(self.seeds)]
        found = {case: self._train(*case) for case in track(cases)}
        comparisons: list[Comparison] = []
        curves: list[Curve] = []
        for name in CASES:
            runs = [found[name, seed] for seed in range(self.seeds)]
            bound = at_most if name != "post-LN" else at_least
            limit = task.baseline - LEARNS * gap
            comparisons.append(
                Comparison(
                    f"{name}: loss on fresh text, nats",
                    bound(limit, *SOURCES[name]),
                    tuple(loss for _, loss in runs),
                )
            )
            places = tuple(SMOOTH * (part + 2) for part in range(len(runs[0][0])))
            curves.append(over_seeds(name, places, [losses for losses, _ in runs]))
        ends = (curves[0].x[0], curves[0].x[-1])
        curves.append(Curve("token frequencies", ends, (task.baseline,) * 2, Origin.EXPECTED))
        curves.append(Curve("entropy rate", ends, (task.entropy_rate,) * 2, Origin.EXPECTED))
        picture = Lines(
            "loss",
            "Loss over training",
            f"Cross-entropy, mean over {SMOOTH} steps. At the upper dashed line a net knows how often each "
            "token comes and nothing else; no net gets below the lower one.",
            Axis("step"),
            Axis("loss, nats"),
            tuple(curves),
        )
        return Outcome(tuple(comparisons), (picture,))

    def _train(self, name: str, seed: int) -> tuple[list[float], float]:
        """The loss in parts of ``SMOOTH`` steps without the first part, and that on fresh text."""
        arrangement, warms_up = CASES[name]
        task = Grammar(self.tokens)
        with seeded(seed):
            net = Transformer(
                vocabulary=VOCABULARY,
                longest=self.tokens,
                width=self.width,
                heads=2,
                blocks=self.blocks,
                arrangement=arrangement,
            )
        history = train(
            net,
            task,
            self.steps,
            rate=self.rate,
            optimizer_name="adam",
            batch=self.batch,
            warmup=self.steps // 2 if warms_up else 0,
            seed=seed,
        )
        losses = [loss for loss, _ in history]
        parts = [mean(losses[start : start + SMOOTH]) for start in range(0, len(losses), SMOOTH)]
        return parts[1:] or parts, fresh_loss(net, task)
