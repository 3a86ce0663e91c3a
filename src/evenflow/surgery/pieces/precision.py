"""A module that computes in another floating type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def compute_in(module: Any, dtype: torch.dtype) -> None:
    """Let a module hold its parameters and compute in ``dtype``; it gives the type that it is given."""
    module.to(dtype)
    module.compute_dtype = dtype
    module.register_forward_pre_hook(cast_inputs, with_kwargs=True)
    module.register_forward_hook(cast_outputs)


def cast_inputs(module: Any, args: Any, kwargs: Any) -> Any:
    """The hook before; it notes the type that came."""
    given = [x.dtype for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point()]
    module.given_dtype = given[0] if given else torch.get_default_dtype()

    def cast(x: Any) -> Any:
        return x.to(module.compute_dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return tuple(cast(x) for x in args), {key: cast(x) for key, x in kwargs.items()}


def cast_outputs(module: Any, args: Any, output: Any) -> Any:
    """The hook behind."""
    if isinstance(output, Tensor):
        return output.to(module.given_dtype) if output.is_floating_point() else output
    if type(output) in (tuple, list):
        return type(output)(cast_outputs(module, args, one) for one in output)
    return output
