"""A script as data, and one run of it in a process of its own."""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from evenflow.errors import EvenflowError
from evenflow.fix.course import Course
from evenflow.fix.deadline import NEVER, Deadline, TimeUpError
from evenflow.fix.subject import Job
from evenflow.scripts import nursery

TRIAL = "evenflow.scripts.trial:Trial"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


class ScriptError(EvenflowError):
    """A script cannot be tried: it crashed, or trained nothing."""


@final
@dataclass(frozen=True, slots=True)
class Script:
    """What is run.

    Attributes:
        name: Path of the script, or name of the module.
        arguments: Its arguments.
        as_module: Whether ``name`` is a module, as in ``python -m``.
        folder: Where it is started.
        metric: What it prints in front of the number that counts, more is better; with
            a minus in front, less is. None: its loss counts.
    """

    name: str
    arguments: tuple[str, ...] = ()
    as_module: bool = False
    folder: str = "."
    metric: str | None = None

    def run(
        self,
        listener: str,
        patch: str | None,
        seed: int,
        steps: int,
        folder: Path,
        deadline: Deadline = NEVER,
    ) -> dict[str, Any]:
        """Run it for some steps; files go into ``folder``.

        Raises:
            ScriptError: Its process died.
            TimeUpError: The deadline came first; the process is ended.
        """
        job = {
            "script": self.name,
            "arguments": self.arguments,
            "as_module": self.as_module,
            "listener": listener,
            "patch": patch,
            "seed": seed,
            "steps": steps,
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        environment = {
            **os.environ,
            "EVENFLOW_TRIAL": "1",
            "PYTHONPATH": os.pathsep.join(dict.fromkeys([_home(), *_given_path()])),
        }
        try:
            code = nursery.run(folder, self.folder, environment, deadline.left)
        except TimeoutError:
            raise TimeUpError from None
        try:
            result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        except OSError:
            raise ScriptError(
                f"The process of {self.name} died with exit code {code}.{said(folder)}"
            ) from None
        return result

    def course(self, job: Job, deadline: Deadline = NEVER) -> Course:
        """One trial.

        Raises:
            ScriptError: The script crashed without any patch.
        """
        patch, seed, steps = job
        with tempfile.TemporaryDirectory(prefix="evenflow-trial-") as name:
            folder = Path(name)
            try:
                asked = None if patch is None else patch.to_json()
                result = self.run(TRIAL, asked, seed, steps, folder, deadline)
            except TimeUpError:
                return Course((), None, 0.0, cut=True)
            except ScriptError as error:
                if patch is None:
                    raise
                return Course((), None, 0.0, str(error))
            if patch is None:
                self.check(result, folder)
            trouble = result.get("misfit") or result["crash"]
            if trouble is not None:
                return Course((), None, 0.0, f"With it the script fails: {trouble}")
            metric = self._metric((folder / "stdout").read_text(encoding="utf-8", errors="replace"))
        if self.metric is not None and metric is None and patch is None:
            raise ScriptError(
                f"{self.name} printed no number behind {self.metric.removeprefix('-')!r} in {steps} steps. "
                "Name what it prints, such as 'accuracy' for 'accuracy 0.93', or take more --steps."
            )
        return Course(tuple(result["losses"]), metric, result["seconds"], code=result["code"] or "")

    def check(self, result: dict[str, Any], folder: Path) -> None:
        """Raise unless the script trained something, without a crash.

        Raises:
            ScriptError: It did not.
        """
        if result["crash"] is not None:
            done = len(result["losses"])
            after = f"after {done} steps " if done else "before the first step was over "
            raise ScriptError(
                f"{self.name} failed {after}without any patch: {result['crash']}.{said(folder)}\n"
                "Mend that first; python runs the script as the trial did."
            )
        if not result["trained"]:
            raise ScriptError(
                f"{self.name} trained nothing: no module with parameters of a torch.optim optimizer was "
                "called with gradients on. Expected a script that trains a PyTorch model in this process."
            )
        if not result["losses"]:
            raise ScriptError(
                f"{self.name} ended before its first optimizer step. Expected a script that takes some."
            )

    def _metric(self, printed: str) -> float | None:
        """The last number that was printed behind the metric's name."""
        if self.metric is None:
            return None
        sign = -1.0 if self.metric.startswith("-") else 1.0
        found = re.findall(re.escape(self.metric.removeprefix("-")) + rf"\W*?({_NUMBER})", printed)
        return sign * float(found[-1]) if found else None


def said(folder: Path) -> str:
    """The last lines that a script wrote to stderr, to be added to a message."""
    lines = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(["", *(f"    {line}" for line in lines[-12:])]) if lines else ""


def _home() -> str:
    """The folder that holds the package, for a process that starts elsewhere."""
    return str(Path(nursery.__file__).parents[2])


def _given_path() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
