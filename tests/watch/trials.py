"""One trial of the flight recorder: train, strike one op of one step, ask who it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evenflow.watch import watch
from evenflow.watch.recorder import Flight
from tests.watch.injection import Injector, Site
from tests.watch.programs import Program


@dataclass(frozen=True)
class Trial:
    """What was struck, and what the recorder said; ``flight`` is None where the fault had no effect."""

    site: Site
    step: int
    flight: Flight | None

    @property
    def named(self) -> str | None:
        if self.flight is None or self.flight.culprit is None:
            return None
        return self.flight.culprit.module

    @property
    def right(self) -> bool:
        return self.named == self.site.module and self.flight is not None and self.flight.step == self.step

    @property
    def bounded(self) -> bool:
        """Whether the module is among those that the recorder names."""
        culprit = self.flight.culprit if self.flight is not None else None
        return culprit is not None and self.site.module in (culprit.module, *culprit.others)


class Refused:
    """In place of the meter of the sentinels: there is never room for them."""

    def affordable(self, seconds: float | None, budget: float | None) -> bool:
        return False


def sites(build: Callable[[], Program]) -> list[Site]:
    """The sites of a training step."""
    program = build()
    injector = Injector(program.models)
    with injector:
        program.step()
    injector.remove()
    return injector.sites


def strike(
    build: Callable[[], Program],
    site: Site,
    value: float,
    *,
    step: int,
    lasting: bool,
    sentinels: bool = True,
    path: Path | None = None,
) -> Trial:
    """Train to ``step``, strike there, and train a step more."""
    program = build()
    with watch(program.models, program.optimizers, budget=None, path=path) as run:
        if not sentinels:
            recorder: Any = run._flight
            recorder._sentinel_meter = Refused()
            recorder._sentinels.detach()
        torch.manual_seed(1)
        for _ in range(step):
            program.step()
        injector = Injector(program.models, site, value, lasting=lasting)
        with injector:
            program.step()
        injector.remove()
        program.step()
    assert run.trouble is None, run.trouble
    assert injector.strikes
    flights = [flight for flight in run.flights if flight.trouble == "non_finite"]
    return Trial(site, step, flights[0] if flights else None)


def draw(rng: random.Random, known: list[Site]) -> Site:
    """A random op: first the direction, then one of its sites, loss included."""
    backward = rng.random() < 0.5
    return rng.choice([site for site in known if site.backward is backward])
