"""Weights as they were before the optimizer's step, copied so that what it changed can be told.

One copy of the weights is kept. After a step it is brought up to date by the pass
that reads old and new weight for the update, so in front of the next step there is
mostly nothing to copy. Whether there is cannot be told from autograd's counts of
changes, which writes through ``.data`` (the weight clipping of a WGAN) go past. So
the pass that reads the weights for their moments compares them with the copy, and
copies what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from evenflow.watch.moments import Page, where


@final
class Copies:
    """The copy of an optimizer's weights."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._addresses, self._counts = where(self._kept)

    def take(self, page: Page, weights: Sequence[Tensor]) -> None:
        """Write the moments of weights into the first rows of a page, and have a copy of each.

        Args:
            page: With as much room.
            weights: Only read.
        """
        self._make_room(weights)
        compiled = page.compiled_for(weights)
        if compiled is not None:
            compiled.keep(*where(weights), self._addresses, page.address(0, len(weights)))
            return
        page.put_all(0, weights)
        if weights:
            with torch.no_grad():
                torch._foreach_copy_(self._kept, [weight.detach() for weight in weights])

    def put_changes(
        self, page: Page, first: int, places: Sequence[int], weights: Sequence[Tensor]
    ) -> Sequence[Tensor] | None:
        """Write the moments of old weight minus new one into rows of a page from ``first`` on.

        Args:
            page: With as much room.
            first: Number of the first row.
            places: Which of the weights that :meth:`take` got are meant.
            weights: What has become of them.

        Returns:
            The differences; None where compiled code has taken them and kept none.
        """
        compiled = page.compiled_for(weights)
        if compiled is not None:
            chosen, (to, counts) = np.array(places, np.int64), where(weights)
            if not np.array_equal(counts, self._counts[chosen]):
                raise ValueError("a parameter got another size inside the optimizer's step")
            compiled.change(self._addresses[chosen], to, counts, page.address(first, len(weights)))
            return None
        old = [self._kept[place] for place in places]
        if old:
            with torch.no_grad():
                torch._foreach_sub_(old, [weight.detach() for weight in weights])
        page.put_all(first, old)
        return old

    def clear(self) -> None:
        """Give the memory back."""
        self._kept = []
        self._addresses, self._counts = where(self._kept)

    def _make_room(self, weights: Sequence[Tensor]) -> None:
        fits = [_alike(old, now) for old, now in zip(self._kept, weights, strict=False)]
        if all(fits) and len(self._kept) == len(weights):
            return
        fits += [False] * (len(weights) - len(fits))
        self._kept = [
            self._kept[place] if fit else torch.empty_like(now, requires_grad=False)
            for place, (now, fit) in enumerate(zip(weights, fits, strict=True))
        ]
        self._addresses, self._counts = where(self._kept)


def _alike(one: Tensor, other: Tensor) -> bool:
    return (
        one.shape == other.shape
        and one.dtype is other.dtype
        and one.device == other.device
        and one.stride() == other.stride()
    )
