"""From a Flow to findings: rules, their registry and their explanations."""

from evenflow.diagnose.finding import (
    Cause,
    CauseName,
    Diagnosis,
    Evidence,
    Finding,
    Severity,
    Skipped,
    Suppressed,
    Symptom,
    Trial,
    Verdict,
)
from evenflow.diagnose.judge import diagnose
from evenflow.diagnose.pages import explain
from evenflow.diagnose.policy import Policy
from evenflow.diagnose.registry import rules
from evenflow.diagnose.rule import Page, Rule, Threshold

__all__ = [
    "Cause",
    "CauseName",
    "Diagnosis",
    "Evidence",
    "Finding",
    "Page",
    "Policy",
    "Rule",
    "Severity",
    "Skipped",
    "Suppressed",
    "Symptom",
    "Threshold",
    "Trial",
    "Verdict",
    "diagnose",
    "explain",
    "rules",
]
