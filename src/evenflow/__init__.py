"""evenflow: predicts, watches, diagnoses and fixes vanishing and exploding gradients.

    import evenflow as ef

    flow = ef.predict(build, inputs, loss)   # from the model alone: nothing is run
    flow = ef.measure(model, inputs, loss)   # one real batch, as a table
    report = ef.check(model, inputs, loss)   # the table, and what is wrong with it
    outcome = ef.fix(program)                # the smallest change that was tried and works

The verbs are loaded on first use, so that ``import evenflow`` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evenflow.check import Report, check
    from evenflow.diagnose import diagnose, explain
    from evenflow.fix import Outcome, fix
    from evenflow.flow import Flow
    from evenflow.measure import measure
    from evenflow.parallel import Workers
    from evenflow.predict import Described, predict
    from evenflow.program import Program
    from evenflow.store import open_run
    from evenflow.surgery import apply
    from evenflow.watch import watch

__version__ = "0.1.0"

_HOME = {
    "Described": "evenflow.predict",
    "Flow": "evenflow.flow",
    "Outcome": "evenflow.fix",
    "Program": "evenflow.program",
    "Report": "evenflow.check",
    "apply": "evenflow.surgery",
    "Workers": "evenflow.parallel",
    "check": "evenflow.check",
    "diagnose": "evenflow.diagnose",
    "explain": "evenflow.diagnose",
    "fix": "evenflow.fix",
    "measure": "evenflow.measure",
    "open_run": "evenflow.store",
    "predict": "evenflow.predict",
    "watch": "evenflow.watch",
}

__all__ = [
    "Described",
    "Flow",
    "Outcome",
    "Program",
    "Report",
    "Workers",
    "__version__",
    "apply",
    "check",
    "diagnose",
    "explain",
    "fix",
    "measure",
    "open_run",
    "predict",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'evenflow' has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Face(ModuleType):
    """Keeps verbs callable: importing the package ``evenflow.measure`` must not bind it to ``ef.measure``."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
