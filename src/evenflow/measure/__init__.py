"""One batch, forward and backward, as a Flow."""

from evenflow.measure.batch import measure, measure_loss

__all__ = ["measure", "measure_loss"]
