"""EF202: rectifier units that are zero for every sample of the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.rule import CannotJudgeError, Page, Rule, Threshold
from evenflow.diagnose.text import listing, percent, place, site
from evenflow.flow import LOSS_PATH, Flow, Role, Row

HALF = Threshold(
    0.5,
    "largest share of units without output that weights without a bias towards either sign can show",
    "symmetry: P(z < 0 for the whole batch) ≤ P(z < 0) = 1/2, reached when all samples look alike, as "
    "they do "
    "deep in a plain net; SageMaker Debugger's DeadRelu alarms at the same share",
)
CHANCE = Threshold(
    3.0,
    "standard deviations above that share, for the layer's number of units",
    "binomial spread √(p(1−p)/units); three of them leave .1 % to chance",
)
ALIVE = Threshold(
    1.0,
    "active units per sample below which silence is not taken for sparsity",
    "a judgement: with less than one, the typical sample passes nothing on",
)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A rectifier's output, and how many of its units are dead."""

    row: Row
    dead: float
    limit: float


@final
class DeadUnits(Rule):
    """Looks at every rectifier."""

    code = "EF202"
    name = "dead_units"
    symptom = Symptom.DEAD_UNITS
    summary = "Rectifier units are zero for every sample, pass no gradient and cannot recover."
    causes = (CauseName.DEAD_RELU, CauseName.ZERO_INIT_SYMMETRY)
    thresholds = (HALF, CHANCE, ALIVE)
    page = Page(
        what="""\
A large part of a layer's ReLU units is zero whatever the input. These units pass no
gradient, so their weights never change; the layer is narrower than it looks. If all
are dead, nothing below it learns.""",
        why="""\
The pre-activation is negative for all data: a large negative bias, a step that was too
large and threw the unit across zero, weights all of one sign, or unscaled inputs.""",
        mathematics="""\
max(0, z) has slope 0 for z < 0: with z < 0 on all of the data the gradient of the
unit's weights is exactly 0.

What is *not* evidence: of weights without a preferred sign, half of all entries are
zero. B samples that differ leave a unit at zero with probability 2^−B, B samples that
look alike (correlation near 1, as deep in a plain net) with probability 1/2. A unit
that is active in a part p of all samples misses a batch with probability (1−p)^B.""",
        detection="""\
The share of units that are zero for the whole batch is compared with the largest that
a layer without dead units can show: one half by symmetry, or z^B if a part z of all
entries is zero and each unit has B of them, whichever is larger, plus what chance adds
for the layer's number of units. A small batch thus proves little, and sparse
activations of a trained net raise no alarm. It is an *error* if every unit is dead.""",
        remedies="""\
Leaky ReLU, ELU or GELU; biases at zero, He initialisation; a lower learning rate with
warm-up; standardised inputs; a normalisation before the rectifier.""",
        references=(
            "Glorot, Bordes, Bengio, Deep sparse rectifier neural networks, AISTATS 2011.",
            "Maas, Hannun, Ng, Rectifier nonlinearities improve neural network acoustic models, ICML 2013.",
            "Lu, Shin, Su, Karniadakis, Dying ReLU and initialization, Commun. Comput. Phys. 2020.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        rectifiers = [row for row in flow.select(Role.ACTIVATION) if row.dead_fraction is not None]
        if not rectifiers and any(row.site.op == "relu" for row in flow.select(Role.ACTIVATION)):
            raise CannotJudgeError("the Flow does not say which units were zero for the whole batch")
        layers = [layer for row in rectifiers if (layer := _judge(graph, row)) is not None]
        found = [layer for layer in layers if layer.dead > layer.limit]
        if found:
            yield _finding(graph, found, len(layers))


def _judge(graph: OpGraph, row: Row) -> _Layer | None:
    """Compare a rectifier with what chance allows; None if it is no part of the network's own path."""
    stats = row.stats
    if (
        row.order not in graph.gradients
        or row.site.path == LOSS_PATH
        or stats is None
        or row.dead_fraction is None
        or not stats.count
    ):
        return None
    units = _units(graph, row)
    zeros = stats.zero_fraction if stats.zero_fraction is not None else HALF.value
    sparse = zeros ** (stats.count / units) if units * (1.0 - zeros) >= ALIVE.value else 0.0
    expected = max(HALF.value, sparse)
    limit = expected + CHANCE.value * math.sqrt(expected * (1.0 - expected) / units)
    return _Layer(row, row.dead_fraction, limit)


def _units(graph: OpGraph, row: Row) -> int:
    """Units of a rectifier's output: channels after a convolution or an image norm, else the last axis."""
    before = [source.site.op for order in row.inputs if (source := graph.activations.get(order)) is not None]
    channels_first = len(row.shape) > 3 or any("conv" in op or "batch_norm" in op for op in before)
    return max(row.shape[1] if channels_first else row.shape[-1], 1)


def _finding(graph: OpGraph, found: list[_Layer], judged: int) -> Finding:
    worst = max(found, key=lambda layer: layer.dead)
    row = worst.row
    causes = _causes(graph, worst)
    evidence = [
        Evidence(
            f"{percent(worst.dead)} of the {_units(graph, row)} units of {place(row)} are zero for the "
            "whole batch; "
            f"a layer without dead units shows at most {percent(worst.limit)}.",
            worst.dead,
            worst.limit,
        )
    ]
    others = [place(layer.row) for layer in found if layer is not worst]
    if others:
        evidence.append(
            Evidence(f"So do {listing(others)}: {len(found)} of {judged} in all.", float(len(found)))
        )
    return Finding(
        code=DeadUnits.code,
        symptom=Symptom.DEAD_UNITS,
        severity=Severity.ERROR if worst.dead == 1.0 else Severity.WARNING,
        site=site(row),
        message=f"{percent(worst.dead)} of the units of {place(row)} are dead.",
        source=row.source,
        causes=causes,
        evidence=tuple(evidence),
        remedies=remedies(causes),
    )


def _causes(graph: OpGraph, layer: _Layer) -> tuple[Cause, ...]:
    before = next(
        (source for order in layer.row.inputs if (source := graph.activations.get(order)) is not None), None
    )
    if before is not None and before.stats is not None and before.stats.mean_square == 0.0:
        return (Cause(CauseName.ZERO_INIT_SYMMETRY, 1.0, f"{place(before)} gives nothing but zeros."),)
    text = (
        f"{percent(layer.dead)} of the units are silent where symmetric weights leave {percent(HALF.value)} "
        "at most."
    )
    if before is not None and before.stats is not None:
        text += (
            f" Their input has mean {before.stats.mean:.2g} and standard deviation {before.stats.std:.2g}."
        )
    return (Cause(CauseName.DEAD_RELU, 1.0, text),)
