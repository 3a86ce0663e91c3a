"""A whole run as columns: what rules over many steps read.

A run of a thousand sampled steps has a million rows. They are never made into
a thousand Flows; each statistic becomes one array [steps, sites], and rules ask
it all at once. Needs NumPy, so rules import it only when they judge.
"""

from evenflow.diagnose.history.grid import Grid
from evenflow.diagnose.history.history import History
from evenflow.diagnose.history.loss import LossCurve

__all__ = ["Grid", "History", "LossCurve"]
