"""What is known of module calls: what stays from step to step, and a pass with what it holds of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, nn

from evenflow.watch.moments import Page, Rows
from evenflow.watch.ranks.placement import class_name, local, piece_of
from evenflow.watch.units import RECTIFIERS, SQUASHING, Share, dead_share, saturated_share

_MOST_OUTPUTS = 1 << 16
"""Descriptions that are remembered; batches of ever new shapes would make ever new ones."""
_NUMBERS = itertools.count()

Call: TypeAlias = tuple[str, int]
"""Path of a module, and which of its calls within the pass; a plain tuple, for it is hashed often."""


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """What stays from step to step of the output of a module call. Made once, and equal to itself only.

    Attributes:
        module: Which call made it.
        module_type: Class of the module.
        order: Position in its pass.
        shape: Its shape.
        dtype: Its format.
        inputs: Orders of the outputs that it was computed from.
        output_of: All calls that returned this tensor, innermost first.
    """

    module: Call
    module_type: str
    order: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    inputs: tuple[int, ...]
    output_of: tuple[Call, ...]


class Told(NamedTuple):
    """What a compiled graph tells of an output, and what was made of it.

    Attributes:
        module: Number of the module that returned it.
        call: Which call of it that was.
        shape: Its shape.
        dtype: Its format.
        differentiable: Whether it can get a gradient.
        output: How it is described, now that this module has returned it.
        order: Position in its pass.
        again: Whether another module had returned it before.
        outside: Whether that depends on what is in it.
    """

    module: int
    call: Call
    shape: torch.Size
    dtype: torch.dtype
    differentiable: bool
    output: Output
    order: int
    again: bool
    outside: bool


@dataclass(slots=True, eq=False)
class Pass:
    """One call of the whole model.

    Rows ``2i`` and ``2i + 1`` of its page are the moments of output ``i`` and of the
    gradient that came to it.
    """

    training: bool
    page: Page
    outputs: list[Output] = field(default_factory=list)
    has_gradient: bytearray = field(default_factory=bytearray)
    """For each output, whether a gradient came to it."""
    dead: list[Share | None] = field(default_factory=list)
    """For each output, the share of dead units; None for all but rectifiers."""
    saturated: list[Share | None] = field(default_factory=list)
    """For each output, the share of saturated entries; None for all but sigmoids and their kin."""
    calls: dict[str, int] = field(default_factory=dict)
    nodes: dict[int, int] = field(default_factory=dict)
    """Number of an autograd node → order of the output that it made."""
    walked: dict[int, frozenset[int]] = field(default_factory=dict)
    """Number of a node between such → orders of the nearest ones, where the way to them is long."""
    without_graph: dict[str, list[int]] = field(default_factory=dict)
    """Orders of outputs made while gradients were off, by path; the latest last."""
    last: tuple[int, int] = (0, 0)
    """Identity of the latest output: of the tensor and of its node."""
    can_have_gradients: bool = False
    reached: int | None = None
    """Turn in which a gradient last came."""
    traced: dict[tuple[int, int] | None, int] = field(default_factory=dict)
    """Call in a compiled graph → order of its output."""
    told: list[Told] = field(default_factory=list)
    """What compiled graphs have told, in order."""
    before: Sequence[Told] = ()
    """What they told in the last pass, as long as they tell the same; then nothing."""
    number: int = field(default_factory=lambda: next(_NUMBERS))

    def count(self, path: str) -> Call:
        """A module is called once more."""
        call = (path, self.calls.get(path, 0))
        self.calls[path] = call[1] + 1
        return call

    def structure(self) -> tuple[object, ...]:
        """Equal where two passes differ by numbers only."""
        return tuple(self.outputs), bytes(self.has_gradient)

    def moments(self) -> Rows:
        """The rows of all outputs and of their gradients [2 · outputs, 5]."""
        return self.page.read(2 * len(self.outputs))

    def shares(self) -> Rows:
        """Shares of dead units and of saturated entries, beside :meth:`moments`; NaN where there are none."""
        found = np.full((2 * len(self.outputs), 2), np.nan)
        for column, shares in enumerate((self.dead, self.saturated)):
            known = [index for index, share in enumerate(shares) if share is not None]
            found[[2 * index for index in known], column] = [float(shares[index] or 0.0) for index in known]
        return found

    def add(self, output: Output, module: nn.Module, tensor: Tensor) -> tuple[int, bool | None]:
        """Record an output; gives its position, and whether it is not finite (None: not known)."""
        order = len(self.outputs)
        kind = type(module)
        dead = kind in RECTIFIERS
        self.dead.append(
            dead_share(local(tensor), channels_first=self._channels_first(output)) if dead else None
        )
        self.saturated.append(saturated_share(SQUASHING[kind], local(tensor)) if kind in SQUASHING else None)
        self.outputs.append(output)
        self.has_gradient.append(0)
        return order, _put(self.page, 2 * order, tensor)

    def add_gradient(self, order: int, gradient: Tensor, turn: int) -> bool | None:
        """Record the gradient that came to an output; whether it is not finite (None: not known)."""
        self.has_gradient[order] = 1
        self.reached = turn
        return _put(self.page, 2 * order + 1, gradient)

    def as_before(self, module: int, tensor: Tensor, differentiable: bool) -> Told | None:
        """What a graph tells of an output, if all that was told so far is the same as in the last pass."""
        place = len(self.told)
        if place < len(self.before):
            known = self.before[place]
            if (
                known.module == module
                and known.shape == tensor.shape
                and known.dtype is tensor.dtype
                and known.differentiable == differentiable
                and not known.outside
            ):
                self.told.append(known)
                return known
        if self.before:
            self.before = ()
            for one in self.told:
                self.calls[one.call[0]] = one.call[1] + 1
                self.traced[one.module, one.call[1]] = one.order
        return None

    def tell(self, told: Told) -> None:
        """Add what a graph tells of an output that the last pass did not have at this place."""
        self.told.append(told)
        self.traced[told.module, told.call[1]] = told.order

    def order_of_equal(self, tensor: Tensor) -> int | None:
        """Position of the last output if the tensor looks like a copy of it: same shape, same moments."""
        last = len(self.outputs) - 1
        if last < 0 or self.outputs[last].shape != tensor.shape:
            return None
        page = Page(1)
        page.put(0, tensor)
        return last if bool((page.read(1)[0] == self.moments()[2 * last]).all()) else None

    def _channels_first(self, output: Output) -> bool:
        """Whether units lie along axis 1: images do, and what a convolution or an image norm has made."""
        before = [self.outputs[order].module_type for order in output.inputs]
        return len(output.shape) > 3 or any(name.startswith(("Conv", "BatchNorm")) for name in before)


@final
class Catalogue:
    """The descriptions of outputs, each made once."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Output] = {}

    def describe(
        self,
        call: Call,
        module: nn.Module,
        order: int,
        tensor: Tensor,
        inputs: tuple[int, ...],
        script: Sequence[Output],
    ) -> Output:
        """The description of an output: that at the same place of ``script``, the last pass, if it fits."""
        shape, dtype = tensor.shape, tensor.dtype
        if order < len(script):
            known = script[order]
            if (
                known.module == call
                and known.shape == shape
                and known.dtype is dtype
                and known.inputs == inputs
                and len(known.output_of) == 1
            ):
                return known
        return self._made((call, class_name(module), order, tuple(shape), dtype, inputs, (call,)))

    def returned_again(self, output: Output, call: Call) -> Output:
        """The description of the same tensor, which another call has returned too."""
        key = (
            output.module, output.module_type, output.order, output.shape, output.dtype, output.inputs,
            (*output.output_of, call),
        )  # fmt: skip
        return self._made(key)

    def _made(self, key: tuple[Any, ...]) -> Output:
        if len(self._known) > _MOST_OUTPUTS:
            self._known.clear()
        if key not in self._known:
            self._known[key] = Output(*key)
        return self._known[key]


def _put(page: Page, row: int, tensor: Tensor) -> bool | None:
    """Write the moments of what this rank holds; a sum over ranks that nobody has taken yet has none."""
    if type(tensor) is Tensor or type(tensor) is nn.Parameter:
        return page.put(row, tensor)
    if piece_of(tensor).addends == 1:
        held = local(tensor)
        found = page.put(row, held)
        return found if held is tensor else None
    page.put_nothing(row)
    return None
