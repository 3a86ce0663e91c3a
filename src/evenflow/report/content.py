"""What a report is about, and what it says in words.

A :class:`ReportContent` is all that a renderer gets. The functions here and in
:mod:`evenflow.report.figures` turn it into the plain words and numbers that the
terminal, the HTML page and the JSON text show alike. They count and arrange;
what is healthy was decided by the rules.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evenflow.diagnose.finding import Cause, Diagnosis, Finding, Severity
from evenflow.flow import Flow, Role, Run, Status
from evenflow.report.figures import end_to_end
from evenflow.report.text import decades, factor, place_name, plural, printable, words


@dataclass(frozen=True, slots=True)
class ReportContent:
    """One step of one model, and what the rules said of it.

    Attributes:
        flow: The table that is shown.
        diagnosis: Findings, and rules that could not judge.
        title: What was checked; the model's name from ``flow.metadata`` if empty.
        predicted: A second table to lay over the first, place by place.
        explanations: Rule code → explanation in Markdown, for the codes that were found.
        run: The training that the step is the last sampled one of, if it is one.
    """

    flow: Flow
    diagnosis: Diagnosis
    title: str = ""
    predicted: Flow | None = None
    explanations: Mapping[str, str] = field(default_factory=dict)
    run: Run | None = None

    @property
    def name(self) -> str:
        """The title, the model's name, or ``model``."""
        return printable(self.title or str(self.flow.metadata.get("model") or "") or "model")


@dataclass(frozen=True, slots=True)
class Fact:
    """One figure of the summary."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that the report does not cover.

    Attributes:
        title: What kind of gap.
        names: The places or rules concerned.
        reason: Why, in a sentence.
    """

    title: str
    names: tuple[str, ...] = ()
    reason: str = ""


def severity(diagnosis: Diagnosis) -> Severity | None:
    """The worst severity among the alarms; None without an alarm."""
    order = list(Severity)
    return max((finding.severity for finding in diagnosis.alarms), key=order.index, default=None)


def headline(diagnosis: Diagnosis) -> str:
    """The verdict in one line: how many findings of each severity, and which symptoms."""
    blind = plural(len(diagnosis.skipped), "rule")
    clean = "No problem found" + (f" ({blind} could not judge)" if diagnosis.skipped else "")
    if not diagnosis.findings:
        return clean
    counts = [
        plural(number, level.value)
        for level in reversed(Severity)
        if (number := sum(finding.severity is level for finding in diagnosis.findings))
    ]
    alarms = diagnosis.alarms
    shown = alarms or diagnosis.findings
    symptoms = ", ".join(dict.fromkeys(words(finding.symptom) for finding in shown))
    text = f"{', '.join(counts)}: {symptoms}"
    return text if alarms else f"{clean}; {text}"


def verdict_word(cause: Cause) -> str:
    """Whether a cause was tested by an intervention, and what came of it."""
    if cause.trial is not None:
        return cause.trial.verdict.value
    if cause.confirmed is None:
        return "suspected"
    return "confirmed by intervention" if cause.confirmed else "refuted by intervention"


def subject(content: ReportContent) -> str:
    """What was looked at, in a line: the source of the numbers and the state of the model."""
    metadata = content.flow.metadata
    measured = "one batch, measured" if content.run is None else "a training run; tables are of its last step"
    parts = [
        measured if content.flow.source == "measured" else "predicted, nothing was run",
        *(["with the prediction beside it"] if content.predicted is not None else []),
    ]
    if isinstance(metadata.get("training"), bool):
        parts.append("train mode" if metadata["training"] else "eval mode")
    parts += [printable(str(metadata[key])) for key in ("device",) if metadata.get(key)]
    if metadata.get("autocast"):
        parts.append(f"autocast {printable(str(metadata['autocast']))}")
    return " · ".join(parts)


def facts(content: ReportContent) -> tuple[Fact, ...]:
    """The few figures that a reader looks for first; those that are not known are left out."""
    flow = content.flow
    result = [] if content.run is None else run_facts(content.run)
    loss = flow.metadata.get("loss") if content.run is None else None
    if isinstance(loss, int | float):
        result.append(Fact("loss", f"{loss:.4g}" if math.isfinite(loss) else str(float(loss))))
    total = end_to_end(flow)
    if total is not None:
        note = f"{decades(total)} decades" if math.isfinite(total) else ""
        result.append(Fact("gradient, loss → input", factor(total), note))
    status = list(flow.status().values())
    if status:
        reached = sum(s is Status.OK for s in status)
        result.append(Fact("parameters with a gradient", f"{reached} of {len(status)}"))
    dtypes = sorted({row.dtype for row in flow.select(Role.PARAMETER)})
    if dtypes:
        result.append(Fact("parameter format", printable(", ".join(dtypes))))
    return tuple(result)


def run_facts(run: Run) -> list[Fact]:
    """How long it was, what became of its losses, and how often it skipped a step."""
    last = max((int(series.steps[-1]) for series in run.scalars.values()), default=None)
    found = []
    if last is not None:
        found.append(Fact("steps", str(last + 1), f"{len(run.steps)} sampled"))
    for name, series in run.scalars.items():
        if name.partition("/")[0] == "loss":
            found.append(Fact(words(name), f"{series.values[0]:.4g} → {series.values[-1]:.4g}"))
    kinds = Counter(event.kind for event in run.events)
    if kinds:
        told = ", ".join(f"{words(kind)} {number}" for kind, number in kinds.items())
        found.append(Fact("events", str(kinds.total()), told))
    return found


def gaps(content: ReportContent) -> tuple[Gap, ...]:
    """What was not covered: parameters without gradient, notes, rules that did not judge, suppressions."""
    result = []
    status = content.flow.status()
    for state, why in _REASONS.items():
        names = tuple(place_name(path) for path, found in status.items() if found is state)
        if names:
            result.append(Gap(f"{plural(len(names), 'parameter')} {state.value}", names, why))
    for table in (content.flow, content.predicted):
        if table is not None:
            result += [Gap(f"note, {table.source}", reason=printable(note)) for note in table.notes]
    result += _unmatched(content)
    result += [
        Gap(f"rule {printable(skipped.code)} did not judge", reason=printable(skipped.reason))
        for skipped in content.diagnosis.skipped
    ]
    result += [
        Gap(f"{one.finding.code} suppressed", (place_name(one.finding.site),), printable(one.reason))
        for one in content.diagnosis.suppressed
    ]
    return tuple(result)


def flagged(findings: Sequence[Finding], places: Mapping[str, str]) -> dict[str, Finding]:
    """Which places of a picture a finding points at; the worst finding of each.

    Args:
        findings: Worst first.
        places: Place → module path, for the places in the picture.
    """
    by_path: dict[str, str] = {}
    for place, path in places.items():
        by_path.setdefault(path, place)
    marked: dict[str, Finding] = {}
    for finding in findings:
        module = finding.site.partition(":")[0].partition("#")[0]
        owner = finding.site.rpartition(".")[0]
        candidates = (
            finding.site,
            by_path.get(finding.site),
            module,
            by_path.get(module),
            by_path.get(owner),
        )
        target = next((c for c in candidates if c in places), None)
        if target is not None:
            marked.setdefault(target, finding)
    return marked


def _unmatched(content: ReportContent) -> list[Gap]:
    """Places that only one of the two tables has, so that no curve lies over the other there."""
    if content.predicted is None:
        return []
    own, other = (table.stats(Role.ACTIVATION_GRADIENT) for table in (content.flow, content.predicted))
    found = [
        (tuple(place_name(place) for place in own if place not in other), "not predicted"),
        (tuple(place_name(place) for place in other if place not in own), "predicted but not measured"),
    ]
    return [
        Gap(f"{plural(len(places), 'place')} {what}", places, "Only one curve shows them.")
        for places, what in found
        if places
    ]


_REASONS = {
    Status.FROZEN: "requires_grad is off, so no gradient is computed.",
    Status.UNUSED: "No op of the forward pass read them.",
    Status.DETACHED: "The forward pass read them, but no gradient came back.",
}
