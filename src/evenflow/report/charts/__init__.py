"""Pictures as Vega-Lite specifications: plain dicts, ready for a page or a file.

Levels are drawn as log10 on a linear axis whose ticks are whole decades. What
has no level gets a place of its own at the edge of the picture. Colours are CSS
variables (``templates/style.css``), so a page follows the reader's theme
without drawing again. Names from the user enter as data only, never as field
names or in expressions.

References:
    A. Satyanarayan et al., "Vega-Lite: A Grammar of Interactive Graphics",
    IEEE TVCG 23(1), 2017.
"""

from evenflow.report.charts.base import Spec
from evenflow.report.charts.profile import profile_chart
from evenflow.report.charts.spectrum import exponent_map, spectrum_chart
from evenflow.report.charts.time import time_chart
from evenflow.report.charts.training import loss_chart, training_map
from evenflow.report.charts.waterfall import waterfall_chart

__all__ = [
    "Spec",
    "exponent_map",
    "loss_chart",
    "profile_chart",
    "spectrum_chart",
    "time_chart",
    "training_map",
    "waterfall_chart",
]
