"""The lab: the field's classic experiments, expected by theory and measured on real nets."""

from evenflow.lab.experiment import Experiment, Outcome
from evenflow.lab.registry import experiment, experiments
from evenflow.lab.results import Result, document, run, store
from evenflow.lab.verdict import Comparison, Expectation, Verdict

__all__ = [
    "Comparison",
    "Expectation",
    "Experiment",
    "Outcome",
    "Result",
    "Verdict",
    "document",
    "experiment",
    "experiments",
    "run",
    "store",
]
