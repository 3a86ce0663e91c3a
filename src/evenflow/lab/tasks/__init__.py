"""Tasks on real or generated data that need no download, the same from the same seed."""

from evenflow.lab.tasks.adding import Adding
from evenflow.lab.tasks.classes import Digits, Shapes, Spirals
from evenflow.lab.tasks.copy_memory import CopyMemory
from evenflow.lab.tasks.grammar import Grammar
from evenflow.lab.tasks.mixtures import Ring
from evenflow.lab.tasks.task import Task

__all__ = ["Adding", "CopyMemory", "Digits", "Grammar", "Ring", "Shapes", "Spirals", "Task"]
