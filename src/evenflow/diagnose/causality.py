"""Which cause comes before which: of two that are both at work, the one upstream is named first.

A training is a chain: data go into weights, weights make signals, signals make
gradients, gradients and a learning rate make steps, and steps make new weights. A
fault at one place shows at every place after it. Dead units, for instance, are what
is left after steps that were too large, and steps are too large for gradients that
unscaled data have made. Each finding sees its own place only, and may be quite sure
of it; so confidence alone would put consequences first.

:data:`UPSTREAM` says of each cause what may have brought it about. A cause that is
named beside such a one, and that one no less than probable, comes after it.

References:
    J. Pearl, "Causality", 2nd edition 2009, section 1.3 (parents in a causal graph).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evenflow.diagnose.finding import Cause, CauseName

PROBABLE = 0.5
"""Confidence from which a cause upstream counts: more likely than not."""

_DATA = frozenset({CauseName.UNSCALED_INPUT, CauseName.UNSCALED_TARGET})
_SIGNAL = frozenset(
    {
        CauseName.INIT_TOO_LARGE,
        CauseName.RESIDUAL_GROWTH,
        CauseName.MISSING_NORMALIZATION,
        CauseName.NORMALIZATION_EXPLOSION,
    }
)
_WIRING = frozenset({CauseName.WRONG_LOSS_OR_OUTPUT})
_STEP = frozenset({CauseName.LEARNING_RATE_TOO_HIGH})
_NO_STEP = frozenset(
    {
        CauseName.CLIPPING_ALWAYS_ACTIVE,
        CauseName.OPTIMIZER_EPSILON_DOMINATES,
        CauseName.UPDATE_LOST_TO_ROUNDING,
        CauseName.PRECISION_UNDERFLOW,
    }
)
_NO_GRADIENT = frozenset(
    {
        CauseName.INIT_TOO_SMALL,
        CauseName.ZERO_INIT_SYMMETRY,
        CauseName.SATURATING_ACTIVATION,
        CauseName.DEAD_RELU,
        CauseName.FROZEN_OR_DETACHED,
    }
)
"""What leaves small gradients, and so small steps at any learning rate."""

UPSTREAM: Mapping[CauseName, frozenset[CauseName]] = {
    CauseName.INIT_TOO_LARGE: _DATA,
    CauseName.MISSING_NORMALIZATION: _DATA,
    CauseName.RESIDUAL_GROWTH: _DATA | {CauseName.MISSING_NORMALIZATION},
    CauseName.LONG_RECURRENCE: _DATA,
    CauseName.RECURRENT_GAIN_TOO_LARGE: frozenset({CauseName.INIT_TOO_LARGE}),
    CauseName.LEARNING_RATE_TOO_HIGH: _DATA | _SIGNAL | {CauseName.RECURRENT_GAIN_TOO_LARGE},
    CauseName.DEAD_RELU: _DATA
    | _SIGNAL
    | _STEP
    | _WIRING
    | {CauseName.ZERO_INIT_SYMMETRY, CauseName.INIT_TOO_SMALL},
    CauseName.SATURATING_ACTIVATION: _DATA | _SIGNAL | _STEP | _WIRING,
    CauseName.ATTENTION_COLLAPSE: _DATA | _SIGNAL | _STEP,
    CauseName.PRECISION_OVERFLOW: _DATA | _SIGNAL | _STEP,
    CauseName.WRONG_LOSS_OR_OUTPUT: frozenset({CauseName.PRECISION_UNDERFLOW}),
    CauseName.LEARNING_RATE_TOO_LOW: _NO_STEP | _WIRING | _NO_GRADIENT,
}
"""Cause → those that may bring it about. What is not here has none in the vocabulary."""


def upstream_first(causes: Sequence[Cause]) -> tuple[Cause, ...]:
    """The causes in their order, but each after all probable ones that may have brought it about."""
    left = list(causes)
    found: list[Cause] = []
    while left:
        probable = {cause.name for cause in left if cause.confidence >= PROBABLE}
        first = next(cause for cause in left if not UPSTREAM.get(cause.name, frozenset()) & probable)
        left.remove(first)
        found.append(first)
    return tuple(found)
