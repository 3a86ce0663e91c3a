"""Join the autograd graph to the recorded ops, and read gradients from it.

After the forward pass the graph is walked from the loss. Each node is an op (by
its number), a leaf, or one that only rearranges and is looked through. A
pre-hook on an op's node sees the complete gradient at the op's output, after
all its consumers have added their share.

A reentrant checkpoint hides a part of the model in one node. When backward
reaches it, the part is computed again; ops are recognised by their names and
hooked then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import final

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from evenflow.flow import Stats
from evenflow.trace.calls import CallStack, OpName
from evenflow.trace.recorder import CUSTOM_FUNCTION, OpRecord, ReplayRecorder, Segment, Tape
from evenflow.trace.statistics import Reader, tensor_stats

_Sources = tuple[list[OpRecord], list[Tensor]]
"""The ops and the leaves that something was made from."""


@final
class Graph:
    """The graph above some tensors, with a hook on each op.

    Args:
        tape: What the forward pass recorded; ops that it missed are added.
        calls: The naming of ops, needed again when checkpoints recompute.
        read: Tells the statistics of a tensor.

    Attributes:
        inputs: From an op to the ops whose outputs it consumed.
        readers: From the id of a leaf tensor to the ops that read it.
        leaves: The leaf tensors, in no particular order.
        notes: What could not be attributed, in words.
        built: Whether the forward pass is over and its graph is known.
    """

    def __init__(self, tape: Tape, calls: CallStack, read: Reader = tensor_stats) -> None:
        self.inputs: dict[OpRecord, tuple[OpRecord, ...]] = {}
        self.readers: dict[int, list[OpRecord]] = {}
        self.leaves: dict[int, Tensor] = {}
        self.notes: list[str] = []
        self.built = False
        self._tape, self._calls, self._read = tape, calls, read
        self._handles: list[RemovableHandle] = []
        self._nodes: dict[Node, OpRecord | None] = {}
        self._sources: dict[Node, _Sources] = {}
        self._replays: list[tuple[Node, ReplayRecorder]] = []

    def build(self, roots: Iterable[Tensor]) -> None:
        """Walk the graph above ``roots`` and hook every op in it."""
        self.built = True
        nodes = self._walk([root.grad_fn for root in roots if root.grad_fn is not None], self._tape.by_node)
        for node in nodes:
            segment = self._tape.segments.get(node._sequence_nr())
            if segment is not None:
                self._hook_segment(node, segment)

    def record_of(self, node: Node) -> OpRecord | None:
        """The op that made a tensor, rearrangements looked through."""
        records, _ = self._sources_of(node)
        return records[-1] if records else None

    def remove(self) -> None:
        """Take all hooks off and let the graph go."""
        while self._replays:  # backward raised inside a checkpoint
            _, replay = self._replays.pop()
            replay.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._nodes.clear()
        self._sources.clear()

    def _walk(self, roots: list[Node], by_node: dict[int, OpRecord]) -> list[Node]:
        """Visit all new nodes, attach them to their records, hook them and link them."""
        found: list[Node] = []
        pending = list(roots)
        while pending:
            node = pending.pop()
            if node in self._nodes:
                continue
            self._nodes[node] = self._match(node, by_node)
            found.append(node)
            pending.extend(child for child, _ in node.next_functions if child is not None)
        for node in found:
            record = self._nodes[node]
            if record is not None:
                self._handles.append(node.register_prehook(_keep_gradient(record, self._read)))
                self._link(node, record)
        return found

    def _match(self, node: Node, by_node: dict[int, OpRecord]) -> OpRecord | None:
        """The op of a node; None for leaves and for nodes that are looked through."""
        if leaf_of(node) is not None:
            return None
        number = node._sequence_nr()
        record = by_node.get(number)
        if record is None and node.name().endswith("CopySlices"):
            # An in-place op on a view makes its node, perhaps a clone's (see Recorder), and then this one.
            record = by_node.get(number - 1) or by_node.get(number - 2)
        if record is None and number not in self._tape.rearranging and number not in self._tape.segments:
            self.notes.append(
                f"{_op_name(node)}: an op that was not seen running; counted with its neighbours"
            )
        if record is not None and record.name.op == CUSTOM_FUNCTION:
            name = record.name
            record.name = OpName(name.module, name.module_type, _op_name(node), name.index)
        return record

    def _link(self, node: Node, record: OpRecord) -> None:
        producers: dict[OpRecord, None] = {}
        for child, _ in node.next_functions:
            if child is not None:
                records, leaves = self._sources_of(child)
                producers |= dict.fromkeys(records)
                for leaf in leaves:
                    self.leaves[id(leaf)] = leaf
                    self.readers.setdefault(id(leaf), []).append(record)
        producers.pop(record, None)
        self.inputs[record] = (*self.inputs.get(record, ()), *producers)

    def _sources_of(self, node: Node) -> _Sources:
        """The ops and leaves that made a node's output, through nodes that only rearrange."""
        if node in self._sources:
            return self._sources[node]
        leaf = leaf_of(node)
        record = self._nodes.get(node)
        if record is None:
            record = self._tape.by_node.get(node._sequence_nr())
        segment = self._tape.segments.get(node._sequence_nr())
        if leaf is not None:
            sources: _Sources = ([], [leaf])
        elif record is not None:
            sources = ([record], [])
        elif segment is not None and segment.records:
            sources = ([segment.records[-1]], [])
        else:
            sources = self._through(node)
        self._sources[node] = sources
        return sources

    def _through(self, node: Node) -> _Sources:
        records: list[OpRecord] = []
        leaves: list[Tensor] = []
        for child, _ in node.next_functions:
            if child is not None:
                more_records, more_leaves = self._sources_of(child)
                records += more_records
                leaves += more_leaves
        return records, leaves

    def _hook_segment(self, node: Node, segment: Segment) -> None:
        """Record the ops of a checkpointed part while backward computes it again."""
        replay = ReplayRecorder(self._calls, segment.records, self._tape.rearranging)

        def begin(gradients: tuple[Tensor | None, ...]) -> None:
            self._calls.return_to(segment.start)
            self._replays.append((node, replay))
            replay.__enter__()  # type: ignore[no-untyped-call]

        def end(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
            self._replays.pop()
            replay.__exit__(None, None, None)  # type: ignore[no-untyped-call]

        self._handles += [node.register_prehook(begin), node.register_hook(end)]

    def recomputed(self, output: Tensor) -> None:
        """A module inside a checkpoint has run again and returned ``output``: hook what lies above it."""
        if not self._replays or output.grad_fn is None:
            return
        checkpoint, replay = self._replays[-1]
        before = set(self.leaves)
        self._walk([output.grad_fn], replay.by_node)
        outside, _ = self._through(checkpoint)
        for key in set(self.leaves) - before:
            if not isinstance(self.leaves[key], torch.nn.Parameter):  # the part's own, detached input
                for reader in self.readers.pop(key):
                    self.inputs[reader] = (*self.inputs[reader], *outside)
                del self.leaves[key]


def _keep_gradient(record: OpRecord, read: Reader) -> Callable[[tuple[Tensor | None, ...]], None]:
    def hook(gradients: tuple[Tensor | None, ...]) -> None:
        present = [read(gradient) for gradient in gradients if gradient is not None]
        if present:
            record.gradient = Stats.merge_all(present)

    return hook


def _op_name(node: Node) -> str:
    """``torch::autograd::CopySlices`` → ``CopySlices``; ``SwishBackward`` → ``Swish``."""
    return node.name().rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")


def leaf_of(node: Node) -> Tensor | None:
    """The leaf tensor of a node that accumulates into one; None for other nodes."""
    if not node.name().endswith("AccumulateGrad"):
        return None
    leaf: Tensor = node.variable  # type: ignore[attr-defined]
    return leaf
