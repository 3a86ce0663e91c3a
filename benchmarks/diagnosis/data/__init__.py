"""Offline substitutes for the data of the corpus."""

from benchmarks.diagnosis.data import images, sequences, tables  # they fill the table of generators
from benchmarks.diagnosis.data.dataset import Dataset, UnbuildableError, make

__all__ = ["Dataset", "UnbuildableError", "images", "make", "sequences", "tables"]
