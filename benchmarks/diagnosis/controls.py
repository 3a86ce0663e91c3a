"""Healthy controls."""

from benchmarks.diagnosis.subject import Subject


def controls() -> list[Subject]:
    return []
