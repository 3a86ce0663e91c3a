"""The operation: a patch's edits carried out on a model, one step at a time.

Random numbers are drawn from the patch's own seed; the global random state is as before
afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch

from evenflow.surgery import journal as journals
from evenflow.surgery.edit import Edit
from evenflow.surgery.errors import PatchError
from evenflow.surgery.journal import Model, Snapshot
from evenflow.surgery.scene import Scene
from evenflow.surgery.script import Scope, Step, run


@final
@dataclass(frozen=True, slots=True)
class Operation:
    """What was done.

    Attributes:
        model: The edited model; another object than before if an edit replaced all of it.
        steps: Edit by edit, what was carried out.
        drew: Whether random numbers were drawn.
    """

    model: Any
    steps: list[tuple[Edit, list[Step]]]
    drew: bool


def operate(edits: Sequence[Edit], seed: int, model: Model, inputs: Any) -> Operation:
    """Carry edits out, in place.

    Args:
        edits: One after the other.
        seed: Of the random numbers that they draw.
        model: A module, or modules by role.
        inputs: What the model is called with, for edits that measure.

    Raises:
        PatchError: An edit does not fit; the model is left half edited.
    """
    scene, scope = Scene(model, inputs), {"model": model, "inputs": inputs}
    done: list[tuple[Edit, list[Step]]] = []
    with _seeded(seed, model), torch.no_grad():
        state = torch.get_rng_state()
        for edit in edits:
            scene.look_again(scope["model"])
            steps: list[Step] = []
            for one in edit.model_steps(scene):
                _carried_out(edit, one, scope)
                steps.append(one)
            done.append((edit, steps))
        drew = not torch.equal(state, torch.get_rng_state())
    return Operation(scope["model"], done, drew)


def copied(model: Model) -> Any:
    """A copy to operate on.

    Raises:
        PatchError: The model cannot be copied.
    """
    try:
        return copy.deepcopy(dict(model) if isinstance(model, Mapping) else model)
    except Exception as error:
        raise PatchError(
            f"The model cannot be copied: {type(error).__name__}: {error}. "
            "Patch it before its first forward pass, or use apply(model, in_place=True)."
        ) from error


def settle(edited: Model, before: Snapshot) -> None:
    """Put new modules in evaluation mode if the model was in it; they come in training mode."""
    if not before.modules or training(before.root):
        return
    for module in journals.modules_of(edited):
        if id(module) not in before.modules:
            module.training = False


def training(model: Model) -> bool:
    """Whether the model, or each of several, is in training mode."""
    roots = model.values() if isinstance(model, Mapping) else (model,)
    return all(root.training for root in roots)


@contextmanager
def _seeded(seed: int, model: Model) -> Iterator[None]:
    devices = {p.device for _, p in journals.parameters(model) if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield


def _carried_out(edit: Edit, one: Step, scope: Scope) -> None:
    """Run a step of an edit; what goes wrong in it is a misfit.

    Raises:
        PatchError: It went wrong.
    """
    try:
        run([one], scope)
    except Exception as error:
        at = f" at {one.source}" if one.source else ""
        raise PatchError(
            f"{edit.name} does not fit this model{at}: {type(error).__name__}: {error}. "
            "Expected a model on which the edit can be carried out; choose other places with where."
        ) from error
