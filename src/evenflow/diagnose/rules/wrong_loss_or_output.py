"""EF502: the last activation and the loss do not fit together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from evenflow.diagnose import ops
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import CAUSES
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.softmax_axis import ROUNDING, over_samples
from evenflow.diagnose.text import listing, percent, place, site
from evenflow.diagnose.zero_gradient import is_zero
from evenflow.flow import FORMATS, LOSS_PATH, Flow, Row

FLAT = Threshold(
    0.5,
    "share of saturated outputs from which a bounded output under a squared error is an alarm and not a note",
    "as in EF201: the typical output then passes less than a tenth of the gradient",
)
OFF_SCALE = Threshold(
    10.0,
    "RMS of the inputs from which they, and not the loss, are blamed for a gradient of exactly zero",
    "as in EF201: ten times the size that every initialisation assumes",
)

_PASSES = frozenset(
    {"select", "slice", "index", "index_select", "gather", "expand", "clamp", "masked_select"}
)
_BOUNDED = frozenset({"sigmoid", "tanh", "hardsigmoid", "hardtanh"})
_CUTS_OFF = frozenset({"relu", "threshold"})
_READS_LOGARITHMS = frozenset({"nll_loss_forward", "nll_loss2d_forward", "nll_loss_nd", "nll_loss"})
_LOGIT_LOSS = {
    "_log_softmax": "cross_entropy",
    "binary_cross_entropy_with_logits": "binary_cross_entropy_with_logits",
}


@dataclass(frozen=True, slots=True)
class _Fault:
    row: Row
    severity: Severity
    message: str
    evidence: str
    remedy: str
    cause: CauseName = CauseName.WRONG_LOSS_OR_OUTPUT


@final
class WrongLossOrOutput(Rule):
    """Reads the last ops before and inside the loss."""

    code = "EF502"
    name = "wrong_loss_or_output"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "The last activation and the loss do not fit together."
    causes = (
        CauseName.WRONG_LOSS_OR_OUTPUT,
        CauseName.ZERO_INIT_SYMMETRY,
        CauseName.UNSCALED_INPUT,
        CauseName.PRECISION_UNDERFLOW,
    )
    thresholds = (FLAT, OFF_SCALE, ROUNDING)
    page = Page(
        what="""\
Training runs without an error, but the loss cannot fall below some value, falls slowly,
or has no gradient at all: the loss function expects something else than the model
puts out. Collections of faults met in practice list this as the most frequent one.""",
        why="""\
PyTorch's losses differ in what they take: `cross_entropy` and
`binary_cross_entropy_with_logits` take logits and apply softmax or sigmoid
themselves, `nll_loss` takes log-probabilities, `binary_cross_entropy`
probabilities. Code that comes from a library with other conventions, or a model that
already ends in an activation, feeds them the wrong one.""",
        mathematics="""\
* The logarithm of an output that may be 0 or negative is infinite or undefined.
* Softmax over one unit is e^z/e^z = 1, whatever z: no gradient.
* Softmax twice: inputs in [0, 1] give a largest probability of e/(e+K−1), .23 for
  K = 10, so the loss stays above 1.46.
* A sigmoid before a logit loss: σ(σ(z)) lies in (.5, .73), so label 0 is never met.
* A rectifier before a logit loss: no logit below zero, and units at zero have no
  gradient.
* −p instead of −log p: the gradient p(1−p) dies where the prediction is most wrong.
* Raw logits in `nll_loss`: −z falls without end.
* Softmax over the samples instead of the classes: an answer depends on the rest of its batch.
* (σ(z) − y)²: the gradient has a factor σ'(z) that vanishes where the output is
  saturated, also when it is wrong; cross-entropy cancels that factor.""",
        detection="""\
The op that feeds the loss is read from the graph; selecting, slicing and clamping are
looked through, arithmetic is not (a scaled tanh is a common, sound logit). A constant
output and raw logits in nll_loss are *errors*. Two activations in a row, a bounded or cut-off logit,
or a softmax whose mean proves that it is one over the samples, are *warnings*: such nets learn,
slowly. A sigmoid or softmax under
a squared error is common practice in autoencoders and small textbook nets, hence a
*note*, and a warning only if most outputs are saturated. Applying log-softmax twice
changes nothing and is a note. A loss with no gradient at all is a warning unless it
is zero, when nothing is left to learn on this batch; if it ends at a product whose factors
are all zero, the weights that made them were initialised with zeros (an *error*).""",
        remedies="""\
Let the model end in a linear layer and give its logits to `cross_entropy` (classes) or
`binary_cross_entropy_with_logits` (yes or no). Apply softmax or sigmoid only to
predict. For one output unit use the binary loss, or two units with `cross_entropy`.""",
        references=(
            "Humbatova et al., Taxonomy of real faults in deep learning systems, ICSE 2020.",
            "Cao et al., DeepFD: automated fault diagnosis and localization for deep learning "
            "programs, ICSE 2022.",
            "Nielsen, Neural networks and deep learning, 2015, chapter 3 (the cross-entropy cost function).",
            "PyTorch documentation of torch.nn.functional: cross_entropy, nll_loss, binary_cross_entropy.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        faults = list(_constant_outputs(graph))
        constant = {fault.row.order for fault in faults}
        faults += dict.fromkeys(fault for fault in _misfits(graph) if fault.row.order not in constant)
        if not constant:
            faults += _flat_loss(flow, graph)
        for fault in faults:
            cause = Cause(fault.cause, 1.0, fault.evidence)
            yield Finding(
                code=self.code,
                symptom=self.symptom,
                severity=fault.severity,
                site=site(fault.row),
                message=fault.message,
                source=fault.row.source,
                causes=(cause,),
                evidence=(Evidence(fault.evidence),),
                remedies=(fault.remedy,) if fault.remedy else (),
            )


def _constant_outputs(graph: OpGraph) -> Iterator[_Fault]:
    """Softmax over an axis of one, on the way out."""
    for order, row in graph.gradients.items():
        activation = graph.activations.get(order)
        op = row.site.op
        if op not in (*ops.SOFTMAX, "_log_softmax") or activation is None or activation.stats is None:
            continue
        value = 0.0 if op == "_log_softmax" else 1.0
        stats = activation.stats
        constant = stats.count > 0 and stats.mean == value and stats.mean_square == value
        if constant and graph.leaves_model(order):
            name = "cross_entropy" if op == "_log_softmax" else "softmax"
            yield _Fault(
                row,
                Severity.ERROR,
                f"The output is constant: {name} over one unit is always {value:.0f}.",
                f"All {stats.count} outputs of {place(row)} are exactly {value:.0f}, so no gradient passes.",
                "Use one unit with binary_cross_entropy_with_logits, or one unit per class with "
                "cross_entropy.",
            )


def _misfits(graph: OpGraph) -> Iterator[_Fault]:
    """What feeds a loss but should not."""
    for order, row in graph.gradients.items():
        op = row.site.op
        through = _PASSES | {"div", "rsub"} if op == "log" else _PASSES
        for source in _sources(graph, order, through):
            reads_answer = op in _READS_LOGARITHMS or (op == "log" and graph.leaves_model(order))
            if reads_answer and (proof := over_samples(graph, source)) is not None:
                fault: _Fault | None = _other_axis(source, proof)
            elif op in _LOGIT_LOSS and (op != "_log_softmax" or graph.leaves_model(order)):
                fault = _into_logits(row, source, _LOGIT_LOSS[op])
            elif op in _READS_LOGARITHMS:
                fault = _into_nll(graph, source)
            elif op == "log" and row.site.path == LOSS_PATH:
                fault = _into_log(graph, source)
            elif op == "mse_loss" or _is_squared_error(graph, order):
                fault = _into_squared_error(graph, source)
            else:
                fault = None
            if fault is not None:
                yield fault


def _into_logits(row: Row, source: Row, loss: str) -> _Fault | None:
    op = source.site.op
    itself = "softmax" if loss == "cross_entropy" else "sigmoid"
    give_logits = f"Remove it and give {loss} the logits; apply {itself} only to predict."
    if op == "_log_softmax" and loss == "cross_entropy":
        return _Fault(
            source,
            Severity.NOTE,
            f"{place(source)} feeds cross_entropy, which applies log-softmax again; that changes nothing.",
            "log-softmax of log-probabilities gives them back.",
            "Use nll_loss, or give cross_entropy the logits.",
        )
    if op in ops.SOFTMAX or op in _BOUNDED:
        low, high = {"tanh": (-1, 1), "hardtanh": (-1, 1)}.get(op, (0, 1))
        if loss == "cross_entropy":
            classes = row.shape[1] if len(row.shape) > 1 else 2
            top = math.exp(high) / (math.exp(high) + (classes - 1) * math.exp(low))
            reach = f"with {classes} classes no probability can exceed {top:.2f}"
        else:
            reach = f"probabilities lie between {_sigmoid(low):.2f} and {_sigmoid(high):.2f}"
        return _Fault(
            source,
            Severity.WARNING,
            f"{place(source)} feeds {loss}, which expects logits and applies {itself} itself.",
            f"Its outputs lie between {low} and {high}: {reach}.",
            give_logits,
        )
    if op in _CUTS_OFF:
        return _Fault(
            source,
            Severity.WARNING,
            f"{place(source)} feeds {loss}: no logit can be negative.",
            "Units at zero get no gradient, and no class can be ruled out by its own logit.",
            give_logits,
        )
    return None


def _other_axis(source: Row, proof: str) -> _Fault:
    return _Fault(
        source,
        Severity.WARNING,
        f"{place(source)} adds up to one over the samples of the batch, not over the classes.",
        proof,
        "Take it over the last axis (dim=-1), or give the logits to cross_entropy.",
    )


def _into_nll(graph: OpGraph, source: Row) -> _Fault | None:
    if source.site.op in ops.SOFTMAX or source.site.op in ("sigmoid", "hardsigmoid"):
        return _Fault(
            source,
            Severity.WARNING,
            f"{place(source)} gives probabilities to nll_loss, which expects log-probabilities.",
            "The loss is −p instead of −log p: where the prediction is most wrong, its gradient is smallest.",
            "Use log_softmax before nll_loss, or give the logits to cross_entropy.",
        )
    if graph.is_layer(source):
        return _Fault(
            source,
            Severity.ERROR,
            f"{place(source)} gives raw outputs to nll_loss, which expects log-probabilities.",
            "The loss is −z and falls without end as the output grows.",
            "Use cross_entropy, or log_softmax before nll_loss.",
        )
    return None


def _into_log(graph: OpGraph, source: Row) -> _Fault | None:
    """A cross-entropy that is spelled out takes probabilities."""
    if source.site.path == LOSS_PATH or not (source.site.op in _CUTS_OFF or graph.is_layer(source)):
        return None
    return _Fault(
        source,
        Severity.WARNING,
        f"The loss takes the logarithm of {place(source)}, whose outputs are no probabilities.",
        "Outputs of 0 or below have no logarithm, and clamping them leaves no gradient.",
        "Give the logits to cross_entropy or binary_cross_entropy_with_logits.",
    )


def _into_squared_error(graph: OpGraph, source: Row) -> _Fault | None:
    op = source.site.op
    if op not in ("sigmoid", "hardsigmoid") and op not in ops.SOFTMAX:
        return None
    name = "softmax" if op in ops.SOFTMAX else "sigmoid"
    activation = graph.activations.get(source.order)
    flat = activation.saturated_fraction if activation is not None else None
    evidence = f"The gradient has the factor {name}' and vanishes where outputs saturate, right or wrong"
    evidence += f"; {percent(flat)} do here." if flat is not None else "."
    return _Fault(
        source,
        Severity.WARNING if flat is not None and flat > FLAT.value else Severity.NOTE,
        f"{place(source)} feeds a squared error.",
        evidence,
        "To classify, use "
        f"{'cross_entropy' if name == 'softmax' else 'binary_cross_entropy_with_logits'} on the logits.",
    )


def _flat_loss(flow: Flow, graph: OpGraph) -> Iterator[_Fault]:
    """The gradient of the loss ends before it reaches any layer."""
    layers = [
        row
        for row in graph.gradients.values()
        if graph.is_layer(row) and row.site.path != LOSS_PATH and row.stats is not None
    ]
    reached = [
        row for row in graph.gradients.values() if row.stats is not None and row.stats.mean_square > 0.0
    ]
    if not layers or not reached or any(row.order <= layers[-1].order for row in reached):
        return
    end, loss = reached[0], flow.metadata.get("loss")
    message = f"The gradient ends at {place(end)}: no layer receives any."
    inputs = graph.input_rms(layers[0]) if not layers[0].inputs else None
    if loss == 0.0:
        yield _Fault(
            end, Severity.NOTE, message, "The loss is zero: nothing is left to learn from this batch.", ""
        )
    elif len(zeros := graph.sources(end)) > 1 and all(map(is_zero, zeros)):
        yield _Fault(
            end,
            Severity.ERROR,
            message,
            f"{listing([place(one) for one in zeros])} are all zeros, and each is the other's gradient: "
            "no step opens them.",
            CAUSES[CauseName.ZERO_INIT_SYMMETRY].remedies[0],
            CauseName.ZERO_INIT_SYMMETRY,
        )
    elif (small := _rounded_away(graph, end)) is not None:
        yield _Fault(
            end,
            Severity.WARNING,
            message,
            small,
            CAUSES[CauseName.PRECISION_UNDERFLOW].remedies[0],
            CauseName.PRECISION_UNDERFLOW,
        )
    elif inputs is not None and inputs > OFF_SCALE.value:
        yield _Fault(
            end,
            Severity.WARNING,
            message,
            f"The inputs have an RMS of about {inputs:.2g}, which drives the output to where "
            f"{end.site.op} is flat.",
            CAUSES[CauseName.UNSCALED_INPUT].remedies[0],
            CauseName.UNSCALED_INPUT,
        )
    else:
        yield _Fault(
            end,
            Severity.WARNING,
            message,
            f"{end.site.op} is flat at all {end.stats.count if end.stats else 0} entries of this batch.",
            "Let the model end in a linear layer, and give its outputs to a loss that expects logits.",
        )


def _rounded_away(graph: OpGraph, end: Row) -> str | None:
    """Whether a gradient is too small for the format of what it is handed on to; if so, in words."""
    largest = end.stats.abs_max if end.stats is not None else None
    for source in graph.sources(end):
        limits = FORMATS.get(source.dtype)
        if limits is not None and largest is not None and largest < 2.0**limits.min_subnormal:
            return (
                f"Its largest entry at {place(end)} is {largest:.0e}; what comes before is in "
                f"{source.dtype}, whose smallest number is {2.0**limits.min_subnormal:.0e}: zeros are left."
            )
    return None


def _sources(graph: OpGraph, order: int, through: frozenset[str]) -> Iterator[Row]:
    """The ops that feed an op, those that only pick or rescale entries looked through."""
    for source in graph.inputs[order]:
        row = graph.gradients.get(source)
        if row is None:
            continue
        if row.site.op in through and row.inputs:
            yield from _sources(graph, source, through)
        else:
            yield row


def _is_squared_error(graph: OpGraph, order: int) -> bool:
    """``((output − target) ** 2).mean()``, spelled out in the loss: this op is the subtraction."""
    row = graph.gradients[order]
    if row.site.path != LOSS_PATH or row.site.op != "sub":
        return False
    return [graph.gradients[consumer].site.op for consumer in graph.consumers[order]] == ["pow"]


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))
