"""Watching training at a cost that the user sets."""

from evenflow.watch.errors import WatchError, WatchWarning
from evenflow.watch.governor import Allowance, Cost
from evenflow.watch.training import watch_training
from evenflow.watch.watcher import Watch, watch

__all__ = ["Allowance", "Cost", "Watch", "WatchError", "WatchWarning", "watch", "watch_training"]
