"""The numbers behind each picture, without drawing anything.

Every function takes a Flow and gives plain values: a *profile* (one reading for
each layer), a *waterfall* (the gain budget as steps), *curves* over time steps,
a *spectrum* (the exponents of all entries of one role), and a run's *history*.
"""

from evenflow.report.figures.levels import (
    Curve,
    Omission,
    Reading,
    State,
    View,
    abridge,
    curves,
    main_places,
    profile,
)
from evenflow.report.figures.spectrum import Spectrum, exponents_by_place, spectrum
from evenflow.report.figures.training import Cell, History, history, losses
from evenflow.report.figures.waterfall import Share, Step, Waterfall, end_to_end, join, waterfall

__all__ = [
    "Cell",
    "Curve",
    "History",
    "Omission",
    "Reading",
    "Share",
    "Spectrum",
    "State",
    "Step",
    "View",
    "Waterfall",
    "abridge",
    "curves",
    "end_to_end",
    "exponents_by_place",
    "history",
    "join",
    "losses",
    "main_places",
    "profile",
    "spectrum",
    "waterfall",
]
