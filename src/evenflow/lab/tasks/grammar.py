"""A small language with a known entropy: nested brackets with words in between.

A sentence opens and closes brackets of two kinds, to a depth of at most 6, with
words in between. At every step one of three things happens: a word (one of 8,
half of the time), opening (a quarter, half of it for each kind) or closing what
was opened last (a quarter). At depth 0 nothing can be closed and at the greatest
depth nothing opened; the word then has three quarters. What follows an opening
bracket depends on a stack, so a model must remember to beat the frequencies.

The chain of depths is symmetric and so visits all of 0 … 6 equally often, which gives

* the entropy rate, reached by a model that knows the language: the mean over
  depths of the entropy of the next token;
* the baseline: the entropy of the token frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from evenflow.lab.tasks.task import Task

WORDS = 8
KINDS = 2
VOCABULARY = WORDS + 2 * KINDS
"""Words 0 … 7, opening brackets 8 and 9, their closing ones 10 and 11."""
DEEPEST = 6
_OPEN = _CLOSE = 0.25


@final
@dataclass(frozen=True)
class Grammar(Task):
    """Inputs [batch, length] of tokens, targets the tokens that follow.

    Attributes:
        length: Tokens of a sample.
    """

    length: int = 64

    def batch(self, size: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Task`. Samples start at any depth, with a stack of random brackets."""
        stack = torch.randint(KINDS, (size, DEEPEST), generator=source)
        depth = torch.randint(DEEPEST + 1, (size,), generator=source)
        rows = torch.arange(size)
        text = torch.empty(size, self.length + 1, dtype=torch.long)
        for step in range(self.length + 1):
            act = torch.rand(size, generator=source)
            kind = torch.randint(KINDS, (size,), generator=source)
            opens = (act < _OPEN) & (depth < DEEPEST)
            closes = (act >= 1 - _CLOSE) & (depth > 0)
            text[:, step] = torch.randint(WORDS, (size,), generator=source)
            text[opens, step] = WORDS + kind[opens]
            stack[rows[opens], depth[opens]] = kind[opens]
            depth = depth + opens.long() - closes.long()
            text[closes, step] = WORDS + KINDS + stack[rows[closes], depth[closes]]
        return text[:, :-1], text[:, 1:]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy per token; output [batch, length, 12] holds logits."""
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    @property
    def baseline(self) -> float:
        """Entropy of the token frequencies, in nats."""
        opening = _OPEN * DEEPEST / (DEEPEST + 1)  # nothing opens at the greatest depth; as much closes
        word = 1.0 - 2.0 * opening
        return _entropy([word / WORDS] * WORDS + [opening / KINDS] * 2 * KINDS)

    @property
    def entropy_rate(self) -> float:
        """Nats per token that no model can beat."""
        inside = _entropy([(1 - _OPEN - _CLOSE) / WORDS] * WORDS + [_OPEN / KINDS] * KINDS + [_CLOSE])
        at_zero = _entropy([(1 - _OPEN) / WORDS] * WORDS + [_OPEN / KINDS] * KINDS)
        at_deepest = _entropy([(1 - _CLOSE) / WORDS] * WORDS + [_CLOSE])
        return (inside * (DEEPEST - 1) + at_zero + at_deepest) / (DEEPEST + 1)


def _entropy(probabilities: list[float]) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities if p > 0.0)
