"""From a cause to the change that removes it and as little else as can be.

A suspect is removed, not the illness: another activation brings weights that suit it as
well, or as badly, as the old ones suited theirs; weights that are too small keep their
directions. Causes that are not in the table cannot be removed in a copy, and are
reported as not tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from evenflow.diagnose import CauseName, limits, ops
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.recurrence import profiles
from evenflow.diagnose.rule import CannotJudgeError
from evenflow.diagnose.way import BLOCKS, Way, in_steps, ways
from evenflow.diagnose.weights import LayerGain, gains
from evenflow.flow import Flow
from evenflow.intervene.subject import Subject
from evenflow.program import Program
from evenflow.surgery import (
    InitRecurrent,
    InsertNorm,
    InsertSkip,
    Patch,
    PatchError,
    PreNorm,
    QKNorm,
    Reinitialise,
    ReplaceCell,
    ScaleWeights,
    SetDtype,
    SetLearningRate,
    SetLoss,
    SetOption,
    StandardiseInput,
    StandardiseTarget,
    SwapActivation,
    Unfreeze,
    UseLogits,
    activations,
    layers,
)
from evenflow.surgery.scene import Scene

LEAK = 0.2
"""Slope of a leaky rectifier that lets a dead unit's gradient through (Maas et al. 2013 use 0.01, which
hides it; GANs use 0.2, Radford et al. 2016)."""
TINY_EPSILON = 1e-16
"""An ε of Adam that dominates no gradient that float32 can square."""


@dataclass(frozen=True)
class Removal:
    """A change without the suspect.

    Attributes:
        words: What is done to the copy, as the beginning of a sentence: ``"With ReLU instead of sigmoid"``.
        patch: The same as edits.
        settings: Fields of a program that are others in the copy, such as ``before_step``.
        took: Whether the suspect is gone from a copy, by its Flow; a change that left it there tests nothing.
    """

    words: str
    patch: Patch = field(default_factory=Patch)
    settings: Mapping[str, Any] = field(default_factory=dict)
    took: Callable[[Flow], bool] = lambda flow: True

    def program(self, program: Program) -> Program:
        """The program without the suspect.

        Raises:
            PatchError: The patch does not fit it.
        """
        return replace(self.patch.program(program), **self.settings)


def removals(cause: CauseName, subject: Subject) -> Iterator[Removal]:
    """The changes that remove a cause of :data:`REMOVE`, the one that changes least first.

    Raises:
        PatchError: It does not fit this subject.
    """
    found = REMOVE[cause](subject)
    yield from (found,) if isinstance(found, Removal) else found


# ------------------------------------------------------------------------ activations


def _unsaturated(subject: Subject) -> Removal:
    """ReLU, and √2 times the weights behind it, which is what suits it (He et al. 2015)."""
    used = {use.name for use in activations.hidden(Scene(subject.model))}
    squashing = sorted(used & set(ops.SQUASHING_SLOPE))
    if not squashing:
        raise PatchError("no squashing activation can be seen in the model's modules or calls")
    behind = {layer.row.site.path for layer in _gains(subject) if layer.behind in squashing}
    edits = [SwapActivation("relu", from_=name) for name in squashing]
    scaled = [ScaleWeights(ops.BACKWARD_GAIN["relu"], path) for path in _layers(subject) if path in behind]
    return Removal(f"With ReLU instead of {' and '.join(squashing)}", Patch([*edits, *scaled]))


def _leaky(subject: Subject) -> Removal:
    swap = SwapActivation("leaky_relu", from_="relu", settings={"negative_slope": LEAK})
    return Removal(f"With rectifiers that leak (slope {LEAK:g})", Patch(swap))


# ---------------------------------------------------------------------------- weights


def _suited(sign: int) -> Callable[[Subject], Removal]:
    """The same weights at the gain that suits their activation, where they are off in one direction."""

    def found(subject: Subject) -> Removal:
        factors = {
            layer.row.site.path: 10.0**-layer.log10_excess
            for layer in _gains(subject)
            if math.isfinite(layer.log10_excess) and sign * layer.log10_excess > 0.0
        }
        edits = [ScaleWeights(factors[path], path) for path in _layers(subject) if path in factors]
        if not edits:
            raise PatchError("no layer's gain is off in this direction")
        return Removal("With the same weights at the gain that suits their activations", Patch(edits))

    return found


def _drawn(subject: Subject) -> Removal:
    scene = Scene(subject.model)
    equal = [
        place.path
        for place in scene.places()
        if layers.has_weight(place)
        and any(bool((w.tensor == w.tensor.flatten()[0]).all()) for w in layers.weights(scene, place))
    ]
    if not equal:
        raise PatchError("no layer has weights that are all the same")
    return Removal("With these weights drawn at random", Patch(Reinitialise("he", where=tuple(equal))))


# ----------------------------------------------------------------------- architecture


def _skips(subject: Subject) -> Removal:
    """X + α f(x), α² = 1 over the number of layers: then the size grows by √e at most over the depth."""
    depth = max(1, len(_layers(subject)))
    before = max(map(_activations, subject.flows.values()))
    return Removal(
        "With skip connections around the layers",
        Patch(InsertSkip("plain", alpha=depth**-0.5)),
        took=lambda flow: 2 * _activations(flow) <= before,
    )


def _normalised(subject: Subject) -> Removal:
    return Removal("With LayerNorm before the activations", Patch(InsertNorm("layer")))


def _pre_norm(subject: Subject) -> Removal:
    return Removal("With the norms before the branches (pre-LN)", Patch(PreNorm()))


def _scaled_branches(subject: Subject) -> Removal:
    """The last layer of each branch times 1/√branches (Radford et al. 2019, section 2.3)."""
    known = set(_layers(subject))
    last = {
        path: None
        for graph, way in _ways(subject)
        for step in way.judged
        if step.kind in BLOCKS
        for path in [row.site.path for row in step.rows if graph.is_layer(row)][-1:]
        if path in known
    }
    if not last:
        raise PatchError("no last layer of a residual branch can be told")
    return Removal(
        f"With {len(last)} branches scaled by 1/√{len(last)}",
        Patch([ScaleWeights(len(last) ** -0.5, path) for path in last]),
    )


def _tempered(subject: Subject) -> Removal:
    return Removal("With queries and keys normalised", Patch(QKNorm()))


def _orthogonal(subject: Subject) -> Removal:
    return Removal("With orthogonal weights from state to state", Patch(InitRecurrent("orthogonal")))


def _remembering(subject: Subject) -> Iterator[Removal]:
    """Gates that begin open for as many steps as the sequence has (Tallec & Ollivier 2018)."""
    graphs = [(flow, op_graph(flow)) for flow in subject.flows.values()]
    steps = [profile.steps for flow, graph in graphs for profile in profiles(flow, graph)]
    if not steps:
        raise PatchError("no recurrence can be seen")
    open_gates = InitRecurrent("chrono", longest=max(3, *steps))
    words = f"gates that begin open for {max(steps)} steps"
    yield Removal(f"With {words}", Patch(open_gates))
    yield Removal(f"With LSTM cells and {words}", Patch([ReplaceCell("lstm"), open_gates]))


# ------------------------------------------------------------------- data and numerics


def _standardised(subject: Subject) -> Removal:
    """All entries alike, unless one feature outweighs the others: these would be lost beside it."""
    inputs = subject.features
    if inputs is None:
        raise PatchError("the batch does not tell which tensor of numbers goes into the model")
    if inputs.dim() > 1:
        by_feature = StandardiseInput.of(inputs, 1 if inputs.dim() > 3 else -1)
        sizes = torch.tensor([by_feature.mean, by_feature.std]).norm(dim=0)
        if sizes.max() > limits.OFF_SCALE.value * sizes.median():
            return Removal("With inputs standardised feature by feature", Patch(by_feature))
    return Removal("With standardised inputs", Patch(StandardiseInput.of(inputs)))


def _standardised_targets(subject: Subject) -> Removal:
    if not isinstance(subject.targets, Tensor) or not subject.targets.is_floating_point():
        raise PatchError("the batch does not tell which tensor of numbers is the target")
    return Removal("With standardised targets", Patch(StandardiseTarget.of(subject.targets)))


def _full_precision(subject: Subject) -> Removal:
    return Removal("In float32", Patch(SetDtype("float32")))


def _unfrozen(subject: Subject) -> Removal:
    return Removal("With all parameters learning", Patch(Unfreeze()))


def _on_logits(subject: Subject) -> Iterator[Removal]:
    yield Removal("With the loss on logits", Patch(UseLogits()))
    yield Removal(
        "With a sigmoid's cross-entropy on the last layer's output", Patch(SetLoss("bce_with_logits"))
    )
    yield Removal(
        "With a softmax's cross-entropy on the last layer's output", Patch(SetLoss("cross_entropy"))
    )


# ------------------------------------------------------------------------ optimisation


def _at_rate(factor: float) -> Callable[[Subject], Removal]:
    def found(subject: Subject) -> Removal:
        return Removal(f"With {factor:g} times the learning rate", Patch(SetLearningRate(factor=factor)))

    return found


def _small_epsilon(subject: Subject) -> Removal:
    return Removal(f"With ε = {TINY_EPSILON:g}", Patch(SetOption("eps", TINY_EPSILON)))


def _unclipped(subject: Subject) -> Removal:
    return Removal("Without clipping (before_step)", settings={"before_step": None})


REMOVE: dict[CauseName, Callable[[Subject], Removal | Iterator[Removal]]] = {
    CauseName.SATURATING_ACTIVATION: _unsaturated,
    CauseName.DEAD_RELU: _leaky,
    CauseName.INIT_TOO_SMALL: _suited(-1),
    CauseName.INIT_TOO_LARGE: _suited(+1),
    CauseName.ZERO_INIT_SYMMETRY: _drawn,
    CauseName.DEPTH_WITHOUT_SKIP: _skips,
    CauseName.MISSING_NORMALIZATION: _normalised,
    CauseName.POST_LN_DEPTH: _pre_norm,
    CauseName.RESIDUAL_GROWTH: _scaled_branches,
    CauseName.ATTENTION_COLLAPSE: _tempered,
    CauseName.LONG_RECURRENCE: _remembering,
    CauseName.RECURRENT_GAIN_TOO_LARGE: _orthogonal,
    CauseName.UNSCALED_INPUT: _standardised,
    CauseName.UNSCALED_TARGET: _standardised_targets,
    CauseName.PRECISION_UNDERFLOW: _full_precision,
    CauseName.PRECISION_OVERFLOW: _full_precision,
    CauseName.UPDATE_LOST_TO_ROUNDING: _full_precision,
    CauseName.FROZEN_OR_DETACHED: _unfrozen,
    CauseName.WRONG_LOSS_OR_OUTPUT: _on_logits,
    CauseName.CLIPPING_ALWAYS_ACTIVE: _unclipped,
    CauseName.LEARNING_RATE_TOO_HIGH: _at_rate(0.1),
    CauseName.LEARNING_RATE_TOO_LOW: _at_rate(10.0),
    CauseName.OPTIMIZER_EPSILON_DOMINATES: _small_epsilon,
}
"""Cause → the change without it."""

ON_OPTIMIZER = frozenset(
    {
        CauseName.CLIPPING_ALWAYS_ACTIVE,
        CauseName.LEARNING_RATE_TOO_HIGH,
        CauseName.LEARNING_RATE_TOO_LOW,
        CauseName.OPTIMIZER_EPSILON_DOMINATES,
    }
)
"""Causes that no single batch can show."""


def _gains(subject: Subject) -> Iterator[LayerGain]:
    """The gains of all layers on ways from data to loss."""
    for graph, way in _ways(subject):
        yield from gains(graph, way)


def _ways(subject: Subject) -> Iterator[tuple[OpGraph, Way]]:
    """All ways from data to loss, with their steps; none where a Flow has no gradients."""
    for flow in subject.flows.values():
        yield from _ways_of(flow)


def _ways_of(flow: Flow) -> Iterator[tuple[OpGraph, Way]]:
    try:
        graph = op_graph(flow)
    except CannotJudgeError:
        return
    yield from ((graph, in_steps(graph, way)) for way in ways(graph))


def _activations(flow: Flow) -> int:
    """How many activations no way from data to loss goes around."""
    return min((sum(bool(step.function) for step in way.steps) for _, way in _ways_of(flow)), default=0)


def _layers(subject: Subject) -> list[str]:
    """Paths of linear layers and convolutions."""
    return [place.path for place in Scene(subject.model).places() if layers.is_layer(place)]


HELP_ALWAYS = frozenset({CauseName.DEPTH_WITHOUT_SKIP, CauseName.MISSING_NORMALIZATION})
"""Causes whose removal keeps gradients in size whatever the layers do."""
