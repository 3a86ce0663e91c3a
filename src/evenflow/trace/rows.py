"""From records, graph and gradients to the rows of a Flow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from evenflow.flow import ModuleCall, Role, Row, Site, Status
from evenflow.trace.graph import Graph
from evenflow.trace.recorder import OpRecord, Tape
from evenflow.trace.statistics import Reader, tensor_stats


def op_rows(tape: Tape, graph: Graph) -> Iterator[Row]:
    """Activation and activation gradient of every op."""
    made = _made_by(tape, graph)
    data = _data_ops(tape, graph)
    for record in tape.records:
        name = record.name
        inputs = (
            tuple(sorted(p.order for p in graph.inputs.get(record, ()) if p in data))
            if record in data
            else ()
        )
        roles = [(Role.ACTIVATION, record.activation)]
        if record in graph.inputs:
            roles.append((Role.ACTIVATION_GRADIENT, record.gradient))
        for role, stats in roles:
            if stats is None and role is Role.ACTIVATION:
                continue
            yield Row(
                site=Site(name.module.path, name.op, role, name.module.call, name.index),
                order=record.order,
                module_type=name.module_type,
                shape=record.shape,
                dtype=record.dtype,
                status=Status.OK if stats is not None else Status.DETACHED,
                source=record.source,
                inputs=inputs,
                output_of=tuple(made.get(record, ())),
                stats=stats,
                dead_fraction=record.dead_fraction if role is Role.ACTIVATION else None,
                saturated_fraction=record.saturated_fraction if role is Role.ACTIVATION else None,
            )


def parameter_rows(
    model: nn.Module,
    tape: Tape,
    graph: Graph,
    gradients: Mapping[str, Tensor | None],
    read: Reader = tensor_stats,
) -> Iterator[Row]:
    """Every parameter and its gradient, with the reason where there is none."""
    first_op = {record.name.module.path: record for record in reversed(tape.records)}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        readers: Sequence[OpRecord] = graph.readers.get(id(parameter), ())
        if not readers and owner in first_op:
            readers = [first_op[owner]]
        gradient = gradients[name]
        status = _status(parameter, gradient, used=id(parameter) in tape.used)
        for role, stats in (
            (Role.PARAMETER, read(parameter)),
            (Role.PARAMETER_GRADIENT, None if gradient is None else read(gradient)),
        ):
            yield Row(
                site=Site(name, "parameter", role),
                order=min((record.order for record in readers), default=len(tape.records)),
                module_type=type(model.get_submodule(owner)).__name__,
                shape=tuple(parameter.shape),
                dtype=str(parameter.dtype).removeprefix("torch."),
                status=status,
                source=None,
                stats=stats,
            )


def _status(parameter: Tensor, gradient: Tensor | None, *, used: bool) -> Status:
    if gradient is not None:
        return Status.OK
    if not parameter.requires_grad:
        return Status.FROZEN
    return Status.DETACHED if used else Status.UNUSED


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
        if record.reads_data or not data.isdisjoint(graph.inputs.get(record, ())):
            data.add(record)
    return data
