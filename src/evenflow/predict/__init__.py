"""Gradient norms of a model from the model alone."""

from evenflow.predict.inputs import Described
from evenflow.predict.predict import predict

__all__ = ["Described", "predict"]
