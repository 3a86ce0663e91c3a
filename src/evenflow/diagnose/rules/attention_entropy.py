"""EF205: attention that looks at one key only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from evenflow.diagnose import ops
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.rule import CannotJudgeError, Page, Rule, Threshold
from evenflow.diagnose.text import listing, place, site
from evenflow.flow import Flow, Row

SHARP = Threshold(
    0.2,
    "mean entropy of an attention's rows, as a share of that of even rows",
    "a judgement, above the .138 of independent normal scores of standard deviation 8 over 64 keys "
    "(simulated), which unit queries and keys give without the division by √64",
)
MOST = Threshold(
    0.5,
    "share of the attention layers from which it is an alarm and not a note",
    "a judgement: trained heads may look at single keys, but not all layers do",
)


@final
class AttentionEntropy(Rule):
    """Looks at the entropy of every attention."""

    code = "EF205"
    name = "attention_entropy"
    symptom = Symptom.SATURATION
    summary = "Attention looks at one key only: its softmax is saturated and passes almost no gradient."
    causes = (CauseName.ATTENTION_COLLAPSE,)
    thresholds = (SHARP, MOST)
    page = Page(
        what="""\
Each query gives all its weight to a single key, whichever has the largest score. Queries
and keys get almost no gradient, so the choice stays as chance made it; in training the
loss is unstable.""",
        why="""\
The scores are too large: the division by √d_head is missing, queries and keys have grown
(a learning rate that is too high, no QK-norm), or the inputs are off scale.""",
        mathematics="""\
A row of attention is p = softmax(s), its entropy H = −Σ p log p lies between 0 (one key)
and log n (n keys alike). The gradient at the scores is p ⊙ (g − ⟨p, g⟩), and all of it
vanishes as p tends to one key. q·k of independent unit entries has standard deviation
√d. The bound on the entropy falls exponentially with the spectral norm of W_Q W_Kᵀ
(Zhai 2023).""",
        detection="""\
H / log n, averaged over samples, heads and queries, with masked keys left out; of fused
attention it is computed for up to 64 queries. Below a fifth in one layer it is a note,
for trained heads may be sharp with good reason; in half of the layers or more it is an
alarm. Attention that is almost even is how training begins, and raises none.""",
        remedies="""\
Divide scores by √d_head; normalise queries and keys (QK-norm); standardise inputs; lower
the learning rate and warm it up.""",
        references=(
            "Vaswani et al., Attention is all you need, NeurIPS 2017, section 3.2.1.",
            "Zhai et al., Stabilizing transformer training by preventing attention entropy collapse, "
            "ICML 2023.",
            "Dehghani et al., Scaling vision transformers to 22 billion parameters, ICML 2023 (QK-norm).",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        attention = [row for row in graph.activations.values() if graph.is_attention(row)]
        judged = [row for row in attention if row.entropy is not None]
        if attention and not judged and any(row.shape[-1] > 1 for row in attention):
            raise CannotJudgeError("the Flow does not hold the entropy of attention")
        sharp = [row for row in judged if row.entropy is not None and row.entropy < SHARP.value]
        if sharp:
            yield _finding(graph, sharp, len(judged))


def _finding(graph: OpGraph, sharp: list[Row], judged: int) -> Finding:
    worst = min(sharp, key=lambda row: row.entropy or 0.0)
    scores = next((row for row in graph.sources(worst) if worst.site.op in ops.SOFTMAX), None)
    text = "Its scores are so far apart that the largest takes all"
    if scores is not None and scores.stats is not None and scores.stats.abs_max is not None:
        text = f"Its scores reach {scores.stats.abs_max:.3g} in size; a few are enough to tell keys apart"
    cause = Cause(CauseName.ATTENTION_COLLAPSE, 1.0, f"{text}.")
    return Finding(
        code=AttentionEntropy.code,
        symptom=Symptom.SATURATION,
        severity=Severity.WARNING if len(sharp) >= MOST.value * judged else Severity.NOTE,
        site=site(worst),
        message=f"{place(worst)} looks at one key only: it passes almost no gradient to queries and keys.",
        source=worst.source,
        causes=(cause,),
        evidence=(
            Evidence(
                f"The mean entropy of its rows is {worst.entropy or 0.0:.2g} of that of even ones (looked at "
                f"below {SHARP.value:g}).",
                worst.entropy,
                SHARP.value,
            ),
            Evidence(
                f"So it is in {len(sharp)} of {judged} attention ops: "
                f"{listing([place(row) for row in sharp])}.",
                len(sharp) / judged,
                MOST.value,
            ),
        ),
        remedies=remedies([cause]),
    )
