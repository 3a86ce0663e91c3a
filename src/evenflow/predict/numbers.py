"""Numbers that a model gives as Python lists keep their values.

``torch.tensor([1, 2], device="meta")`` and ``x[:, [0, -1]]`` make tensors without
entries before any op runs. Here they are made on the CPU, where the interpreter
sees what they hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MAKERS = (torch.tensor, torch.as_tensor, torch.from_numpy)
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


class KeptNumbers(TorchFunctionMode):
    """Makes tensors from lists on the CPU first, while it is entered."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As the function, but for lists."""
        kwargs = kwargs or {}
        if func in _MAKERS and not isinstance(args[0], Tensor) and _for_meta(kwargs):
            options = {key: value for key, value in kwargs.items() if key != "device"}
            with torch.device("cpu"):
                real = func(*args, **options)
            return real if real.ndim == 0 else real.to("meta")
        if func in _INDEXING:
            args = (args[0], _index(args[1]), *args[2:])
        return func(*args, **kwargs)


def _for_meta(options: dict[str, Any]) -> bool:
    device = options.get("device")
    return torch.device(torch.get_default_device() if device is None else device).type == "meta"


def _index(index: Any) -> Any:
    if type(index) is tuple:
        return tuple(_index(part) for part in index)
    if isinstance(index, list) and index and all(isinstance(entry, int) for entry in index):
        with torch.device("cpu"):
            return torch.tensor(index)
    return index
