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
        inputs: Orders of the ops whose outputs this op consumed; in rows of
            gradients only those to which it sends one, in other rows also those
            behind a cut (detach, no_grad). Ops that only rearrange elements
            (view, transpose, …) are looked through, and ops on weights alone
            (the standardisation of a kernel) are not linked.
        output_of: Module calls whose (first) output this tensor is.
        stats: Statistics; None where nothing arrived (see ``status``).
        dead_fraction: Outputs of rectifiers only: share of units (channels of a
            convolution, else entries of the last axis) that are zero for every
            sample of the batch.
        saturated_fraction: Outputs of sigmoid- and tanh-like functions only:
            share of entries where the derivative is below a tenth of its
            largest value.
        sample_spread: Activations only: share of the mean square in which the
            entries of the first axis (samples) differ: 1 − E⟨x_a, x_b⟩ / E‖x_a‖²
            over pairs a ≠ b, which is 1 − c of mean-field theory (Poole 2016).
        token_spread: The same along the second axis of tensors [batch, tokens, units],
            over pairs within a sample.
        entropy: Softmax and fused attention: mean entropy of the rows over
            that of rows that weigh all keys in sight alike: 0 one key, 1 all. Mean
            losses that read classes (``nll_loss``): entropy of the frequencies of these
            over that of all classes alike, estimated for more batches like this one.
        twin_fraction: Matrices of parameters and their gradients only: share of
            the rows (units) that are not zero and equal another one.
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
    sample_spread: float | None = None
    token_spread: float | None = None
    entropy: float | None = None
    twin_fraction: float | None = None
    half_width: float | None = None
