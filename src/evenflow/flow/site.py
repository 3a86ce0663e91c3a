"""Where a number was taken: module path, op, call index and role.

A training step passes through *sites*. One site is one tensor seen in one
role: the output of the 2nd ``relu`` that ``blocks.3`` ran in its 1st call, or
the gradient that arrived there. Predicted and measured numbers meet because
they carry the same site.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LOSS_PATH = "<loss>"
"""Path of the ops that the loss callable runs, outside any module."""


class Role(StrEnum):
    """What a tensor is to the training step."""

    ACTIVATION = "activation"
    ACTIVATION_GRADIENT = "activation_gradient"
    PARAMETER = "parameter"
    PARAMETER_GRADIENT = "parameter_gradient"
    UPDATE = "update"
    DATA = "data"
    """What an op read that no op of the model made: the batch, or a target."""


class Status(StrEnum):
    """Whether, and if not why, a gradient reached a site."""

    OK = "ok"
    FROZEN = "frozen"
    """``requires_grad`` is off."""
    UNUSED = "unused"
    """No op of the forward pass touched the parameter."""
    DETACHED = "detached"
    """The loss depends on it, but no gradient came back to it."""
    NOT_READ = "not_read"
    """The forward pass used it, but the loss does not depend on what came of it."""


@dataclass(frozen=True, slots=True, order=True)
class ModuleCall:
    """The ``call``-th time (from 0) that the module at ``path`` ran in one forward pass."""

    path: str
    call: int = 0

    def __str__(self) -> str:
        return f"{self.path}#{self.call}" if self.call else self.path


@dataclass(frozen=True, slots=True)
class Site:
    """The place of one tensor in a training step.

    Attributes:
        path: Module path as in ``named_modules`` (``""`` is the model itself,
            ``"<loss>"`` the loss callable); for the parameter roles the
            parameter's full name, e.g. ``"blocks.0.fc.weight"``.
        op: Name of the op in PyTorch's own spelling, e.g. ``"addmm"``;
            ``"parameter"`` for the parameter roles.
        role: What the tensor is to the step.
        call: Which call of the module, from 0.
        index: Which op of that name within the call, from 0.
        time: Time step of a recurrent state, from 0; None elsewhere.
    """

    path: str
    op: str
    role: Role
    call: int = 0
    index: int = 0
    time: int | None = None

    @property
    def module_call(self) -> ModuleCall:
        """The module call that ran the op."""
        return ModuleCall(self.path, self.call)

    @property
    def label(self) -> str:
        """Short unique text for a site within its role, e.g. ``blocks.0#1:relu[2]@t7``."""
        if self.op == "parameter":
            return self.path
        index = f"[{self.index}]" if self.index else ""
        time = f"@t{self.time}" if self.time is not None else ""
        return f"{self.module_call}:{self.op}{index}{time}"
