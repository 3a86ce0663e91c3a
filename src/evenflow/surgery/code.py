"""A patch as Python: for the model at hand in PyTorch alone, or as the call that builds the patch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from evenflow.surgery import journal as journals
from evenflow.surgery.edit import Edit
from evenflow.surgery.journal import Model
from evenflow.surgery.operation import copied, operate, training
from evenflow.surgery.printing import definitions, function, lines
from evenflow.surgery.script import Names, Step

if TYPE_CHECKING:
    from evenflow.surgery.patch import Patch


def written(patch: Patch, model: Model, inputs: Any) -> str:
    """The patch in PyTorch, with every place of this model named; see :meth:`Patch.code`.

    Raises:
        PatchError: An edit does not fit the model.
    """
    kept = journals.journals(model)
    if kept and kept[-1].patch == patch.to_json():
        model = patch.undo(model)
    names, done = Names(), operate(patch.edits, patch.seed, copied(model), inputs)
    body = [line for edit, steps in done.steps for line in _commented(edit, lines(steps, names))]
    if body and not training(done.model):
        body.append("model.eval()")
    if done.drew:
        body = ["with torch.random.fork_rng():", *_indented([f"torch.manual_seed({patch.seed})", *body])]
    if body:
        names.imports.add("import torch")
        body = ["with torch.no_grad():", *_indented(body)]
    measured = ", inputs" if any(edit.measures for edit in patch.edits) else ""
    parts = (
        function("model", "Once the model is built: model = edit_model(model).", body, measured),
        function("optimizer", "Once the optimizer is built.", _lines(patch, "optimizer", names)),
        function("loss", "A loss is a function of (model, batch).", _lines(patch, "loss", names)),
    )
    imports, pieces = definitions(names)
    text = ["from __future__ import annotations", "", *imports]
    for block in [*pieces, *("\n".join(part) for part in parts if part)]:
        text += ["", "", block]
    advice = [f"# By hand: {edit.describe()}." for edit in patch.edits if not edit.touches]
    return "\n".join([*advice, *text]) + "\n"


def construction(patch: Patch) -> str:
    """Code that builds the patch and applies it, whatever the model."""
    kinds = sorted({type(edit).__name__ for edit in patch.edits} | {"Patch"})
    edits = "".join(f"    {edit!r},\n" for edit in patch.edits)
    seed = f", seed={patch.seed}" if patch.seed else ""
    return (
        f"from evenflow.surgery import {', '.join(kinds)}\n\n"
        f"patch = Patch([\n{edits}]{seed})\n\n\n"
        "def edit_model(model, inputs=None):\n    return patch.apply(model, inputs)\n\n\n"
        "def edit_optimizer(optimizer):\n    return patch.tune(optimizer)\n\n\n"
        "def edit_loss(loss):\n    return patch.loss(loss)\n"
    )


def _lines(patch: Patch, part: str, names: Names) -> list[str]:
    found = []
    for edit in patch.on_optimizer if part == "optimizer" else patch.edits:
        steps: Iterator[Step] = getattr(edit, f"{part}_steps")()
        found += _commented(edit, lines(list(steps), names))
    return found


def _commented(edit: Edit, written: list[str]) -> list[str]:
    return [f"# {edit.describe()}", *written] if written else []


def _indented(body: list[str]) -> list[str]:
    return [f"    {line}" for line in body]
