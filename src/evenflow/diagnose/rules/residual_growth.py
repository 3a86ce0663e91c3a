"""EF404: a residual stream that grows by orders of magnitude, because its branches are not scaled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from evenflow.diagnose import ops
from evenflow.diagnose.attribution import BY_SUM, NEGLIGIBLE, grown_by_sums
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import count, factor, place, site
from evenflow.diagnose.way import BLOCKS, Kind, Step, Way, in_steps, ways
from evenflow.flow import Flow, Row

NOTED = Threshold(
    1.0,
    "decades that the stream grows over its blocks, from which it is worth a note",
    "a judgement: 100 pre-LN blocks of unit branches grow by √100, one decade, and train",
)
GROWN = Threshold(
    3.0,
    "decades that the stream grows, if no normalisation takes them away, from which it is an alarm",
    "as in EF102; outputs and their gradients are a thousand times too large",
)


@dataclass(frozen=True, slots=True)
class _Stream:
    """The sums that end residual blocks, one after another."""

    first: Row
    blocks: tuple[Step, ...]
    grown: float

    @property
    def last(self) -> Row:
        return self.blocks[-1].output


@final
class ResidualGrowth(Rule):
    """Follows the size of the residual stream from block to block."""

    code = "EF404"
    name = "residual_growth"
    symptom = Symptom.EXPLODING_GRADIENT
    summary = "The residual stream grows from block to block, because branches add up unscaled."
    causes = (CauseName.RESIDUAL_GROWTH, CauseName.MISSING_NORMALIZATION, CauseName.INIT_TOO_LARGE)
    thresholds = (NOTED, GROWN, BY_SUM)
    page = Page(
        what="""\
Activations grow with depth although there are skip connections everywhere; the first loss is
huge, or later blocks hardly change what earlier ones have piled up.""",
        why="""\
Each block adds a branch as large as its input. Without a normalisation at the head of the
branch the branch grows with the stream, and every block multiplies it.""",
        mathematics="""\
x_(l+1) = x_l + f(x_l) with an independent branch of power k times the stream's: the mean
square grows by 1 + k per block. If the branch scales with the stream (no normalisation),
that is (1 + k)^L, a doubling per block for k = 1. If the branch is normalised (pre-LN), it
is 1 + kL, and the gradient falls off as polynomially.""",
        detection="""\
The RMS of the sums that end blocks, the last over the first. One decade is a *note*; three
are an alarm if nothing above takes the scale away. Branches without a normalisation share
the blame with its lack. What goes beyond a factor of √3 for each bare block, or √(1 + n) for n
that begin with a normalisation, standard weights cannot make: it is put down to the weights.""",
        remedies="""\
Scale the last weights of each branch by 1/√(2·blocks), or start them at zero (Fixup, ReZero,
SkipInit); normalise at the head of each branch.""",
        references=(
            "Zhang, Dauphin, Ma, Fixup initialization: residual learning without normalization, ICLR 2019.",
            "De, Smith, Batch normalization biases residual blocks towards the identity function in deep "
            "networks, NeurIPS 2020.",
            "Radford et al., Language models are unsupervised multitask learners, 2019, section 2.3 "
            "(the factor 1/√N).",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        streams = [stream for one in ways(graph) for stream in _streams(graph, in_steps(graph, one))]
        worst = max(streams, key=lambda stream: stream.grown, default=None)
        if worst is not None and worst.grown > NOTED.value:
            yield _finding(graph, worst)


def _streams(graph: OpGraph, way: Way) -> Iterator[_Stream]:
    """Runs of blocks without a normalisation of the stream between them."""
    first, blocks = way.first, list[Step]()
    for step in way.steps:
        if step.kind in BLOCKS:
            blocks.append(step)
        if step.kind in (Kind.NORM, Kind.POST_NORM, Kind.LINEAR):
            yield from _stream(graph, first, blocks)
            first, blocks = step.output, []
    yield from _stream(graph, first, blocks)


def _stream(graph: OpGraph, first: Row, blocks: Sequence[Step]) -> Iterator[_Stream]:
    if len(blocks) > 1:
        start, end = _size(graph, first), _size(graph, blocks[-1].output)
        if start is not None and end is not None:
            yield _Stream(first, tuple(blocks), end - start)


def _size(graph: OpGraph, row: Row) -> float | None:
    activation = graph.activations.get(row.order)
    stats = None if activation is None else activation.stats
    return stats.log10_rms if stats is not None and math.isfinite(stats.log10_rms) else None


def _finding(graph: OpGraph, stream: _Stream) -> Finding:
    blocks, free = stream.blocks, graph.scale_is_free[stream.last.order]
    rate = 10.0 ** (stream.grown / len(blocks))
    text = f"Each of {count(len(blocks), 'block')} multiplies the stream's size by {rate:.2f} on average."
    bare = [step for step in blocks if not any(row.site.op in ops.NORMS for row in step.rows)]
    by_sum = min(grown_by_sums(blocks) / stream.grown, 1.0)
    lack = 0.5 * len(bare) / len(blocks) * by_sum
    causes = [Cause(CauseName.RESIDUAL_GROWTH, by_sum - lack, text)]
    if bare:
        text = f"{count(len(bare), 'block')} of {len(blocks)} have no normalisation in their branches."
        causes.append(Cause(CauseName.MISSING_NORMALIZATION, lack, text))
    if by_sum < 1.0 - NEGLIGIBLE:
        text = f"Sums of branches with standard weights make {factor(grown_by_sums(blocks))} of that."
        causes.append(Cause(CauseName.INIT_TOO_LARGE, 1.0 - by_sum, text))
    causes.sort(key=lambda cause: -cause.confidence)
    alarm = stream.grown > GROWN.value and not free
    taken = " A normalisation above takes the scale away." if free else ""
    return Finding(
        code=ResidualGrowth.code,
        symptom=Symptom.EXPLODING_GRADIENT,
        severity=Severity.WARNING if alarm else Severity.NOTE,
        site=site(stream.last),
        message=f"The residual stream grows by a factor of {factor(stream.grown)} over "
        f"{count(len(blocks), 'block')}, up to {place(stream.last)}.",
        source=stream.last.source,
        causes=tuple(causes),
        evidence=(
            Evidence(
                f"log10 of its RMS at {place(stream.last)} over that at {place(stream.first)}: "
                f"{stream.grown:.2f} (noted above {NOTED.value:.0f}, alarm above {GROWN.value:.0f}).{taken}",
                stream.grown,
                GROWN.value if alarm else NOTED.value,
            ),
        ),
        remedies=remedies(causes),
    )
