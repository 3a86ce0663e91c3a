"""A matrix: healthy controls of many architectures, each with one fault of a list put in, drawn by chance.

    python -m benchmarks.diagnosis.matrix.verify [WORD ...]   are the facts still so?
    python -m benchmarks.diagnosis.matrix.verify --write      draw, train bare, freeze what was measured
    python benchmarks/diagnose.py --origin matrix             what evenflow says of them

Twins are faults that were chosen for a control; here chance chooses: of the controls that a
fault fits, those of the lowest hash. Whether it hurts is measured, with plain hooks (see
``fresh/verify.py``), beside the control in as many steps:

* it *hurts* if the metric ends .1 or more below the control's: the pair is faulty;
* it does *not* if the metric ends less than .03 below it, and no symptom is seen that
  the control has not: the pair is a near miss, and whoever warns of it gives a false alarm;
* else it is neither, and left out.

Symptoms that may rightly be reported are those that were seen, that learning suffers, and
those that such a fault brings by its nature. Right causes were written down, fault by
fault, before evenflow was asked.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from benchmarks.diagnosis.controls import adapted, recipes
from benchmarks.diagnosis.fresh.verify import HELPS, measured, seen
from benchmarks.diagnosis.matrix.faults import Fault, Probe, faults
from benchmarks.diagnosis.recipe import Recipe, held_out, source
from benchmarks.diagnosis.subject import Subject

FACTS = Path(__file__).parent / "facts.json"
HURTS = 0.1
"""Fall of the metric from which on a fault counts as one that hurts: three times what counts as help."""
EACH = 2
"""Controls for each fault."""
LONGEST = 150
"""Steps of a training at most."""
STUCK = "loss_not_decreasing"


def draw() -> list[str]:
    """The names of all pairs, ``control+fault``; chance chooses."""
    left = {one.name for one in adapted.recipes()}
    probes = []
    for name, one in recipes().items():
        if name not in left and not one.more and one.scheduler is None and one.batch <= 128:
            with torch.random.fork_rng(devices=[]):
                probe = Probe(one, one.build(), *one.data(2, source(0)))
            if isinstance(probe.rate, (torch.optim.SGD, torch.optim.Adam)):
                probes.append(probe)
    found = []
    for name, fault in faults().items():
        pairs = [f"{probe.recipe.name}+{name}" for probe in probes if fault.fits(probe)]
        found += sorted(pairs, key=lambda pair: zlib.crc32(pair.encode()))[:EACH]
    return found


def pair(name: str) -> tuple[Recipe, Recipe, Fault]:
    """A control in few steps, the same with its fault, and the fault."""
    control, _, called = name.removeprefix("matrix-").partition("+")
    one = _recipes()[control]
    one = replace(one, steps=min(one.steps, LONGEST))
    fault = _faults()[called]
    return one, replace(fault.change(one), name=f"matrix-{name.removeprefix('matrix-')}"), fault


@cache
def _recipes() -> dict[str, Recipe]:
    return recipes()


@cache
def _faults() -> dict[str, Fault]:
    return faults()


def facts_of(name: str) -> tuple[str, dict[str, Any]]:
    """A pair's name, what is measured of it bare, and whether it is faulty, a near miss, or neither."""
    control, faulty, _ = pair(name)
    sound, said = _measured(control.name), measured(faulty.program(), 0)
    before, after = sound["metric"], said["metric"]
    symptoms = seen(said)
    lost = before - (after if after is not None else -1.0)
    harmless = lost < HELPS and not set(symptoms) - set(seen(sound))
    kind = "faulty" if lost >= HURTS else "near miss" if harmless else "neither"
    return name, {
        "kind": kind,
        "control": before,
        "metric": after,
        "symptoms": symptoms,
        "loss": said["loss"],
    }


@cache
def _measured(control: str) -> dict[str, Any]:
    one = _recipes()[control]
    return measured(replace(one, steps=min(one.steps, LONGEST)).program(), 0)


def known() -> dict[str, dict[str, Any]]:
    """What was measured bare, by pair."""
    found: dict[str, dict[str, Any]] = json.loads(FACTS.read_text("utf-8")) if FACTS.exists() else {}
    return found


def matrix() -> list[Subject]:
    """All pairs that are faulty or near misses, as the benchmark takes them."""
    return [_subject(name, facts) for name, facts in known().items() if facts["kind"] != "neither"]


def _subject(name: str, facts: dict[str, Any]) -> Subject:
    _, recipe, fault = pair(name)
    symptoms: tuple[str, ...] = ()
    if hurts := facts["kind"] == "faulty":
        symptoms = tuple(dict.fromkeys((STUCK, *facts["symptoms"], *fault.symptoms.split())))
    after = -1.0 if facts["metric"] is None else max(facts["metric"], -1.0)
    return Subject(
        name=recipe.name,
        kind=recipe.kind,
        origin="matrix",
        split="held out" if held_out(recipe.name) else "open",
        program=recipe.program,
        symptoms=symptoms,
        confirmed=tuple(facts["symptoms"]) if hurts else (),
        causes=tuple(fault.causes.split()) if hurts else (),
        ceiling=(facts["control"] + after) / 2 if hurts else None,
    )
