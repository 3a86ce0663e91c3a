"""From records, graph and gradients to the rows of a Flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor, nn

from evenflow.flow import ModuleCall, Role, Row, Site, Stats, Status
from evenflow.trace.graph import Graph
from evenflow.trace.recorder import Data, OpRecord, Tape
from evenflow.trace.statistics import Reader, tensor_stats
from evenflow.trace.variety import twin_fraction

Told: TypeAlias = Callable[[Stats | None, Role], tuple[Stats | None, float | None]]
"""From what was read of a tensor to the statistics and the half-width of its row."""


def as_read(stats: Stats | None, role: Role) -> tuple[Stats | None, float | None]:
    """Measured statistics: they have no interval."""
    return stats, None


def op_rows(tape: Tape, graph: Graph, told: Told = as_read) -> Iterator[Row]:
    """Activation and activation gradient of every op."""
    made = _made_by(tape, graph)
    data = _data_ops(tape, graph)
    for record in tape.records:
        name = record.name
        links = graph.inputs.get(record, ()) if record in data else ()
        reads = (*links, *record.reads) if record in data else ()
        roles = [(Role.ACTIVATION, record.activation)]
        if record in graph.inputs:
            roles.append((Role.ACTIVATION_GRADIENT, record.gradient))
        for role, stats in roles:
            if stats is None and role is Role.ACTIVATION:
                continue
            is_activation = role is Role.ACTIVATION
            shown, half_width = told(stats, role)
            yield Row(
                site=Site(name.module.path, name.op, role, name.module.call, name.index),
                order=record.order,
                module_type=name.module_type,
                shape=record.shape,
                dtype=record.dtype,
                status=Status.OK if stats is not None else Status.DETACHED,
                source=record.source,
                inputs=tuple(sorted({p.order for p in (reads if is_activation else links) if p in data})),
                output_of=tuple(made.get(record, ())),
                stats=shown,
                half_width=half_width,
                dead_fraction=record.dead_fraction if is_activation else None,
                saturated_fraction=record.saturated_fraction if is_activation else None,
                sample_spread=record.sample_spread if is_activation else None,
                token_spread=record.token_spread if is_activation else None,
                entropy=record.entropy if is_activation else None,
            )
        if record.data is not None:
            yield _data_row(record, record.data, told)


def _data_row(record: OpRecord, data: Data, told: Told) -> Row:
    name = record.name
    stats, half_width = told(data.stats, Role.DATA)
    return Row(
        site=Site(name.module.path, name.op, Role.DATA, name.module.call, name.index),
        order=record.order,
        module_type=name.module_type,
        shape=data.shape,
        dtype=data.dtype,
        status=Status.OK if data.seen else Status.DETACHED,
        source=record.source,
        stats=stats,
        half_width=half_width,
    )


def parameter_rows(
    model: nn.Module,
    tape: Tape,
    graph: Graph,
    gradients: Mapping[str, Tensor | None],
    read: Reader = tensor_stats,
    told: Told = as_read,
) -> Iterator[Row]:
    """Every parameter and its gradient, with the reason where there is none."""
    in_reach = _reaching(tape, graph)
    first_op = {record.name.module.path: record for record in reversed(tape.records)}
    types = {path: type(module).__name__ for path, module in model.named_modules(remove_duplicate=False)}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        readers: Sequence[OpRecord] = graph.readers.get(id(parameter), ())
        if not readers and owner in first_op:
            readers = [first_op[owner]]
        gradient = gradients[name]
        status = _status(
            parameter, gradient, used=id(parameter) in tape.used, in_reach=id(parameter) in in_reach
        )
        order = min((record.order for record in readers), default=len(tape.records))
        for role, tensor in ((Role.PARAMETER, parameter), (Role.PARAMETER_GRADIENT, gradient)):
            stats, half_width = told(None if tensor is None else read(tensor), role)
            yield Row(
                site=Site(name, "parameter", role),
                order=order,
                module_type=types[owner],
                shape=tuple(parameter.shape),
                dtype=str(parameter.dtype).removeprefix("torch."),
                status=status,
                source=None,
                stats=stats,
                half_width=half_width,
                twin_fraction=twin_fraction(tensor),
            )


def _status(parameter: Tensor, gradient: Tensor | None, *, used: bool, in_reach: bool) -> Status:
    if gradient is not None:
        return Status.OK
    if not parameter.requires_grad:
        return Status.FROZEN
    if not used:
        return Status.UNUSED
    return Status.DETACHED if in_reach else Status.NOT_READ


def _reaching(tape: Tape, graph: Graph) -> set[int]:
    """Ids of the parameters whose values went into the loss, cuts looked through."""
    reaching = set(graph.inputs)
    for record in reversed(tape.records):  # readers come after what they read
        if record in reaching:
            reaching.update(record.reads)
    return {weight for record in reaching for weight in record.weights}


def _made_by(tape: Tape, graph: Graph) -> dict[OpRecord, list[ModuleCall]]:
    """Which module calls returned the output of which op."""
    made: dict[OpRecord, list[ModuleCall]] = {}
    for output in tape.outputs:
        record = output.record if output.node is None else graph.record_of(output.node)
        if record is not None:
            made.setdefault(record, []).append(output.module)
    return made


def _data_ops(tape: Tape, graph: Graph) -> set[OpRecord]:
    """Ops that handle data, not weights alone."""
    data: set[OpRecord] = set()
    for record in tape.records:  # producers come before what consumes them
        if record.reads_data or not data.isdisjoint((*graph.inputs.get(record, ()), *record.reads)):
            data.add(record)
    return data
