"""Hooks on modules that compiled code is made without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def eager_only(hook: Callable[..., None]) -> Callable[..., None]:
    """The hook, that does nothing while a graph is compiled, nor between the graphs of a compiled model.

    (PyTorch calls hooks on a compiled model itself between graphs, and would compile them.)
    """
    compiling = torch._C._dynamo.eval_frame.get_eval_frame_callback

    def eager(*args: Any) -> None:
        if not torch.compiler.is_compiling() and compiling() is None:
            hook(*args)

    return eager
