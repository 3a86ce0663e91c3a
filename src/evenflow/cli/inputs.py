"""``--input 32x3x224x224``: made-up data of a given shape and type, for a TARGET that brings no batch.

Floating data are standard normal, the convention of every initialisation
scheme. Integers are drawn evenly from 0 … HIGH−1; without HIGH from {0, 1}, the
only range that any embedding accepts.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from evenflow.cli.errors import nearest
from evenflow.errors import TargetError

_FORM = re.compile(r"(?P<shape>\d+(x\d+)*)(:(?P<dtype>[a-z]+\d*)(:(?P<high>\d+))?)?")
_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


def random_input(text: str, generator: torch.Generator) -> Tensor:
    """A tensor as described by ``SHAPE[:DTYPE[:HIGH]]``.

    Args:
        text: For example ``32x3x224x224``, ``8x128:int64:50257``.
        generator: Source of the numbers.

    Raises:
        TargetError: The text has another form, or names no known type.
    """
    form = _FORM.fullmatch(text)
    if form is None:
        raise TargetError(
            f"--input {text}: expected SHAPE[:DTYPE[:HIGH]], "
            "for example 32x3x224x224 or, for token ids below 50257, 8x128:int64:50257."
        )
    name = form["dtype"] or "float32"
    if name not in _DTYPES:
        hint = nearest(name, _DTYPES) or ""
        raise TargetError(f"--input {text}: no type {name}. {hint} Known: {', '.join(_DTYPES)}.")
    shape = [int(size) for size in form["shape"].split("x")]
    dtype = _DTYPES[name]
    if dtype.is_floating_point:
        if form["high"]:
            raise TargetError(f"--input {text}: HIGH is for integers; {name} data are standard normal.")
        return torch.randn(shape, generator=generator).to(dtype)
    high = 2 if dtype is torch.bool else int(form["high"] or 2)
    if high < 1:
        raise TargetError(f"--input {text}: HIGH must be 1 or more; values lie in 0 ... HIGH-1.")
    return torch.randint(high, shape, generator=generator).to(dtype)
