"""Attention that looks everywhere, attention that looks at one token, and what it lets through.

A token's scores over T others have a standard deviation s, the logit scale (the inverse of
a temperature). For small s all tokens get a share:

    H ≈ ln T − s²/2,    E Σ p² ≈ exp(s²)/T.

Beyond s = a, where a is the hazard rate φ(b)/(1 − Φ(b)) of the normal law at its largest
of T draws, Φ(b) = 1 − 1/T, the largest few scores take everything: *entropy collapse*. The
shares then follow the Poisson–Dirichlet law with m = a/s, as in the random energy model:

    H = ψ(1) − ψ(1 − m),    E Σ p² = 1 − m.

Backwards the softmax multiplies by J = diag(p) − p pᵀ. Its ‖J‖² = Σp² − 2Σp³ + (Σp²)² is
about 1/T where attention is spread, is largest near s = 2a, and dies where it has collapsed,
in the mean like m, because a few undecided tokens remain; of most others nothing comes back.

References:
    B. Derrida, Phys. Rev. B 24 (1981), 2613 (random energy model). J. Pitman & M. Yor,
    Ann. Probab. 25 (1997), 855 (moments of the Poisson–Dirichlet law). S. Zhai et al.,
    "Stabilizing transformer training by preventing attention entropy collapse", ICML 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, final

import torch
from scipy import special
from torch.nn import functional as F

from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.measuring import gaussian
from evenflow.lab.networks import Init
from evenflow.lab.networks.transformer import Attention
from evenflow.lab.picture import Axis, Curve, Lines, Origin, over_seeds
from evenflow.lab.seeds import generator, seeded
from evenflow.lab.verdict import Comparison, near

Law: TypeAlias = tuple[float, float, float]
"""Entropy in nats, E Σ p², and E ‖J‖²."""

NAMES = ("entropy, nats", "Σ p²", "‖J‖² of the softmax")

FORMULAS = (
    ("ln T − s²/2", "ψ(1) − ψ(1 − m), m = a/s"),
    ("exp(s²)/T", "1 − m"),
    ("Σp² − 2Σp³ + (Σp²)²", "the same, with E Σ p^k = Γ(k − m)/(Γ(k) Γ(1 − m))"),
)
"""Where attention is spread, and where it has collapsed."""

SPREAD, COLLAPSED = 1.0, 3.0
"""The first law is compared up to s = 1, the second from s = 3a: in between both are crude."""

_WORDS = {
    0: (
        "Entropy of attention",
        "Mean entropy of what a token looks at, against the standard deviation of its scores. At ln T it "
        "looks everywhere, at 0 at one token. Dashed: the two laws where they hold.",
        Axis("entropy, nats"),
    ),
    2: (
        "What the softmax passes back",
        "Mean square of the gradient behind the softmax for a random one of variance 1 before it. Spread "
        "attention passes on little to each score, collapsed attention nothing to most.",
        Axis("‖J‖²"),
    ),
}


@final
@dataclass(frozen=True)
class AttentionEntropy(Experiment):
    """See the module.

    Attributes:
        tokens: T.
        width: D, of one head; scores are Gaussian for a wide one.
        scales: s, standard deviations of the scores.
        seeds: Random attention layers.
    """

    place = 20
    title = "Entropy of attention"
    question = "When does attention collapse to one token, and what gradient does its softmax pass on?"
    expectation = (
        "Attention is spread over many tokens while the standard deviation s of the scores stays well below "
        "a ≈ √(2 ln T), and looks at a few tokens beyond. The softmax passes on little where attention is "
        "spread, most at about twice a, and less and less beyond."
    )
    explains: ClassVar = {"attention_entropy": "entropy", "attention_collapse": "entropy"}
    quick: ClassVar = {
        "tokens": 256,
        "width": 128,
        "scales": (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 9.0, 12.0),
        "seeds": 30,
    }

    tokens: int = 1024
    width: int = 256
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
    seeds: int = 12

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        found = {
            scale: [self._measure(scale, seed) for seed in range(self.seeds)] for scale in track(self.scales)
        }
        comparisons = []
        spread, collapsed = [], []
        for scale in self.scales:
            if scale <= SPREAD:
                spread.append((scale, _spread(scale, self.tokens)))
            elif scale >= COLLAPSED * _edge(self.tokens):
                collapsed.append((scale, _collapsed(scale, self.tokens)))
        for law, source in (
            (spread, "log-normal sums"),
            (collapsed, "Derrida 1981; Pitman & Yor 1997, prop. 9"),
        ):
            for scale, values in law:
                for which, name in enumerate(NAMES):
                    # The law of the largest of T Gaussians is reached to 1/ln T (Hall 1979); of the spread
                    # entropy ln T − s²/2 only the second term is approximate.
                    size = scale**2 / 2 if law is spread and which == 0 else abs(values[which])
                    expected = near(
                        values[which],
                        size / math.log(self.tokens),
                        FORMULAS[which][0 if law is spread else 1],
                        source,
                    )
                    samples = tuple(sample[which] for sample in found[scale])
                    comparisons.append(Comparison(f"scores of std {scale:g}: {name}", expected, samples))
        pictures = tuple(
            self._picture(
                which, [[found[s][seed][which] for s in self.scales] for seed in range(self.seeds)], laws
            )
            for which, laws in ((0, (spread, collapsed)), (2, (spread, collapsed)))
        )
        note = (
            f"Between the two laws, from s = {SPREAD:g} to {COLLAPSED * _edge(self.tokens):.1f}, there is no "
            "simple formula at a finite number of tokens, and nothing is compared."
        )
        return Outcome(tuple(comparisons), pictures, (note,))

    def _measure(self, scale: float, seed: int) -> tuple[float, float, float]:
        """Means over tokens of the entropy, of Σ p², and of ‖Jᵀg‖² for a random g ~ N(0, 1)."""
        with seeded(seed):
            attention = Attention(self.width, heads=1, causal=False)
            # Inputs are N(0, 1): queries and keys get the variance s, and q·k/√K the variance s².
            Init("normal", gain=scale**0.5).apply(attention)
        scores = attention.scores(gaussian(1, self.tokens, self.width, seed=seed))[0, 0].detach().double()
        scores.requires_grad_()
        shares = F.softmax(scores, dim=-1)
        cotangent = torch.randn(shares.shape, generator=generator(seed + 1), dtype=torch.float64)
        (back,) = torch.autograd.grad(shares, scores, cotangent)
        p = shares.detach()
        entropy = torch.special.entr(p).sum(dim=-1).mean()
        return float(entropy), float(p.square().sum(dim=-1).mean()), float(back.square().sum(dim=-1).mean())

    def _picture(
        self, which: int, samples: list[list[float]], laws: tuple[list[tuple[float, Law]], ...]
    ) -> Lines:
        """One quantity against the scale, and its two laws where they hold."""
        curves = [over_seeds("measured", self.scales, samples)]
        for name, law in zip(("spread", "collapsed"), laws, strict=True):
            if law:
                values = tuple(value[which] for _, value in law)
                curves.append(Curve(name, tuple(scale for scale, _ in law), values, Origin.EXPECTED))
        title, reading, axis = _WORDS[which]
        return Lines(
            ("entropy", "", "gradient")[which],
            title,
            reading,
            Axis("std of the scores", log=True),
            axis,
            tuple(curves),
        )


def _edge(tokens: int) -> float:
    """a: hazard rate of the normal law where one of T draws lies beyond."""
    beyond = float(special.ndtri(1 - 1 / tokens))
    return tokens * math.exp(-0.5 * beyond**2) / math.sqrt(2 * math.pi)


def _spread(s: float, tokens: int) -> Law:
    """Entropy, E Σ p² and E ‖J‖² from E Σ p^k ≈ exp(k (k − 1) s²/2)/T^(k−1)."""
    square, cube = math.exp(s * s) / tokens, math.exp(3 * s * s) / tokens**2
    return math.log(tokens) - 0.5 * s * s, square, square - 2 * cube + square**2


def _collapsed(s: float, tokens: int) -> Law:
    """The same from the Poisson–Dirichlet law with m = a/s."""
    m = _edge(tokens) / s
    entropy = float(special.digamma(1) - special.digamma(1 - m))
    square = 1 - m
    cube = (2 - m) * (1 - m) / 2
    fourth = (3 - m) * (2 - m) * (1 - m) / 6
    two_squares = m * (1 - m) ** 2 / 6  # E Σ p_i² p_j² over i ≠ j
    return entropy, square, square - 2 * cube + fourth + two_squares
