"""The Flow table: sites, statistics, roles and the gain budget."""

from evenflow.flow.budget import Budget, Link
from evenflow.flow.flow import Flow
from evenflow.flow.formats import FORMATS, FloatFormat
from evenflow.flow.run import Event, Run, Series
from evenflow.flow.site import LOSS_PATH, ModuleCall, Role, Site, Status
from evenflow.flow.stats import Exponents, Stats
from evenflow.flow.table import Row

__all__ = [
    "FORMATS",
    "LOSS_PATH",
    "Budget",
    "Event",
    "Exponents",
    "FloatFormat",
    "Flow",
    "Link",
    "ModuleCall",
    "Role",
    "Row",
    "Run",
    "Series",
    "Site",
    "Stats",
    "Status",
]
