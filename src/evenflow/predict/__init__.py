"""Gradient norms of a model from the model alone."""

from evenflow.predict.batch import predict
from evenflow.predict.inputs import Described
from evenflow.predict.scaling import (
    DepthLaw,
    DepthPoint,
    across_depth,
    block_law,
    depth_law,
    underflow_margin,
)

__all__ = [
    "DepthLaw",
    "DepthPoint",
    "Described",
    "across_depth",
    "block_law",
    "depth_law",
    "predict",
    "underflow_margin",
]
