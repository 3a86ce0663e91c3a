"""What autograd says of its graph and of what it does, without public names."""

from __future__ import annotations

import torch

PARAMETER_NODE = (1 << 64) - 1
"""Number of every node that adds to the gradient of a leaf. All others are numbered in the order in which
they are made."""


def in_backward() -> bool:
    """Whether this code runs inside a backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)


def next_number() -> int:
    """The number that the next node of this thread will get."""
    number: int = torch._C._autograd._get_sequence_nr()
    return number
