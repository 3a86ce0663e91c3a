"""EF204: all tokens of a sequence have become alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import count, place, site
from evenflow.flow import Flow, Row

ALIKE = Threshold(
    1e-8,
    "share of the mean square in which the tokens of a sample differ, after the last attention",
    "as in EF203: tokens then differ by 1e-4 of their size",
)
LOST = Threshold(
    1e-3,
    "of the share in which tokens differed at first, above which the data are to blame",
    "as in EF203",
)


@final
class TokenCollapse(Rule):
    """Compares the tokens within samples, before and after the attention layers."""

    code = "EF204"
    name = "token_collapse"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "The tokens of a sequence have become alike, so attention has nothing left to tell apart."
    causes = (CauseName.ATTENTION_COLLAPSE, CauseName.DEPTH_WITHOUT_SKIP)
    thresholds = (ALIKE, LOST)
    page = Page(
        what="""\
Every position of a transformer's output says the same. Queries and keys of all positions
agree, so their weights get no gradient, and the loss stays at that of a model without
order.""",
        why="""\
Attention averages over tokens. Without something that carries each token past it, repeated
averaging leaves the mean alone: attention without skip connections, or branches that
outweigh the skip by far.""",
        mathematics="""\
A softmax row is a convex combination, so attention contracts the distances between
tokens: without skips the residual to a rank-one matrix falls doubly exponentially with
depth, ‖res(X_L)‖ ≤ (4γβ/√d)^((3^L−1)/2) ‖res(X)‖^(3^L) (Dong 2021). With skips of weight
1/√L the similarity of tokens stays bounded (Noci 2022).""",
        detection="""\
Of tensors [batch, tokens, units] that later layers read, in models with attention, the share
of the mean square in which the tokens of one sample differ is compared, the last with the
first. There is an alarm below 1e-8, if tokens differed at first. Pooling, which is meant
to make one of many, ends the comparison.""",
        remedies="""\
Skip connections around every attention; branches scaled by 1/√(2·blocks); pre-LN; position
embeddings that are not too small beside the token embeddings.""",
        references=(
            "Dong, Cordonnier, Loukas, Attention is not all you need: pure attention loses rank doubly "
            "exponentially with depth, ICML 2021.",
            "Noci, Anagnostidis, Biggio, Orvieto, Singh, Lucchi, Signal propagation in transformers, "
            "NeurIPS 2022.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        graph.refuse_without_spread()
        attention = [row.order for row in graph.activations.values() if graph.is_attention(row)]
        rows = [
            row
            for order, row in graph.activations.items()
            if order in graph.gradients and row.token_spread is not None and graph.is_hidden(row)
        ]
        for last in reversed(rows):
            first = next(row for row in rows if _tokens(row) == _tokens(last))
            if any(first.order < order < last.order for order in attention):
                if _collapsed(first, last):
                    yield _finding(graph, first, last, [order for order in attention if order < last.order])
                return


def _tokens(row: Row) -> tuple[int, ...]:
    """Samples, and tokens in each."""
    return row.shape[:2]


def _collapsed(first: Row, last: Row) -> bool:
    start, end = first.token_spread, last.token_spread
    return start is not None and end is not None and end < ALIKE.value and end < LOST.value * start


def _finding(graph: OpGraph, first: Row, last: Row, attention: list[int]) -> Finding:
    values = [entropy for order in attention if (entropy := graph.activations[order].entropy) is not None]
    even = f", with entropies from {min(values):.2f} of the largest" if values else ""
    cause = Cause(
        CauseName.ATTENTION_COLLAPSE,
        1.0,
        f"{count(len(attention), 'attention op')} lie before it{even}; repeated averaging leaves the mean.",
    )
    return Finding(
        code=TokenCollapse.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING,
        site=site(last),
        message=f"All tokens of a sequence are alike at {place(last)}.",
        source=last.source,
        causes=(cause,),
        evidence=(
            Evidence(
                f"The tokens of one sample differ in {last.token_spread:.1e} of the mean square of "
                f"{place(last)} (alarm below {ALIKE.value:.0e}); at {place(first)} in "
                f"{first.token_spread:.1e}.",
                last.token_spread,
                ALIKE.value,
            ),
        ),
        remedies=("Put a skip connection around every attention.", *remedies([cause])),
    )
