"""Healthy controls: standard recipes of every architecture, each with the metric that it must reach."""

from benchmarks.diagnosis.controls import adapted, adversarial, dense, generative, images, numbers, sequences
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.subject import Subject


def recipes() -> dict[str, Recipe]:
    """The supervised ones, by name."""
    found = [
        recipe
        for part in (dense, images, sequences, numbers, generative, adapted)
        for recipe in part.recipes()
    ]
    return {recipe.name: recipe for recipe in found}


def controls() -> list[Subject]:
    """All controls."""
    return [recipe.healthy() for recipe in recipes().values()] + adversarial.subjects()
