"""One batch, forward and backward, as a Flow."""

from evenflow.measure.batch import measure

__all__ = ["measure"]
