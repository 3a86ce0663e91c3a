"""EF505: targets that lie outside of what the output's activation can give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from evenflow.diagnose import ops
from evenflow.diagnose.data import CLASSIFIED, output_of, targets
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import number, percent, place, site
from evenflow.flow import Flow, Role, Row, Stats

BEYOND = Threshold(
    0.01,
    "share of the targets that are at least twice as large as any output can be",
    "a judgement: one in a hundred is no outlier; of standardised targets 4.6 % lie beyond 2, of those "
    "divided by their largest none",
)
ROUNDED = Threshold(
    1.00001,
    "mean square of the targets over their mean, above which some lie outside of 0 … 1",
    "y² ≤ y for all y within, and for no other; a few roundings are allowed",
)
UNREACHED = Threshold(
    0.1,
    "of the variance of the targets that no output within the range can explain, as their mean and mean "
    "square prove",
    "a judgement: R² cannot exceed .9 then; targets within the range leave 0 for certain",
)
GUESSED = Threshold(
    0.5,
    "of what guessing costs, which cross-entropy is left with at least, however well the model tells classes",
    "a judgement: bare cosines are at .35 with 10 classes, and at .58 with 96",
)

_RANGE = {
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    **dict.fromkeys(ops.SOFTMAX, (0.0, 1.0)),
    "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
}
_PASSES = frozenset({"select", "slice", "index", "index_select", "gather", "expand", "squeeze"})
_UNIT = 1e-3
"""Relative error within which the mean square of normalised vectors is 1/width, half precision included."""
_PROBABILITY_LOSSES = frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits"})


@dataclass(frozen=True, slots=True)
class _Misfit:
    """A target that an output cannot reach."""

    output: Row
    severity: Severity
    message: str
    evidence: Evidence
    remedy: str


@final
class BoundedOutput(Rule):
    """Compares the range of the last activation with the targets."""

    code = "EF505"
    name = "bounded_output"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "Targets lie outside of what the output, or the loss, allows, or logits lie too close together."
    causes = (CauseName.WRONG_LOSS_OR_OUTPUT,)
    thresholds = (BEYOND, UNREACHED, ROUNDED, GUESSED)
    page = Page(
        what="""\
The loss falls at first and then stays high, while all outputs stick to the end of their range,
where the activation has no slope; or the loss is negative and falls for ever.""",
        why="""\
A regression whose model ends in sigmoid, softmax or tanh, but whose targets are prices or
standardised values; labels −1 and 1, or 1 to 5, in a loss that expects probabilities. Or a
softmax over cosines without a temperature below 1: they differ by 2 at most, too little to be
sure of one class.""",
        mathematics="""\
σ(z) < 1, so a target y > 1 leaves at least (y − 1)² however long one trains, and the gradient
(σ − y)σ' drives z to infinity, where σ' = 0. How far targets lie outside of [a, b] shows in two
moments: with d the distance to the range, (y − a)(y − b) is at most d² + (b − a)d, so that
s² + (b − a)s is no less than its mean, where s² is the mean of d²: the least squared error. Binary
cross-entropy −y log p − (1−y) log(1−p) is unbounded below as soon as y is outside [0, 1].
Logits of C classes that differ by w at most leave ln(1 + (C−1)e^−w) of the ln C that guessing costs.""",
        detection="""\
Under a squared or absolute error the last activation is read from the graph and its range
compared with the targets: it is a *warning* if more than one in a hundred is at least twice
the largest output, if the mean target is beyond the range, or if a tenth of the targets'
variance is out of reach for certain (38 % of standardised targets' for a sigmoid). Under a
cross-entropy, logits that are cosines or come of tanh, times a constant, are a *warning* if they leave
half of what guessing costs.
Targets outside [0, 1] in a binary cross-entropy are an *error*. That a bounded output
under a squared error saturates even for targets within its range is EF502's matter.""",
        remedies="""\
End in a linear layer for a regression, or scale the targets into the range; give labels 0 and
1 to binary cross-entropy, and class indices to `cross_entropy`. Divide cosines by a temperature
of .05 to .1, or learn it.""",
        references=(
            "Bishop, Pattern recognition and machine learning, 2006, section 5.2 (output activations and "
            "error functions).",
            "Wang, Xiang, Cheng, Yuille, NormFace: L2 hypersphere embedding for face verification, ACM MM "
            "2017 (the least cross-entropy of normalised features).",
            "Humbatova et al., Taxonomy of real faults in deep learning systems, ICSE 2020.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        for misfit in (
            *_out_of_range(flow, graph),
            *_no_probabilities(flow, graph),
            *_too_close(graph),
        ):
            cause = Cause(CauseName.WRONG_LOSS_OR_OUTPUT, 1.0, misfit.evidence.text)
            yield Finding(
                code=self.code,
                symptom=self.symptom,
                severity=misfit.severity,
                site=site(misfit.output),
                message=misfit.message,
                source=misfit.output.source,
                causes=(cause,),
                evidence=(misfit.evidence,),
                remedies=(misfit.remedy,),
            )


def _out_of_range(flow: Flow, graph: OpGraph) -> Iterator[_Misfit]:
    for row, target in targets(flow, graph):
        output = output_of(graph, row)
        while output is not None and output.site.op in _PASSES:
            output = next(iter(graph.sources(output)), None)
        if output is None or output.site.op not in _RANGE or target.stats is None:
            continue
        low, high = _RANGE[output.site.op]
        share, left = _beyond(target.stats), _unreached(target.stats, low, high)
        evidence = Evidence(
            f"{percent(share)} of the targets are 2 or more in size; their mean is "
            f"{number(target.stats.mean)}.",
            share,
            BEYOND.value,
        )
        if share <= BEYOND.value and left > UNREACHED.value:
            text = (
                f"Targets of mean {number(target.stats.mean)} and RMS {number(target.stats.rms)} leave "
                f"{percent(left)} of their variance at least, whatever the outputs are."
            )
            evidence = Evidence(text, left, UNREACHED.value)
        if share > BEYOND.value or left > UNREACHED.value or not low <= target.stats.mean <= high:
            yield _Misfit(
                output,
                Severity.WARNING,
                f"The outputs of {place(output)} lie between {low:.0f} and {high:.0f}, and the targets do "
                "not.",
                evidence,
                "Let the model end in a linear layer, or scale the targets into the range of its outputs.",
            )


def _no_probabilities(flow: Flow, graph: OpGraph) -> Iterator[_Misfit]:
    for target in flow.select(Role.DATA):
        row = graph.gradients.get(target.order)
        if row is None or row.site.op not in _PROBABILITY_LOSSES or target.stats is None:
            continue
        stats, output = target.stats, output_of(graph, row)
        if output is not None and stats.mean_square > stats.mean * ROUNDED.value:
            yield _Misfit(
                output,
                Severity.ERROR,
                f"{row.site.op} gets targets outside 0 … 1, so its loss has no lower end.",
                Evidence(
                    f"The targets have a mean of {number(stats.mean)} and reach "
                    f"{number(stats.abs_max or 0.0)} in size.",
                    stats.abs_max,
                    1.0,
                ),
                "Give it labels 0 and 1; for several classes use cross_entropy with their indices.",
            )


def _too_close(graph: OpGraph) -> Iterator[_Misfit]:
    """Logits that can differ by so little that cross-entropy stays near what guessing costs."""
    for row in graph.gradients.values():
        scores = output_of(graph, row) if row.site.op in CLASSIFIED else None
        logits = output_of(graph, scores) if scores is not None else None
        if logits is None or len(logits.shape) < 2:
            continue
        apart, classes = _apart(graph, logits), logits.shape[1]
        if apart is None or classes < 2:
            continue
        least, guess = math.log1p((classes - 1) * math.exp(-apart)), math.log(classes)
        if least > GUESSED.value * guess:
            text = (
                f"The logits of {classes} classes differ by {number(apart)} at most, which leaves a loss of "
                f"{number(least)}; guessing costs {number(guess)}."
            )
            yield _Misfit(
                logits,
                Severity.WARNING,
                f"The logits of {place(logits)} are bounded so closely that the loss cannot leave "
                f"{number(least)}.",
                Evidence(text, least / guess, GUESSED.value),
                "Divide cosines by a temperature of .05 to .1, or learn it; leave logits unbounded.",
            )


def _apart(graph: OpGraph, row: Row) -> float | None:
    """How far two entries of an output can be apart at most; None if nothing bounds it."""
    scale = 1.0
    while row.order in graph.gradients:
        sources = graph.sources(row)
        if graph.is_constant_factor(row) and row.stats is not None and sources[0].stats is not None:
            scale *= row.stats.rms / sources[0].stats.rms
        elif row.site.op == "tanh" or _is_cosine(graph, row, sources):
            return 2.0 * scale
        elif row.site.op not in _PASSES or not sources:
            return None
        row = sources[0]
    return None


def _is_cosine(graph: OpGraph, row: Row, factors: Sequence[Row]) -> bool:
    """Whether an op multiplies vectors that were divided by their norms, with others or with themselves."""
    if row.site.op not in ("mm", "bmm", "matmul") or not factors or row.stats is None:
        return False
    if len(factors) == 1 and not math.isclose(row.stats.abs_max or 0.0, 1.0, rel_tol=_UNIT):
        return False  # times data, that is
    width = factors[0].shape[-1]
    return all(
        one.site.op == "div"
        and any(graph.measures_scale(order) for order in one.inputs)
        and one.stats is not None
        and math.isclose(one.stats.mean_square * width, 1.0, rel_tol=_UNIT)
        for one in factors
    )


def _unreached(stats: Stats, low: float, high: float) -> float:
    """Share of the targets' variance that no output within a range explains, at least."""
    variance, width = stats.mean_square - stats.mean**2, high - low
    outside = max(stats.mean_square - (low + high) * stats.mean + low * high, 0.0)
    distance = (math.sqrt(width**2 + 4.0 * outside) - width) / 2.0
    return min(distance**2 / variance, 1.0) if variance > 0.0 else 0.0


def _beyond(stats: Stats) -> float:
    """Share of entries of size 2 or more."""
    exponents = stats.exponents
    if exponents is None:
        return 1.0 if stats.rms > 2.0 else 0.0
    return sum(n for k, n in enumerate(exponents.counts) if exponents.low + k >= 1) / max(stats.count, 1)
