"""Another draw of a script: every seed that it sets is shifted, and what it does not seed is seeded.

With number 0 a script draws what its own seeds say. With number k each seed that it
gives to ``random``, NumPy or PyTorch is k strides further on. What it never seeds
begins from k, so that two runs with the same number draw the same.
"""

from __future__ import annotations

import random
import sys
from functools import wraps
from typing import Any

from evenflow.scripts.imports import when_imported

STRIDE = 1_000_003
"""Between the seeds of two numbers: beyond those that people choose."""
_LARGEST = 2**32
"""NumPy takes seeds below this."""


def draw(number: int) -> None:
    """Seed everything with a number, and shift what the script seeds from now on."""
    _shift(random, "seed", number)
    random.seed(number)

    def numpy() -> None:
        found: Any = sys.modules["numpy"].random
        found.seed(number)
        _shift(found, "seed", number)
        _shift(found, "default_rng", number)

    def torch() -> None:
        found: Any = sys.modules["torch"]
        found.manual_seed(number)
        _shift(found.random, "manual_seed", number)
        found.manual_seed = found.random.manual_seed

    when_imported("numpy", numpy)
    when_imported("torch", torch)


def _shift(owner: Any, name: str, number: int) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def shifted(seed: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(seed, int) and number:
            seed = (seed + number * STRIDE) % _LARGEST
        return original(seed, *args, **kwargs)

    if number:
        setattr(owner, name, shifted)
