"""Runs on disk: crash-safe, readable while they are written, on any filesystem."""

from evenflow.store.errors import StoreError, StoreWarning
from evenflow.store.reader import open_run
from evenflow.store.writer import RunWriter

__all__ = ["RunWriter", "StoreError", "StoreWarning", "open_run"]
