"""EF403: a deep stack whose normalisations come after the additions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import count, place, site
from evenflow.diagnose.way import Kind, Way, in_steps, ways
from evenflow.flow import Flow, Row

DEEPER = Threshold(
    24.0,
    "normalisations after an addition, above which it is worth a note",
    "two in each of 12 layers: in Liu 2020 post-LN of 12 layers converges with warm-up, of 18 it diverges",
)


@final
class PostLnDepth(Rule):
    """Counts the residual blocks whose sum is normalised."""

    code = "EF403"
    name = "post_ln_depth"
    symptom = Symptom.VANISHING_GRADIENT
    summary = "A deep transformer normalises after each addition (post-LN), which is delicate to train."
    causes = (CauseName.POST_LN_DEPTH,)
    thresholds = (DEEPER,)
    page = Page(
        what="""\
A deep transformer of the original design diverges early in training, or needs a long warm-up
and a small learning rate, where the same with normalised branches trains at once.""",
        why="""\
With LN(x + f(x)) no path leads from the loss to the first block without crossing every
normalisation, and each scales the skip down. The updates of all blocks shake the output
together.""",
        mathematics="""\
A block LN(αx + f(x)) with branch power k_f multiplies the mean square of the gradient by
(α² + k_b)/(α² + k_f), and the skip alone carries α²/(α² + k_f) of it: half per block if
branch and skip are alike. N blocks leave 2^−N. DeepNorm's α = (2N)^¼ and branches scaled
by (8N)^−¼ keep the product of order 1.""",
        detection="""\
Normalisations whose input is the sum that ends a residual block are counted along the
gradient's way. More than 24, that is 12 layers with two each, are a *note*: BERT-large has
48 and trains, with warm-up. If the gradient does vanish, EF101 says so and puts what these
steps lose on post-LN.""",
        remedies="""\
Move the normalisation to the head of each branch (pre-LN), with one at the end; or use
DeepNorm's factors, Admin, T-Fixup; warm the learning rate up.""",
        references=(
            "Xiong et al., On layer normalization in the transformer architecture, ICML 2020.",
            "Liu, Liu, Gao, Chen, Han, Understanding the difficulty of training transformers, EMNLP 2020.",
            "Wang et al., DeepNet: scaling transformers to 1,000 layers, 2022.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        found = [(way, _post_norms(way)) for way in (in_steps(graph, one) for one in ways(graph))]
        way, norms = max(found, key=lambda one: len(one[1]), default=(None, []))
        if way is not None and len(norms) > DEEPER.value:
            yield _finding(way, norms)


def _post_norms(way: Way) -> list[Row]:
    return [step.output for step in way.steps if step.kind is Kind.POST_NORM]


def _finding(way: Way, norms: list[Row]) -> Finding:
    cause = Cause(
        CauseName.POST_LN_DEPTH,
        1.0,
        f"From {place(norms[0])} to {place(norms[-1])}; measured are {way.plain:+.1f} decades between the "
        "first layer and the last.",
    )
    return Finding(
        code=PostLnDepth.code,
        symptom=Symptom.VANISHING_GRADIENT,
        severity=Severity.NOTE,
        site=site(norms[0]),
        message=f"{count(len(norms), 'normalisation')} after additions lie on the gradient's way (post-LN).",
        source=norms[0].source,
        causes=(cause,),
        evidence=(Evidence(cause.evidence, float(len(norms)), DEEPER.value),),
    )
