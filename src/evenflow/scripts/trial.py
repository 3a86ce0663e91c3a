"""One trial of a script, in a process of its own: ``python -m evenflow.scripts FOLDER``.

The folder holds ``job.json``, what is to be run, and gets ``result.json``. The script
runs as it is, from its first line, until so many steps of its optimizers are over;
then it is stopped by an exception that ``except Exception`` does not catch. What it
saves with ``torch.save`` goes into the folder, and ``torch.load`` finds it there, so
that no trial overwrites a checkpoint.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from functools import wraps
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

from evenflow.scripts.imports import when_imported
from evenflow.scripts.meeting import Meeting
from evenflow.scripts.patching import Patching
from evenflow.scripts.seeds import draw
from evenflow.scripts.target import Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor, nn


class Enough(BaseException):
    """The trial is over."""


class Trial(Patching):
    """Follows the losses of a script, with a patch on it or none, for some steps.

    Args:
        patch: The patch as JSON, or None.
        steps: After how many the script is stopped.
    """

    def __init__(self, patch: str | None, steps: int) -> None:
        super().__init__(patch)
        self.steps = steps
        self.began: float | None = None
        self._losses: list[list[Tensor]] = [[]]

    def met(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        call: tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]],
    ) -> None:
        """The training begins."""
        super().met(models, optimizers, call)
        self.began = process_time()

    def lost(self, loss: Tensor) -> None:
        """One of the losses of this step."""
        self._losses[-1].append(loss.detach())

    def stepped(self) -> None:
        """Another step; stop the script after the last.

        Raises:
            Enough: It was the last.
        """
        super().stepped()
        self._losses.append([])
        if len(self._losses) > self.steps:
            raise Enough

    def result(self, folder: Path) -> dict[str, Any]:
        """What is known in the end, as JSON has it."""
        steps = [[float(loss) for loss in losses] for losses in self._losses[:-1]]
        return {
            "losses": [sum(losses) / len(losses) if losses else float("nan") for losses in steps],
            "seconds": process_time() - self.began if self.began is not None else 0.0,
            "code": self.code,
            "misfit": self.misfit,
            "trained": self.began is not None,
        }


def main(folder: Path) -> None:
    """Run the job that lies in a folder."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    sys.argv[:] = [job["script"]]
    draw(job["seed"])
    trial: Trial | None = None

    def begin() -> None:
        nonlocal trial
        module, _, name = job["listener"].partition(":")
        trial = getattr(importlib.import_module(module), name)(job["patch"], job["steps"])
        Meeting(trial).install()

    def keep_files() -> None:
        _keep_files(folder / "saved")
        begin()

    when_imported("torch", keep_files)
    crash: str | None = None
    target = Target(job["script"], job["arguments"], as_module=job["as_module"])
    try:
        target.run()
    except (Enough, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code not in (None, 0):
            crash = f"it ended with the exit code {ended.code!r}"
    except BaseException as error:
        crash = "".join(traceback.format_exception_only(error)).strip()
        traceback.print_exc()
    known = trial.result(folder) if trial is not None else {"losses": [], "trained": False}
    (folder / "result.json").write_text(json.dumps({**known, "crash": crash}), encoding="utf-8")


def _keep_files(folder: Path) -> None:
    """Let what is saved by path go into a folder, and be loaded from there."""
    torch: Any = sys.modules["torch"]
    save, load = torch.save, torch.load
    kept: dict[str, Path] = {}

    @wraps(save)
    def saved(thing: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(f, (str, os.PathLike)):
            folder.mkdir(exist_ok=True)
            f = kept.setdefault(os.path.abspath(f), folder / str(len(kept)))
        return save(thing, f, *args, **kwargs)

    @wraps(load)
    def loaded(f: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(f, (str, os.PathLike)):
            f = kept.get(os.path.abspath(f), f)
        return load(f, *args, **kwargs)

    torch.save, torch.load = saved, loaded
