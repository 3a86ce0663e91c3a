"""Copy memory: repeat ten symbols after a long silence.

The input is 10 symbols from an alphabet of 8, T − 1 blanks, a mark that says
*now*, and 10 more blanks: T + 20 steps. The answer is blank for T + 10 steps and
then the 10 symbols. Who remembers nothing knows the blanks and guesses the
symbols, which costs 10 ln 8 per sequence, so 10 ln 8/(T + 20) per step.

References:
    S. Hochreiter & J. Schmidhuber 1997; in this form M. Arjovsky et al., "Unitary
    evolution recurrent neural networks", ICML 2016, section 4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from evenflow.lab.tasks.task import Task

SYMBOLS = 8
WORD = 10
BLANK = SYMBOLS
MARK = SYMBOLS + 1


@final
@dataclass(frozen=True)
class CopyMemory(Task):
    """Inputs [batch, delay + 20, 10] one-hot, targets [batch, delay + 20] with classes 0 … 8.

    Attributes:
        delay: T, steps for which the symbols are to be kept.
    """

    delay: int = 100

    @property
    def length(self) -> int:
        """T + 20, steps of the sequence."""
        return self.delay + 2 * WORD

    def batch(self, size: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Task`."""
        word = torch.randint(SYMBOLS, (size, WORD), generator=source)
        seen = torch.full((size, self.length), BLANK)
        seen[:, :WORD] = word
        seen[:, -WORD - 1] = MARK
        target = torch.full((size, self.length), BLANK)
        target[:, -WORD:] = word
        return F.one_hot(seen, SYMBOLS + 2).float(), target

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy per step; output [batch, steps, 9] holds logits."""
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    @property
    def baseline(self) -> float:
        """10 ln 8/(T + 20), in nats per step."""
        return WORD * math.log(SYMBOLS) / self.length
