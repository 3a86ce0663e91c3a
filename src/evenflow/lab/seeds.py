"""Random numbers that belong to one seed and touch nobody else's.

Data come from generators of their own. Weights cannot: the defaults of
``nn.Linear`` and its kin draw from PyTorch's global state, and the lab wants
those very defaults. So networks are built inside :func:`seeded`, which lends
the global state and gives it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block PyTorch draws from ``seed``; afterwards its CPU state is what it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def generator(seed: int) -> torch.Generator:
    """A local source of random numbers."""
    return torch.Generator().manual_seed(seed)
