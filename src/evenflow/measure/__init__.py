"""One batch, forward and backward, as a Flow."""

from evenflow.measure.measure import measure

__all__ = ["measure"]
