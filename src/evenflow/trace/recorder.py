"""Watch a forward pass op by op.

Three observations are enough to know every op, the module call that ran it and
the user's line, without touching the computation:

* A :class:`TorchDispatchMode` sees each ATen op with its tensors.
* Module hooks keep a stack of the module calls that are running (``calls.py``).
* Autograd numbers its nodes. It makes the node of an op just before the op is
  dispatched, so the running number, less one, names the node that will carry the
  op's gradient. Ops and graph can be joined afterwards (``graph.py``).

Ops that only rearrange elements (view, transpose, clone …) carry every entry
unchanged; their nodes are noted and they get no record of their own. What every
tensor came from is kept too, for the graph forgets it where it is cut (detach,
no_grad). The inside of a custom autograd Function is one op, as it is one node, with one exception:
reentrant checkpointing is a Function around a part of the model, and that part
is recorded like the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import FrameType
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from evenflow.flow import ModuleCall, Stats
from evenflow.trace.calls import CallStack, CallState, OpName, plain_name
from evenflow.trace.source import line_of
from evenflow.trace.statistics import Reader, tensor_stats
from evenflow.trace.structure import differentiable, main_tensor
from evenflow.trace.units import RECTIFIERS, dead_fraction, saturated_fraction
from evenflow.trace.variety import entropy, sample_spread, token_spread

CUSTOM_FUNCTION = "<custom function>"
"""Name of a custom autograd Function until its node, which knows better, is found."""

_COPIES = frozenset({"clone", "alias", "detach", "_reshape_alias", "_unsafe_view", "lift_fresh"})
"""Ops that copy or rename all entries without a view in their schema."""

_CHANNELS_FIRST = ("ConvolutionBackward0", "NativeBatchNormBackward0", "CudnnBatchNormBackward0")


@dataclass(frozen=True, slots=True)
class Data:
    """What an op read that no op of the model made; of several such tensors the first.

    Attributes:
        stats: Of its entries.
        shape: Its shape.
        dtype: Its format.
        seen: Whether it is an input, or was seen being made.
    """

    stats: Stats
    shape: tuple[int, ...]
    dtype: str
    seen: bool


@dataclass(slots=True, eq=False)
class OpRecord:
    """One executed op.

    Attributes:
        order: Position in forward execution.
        name: What it is called.
        source: The user's line.
        reads_data: Whether it read something else than weights: the batch, or constants.
        reads: The ops whose outputs it read, also where no gradient comes back.
        weights: Ids of the parameters that it read.
        data: What it read that no op of the model made: the batch, a target.
        shape: Shape of its output (of the first one, for ops that return a list).
        dtype: Format of its output.
        activation: Statistics of its output; of all of them for ops that return a list.
        dead_fraction: See :class:`evenflow.flow.Row`.
        saturated_fraction: See :class:`evenflow.flow.Row`.
        sample_spread: See :class:`evenflow.flow.Row`.
        token_spread: See :class:`evenflow.flow.Row`.
        entropy: See :class:`evenflow.flow.Row`.
        gradient: Statistics of the gradient at its output, once backward has run.
    """

    order: int
    name: OpName
    source: str | None
    reads_data: bool
    reads: tuple[OpRecord, ...] = ()
    weights: tuple[int, ...] = ()
    data: Data | None = None
    shape: tuple[int, ...] = ()
    dtype: str = ""
    activation: Stats | None = None
    dead_fraction: float | None = None
    saturated_fraction: float | None = None
    sample_spread: float | None = None
    token_spread: float | None = None
    entropy: float | None = None
    gradient: Stats | None = None


_Origins: TypeAlias = tuple[OpRecord | int, ...]
"""Ops whose outputs, and ids of parameters whose values, went into a tensor."""


@dataclass(frozen=True, slots=True)
class ModuleOutput:
    """What a module call returned, by the producer of its main tensor: a node, or an op without one."""

    module: ModuleCall
    node: Node | None
    record: OpRecord | None


@dataclass(slots=True)
class Segment:
    """A reentrantly checkpointed part: where the calls stood before it, and its ops."""

    start: CallState
    records: list[OpRecord] = field(default_factory=list)


@dataclass(slots=True)
class Tape:
    """All that was seen.

    Attributes:
        records: Ops in order of execution.
        by_node: From autograd's number of a node to its op.
        rearranging: Numbers of the nodes of ops that only rearrange.
        segments: From the number of a checkpoint's node to its part of the model.
        outputs: What each module call returned.
        used: Ids of the parameters that some op read.
    """

    records: list[OpRecord] = field(default_factory=list)
    by_node: dict[int, OpRecord] = field(default_factory=dict)
    rearranging: set[int] = field(default_factory=set)
    segments: dict[int, Segment] = field(default_factory=dict)
    outputs: list[ModuleOutput] = field(default_factory=list)
    used: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Function:
    """A custom autograd Function that is running: a part of the model, or one op and what it has made."""

    segment: Segment | None = None
    record: OpRecord | None = None
    made: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)


class _Mode(TorchDispatchMode):
    """A mode for models that run uncompiled."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled, so the compiler, a second of imports, need not be told to keep out."""
        return False


@final
class Recorder(_Mode):
    """Records the ops that run while it is entered.

    Args:
        model: Whose ops they are.
        inputs: Its input tensors.
        calls: Follows the model's calls; attach it with this recorder as its observer.
        before_write: Called with each tensor that an op is about to write to.
        read: Tells the statistics of a tensor.
        spreads: Tells the spreads of samples and of tokens of a tensor without entries.
        run: Runs an op; None for PyTorch, or the next mode.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Iterable[Tensor],
        calls: CallStack,
        before_write: Callable[[Tensor], None],
        read: Reader = tensor_stats,
        spreads: Callable[[Tensor], tuple[float | None, float | None]] | None = None,
        run: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = Tape()
        self._spreads, self._run = spreads, run
        self._calls, self._before_write, self._read = calls, before_write, read
        self._parameters = {id(parameter) for parameter in model.parameters()}
        self._weights = self._parameters | {id(buffer) for buffer in model.buffers()}
        self._without_node = WeakIdKeyDictionary()
        self._origins = WeakIdKeyDictionary()
        for tensor in inputs:
            self._origins[tensor] = ()
            if differentiable(tensor):
                self._without_node[tensor] = None
        self._unseen: dict[int, OpRecord] = {}
        self._function: _Function | None = None
        self._last_number = _next_number()
        self._cloned = -1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the op as it is, then look at what it made."""
        kwargs = kwargs or {}
        grad_mode, number = torch.is_grad_enabled(), _next_number()
        self._enter_function(grad_mode, number, sys._getframe(1))
        for position, name in _written(func):
            target = args[position] if position < len(args) else kwargs.get(name)
            for tensor in _tensors((target,)):
                self._before_write(tensor)
        output = func(*args, **kwargs) if self._run is None else self._run(func, args, kwargs)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            self._look(func, args, kwargs, output, grad_mode, number)
        return output

    def entered(
        self, module: nn.Module, call: ModuleCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """A module is about to run."""
        self._enter_function(torch.is_grad_enabled(), _next_number(), sys._getframe(1))

    def left(self, module: nn.Module, call: ModuleCall, output: Any) -> None:
        """A module has run."""
        with torch._C.DisableTorchFunction():
            tensor = main_tensor(output)
            if tensor is not None:
                if self._unseen:
                    with torch.no_grad():
                        self._catch_up([tensor])
                self.tape.outputs.append(ModuleOutput(call, tensor.grad_fn, self._without_node.get(tensor)))

    def _enter_function(self, grad_mode: bool, number: int, frame: FrameType) -> None:
        """Notice a new node that came without an op, while gradients are off: a custom Function began."""
        if grad_mode:
            self._function = None
        elif number > self._last_number:
            self._last_number = number
            if _in_reentrant_checkpoint(frame):
                segment = self.tape.segments[number - 1] = Segment(self._calls.state())
                self._function = _Function(segment=segment)
            else:
                record = self._new_record(CUSTOM_FUNCTION, line_of(frame), reads_data=False)
                self._function = _Function(record=record)
                self.tape.by_node[number - 1] = self._unseen[number - 1] = record

    def _look(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        grad_mode: bool,
        number: int,
    ) -> None:
        tensors = list(_tensors((*args, *kwargs.values())))
        self.tape.used.update(id(tensor) for tensor in tensors if id(tensor) in self._parameters)
        if self._unseen:
            self._catch_up(tensors)
        origins = self._origins_of(tensors)
        data = [tensor for tensor in tensors if self._is_data(tensor)]
        if plain_name(func) != "lift_fresh":  # what comes from outside PyTorch stays unseen
            self._note_origins(output, origins)
        node = self._node_of(func, tensors, grad_mode, number)
        self._last_number = number
        if self._function is not None and self._function.record is not None:
            inside, record = self._function.made, self._function.record
            record.reads_data |= self._read_data(t for t in tensors if t not in inside)
            _read_origins(record, (*record.reads, *record.weights, *origins))
            for tensor in _tensors((output,)):
                inside[tensor] = None
            self._note_origins(output, (record,))
            return
        outputs = [tensor for tensor in _tensors((output,)) if differentiable(tensor)]
        if not outputs:
            return
        if _rearranges(func, tensors, outputs[0]):
            if node is not None:
                self.tape.rearranging.add(node)
                self._cloned = number
            elif tensors and tensors[0] in self._without_node:
                self._without_node[outputs[0]] = self._without_node[tensors[0]]
            return
        if node is None and not any(t in self._without_node or id(t) in self._weights for t in tensors):
            return  # masks, positions and other constants
        record = self._new_record(
            plain_name(func).removesuffix("_"),
            line_of(sys._getframe(2)),
            reads_data=self._read_data(tensors),
        )
        _read_origins(record, origins)
        record.data = self._data(data)
        self._note_origins(output, (record,))
        _describe(record, outputs if isinstance(output, list) else outputs[:1], tensors, self._read)
        if self._spreads is not None and outputs[0].is_meta:
            record.sample_spread, record.token_spread = self._spreads(outputs[0])
        if record.activation is not None and not outputs[0].is_meta:
            record.entropy = entropy(func, args, kwargs, outputs[0])
        if node is not None:
            self.tape.by_node[node] = record
        else:
            self._without_node[outputs[0]] = record
            if self._function is not None and self._function.segment is not None:
                self._function.segment.records.append(record)

    def _read_data(self, tensors: Iterable[Tensor]) -> bool:
        """Whether one of these is neither a weight nor made from one by recorded ops."""
        return any(not tensor.requires_grad and id(tensor) not in self._weights for tensor in tensors)

    def _origins_of(self, tensors: Iterable[Tensor]) -> _Origins:
        """The ops, and the parameters, that tensors came from."""
        found: dict[OpRecord | int, None] = {}
        for tensor in tensors:
            if id(tensor) in self._parameters:
                found[id(tensor)] = None
            else:
                found |= dict.fromkeys(self._origins.get(tensor, ()))
        return tuple(found)

    def _note_origins(self, output: Any, origins: _Origins) -> None:
        for tensor in _tensors((output,)):
            if id(tensor) not in self._weights:
                self._origins[tensor] = origins

    def _is_data(self, tensor: Tensor) -> bool:
        """Whether nothing of the model made a tensor, and it is more than a number."""
        return (
            tensor.ndim > 0
            and differentiable(tensor)
            and not tensor.requires_grad
            and id(tensor) not in self._weights
            and not self._origins.get(tensor, ())
        )

    def _data(self, tensors: list[Tensor]) -> Data | None:
        if not tensors:
            return None
        first = tensors[0]
        dtype = str(first.dtype).removeprefix("torch.")
        return Data(self._read(first), tuple(first.shape), dtype, seen=first in self._origins)

    def _node_of(self, func: Any, tensors: list[Tensor], grad_mode: bool, number: int) -> int | None:
        """Number of the node that autograd made for this op; None if it made none."""
        if not grad_mode or not any(tensor.requires_grad for tensor in tensors):
            return None
        if number > self._last_number:
            return number - 1
        # An in-place op that will need its overwritten input has it cloned, between its node and itself.
        return number - 2 if number == self._cloned and _written(func) else None

    def _catch_up(self, tensors: Iterable[Tensor]) -> None:
        """Describe the outputs of custom Functions, which show only where they are used."""
        for tensor in tensors:
            if self._unseen and tensor.grad_fn is not None:
                record = self._unseen.pop(tensor.grad_fn._sequence_nr(), None)
                if record is not None:
                    _describe(record, [tensor], [], self._read)

    def _new_record(self, op: str, source: str | None, *, reads_data: bool) -> OpRecord:
        record = OpRecord(len(self.tape.records), self._calls.name(op), source, reads_data)
        self.tape.records.append(record)
        return record


def _read_origins(record: OpRecord, origins: _Origins) -> None:
    """Note what an op read."""
    record.reads = tuple(dict.fromkeys(o for o in origins if isinstance(o, OpRecord) and o is not record))
    record.weights = tuple(dict.fromkeys(o for o in origins if isinstance(o, int)))


@final
class ReplayRecorder(_Mode):
    """Recognises ops that run a second time, when a checkpoint recomputes its part of the model.

    Args:
        calls: Set back to where the part began.
        records: The part's ops, as first recorded.
        rearranging: Numbers of nodes of ops that only rearrange; more are added.
    """

    def __init__(self, calls: CallStack, records: Iterable[OpRecord], rearranging: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_node: dict[int, OpRecord] = {}
        self._rearranging = rearranging
        self._calls = calls
        self._known = {record.name: record for record in records}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the op as it is and file its node under the record of the first pass."""
        number = _next_number()
        output = func(*args, **(kwargs or {}))
        if torch.is_grad_enabled():
            tensors = list(_tensors(args))
            outputs = [tensor for tensor in _tensors((output,)) if differentiable(tensor)]
            if outputs and _rearranges(func, tensors, outputs[0]):
                self._rearranging.add(number - 1)
            elif outputs:
                name = self._calls.name(plain_name(func).removesuffix("_"))
                record = self._known.get(name)
                if record is not None:
                    self.by_node[number - 1] = record
        return output


def _describe(record: OpRecord, outputs: list[Tensor], inputs: list[Tensor], read: Reader) -> None:
    """Fill in what an op made [``outputs``] from what it read."""
    first = outputs[0]
    op = record.name.op
    record.shape = tuple(first.shape)
    record.dtype = str(first.dtype).removeprefix("torch.")
    record.activation = Stats.merge_all(read(tensor) for tensor in outputs)
    if first.is_meta:
        return  # no entries to count
    if op in RECTIFIERS:
        channels_first = first.ndim > 3 or any(
            tensor.grad_fn is not None and tensor.grad_fn.name() in _CHANNELS_FIRST for tensor in inputs
        )
        record.dead_fraction = dead_fraction(op, first, channels_first=channels_first)
    record.saturated_fraction = saturated_fraction(op, first)
    record.sample_spread, record.token_spread = sample_spread(first), token_spread(first)


def _rearranges(func: Any, inputs: list[Tensor], output: Tensor) -> bool:
    """Whether the op shows all entries of its first input again, unchanged."""
    if not inputs or output.numel() != inputs[0].numel() or output.dtype != inputs[0].dtype:
        return False
    return _shows_again(func)


@cache
def _shows_again(func: Any) -> bool:
    """Whether the op copies or views entries."""
    name = plain_name(func)
    if name in _COPIES or name == "_to_copy" or torch.Tag.inplace_view in func.tags:
        return True
    alias = func._schema.returns[0].alias_info
    return alias is not None and not alias.is_write


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Positions and names of the arguments that the op declares to write to."""
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _in_reentrant_checkpoint(frame: FrameType | None) -> bool:
    """Whether the innermost custom Function on the Python stack is a checkpoint's."""
    checkpoint = torch.utils.checkpoint.__file__
    while frame is not None:
        if frame.f_code.co_name == "forward" and "ctx" in frame.f_code.co_varnames[:1]:
            return frame.f_code.co_filename == checkpoint
        frame = frame.f_back
    return False


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among arguments or outputs of an op, lists of them included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, Tensor))


def _next_number() -> int:
    """The number that autograd will give to the next node made in this thread."""
    number: int = torch._C._autograd._get_sequence_nr()
    return number
