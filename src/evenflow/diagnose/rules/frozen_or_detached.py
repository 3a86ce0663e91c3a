"""EF501: parameters that no gradient reaches, and whether that looks intended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from evenflow.diagnose.cuts import CutInTime, Use, cuts_in_time, uses
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.rule import CannotJudgeError, Page, Rule
from evenflow.diagnose.text import count, listing, module_name, place
from evenflow.flow import Flow, Role, Row, Status


@final
class FrozenOrDetached(Rule):
    """Reads the status of every parameter's gradient."""

    code = "EF501"
    name = "frozen_or_detached"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "Parameters that take part in the forward pass get no gradient."
    causes = (CauseName.FROZEN_OR_DETACHED,)
    thresholds = ()
    page = Page(
        what="""\
Some parameters have no gradient at all after backward. An optimizer skips them without
a word, and that part of the model stays as it was initialised.""",
        why="""\
Between the parameter and the loss the graph was cut: `.detach()`, `.data`, `.item()`, a
detour through NumPy, `torch.no_grad()`, an argmax, a new tensor made from values. Or
the output was not used: a head that this loss does not read. Or `requires_grad` is
off, most often on purpose.""",
        mathematics="""\
∂L/∂θ is not small but undefined: no path of the graph leads from L to θ. So `.grad`
is None rather than zero.""",
        detection="""\
Each parameter is one of: reached; *frozen* (`requires_grad` is off); *unused* (no op
read it); *not read* (used, but the loss does not depend on what came of it); *detached*
(the loss does depend on it, yet nothing came back). Only the last can be a fault, and
what becomes of the outputs in spite of the cut decides. If the loss alone compares with
them (a teacher, a target network), or if a layer reads them in one call and other data
in another (a generator while its discriminator learns), it is noted. If a layer that
learns has nothing else to read, it is a *warning*, unless it is known that no optimizer
holds these parameters. A detour through NumPy is recognised by its numbers: what comes
back has the statistics of what went out. A module that reads its own last output at every
call, always behind a cut, learns nothing through time: a *warning* if calls get no gradient
at all, a note if each has a loss of its own (truncated backpropagation). It is an
*error* if no parameter at all is reached. There are no thresholds.""",
        remedies="""\
Remove what cuts the graph. If the cut is meant (a target network, a frozen feature
extractor), say so with `requires_grad_(False)`; that also saves memory. Leave unused
parameters out of the model, or use `find_unused_parameters=True` with DDP.""",
        references=("PyTorch documentation, Autograd mechanics: locally disabling gradient computation.",),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        rows = flow.select(Role.PARAMETER_GRADIENT)
        if not rows:
            raise CannotJudgeError("the Flow holds no gradients of parameters")
        if all(row.status is not Status.OK for row in rows):
            yield _nothing_learns(rows)
            return
        yield from _cut_off(flow, rows)
        if _has_gradients(flow):
            yield from map(_cut_in_time, cuts_in_time(op_graph(flow)))
        for status, text in (
            (Status.FROZEN, "frozen (requires_grad is off)"),
            (Status.UNUSED, "not used by this forward pass"),
        ):
            modules = _modules(rows, status)
            if modules:
                yield _note(rows, status, modules, text)


def _nothing_learns(rows: Sequence[Row]) -> Finding:
    by_status = [
        f"{sum(row.status is status for row in rows)} {status.replace('_', ' ')}"
        for status in Status
        if status != Status.OK
    ]
    cause = Cause(
        CauseName.FROZEN_OR_DETACHED, 1.0, f"Of {count(len(rows), 'parameter')}: {', '.join(by_status)}."
    )
    return Finding(
        code=FrozenOrDetached.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.ERROR,
        site="",
        message="No parameter gets a gradient: nothing can learn.",
        causes=(cause,),
        evidence=(Evidence(cause.evidence, 0.0, None),),
        remedies=remedies([cause]),
    )


def _cut_off(flow: Flow, rows: Sequence[Row]) -> Iterator[Finding]:
    """One finding for each thing that the other side of a cut makes of what is cut off."""
    graph = op_graph(flow) if _has_gradients(flow) else None
    modules = [*_modules(rows, Status.DETACHED), *_modules(rows, Status.NOT_READ)]
    by_use: dict[Use | None, list[str]] = {}
    landings: dict[Use, Row] = {}
    for module in modules:
        part = [
            row for row in flow.select(Role.ACTIVATION) if _is_inside(row.site.path, _owner(module, flow))
        ]
        found = uses(flow, graph, part) if graph is not None and part else {}
        worst = next((use for use in (Use.FEATURES, Use.SAMPLES, Use.TARGET) if use in found), None)
        by_use.setdefault(worst, []).append(module)
        if worst is not None:
            landings.setdefault(worst, found[worst])
    for use, parts in by_use.items():
        yield _told(flow, rows, parts, use, landings.get(use) if use is not None else None)


def _cut_in_time(cut: CutInTime) -> Finding:
    name = module_name(cut.path)
    text = f"Each of {cut.calls} calls of {name} reads the state that the call before it gave, behind a cut"
    text += f"; no gradient comes to {cut.silent} of them." if cut.silent else "; each has a loss of its own."
    cause = Cause(CauseName.FROZEN_OR_DETACHED, 1.0, text)
    alarm = cut.silent > 0
    return Finding(
        code=FrozenOrDetached.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING if alarm else Severity.NOTE,
        site=cut.path,
        message=f"The state of {name} is cut off at every step: nothing is learned through time.",
        source=cut.source,
        causes=(cause,),
        evidence=(Evidence(text, float(cut.silent), 0.0),),
        remedies=("Detach the state once for each batch or chunk, not at every step.",) if alarm else (),
    )


def _told(
    flow: Flow, rows: Sequence[Row], modules: list[str], use: Use | None, reader: Row | None
) -> Finding:
    names = [row.site.path for row in rows if any(_is_inside(row.site.path, module) for module in modules)]
    severity, reason = (
        Severity.NOTE,
        "used in the forward pass, but the loss does not depend on what came of it",
    )
    if use is Use.TARGET:
        reason = "the loss compares with what they give, and no gradient goes back there"
    elif use is Use.SAMPLES and reader is not None:
        reason = (
            f"{place(reader)} reads what they give as it reads other data, and no gradient goes back there"
        )
    elif use is Use.FEATURES and reader is not None:
        reason = f"{place(reader)} learns from what they give, and no gradient goes back there"
        optimized = flow.metadata.get("optimized")
        if optimized is not None and not set(names) & set(optimized):
            reason += "; no optimizer holds them"
        else:
            severity = Severity.WARNING
    cause = Cause(CauseName.FROZEN_OR_DETACHED, 1.0, f"{listing(names)}: {reason}.")
    not_read = "not read by" if use is None else "cut off from"
    return Finding(
        code=FrozenOrDetached.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=severity,
        site=modules[0],
        message=f"{count(len(names), 'parameter')} {_are(len(names))} {not_read} the loss: "
        f"{listing([module_name(module) for module in modules])}.",
        source=_source(flow, modules[0]),
        causes=(cause,),
        evidence=(Evidence(cause.evidence, float(len(names))),),
        remedies=(*remedies([cause]), IF_MEANT) if severity.is_alarm else (),
    )


IF_MEANT = "If the cut is meant (a target network, a generator while its critic learns), freeze the part."


def _has_gradients(flow: Flow) -> bool:
    return any(row.stats is not None for row in flow.select(Role.ACTIVATION_GRADIENT))


def _owner(part: str, flow: Flow) -> str:
    """The module of a part, which may be a single parameter."""
    names = {row.site.path for row in flow.select(Role.PARAMETER_GRADIENT)}
    return part.rpartition(".")[0] if part in names else part


def _source(flow: Flow, module: str) -> str | None:
    return next(
        (r.source for r in flow.select(Role.ACTIVATION) if r.source and _is_inside(r.site.path, module)), None
    )


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _note(rows: Sequence[Row], status: Status, modules: Sequence[str], text: str) -> Finding:
    number = sum(row.status is status for row in rows)
    return Finding(
        code=FrozenOrDetached.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.NOTE,
        site=modules[0],
        message=f"{number} of {count(len(rows), 'parameter')} {_are(number)} {text}: "
        f"{listing([module_name(module) for module in modules])}.",
        causes=(Cause(CauseName.FROZEN_OR_DETACHED, 1.0, f"Status {status} in {listing(list(modules))}."),),
    )


def _modules(rows: Sequence[Row], status: Status) -> list[str]:
    """The outermost modules all of whose parameters have a status; parameters where siblings differ."""
    others = [row.site.path for row in rows if row.status is not status]
    found: dict[str, None] = {}
    for row in rows:
        if row.status is not status:
            continue
        parts = row.site.path.split(".")
        for length in range(1, len(parts) + 1):
            prefix = ".".join(parts[:length])
            if not any(_is_inside(other, prefix) for other in others):
                found[prefix] = None
                break
    return list(found)


def _is_inside(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")
