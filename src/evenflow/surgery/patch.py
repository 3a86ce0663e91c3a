"""A patch: edits in order, as data. It is applied to a copy, printed, stored, taken off.

    patch = Patch([SwapActivation(to="relu"), Reinitialise("he")])
    better = patch.apply(model)          # an edited copy
    print(patch.code(model))             # the same as PyTorch code
    patch.save("patch.json")
    same = patch.undo(better)            # as it was, to the bit

    program = patch.program(program)     # a whole Program with the patch in it

Random numbers (new weights) are drawn from the patch's own seed, and the global
random state is as before afterwards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import nn
from torch.optim import Optimizer

from evenflow.program import Figures, Program
from evenflow.surgery import journal as journals
from evenflow.surgery.adopt import adopt, become
from evenflow.surgery.code import construction, written
from evenflow.surgery.edit import Applicability, Edit
from evenflow.surgery.errors import PatchError
from evenflow.surgery.journal import Model, Snapshot
from evenflow.surgery.operation import copied, operate, settle
from evenflow.surgery.pieces.ambient import LossCalls
from evenflow.surgery.script import Scope, Step, run

VERSION = 1
"""Of the JSON; a patch of a later version is refused."""

Loss: TypeAlias = Callable[[Any, Any], torch.Tensor]
Losses: TypeAlias = Loss | Mapping[str, Loss]


@final
@dataclass(frozen=True, init=False)
class Patch:
    """Edits, done one after the other.

    Attributes:
        edits: What is done.
        seed: Of the random numbers that edits draw.
    """

    edits: tuple[Edit, ...]
    seed: int

    def __init__(self, edits: Iterable[Edit] | Edit = (), seed: int = 0) -> None:
        given = (edits,) if isinstance(edits, Edit) else tuple(edits)
        for one in given:
            if not isinstance(one, Edit):
                raise PatchError(f"A patch is made of edits, found {one!r:.80}.")
        object.__setattr__(self, "edits", given)
        object.__setattr__(self, "seed", seed)

    # ------------------------------------------------------------------ as a value

    def __add__(self, other: Patch) -> Patch:
        """This patch and then the other, with this one's seed."""
        return Patch((*self.edits, *other.edits), self.seed)

    @property
    def size(self) -> int:
        """Number of edits; advice does not count."""
        return sum(edit.size for edit in self.edits)

    @property
    def applicability(self) -> Applicability:
        """The least harmless of its edits'."""
        found = {edit.applicability for edit in self.edits}
        for level in (Applicability.UNSAFE, Applicability.SAFE, Applicability.ADVICE):
            if level in found:
                return level
        return Applicability.SAFE

    @property
    def touches(self) -> frozenset[str]:
        """The parts of a program that change: ``model``, ``optimizer``, ``loss``."""
        return frozenset().union(*(edit.touches for edit in self.edits))

    def describe(self) -> str:
        """The edits in words, one line."""
        return "; ".join(edit.describe() for edit in self.edits) or "nothing"

    # ----------------------------------------------------------------------- model

    def apply(self, model: Model, inputs: Any = None, *, in_place: bool = False) -> Any:
        """The model with the edits made.

        Args:
            model: A module, or modules by role.
            inputs: What the model is called with, for edits that measure (LSUV).
            in_place: Edit the model itself, for a script that goes on with it.

        Returns:
            An edited copy, or with ``in_place`` the model. It remembers what it was,
            for :meth:`undo`.

        Raises:
            PatchError: An edit does not fit; nothing was changed.
        """
        work = model if in_place else copied(model)
        before = Snapshot(work, None if in_place else model)
        kept = list(journals.journals(work))
        try:
            edited = operate(self.edits, self.seed, work, inputs).model
            settle(edited, before)
            if in_place and edited is not model:
                raise PatchError(
                    "The patch replaces the whole model, which cannot be done in place. "
                    "Use the copy that apply(model) returns."
                )
        except BaseException:
            if in_place:
                journals.take_off(before.journal("", work))
            raise
        journals.keep(edited, [*kept, before.journal(self.to_json(), edited)])
        return edited

    def undo(self, model: Model, *, in_place: bool = False) -> Any:
        """The model without the edits.

        What was edited is as it was before, to the bit; everything else, for instance
        weights that were trained since and that the patch had not set, stays as it is now.

        Args:
            model: What :meth:`apply` gave.
            in_place: Edit the model itself.

        Raises:
            PatchError: This patch is not the last one on the model.
        """
        kept = journals.journals(model)
        if not kept:
            raise PatchError("The model carries no patch. Give undo what apply returned, or a copy of it.")
        if kept[-1].patch != self.to_json():
            last = Patch.from_json(kept[-1].patch).describe()
            raise PatchError(f"The last patch on the model is another one: {last}. Undo that one first.")
        work = model if in_place else copied(model)
        kept = journals.journals(work)
        journals.keep(work, [])
        plain = journals.take_off(kept[-1])
        journals.keep(plain, kept[:-1])
        return plain

    # -------------------------------------------------------------- the other parts

    def optimizer(self, program: Program | Callable[[Any], Any], model: Model) -> Any:
        """The optimizer of a patched model, with the patch's settings.

        Parameters that the patch added and that the program's own function does not
        give to its optimizer are added to it.

        Args:
            program: The program, or its function from a model to the optimizer.
            model: What :meth:`apply` gave.

        Raises:
            PatchError: The program's function cannot use the patched model.
        """
        make = program.optimizer if isinstance(program, Program) else program
        try:
            built = make(model)
        except Exception as error:
            raise PatchError(
                f"The program's optimizer cannot be built for the patched model: {type(error).__name__}: "
                f"{error}. It names a parameter that the patch replaced; let it take model.parameters()."
            ) from error
        kept = journals.journals(model)
        added = kept[-1].added if kept else ()
        if isinstance(built, Mapping):
            return {role: self.tune(adopt(one, _added_to(model, added, role))) for role, one in built.items()}
        return self.tune(adopt(built, _added_to(model, added, None)))

    def tune(self, optimizer: Optimizer, *, in_place: bool = False) -> Optimizer:
        """The optimizer with the patch's settings, such as clipping; usually the same object.

        Args:
            optimizer: Changed in place, unless the patch wants one of another class.
            in_place: Then change the class as well, for a script that goes on with it.
        """
        for edit in self.on_optimizer:
            scope: Scope = {"optimizer": optimizer}
            run(list(edit.optimizer_steps()), scope)
            tuned: Optimizer = scope["optimizer"]
            if in_place and tuned is not optimizer:
                become(optimizer, tuned)
            else:
                optimizer = tuned
        return optimizer

    @property
    def on_optimizer(self) -> list[Edit]:
        """The edits in the order that an optimizer needs: a new one first, clipping last."""
        return sorted(self.edits, key=lambda edit: edit.rank)

    def loss(self, program: Program | Losses) -> Any:
        """The program's loss with the edits made: a function of (model, batch), or such by role.

        Raises:
            PatchError: An edit needs losses by role, and there is one loss.
        """
        loss: Any = program.loss if isinstance(program, Program) else program
        for edit in self.edits:
            steps = list(edit.loss_steps())
            if not steps:
                continue
            if edit.by_role and not isinstance(loss, Mapping):
                raise PatchError(
                    f"{edit.name} needs losses by role, such as generator and discriminator, and this "
                    "program has one loss. Give Program a mapping of losses."
                )
            if isinstance(loss, Mapping) and not edit.by_role:
                loss = {role: _through(steps, one) for role, one in loss.items()}
            else:
                loss = _through(steps, loss)
        return loss

    @contextmanager
    def on_calls(self, where: str) -> Iterator[Callable[[], None]]:
        """Make the loss edits without a loss function: on what is called while this is on.

        Args:
            where: What it is for, for messages: ``this script``.

        Yields:
            To be called after a step: raises a :class:`PatchError` if an edit found no loss to act on.

        Raises:
            PatchError: An edit cannot be made so.
        """
        with ExitStack() as stack:
            modes = [self._mode(edit, where) for edit in self.edits if "loss" in edit.touches]
            for mode in modes:
                stack.enter_context(mode)

            def check() -> None:
                if any(isinstance(mode, LossCalls) and not mode.calls for mode in modes):
                    raise PatchError(
                        f"set_loss does not fit {where}: it calls none of PyTorch's loss functions. "
                        "Expected a call such as F.cross_entropy(output, target); a loss written by hand "
                        "must be changed by hand."
                    )

            yield check

    @staticmethod
    def _mode(edit: Edit, where: str) -> AbstractContextManager[Any]:
        mode = edit.on_calls()
        if mode is None:
            raise PatchError(
                f"{edit.name} does not fit {where}: it needs the loss as a function. Expected a Program "
                "with a loss and no step of its own; or change the loss by hand: see patch.code()."
            )
        return mode

    def program(self, program: Program, inputs: Callable[[Any], Any] | None = None) -> Program:
        """The whole program with the patch in it.

        Args:
            program: What is patched.
            inputs: From a batch to what the model is called with, for edits that
                measure; by default the first of a pair, or the batch itself.

        Raises:
            PatchError: The program has a ``step`` of its own, and an edit needs the loss as a function.
        """
        own = program.step if "loss" in self.touches else None
        if own is not None:
            for edit in self.edits:
                if "loss" in edit.touches:
                    self._mode(edit, "a program with a step of its own")
        pick = inputs or (lambda batch: batch[0] if isinstance(batch, (tuple, list)) else batch)

        def build(seed: int) -> Any:
            model = program.build(seed)
            measured = any(edit.measures for edit in self.edits)
            return self.apply(model, pick(_first_batch(program, seed)) if measured else None)

        def step(model: Any, optimizer: Any, batch: Any) -> Figures:
            assert own is not None
            with self.on_calls("this step") as check:
                figures = own(model, optimizer, batch)
            check()
            return figures

        return replace(
            program,
            build=build,
            optimizer=lambda model: self.optimizer(program, model),
            loss=self.loss(program),
            step=program.step if own is None else step,
        )

    # ------------------------------------------------------------------------- code

    def code(self, model: Model | None = None, inputs: Any = None) -> str:
        """The patch as Python.

        Args:
            model: The model that it is for, patched or not. With it the code needs
                PyTorch only, names every place, and quotes the user's lines where
                known. Without it the code builds and applies this patch.
            inputs: As in :meth:`apply`.

        Raises:
            PatchError: An edit does not fit the model.
        """
        return construction(self) if model is None else written(self, model, inputs)

    # ------------------------------------------------------------------------- JSON

    def to_json(self) -> str:
        """The patch as JSON text."""
        record = {
            "evenflow_patch": VERSION,
            "seed": self.seed,
            "edits": [edit.to_json() for edit in self.edits],
        }
        return json.dumps(record, indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str, place: str = "the text") -> Patch:
        """The patch in a JSON text.

        Raises:
            PatchError: It holds none, or one of a later version.
        """
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise PatchError(f"{place} is no JSON: {error}. Write patches with patch.save(path).") from error
        if not isinstance(record, dict) or not isinstance(record.get("edits"), list):
            raise PatchError(f'{place} holds no patch. Expected an object with "evenflow_patch" and "edits".')
        version = record.get("evenflow_patch")
        if version != VERSION:
            raise PatchError(
                f"{place} holds a patch of version {version!r}; this evenflow reads version {VERSION}. "
                "Install the version that wrote it, or write the patch anew."
            )
        seed = record.get("seed", 0)
        if not isinstance(seed, int):
            raise PatchError(f"{place} has the seed {seed!r}. Expected a whole number.")
        return Patch([Edit.from_json(one) for one in record["edits"]], seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the patch as JSON, for a person to read and for :meth:`load`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Patch:
        """Read what :meth:`save` wrote.

        Raises:
            PatchError: There is no such file, or it holds no patch.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise PatchError(f"The patch {path} cannot be read: {error.strerror}.") from error
        return Patch.from_json(text, str(path))


def apply(model: Model, patch: Patch | str | os.PathLike[str], inputs: Any = None) -> Any:
    """A copy of the model with a patch on it.

    Args:
        model: A module, or modules by role; left as it is.
        patch: A :class:`Patch`, or the path of a JSON file that holds one.
        inputs: What the model is called with, for edits that measure.

    Raises:
        PatchError: The patch cannot be read, or does not fit.
    """
    return (patch if isinstance(patch, Patch) else Patch.load(patch)).apply(model, inputs)


# -------------------------------------------------------------------------- pieces


def _added_to(model: Model, added: Sequence[str], role: str | None) -> dict[str, nn.Parameter]:
    by_name = dict(journals.parameters(model))
    names = [name for name in added if role is None or name.split(".", 1)[0] == role]
    return {name: by_name[name] for name in names if name in by_name}


def _through(steps: list[Step], loss: Any) -> Any:
    scope: Scope = {"loss": loss}
    run(steps, scope)
    return scope["loss"]


def _first_batch(program: Program, seed: int) -> Any:
    """The first batch of a program; the random state is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        return next(iter(program.batches(seed)))
