"""Where a transformer puts its norm: the gradient of its last layer against depth.

At the start the branches of a block are independent of the stream, so mean squares
add. In a pre-LN net the stream grows, q_L = 2 + Σ (a_l + f), and the last norm divides
the gradient by √q_L: it falls like 1/√L. In a post-LN net each norm brings the stream
back to 1, so the last layer's gradient is as large at any depth, which is what asks for a
warm-up. DeepNorm weighs the skip by α and the branch by β: the gradient falls like
β/α = ½/√L.

With Glorot's init a feed-forward part of inner width 4D gives f = 8/25 of the mean
square that enters it, and attention over T tokens with scores of variance s² = 1 − c gives

    a = (1 − c) κ + c,   κ = E Σ_j p_ij² ≈ exp(s²)/T,

where c is the correlation of two tokens: it mixes what differs and keeps what is shared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from evenflow.flow import Role
from evenflow.lab.chain import FINITE_WIDTH
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.measuring import difference, draw
from evenflow.lab.networks import Transformer
from evenflow.lab.networks.transformer import Arrangement
from evenflow.lab.picture import Axis, Curve, Lines, beside, over_seeds
from evenflow.lab.seeds import generator
from evenflow.lab.verdict import Comparison, near
from evenflow.theory import deepnorm

NAMES: dict[Arrangement, str] = {"pre": "pre-LN", "post": "post-LN", "deep": "DeepNorm"}

SOURCES: dict[Arrangement, tuple[str, str]] = {
    "pre": ("∝ 1/√q_L, q_L = 2 + Σ (a_l + 8/25)", "Xiong et al. 2020, theorem 1"),
    "post": ("∝ 1/√(1 + 8/25), whatever L", "Xiong et al. 2020, theorem 1"),
    "deep": ("∝ β/√(α² + 8β⁴/25), α = (2L)^¼, β = (8L)^−¼", "Wang et al. 2022, fig. 2"),
}

FEED_FORWARD = 8 / 25
"""Mean square after W₂ relu(W₁ x) over that of x: 2/5 after W₁, half of it after ReLU, times 8/5."""


@final
@dataclass(frozen=True)
class TransformerDepth(Experiment):
    """See the module.

    Attributes:
        depths: L, blocks of attention and feed-forward.
        width: D, features of a token; also the number of outputs.
        tokens: T, tokens of a sequence, which an encoder reads.
        vocabulary: Different tokens.
        batch: Sequences.
        seeds: Random nets for each depth and arrangement.
    """

    place = 18
    title = "Pre-LN, post-LN and DeepNorm"
    question = "How large is the gradient of a transformer's last layer, against its depth?"
    expectation = (
        "With the norm after the addition (post-LN) it is the same at any depth, too large for a deep net's "
        "first steps: hence the warm-up. With the norm before the branch (pre-LN) it falls like 1/√L, with "
        "DeepNorm as well."
    )
    explains: ClassVar = {"post_ln_depth": "last"}
    quick: ClassVar = {"depths": (2, 6, 18), "width": 64, "seeds": 12}

    depths: tuple[int, ...] = (2, 6, 12, 24, 48)
    width: int = 128
    tokens: int = 32
    vocabulary: int = 64
    batch: int = 2
    seeds: int = 12

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        cases = [(arrangement, depth) for arrangement in NAMES for depth in self.depths]
        found = {case: [self._measure(*case, seed) for seed in range(self.seeds)] for case in track(cases)}
        comparisons: list[Comparison] = []
        last: list[Curve] = []
        stream: list[Curve] = []
        for arrangement, name in NAMES.items():
            expected = [self._expected(arrangement, depth) for depth in self.depths]
            samples = list(zip(*(found[arrangement, depth] for depth in self.depths), strict=True))
            gradients, gains = ([[pair[which] for pair in net] for net in samples] for which in (0, 1))
            for place, depth in enumerate(self.depths):
                comparisons.append(
                    Comparison(
                        f"{name}, {depth} blocks: log10 ‖gradient of the last weight‖",
                        near(expected[place], FINITE_WIDTH, *SOURCES[arrangement]),
                        tuple(sample[place] for sample in gradients),
                    )
                )
            last += beside(name, self.depths, gradients, expected)
            stream.append(over_seeds(name, self.depths, gains))
        note = (
            "The gain along the stream is measured only: what one token's gradient does to the others has a "
            "part in it, and for that there is no simple formula."
        )
        return Outcome(tuple(comparisons), _pictures(last, stream), (note,))

    def _measure(self, arrangement: Arrangement, depth: int, seed: int) -> tuple[float, float]:
        """log10 of the gradient of the last feed-forward weight, and of the gain along the stream."""
        tokens = torch.randint(self.vocabulary, (self.batch, self.tokens), generator=generator(seed))
        flow = draw(
            lambda: Transformer(
                vocabulary=self.vocabulary,
                longest=self.tokens,
                width=self.width,
                outputs=self.width,
                blocks=depth,
                arrangement=arrangement,
                causal=False,
            ),
            tokens,
            seed,
        )
        last = f"blocks.{2 * depth - 1}"
        weight = flow.stats(Role.PARAMETER_GRADIENT)[f"{last}.branch.second.weight"]
        stats = flow.stats(Role.ACTIVATION_GRADIENT)
        end = f"{last}:add" if arrangement == "pre" else f"{last}.norm"
        return weight.log10_norm, difference(stats[":add"].log10_norm, stats[end].log10_norm)

    def _expected(self, arrangement: Arrangement, depth: int) -> float:
        """log10 ‖gradient of the last weight‖, for a gradient of length 1 at the output."""
        constants = deepnorm(depth) if arrangement == "deep" else None
        alpha2, beta2 = (constants.alpha**2, constants.beta**2) if constants else (1.0, 1.0)
        q, shared = 2.0, 1.0 / self.vocabulary  # embeddings are N(0, 1); few tokens of a sequence are alike
        sums = q
        for _ in range(depth):
            for part in (self._attention, _feed_forward):
                c, enters = shared / q, (1.0 if arrangement == "pre" else q)
                own, common = part(c, enters)
                scale = enters * beta2**2
                sums, shared = alpha2 * q + scale * own, alpha2 * shared + scale * common
                q, shared = (sums, shared) if arrangement == "pre" else (1.0, shared / sums)
        inside = 4 * self.width * 0.2 * beta2  # mean square of relu(W₁ x), summed over its units
        kept = 1 - 2 / self.width  # a LayerNorm passes nothing on along 1 and along x
        return 0.5 * math.log10(kept * inside / sums)

    def _attention(self, c: float, mean_square: float) -> tuple[float, float]:
        """Mean square of attention's output, and what two tokens share of it, for inputs of mean square 1."""
        score = (1 - c) * mean_square**2
        own, common = math.exp(score) / self.tokens, math.exp(c * score) / self.tokens
        return (1 - c) * own + c, (1 - c) * common + c


def _feed_forward(c: float, _mean_square: float) -> tuple[float, float]:
    """The same for W₂ relu(W₁ x): ReLU's correlation map (Cho & Saul 2009, eq. 6)."""
    common = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
    return FEED_FORWARD, FEED_FORWARD * common


def _pictures(last: list[Curve], stream: list[Curve]) -> tuple[Lines, ...]:
    x = Axis("blocks", log=True)
    return (
        Lines(
            "last",
            "Gradient of the last weight against depth",
            "Length of the gradient of the last feed-forward weight, for a gradient of length 1 at the "
            "output. A level curve means that a deep net's last layer moves as much as a shallow one's. "
            "Drawn through: mean over random nets with its 95 % interval. Dashed: expected.",
            x,
            Axis("‖∂L/∂W‖, last weight", decades=True),
            tuple(last),
        ),
        Lines(
            "stream",
            "Gain along the stream against depth",
            "Length of the gradient where the stream begins, at the embeddings, relative to where it ends. "
            "Above 1 the first blocks get more than the last ones, below 1 less.",
            x,
            Axis("‖δ_first‖/‖δ_last‖", decades=True),
            tuple(stream),
        ),
    )
