"""Loss scaling: what a GradScaler does to gradients, undone in what is reported.

Under ``GradScaler`` the backward pass runs on ``scale · loss``. Every gradient seen
on the way is that much too large until ``scaler.unscale_``; figures taken there are
divided by the scale, which does not change before ``scaler.update`` at the end of
the step. A step whose gradients overflowed is skipped by the scaler: the
optimizer's ``step`` is not called, or, with fused optimizers, does nothing.

A scaler that nobody named is found on the call stack, the first time that it
calls an optimizer: it is the ``self`` of one of the callers.

References:
    P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, §3.2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, final

import torch

_FRAMES = 16
"""Callers that are looked at, from the hook over wrappers of profilers and schedulers to scaler.step."""
_CALLERS = ("step", "_maybe_opt_step")


@final
class LossScale:
    """The scaler in use, if any.

    Args:
        scaler: The scaler; None to look for one.
        skipped: Called with the optimizer whose step a scaler has skipped.
    """

    def __init__(self, scaler: torch.amp.GradScaler | None, skipped: Callable[[Any], None]) -> None:
        self._scaler: torch.amp.GradScaler | None = None
        self._skipped = skipped
        self._stepped = False
        if scaler is not None:
            self._follow(scaler)

    def find(self) -> None:
        """Look for a scaler among the callers."""
        frame: FrameType | None = sys._getframe(1)
        for _ in range(_FRAMES):
            if frame is None or self._scaler is not None:
                return
            if frame.f_code.co_name in _CALLERS:  # other frames are not opened: that costs time
                caller = frame.f_locals.get("self")
                if isinstance(caller, torch.amp.GradScaler):
                    self._follow(caller)
                    self._stepped = True
            frame = frame.f_back

    def stepping(self) -> None:
        """An optimizer's step has been called."""
        self._stepped = True

    @property
    def value(self) -> float:
        """The scale that the latest backward pass ran under; 1 without a scaler."""
        if self._scaler is None or not self._scaler.is_enabled():
            return 1.0
        return float(self._scaler.get_scale())

    @property
    def active(self) -> bool:
        """Whether there is a scaler that scales."""
        return self._scaler is not None and self._scaler.is_enabled()

    def remove(self) -> None:
        """Leave the scaler as it was."""
        if self._scaler is not None:
            self._scaler.__dict__.pop("step", None)
            self._scaler = None

    def _follow(self, scaler: torch.amp.GradScaler) -> None:
        """Notice skipped steps, through an attribute of this one scaler that hides its method."""
        step = scaler.step

        def followed(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            self._stepped = False
            result = step(optimizer, *args, **kwargs)
            if not self._stepped:
                self._skipped(optimizer)
            return result

        self._scaler = scaler
        scaler.__dict__["step"] = followed


def found_overflow(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused optimizer was told to do nothing in this step."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(float(found))


def remaining_scale(optimizer: torch.optim.Optimizer) -> float:
    """By what the gradients in front of a fused optimizer are still too large; 1 for all others."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)
