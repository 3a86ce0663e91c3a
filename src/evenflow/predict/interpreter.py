"""Abstract interpretation: run a model on tensors that hold no numbers, and carry fields instead.

The model, its loss and ``backward()`` run on the *meta* device, where tensors have
a shape and nothing else. Autograd itself emits the backward pass as ATen ops, so
there are no reverse rules by hand. A :class:`TorchDispatchMode` sees every op and
asks its rule for the output's :class:`~evenflow.predict.fields.Field`.

* Small tensors that depend on nothing random (masks, positions, labels) carry
  their actual entries as well, computed on the CPU beside.
* Initialisers are ops like others: ``normal_`` makes a fresh random field.
* In-place ops and views: a field belongs to a place in memory (storage, offset,
  shape, strides) at a time. Reading a view of memory that was written through
  another view derives the field anew.
* An op without a rule makes its output *unknown*, and so is all that depends on
  it; the op's name is kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evenflow.flow import Stats
from evenflow.predict import entries, pointwise, variety
from evenflow.predict.fields import Field, Leaf
from evenflow.predict.memory import Memory
from evenflow.predict.ops import Op, op_of
from evenflow.predict.rules.registry import Context, NoRuleError
from evenflow.predict.shapes import Shapes
from evenflow.predict.spread import PredictedStats, half_width
from evenflow.predict.table import constant

_NoDispatch, _NoFunctions = torch._C._DisableTorchDispatch, torch._C.DisableTorchFunction
"""Keep what rules compute with real tensors from all modes."""

MAX_KNOWN = 1 << 22
"""Entries up to which a tensor that is not random is computed beside; 4 M hold a mask of 2048²."""

_FOR_MEMORY = frozenset({"device", "layout", "pin_memory", "memory_format", "dtype", "generator"})
"""Options that rules need not know."""


@final
class Interpreter(TorchDispatchMode):
    """Interprets all ops that run while it is entered.

    Attributes:
        unknown: Ops without a rule, counted.
        remarks: Approximations that rules made, counted.
        abstentions: Reasons not to trust the prediction, counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: Counter[str] = Counter()
        self.remarks: Counter[str] = Counter()
        self._twins: dict[int, Tensor] = {}
        self._context = Context(self.remarks)
        self.abstentions = self._context.abstentions
        self._memory = Memory(self._context)
        self._shapes = Shapes()

    # Reading and writing

    def field_of(self, tensor: Tensor) -> Field | None:
        """The field of a tensor; None if it is not known."""
        return self._memory.read(tensor)

    def set_field(self, tensor: Tensor, value: Field | None) -> None:
        """Say what a tensor holds from now on."""
        self._memory.put(tensor, value)

    def write(self, tensor: Tensor, value: Field | None) -> None:
        """As :meth:`set_field`, for memory that other views may share."""
        self._memory.write(tensor, value)

    def is_written(self, tensor: Tensor) -> bool:
        """Whether a tensor's entries were all given a value that could be followed."""
        found = self.field_of(tensor)
        partly = isinstance(found, Leaf) and found.values is not None and bool(found.values.isnan().any())
        return found is not None and not partly

    def _to_meta(self, value: Any) -> Any:
        """A tensor with entries as one without, which stands for it in ops."""
        if not isinstance(value, Tensor) or value.device.type == "meta":
            return value
        known = self.field_of(value)
        twin = self._twins.get(id(value))
        if twin is None:
            twin = self._twins[id(value)] = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device="meta"
            )
            self.set_field(twin, known)
        return twin

    def stats(self, tensor: Tensor, *, parameter: bool = False) -> Stats:
        """Predicted statistics of a tensor; the mean square is NaN where it is unknown."""
        with _NoFunctions():
            return self._stats(tensor, parameter)

    def _stats(self, tensor: Tensor, parameter: bool) -> Stats:
        found = self.field_of(tensor)
        if found is None:
            return Stats(tensor.numel(), math.nan, math.nan)
        try:
            with _NoDispatch():
                table = found.table
                square = table.mean_square
                if found.keep is not None and math.isfinite(found.hidden) and found.hidden:
                    return _with_hidden(tensor, found)
                scatter = half_width(found, parameter=parameter) if square > 0 else 0.0
        except Exception as error:  # as for rules
            self._tell(f"a {type(found).__name__.lower()} field of shape {list(found.shape)}", error)
            self.set_field(tensor, None)
            return Stats(tensor.numel(), math.nan, math.nan)
        if square <= 0:
            return PredictedStats(tensor.numel(), 0.0, 0.0)
        return PredictedStats(tensor.numel(), table.average, square, half_width=scatter)

    def spreads(self, tensor: Tensor) -> tuple[float | None, float | None]:
        """Predicted spread of samples and of tokens; None where there is none, or it is unknown."""
        found = self.field_of(tensor)
        if found is None:
            return None, None
        with _NoDispatch(), _NoFunctions():
            return variety.sample_spread(found.table), variety.token_spread(found.table)

    def model_runs(self) -> None:
        """Say that the model is built and now runs."""
        self._memory.parts_are_zero = True

    def _tell(self, what: str, error: Exception) -> None:
        """Note a gap by its name."""
        why = (
            str(error)
            if isinstance(error, NoRuleError | NotImplementedError)
            else f"its rule failed ({type(error).__name__}: {error})"
        )
        self.unknown[f"{what}: {why}"] += 1

    def gradient_stats(self, tensor: Tensor) -> Stats:
        """As :meth:`stats`, for the gradient of a parameter."""
        return self.stats(tensor, parameter=True)

    # Running

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled, so the compiler, a second of imports, need not be told to keep out."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the op on shapes, then on fields."""
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As an op that runs while this is entered; for a mode that has seen the op already."""
        with _NoFunctions():
            return self._run(func, args, kwargs)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op = op_of(func)
        if op.name == "_local_scalar_dense" and args[0].is_meta:
            return self._number(args[0])
        if op.renames:
            return func(*args, **kwargs)
        if op.changes_view:
            return self._reshaped(op, args, kwargs)
        tensors = _tensors((*args, *kwargs.values()))
        if not tensors or not all(t.is_meta for t in tensors):
            if not any(t.is_meta for t in tensors) and kwargs.get("device") != torch.device("meta"):
                return func(*args, **kwargs)
            if op.name == "_to_copy" and not tensors[0].is_meta:
                output = func(*args, **kwargs)
                self.set_field(output, self.field_of(tensors[0]))
                return output
            args, kwargs = (_mapped(self._to_meta, part) for part in (args, kwargs))
            tensors = _tensors((*args, *kwargs.values()))
        if op.dynamic and entries.by_entries(func, args):
            return entries.run(self, func, args, kwargs)
        output = op.makes(*args, **kwargs) if op.makes else self._on_shapes(op, args, kwargs)
        outputs = list(output) if isinstance(output, (list, tuple)) else [output]
        with _NoDispatch():
            results = self._interpret(op, tensors, outputs, args, kwargs)
        for tensor, value in zip(outputs, results, strict=False):
            if isinstance(tensor, Tensor):
                if op.inplace or tensor is kwargs.get("out"):
                    self._memory.write(args[0] if op.inplace else tensor, value)
                else:
                    self._memory.put(tensor, value)
        return output

    def _on_shapes(self, op: Op, args: Any, kwargs: Any) -> Any:
        """Its output, of which nothing but the shape is known."""
        try:
            return self._shapes.run(op, tuple(args), kwargs)
        except NotImplementedError as error:
            raise NoRuleError(
                f"PyTorch cannot say what shape {op.name} gives without running it (it has no meta kernel)"
            ) from error

    def _reshaped(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op that gives its argument another shape in place."""
        before, layout = self.field_of(args[0]), _layout(op.name, args)
        output = op.func(*args, **kwargs)
        if before is not None:
            try:
                if op.rule is None:
                    raise NoRuleError("no rule for it")
                self.set_field(args[0], op.rule(self._context, output, before, *args[1:], **layout))
            except Exception as error:  # as for rules
                self._tell(op.name, error)
                self.set_field(args[0], None)
        return output

    def _interpret(
        self, op: Op, tensors: list[Tensor], outputs: list[Any], args: Any, kwargs: Any
    ) -> list[Field | None]:
        """The fields of the outputs."""
        nothing: list[Field | None] = [None] * len(outputs)
        if not any(isinstance(t, Tensor) for t in outputs):
            return nothing
        if op.allocates:
            self._memory.note_unwritten(outputs[0])
            return nothing if outputs[0].is_floating_point() else [_unwritten(outputs[0])]
        operands = {id(tensor): self._memory.read(tensor) for tensor in tensors}
        known = self._known(op, tensors, operands, outputs, args, kwargs)
        if known is not None:
            return known
        if any(operands[id(t)] is None and not (op.overwrites and i == 0) for i, t in enumerate(tensors)):
            return nothing
        if op.rule is None and not any(isinstance(t, Tensor) and t.is_floating_point() for t in outputs):
            self.unknown[f"{op.name}: whole numbers or truth values that depend on random ones"] += 1
            return nothing

        def as_field(value: Any) -> Any:
            return operands[id(value)] if isinstance(value, Tensor) else value

        fields = _mapped(as_field, args)
        options = {key: as_field(value) for key, value in kwargs.items() if key not in _FOR_MEMORY}
        options |= _layout(op.name, args)
        try:
            if op.rule is not None:
                result = op.rule(self._context, outputs if op.several else outputs[0], *fields, **options)
            elif op.pointwise is not None:
                result = pointwise.apply(op.pointwise, op.name, fields, options, outputs[0].shape)
            else:
                raise NoRuleError("no rule for it")
        except Exception as error:  # a rule that fails is a gap to be told, not a crash
            self._tell(op.name, error)
            return nothing
        return list(result) if isinstance(result, (list, tuple)) else [result]

    def _known(
        self,
        op: Op,
        tensors: list[Tensor],
        operands: dict[int, Field | None],
        outputs: list[Any],
        args: Any,
        kwargs: Any,
    ) -> list[Field | None] | None:
        """Outputs with entries, if all operands have them."""
        first = outputs[0]
        if op.fills:
            value = op.fill
            value = float(args[1] if len(args) > 1 else kwargs["fill_value"]) if value is None else value
            filled = (
                torch.full(first.shape, value, dtype=first.dtype) if _size(outputs) <= MAX_KNOWN else None
            )
            return [Leaf(constant(first.shape, value), filled)]
        if op.random or (op.shows and first.is_floating_point()):
            return None
        if op.inplace and op.name in ("fill", "zero"):
            value = 0.0 if op.name == "zero" else args[1]
            if isinstance(value, Tensor) or _size(outputs) > MAX_KNOWN:
                return None
            return [
                Leaf(constant(first.shape, float(value)), torch.full(first.shape, value, dtype=first.dtype))
            ]
        skip_first = op.inplace and op.name == "copy"
        values: dict[int, Tensor] = {}
        for i, tensor in enumerate(tensors):
            if (skip_first and i == 0) or tensor is kwargs.get("out"):
                values[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype)
                continue
            found = operands[id(tensor)]
            if not isinstance(found, Leaf) or found.values is None:
                return None
            values[id(tensor)] = found.values.clone() if op.inplace and i == 0 else found.values
        if _size(outputs) > MAX_KNOWN:
            return None

        def to_cpu(x: Any) -> Any:
            if isinstance(x, Tensor):
                return values[id(x)]
            return torch.device("cpu") if isinstance(x, torch.device) else x

        try:
            result = op.func(*_mapped(to_cpu, args), **_mapped(to_cpu, kwargs))
        except (RuntimeError, NotImplementedError):
            return None
        results = result if isinstance(result, (list, tuple)) else [result]
        return [self._memory.known(value) if isinstance(value, Tensor) else None for value in results]

    def _number(self, tensor: Tensor) -> Any:
        """What ``.item()`` gives."""
        found = self.field_of(tensor)
        if isinstance(found, Leaf) and found.values is not None:
            return found.values.item()
        if tensor.is_floating_point():
            return math.nan if found is None else found.table.average
        raise NoRuleError(
            "the model asks for the value of a tensor (.item(), bool() or a shape that depends on data), "
            "and that value depends on random numbers"
        )


def _unwritten(like: Tensor) -> Leaf | None:
    """Whole numbers in new memory: any will do, for a sound model overwrites them."""
    return _known(torch.zeros(like.shape, dtype=like.dtype)) if like.numel() <= MAX_KNOWN else None


def _known(values: Tensor) -> Leaf:
    return Leaf(None, values)


def _with_hidden(tensor: Tensor, scores: Field) -> Stats:
    """Statistics of masked scores, the large negative numbers that hide keys included."""
    assert scores.keep is not None
    seen = float(scores.keep.float().mean())
    mean = seen * scores.table.average + (1 - seen) * scores.hidden
    square = seen * scores.mean_square + (1 - seen) * scores.hidden**2
    return PredictedStats(tensor.numel(), mean, square)


def _layout(name: str, args: Any) -> dict[str, Any]:
    """What a rule must know of memory."""
    return {"source": (args[0].stride(), args[0].storage_offset())} if name == "as_strided" else {}


def _size(outputs: list[Any]) -> int:
    """Entries of all outputs."""
    return sum(t.numel() for t in outputs if isinstance(t, Tensor))


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Tensors among arguments, which nest lists at most."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
        elif isinstance(value, dict):
            found += _tensors(value.values())
    return found


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Arguments with each leaf changed."""
    if isinstance(value, (list, tuple)):
        return [_mapped(change, item) for item in value]
    if isinstance(value, dict):
        return {key: _mapped(change, item) for key, item in value.items()}
    return change(value)
