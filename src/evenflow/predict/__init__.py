"""Gradient norms of a model from the model alone."""

from evenflow.predict.inputs import Described
from evenflow.predict.predict import predict
from evenflow.predict.scaling import DepthLaw, depth_law, underflow_margin

__all__ = ["DepthLaw", "Described", "depth_law", "predict", "underflow_margin"]
