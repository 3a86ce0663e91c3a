"""Rows of a Flow: one site, and what is known of its tensor."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.flow.site import ModuleCall, Site, Status
from evenflow.flow.stats import Stats


@dataclass(frozen=True, slots=True)
class Row:
    """One site and what is known of its tensor.

    Attributes:
        site: Where the tensor was seen.
        order: Position in the order of forward execution, shared by all roles
            of one op; parameters carry that of the first op that used them.
        module_type: Class name of the module at the site.
        shape: Shape of the tensor.
        dtype: PyTorch's name of its format, e.g. ``"float32"``.
        status: Whether a gradient reached the site.
        source: The user's line that ran the op, ``"file.py:12"``; None if not known.
        inputs: Orders of the ops whose outputs this op consumed. Ops that only
            rearrange elements (view, transpose, …) are looked through, and ops
            on weights alone (the standardisation of a kernel) are not linked.
        output_of: Module calls whose (first) output this tensor is.
        stats: Statistics; None where nothing arrived (see ``status``).
        dead_fraction: Outputs of rectifiers only: share of units (channels of a
            convolution, else entries of the last axis) that are zero for every
            sample of the batch.
        saturated_fraction: Outputs of sigmoid- and tanh-like functions only:
            share of entries where the derivative is below a tenth of its
            largest value.
        half_width: Predicted rows only: half-width, in decades of RMS, of the
            interval in which one random draw of the weights should lie.
    """

    site: Site
    order: int
    module_type: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    status: Status = Status.OK
    source: str | None = None
    inputs: tuple[int, ...] = ()
    output_of: tuple[ModuleCall, ...] = ()
    stats: Stats | None = None
    dead_fraction: float | None = None
    saturated_fraction: float | None = None
    half_width: float | None = None
