"""A program's own training under watch, at a cost in seconds.

A share of the training time, which is what users of a long training give, is no
measure for a training of seconds. Here watching may add a number of seconds to
the whole, and what share that is follows from a few steps of a copy, timed
watched and bare.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch

from evenflow.flow import Run
from evenflow.program import Figures, Program, Training
from evenflow.watch.watcher import Watch, watch

_REHEARSED = 3
"""Steps of the copy. The first is the slowest of all, the second fills the optimizer's state and is
remembered by the caches; the third counts."""

_PATIENCE = 30
"""Steps that training goes on after its loss was no number: long enough for what a loss scaler mends
(it halves its scale 16 times at most from 2^16), short enough to waste no time."""

_SHARES = (0.01, 0.95)
"""Least and largest share of the training time, as :func:`watch` takes it."""


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
        WatchError: The optimizer moves none of the model's parameters.
        StoreError: The run cannot be written to ``path``.
    """
    steps = program.steps if steps is None else steps
    with _random_state_aside():
        budget = _share(program.start(seed), steps, seconds)
    with _random_state_aside():
        training = program.start(seed)
        with _watched(training, budget, path=path, overwrite=overwrite) as watcher:
            unsound = 0
            for figures in training.run(steps):
                watcher.log(**figures)
                unsound = 0 if _sound(figures) else unsound + 1
                if unsound >= _PATIENCE:
                    watcher.event("stopped", f"The loss was no number for {_PATIENCE} steps.")
                    break
    return watcher.run


def _share(training: Training, steps: int, seconds: float) -> float | None:
    """The share of training time that makes ``seconds``; None if every step can be recorded for that."""
    if steps <= _REHEARSED:
        return None
    bare = _last_duration(training.run(_REHEARSED))
    with _watched(training, None) as watcher:
        watched = _last_duration(_logged(training.run(_REHEARSED), watcher))
    if (watched - bare) * steps <= seconds:
        return None
    low, high = _SHARES
    return min(max(seconds / (bare * steps), low), high)


def _logged(steps: Iterator[Figures], watcher: Watch) -> Iterator[Figures]:
    for figures in steps:
        watcher.log(**figures)
        yield figures


def _last_duration(steps: Iterator[Figures]) -> float:
    """Seconds that the last step took."""
    began = ended = perf_counter()
    for _ in steps:
        began, ended = ended, perf_counter()
    return ended - began


def _watched(
    training: Training,
    budget: float | None,
    path: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> Watch:
    return watch(
        training.model,
        training.optimizer,
        path=path,
        budget=budget,
        overwrite=overwrite,
        config={"program": training.program.name, "seed": training.seed},
    )


def _sound(figures: Figures) -> bool:
    return all(bool(torch.isfinite(torch.as_tensor(value)).all()) for value in figures.values())


@contextmanager
def _random_state_aside() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield
