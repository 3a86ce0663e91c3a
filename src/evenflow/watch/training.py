"""A program's own training under watch, at a cost in seconds.

A share of the training time, which is what users of a long training give, is no
measure for a training of seconds. Here watching may add a number of seconds to
the whole.
"""

from __future__ import annotations

import os

import torch

from evenflow.flow import Run
from evenflow.program import Figures, Program
from evenflow.watch.governor import Allowance
from evenflow.watch.watcher import watch

_PATIENCE = 30
"""Steps that training goes on after its loss was no number: long enough for what a loss scaler mends
(it halves its scale 16 times at most from 2^16), short enough to waste no time."""


def watch_training(
    program: Program,
    *,
    seed: int = 0,
    steps: int | None = None,
    seconds: float = 5.0,
    path: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Run:
    """Train a program from its beginning, watched.

    Training ends early when its loss was no number for 30 steps. Random states
    of PyTorch on the CPU are as before afterwards.

    Args:
        program: What to train.
        seed: Of its weights, batches and draws.
        steps: How many steps; the program's own number by default.
        seconds: What watching may add to the training time, about. Every step is
            recorded where that is cheap enough.
        path: Where to keep the run; None keeps it in memory.
        overwrite: Whether a run that is already at ``path`` may be replaced.

    Raises:
        ProgramError: The program's parts do not fit.
        WatchError: The optimizer is no optimizer.
        StoreError: The run cannot be written to ``path``.
    """
    steps = program.steps if steps is None else steps
    allowance = Allowance(seconds, steps)
    with torch.random.fork_rng(devices=[]):
        training = program.start(seed)
        with watch(
            training.model,
            training.optimizer,
            path=path,
            budget=allowance,
            config={"program": program.name, "seed": seed},
            overwrite=overwrite,
            flight_recorder=False,
        ) as watcher:
            unsound = 0
            for figures in training.run(steps):
                watcher.log(**figures)
                unsound = 0 if _sound(figures) else unsound + 1
                if unsound >= _PATIENCE:
                    watcher.event("stopped", f"The loss was no number for {_PATIENCE} steps.")
                    break
    return watcher.run


def _sound(figures: Figures) -> bool:
    return all(bool(torch.isfinite(torch.as_tensor(value)).all()) for value in figures.values())
