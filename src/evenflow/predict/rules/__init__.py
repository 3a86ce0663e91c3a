"""Rules for ATen ops, one family a file."""

from evenflow.predict.rules import (  # noqa: F401  (importing registers)
    attention,
    comparisons,
    complex_numbers,
    convolution,
    indexing,
    initialise,
    joining,
    linear,
    losses,
    norms,
    pooling,
    reductions,
    routing,
    softmax,
    vector_norms,
    views,
)
from evenflow.predict.rules.registry import OUTPUTS, RULES

__all__ = ["OUTPUTS", "RULES"]
