"""EF203: deep in the network all samples look alike."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

from evenflow.diagnose.attribution import (
    DEEP,
    DEPTH_AT_LEAST,
    HALVES,
    in_a_row,
    share_of_depth,
    shares,
)
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import count, factor, place, site
from evenflow.diagnose.way import Kind, Way, in_steps, ways
from evenflow.flow import Flow, Row

ALIKE = Threshold(
    1e-8,
    "share of the mean square in which samples differ before the last layer",
    "a judgement: they differ by 1e-4 of their size, so what tells them apart learns 1e8 times slower than "
    "what they share (the condition number); LeNet with sigmoids, which trains, has 7e-7",
)
LOST = Threshold(
    1e-3,
    "of the share in which samples differ behind the first layer, above which the data are to blame",
    "a judgement, the three decades of EF101: what was never there cannot be lost",
)

_BLAME = {
    Kind.SQUASHING: (
        CauseName.SATURATING_ACTIVATION,
        "Bounded activations with a mean of their own, such as sigmoid, add the same to all samples",
    ),
    Kind.LINEAR: (
        CauseName.INIT_TOO_SMALL,
        "The weights are so small that biases, which all samples share, outweigh what they pass on",
    ),
    Kind.RECTIFIER: (CauseName.DEPTH_WITHOUT_SKIP, "Each rectifier brings samples closer together"),
    Kind.SMOOTH: (CauseName.DEPTH_WITHOUT_SKIP, "Each activation brings samples closer together"),
}


@final
class RankCollapse(Rule):
    """Compares what the last layer reads for different samples."""

    code = "EF203"
    name = "rank_collapse"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "Deep in the network all samples look alike, so the output hardly depends on the input."
    causes = (
        CauseName.SATURATING_ACTIVATION,
        CauseName.INIT_TOO_SMALL,
        CauseName.DEPTH_WITHOUT_SKIP,
        CauseName.UNKNOWN,
    )
    thresholds = (ALIKE, LOST, HALVES, DEPTH_AT_LEAST, DEEP)
    page = Page(
        what="""\
The network gives the same answer to every input. It soon learns the best constant (class
frequencies, the mean target), and the loss stays there.""",
        why="""\
What samples share grows from layer to layer, and what tells them apart shrinks: sigmoids
add the same .5 to all, biases outweigh weights that are too small, and every nonlinearity
of a plain stack moves correlated inputs closer together.""",
        mathematics="""\
With c the correlation of two samples' activations, one layer maps c to
c' = (σ_w² E[φ(u₁)φ(u₂)] + σ_b²)/q (Poole 2016). In the ordered phase c → 1 exponentially,
1 − c ~ e^(−l/ξ); at the edge of chaos and for rectifiers as 1/l². Features whose
covariance has the common part c and the distinct part 1 − c have the condition number
≥ c/(1 − c), by which gradient descent is slower for the distinct part.""",
        detection="""\
For what the last layer reads, 1 − c is measured: the share of the mean square in which
samples of the batch differ. It is an alarm below 1e-8, if the first layer's output
still told them apart: a batch of equal samples proves nothing. A normalisation over the
batch restores what differs, and then there is nothing to find. The decades lost at each
step give the blame.""",
        remedies="""\
ReLU, GELU or tanh instead of sigmoid; He or Glorot initialisation; a normalisation before
each activation; skip connections, which carry what tells samples apart past each layer.""",
        references=(
            "Poole, Lahiri, Raghu, Sohl-Dickstein, Ganguli, Exponential expressivity in deep neural networks "
            "through transient chaos, NeurIPS 2016.",
            "Schoenholz, Gilmer, Ganguli, Sohl-Dickstein, Deep information propagation, ICLR 2017.",
            "Daneshmand, Kohler, Bach, Hofmann, Lucchi, Batch normalization provably avoids rank collapse "
            "for randomly initialised deep networks, NeurIPS 2020.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        graph.refuse_without_spread()
        worst: tuple[float, Way] | None = None
        for way in ways(graph):
            start, end = _spread(graph, way.first.order), _spread(graph, _read_last(graph, way))
            if start is None or end is None or end >= min(ALIKE.value, LOST.value * start):
                continue
            if worst is None or end < worst[0]:
                worst = (end, way)
        if worst is not None:
            yield _finding(graph, worst[0], in_steps(graph, worst[1]))


def _spread(graph: OpGraph, order: int | None) -> float | None:
    row = graph.activations.get(order) if order is not None else None
    return None if row is None else row.sample_spread


def _read_last(graph: OpGraph, way: Way) -> int | None:
    """The op whose output the last layer reads."""
    route = graph.route(way.first.order)
    position = route.index(way.last.order)
    return route[position - 1] if position else None


def _finding(graph: OpGraph, end: float, way: Way) -> Finding:
    last = graph.activations[way.last.order]
    causes = _causes(graph, way)
    start = _spread(graph, way.first.order) or 0.0
    steepest = _steepest(graph, way)
    evidence = [
        Evidence(
            f"Samples differ in {end:.1e} of the mean square of what {place(last)} reads (alarm below "
            f"{ALIKE.value:.0e}); behind {place(way.first)} in {start:.1e}.",
            end,
            ALIKE.value,
        )
    ]
    if steepest is not None:
        evidence.append(
            Evidence(f"Most is lost at {place(steepest[0])}: a factor of {factor(steepest[1])}.", steepest[1])
        )
    where = steepest[0] if steepest is not None else last
    return Finding(
        code=RankCollapse.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING,
        site=site(where),
        message=f"All samples look alike to {place(last)}: the output hardly depends on the input.",
        source=where.source,
        causes=causes,
        evidence=tuple(evidence),
        remedies=remedies(causes),
    )


def _drops(graph: OpGraph, way: Way) -> Iterator[tuple[Row, Kind, float]]:
    """What each step before the last layer does to the spread, in decades lost."""
    outputs = [way.first, *(step.output for step in way.steps)]
    for (before, step), output in zip(zip(outputs, way.steps, strict=False), outputs[1:], strict=False):
        a, b = _spread(graph, before.order), _spread(graph, output.order)
        if a and b is not None and output.order != way.last.order:
            lost = math.log10(a / b) if b > 0.0 else -math.log10(ALIKE.value)
            yield graph.activations[output.order], step.kind, lost


def _steepest(graph: OpGraph, way: Way) -> tuple[Row, float] | None:
    found = [(row, lost) for row, _, lost in _drops(graph, way)]
    return max(found, key=lambda one: one[1], default=None)


def _causes(graph: OpGraph, way: Way) -> tuple[Cause, ...]:
    amounts: dict[CauseName, float] = {}
    texts: dict[CauseName, str] = {}
    for _, kind, lost in _drops(graph, way):
        name, text = _BLAME.get(kind, (CauseName.UNKNOWN, "Other steps bring samples closer together"))
        amounts[name] = amounts.get(name, 0.0) + lost
        texts.setdefault(name, text)
    total = sum(amounts.values())
    told = {name: f"{texts[name]}: {_part(amount, total)}." for name, amount in amounts.items()}
    found = shares(amounts, told)
    depth = share_of_depth(way, total)
    if depth and found and all(cause.name is not CauseName.DEPTH_WITHOUT_SKIP for cause in found):
        scaled = [Cause(one.name, (1.0 - depth) * one.confidence, one.evidence) for one in found]
        found = (*scaled, Cause(CauseName.DEPTH_WITHOUT_SKIP, depth, in_a_row(way)))
    unknown = Cause(CauseName.UNKNOWN, 1.0, f"It is lost within {count(way.layers, 'layer')}.")
    return tuple(sorted(found, key=lambda cause: -cause.confidence)) or (unknown,)


def _part(lost: float, total: float) -> str:
    """What one kind of step loses, beside what all lose together; others may bring some back."""
    if lost > total:
        return f"{lost:.1f} decades, of which other steps bring {lost - total:.1f} back"
    return f"{lost:.1f} of {total:.1f} decades"
