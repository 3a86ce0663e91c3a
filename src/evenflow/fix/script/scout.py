"""The first run of a script: watched, judged, and asked what might help it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from evenflow.check import Report, judged
from evenflow.diagnose import diagnose
from evenflow.errors import EvenflowError
from evenflow.fix.candidates import Candidate, proposed
from evenflow.fix.remedy import Case
from evenflow.fix.screen import screen
from evenflow.fix.script.stand_in import FirstCall, SeesLoss, kept
from evenflow.flow import Flow
from evenflow.measure.first import first_flows
from evenflow.program import Program, Training
from evenflow.scripts.discovery import unwrapped
from evenflow.scripts.trial import Trial
from evenflow.surgery import Patch
from evenflow.watch import Allowance, Watch, watch

SECONDS = 5.0
"""What watching may add to the run, about."""


@dataclass
class Findings:
    """What a scout brings home.

    Attributes:
        report: What is wrong.
        candidates: What remedies make of it.
        advice: What only a person can do.
        refuted: Patch as JSON → why it is not worth a trial.
        flows: Patch as JSON, or "" for none → the first batch.
        unscreened: Why patches could not be screened on one batch; None if they were.
    """

    report: Report
    candidates: list[Candidate] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    refuted: dict[str, str] = field(default_factory=dict)
    flows: dict[str, Flow] = field(default_factory=dict)
    unscreened: str | None = None


@final
class Scout(Trial):
    """A trial without a patch, under watch, that keeps the first batch."""

    def __init__(self, patch: str | None, steps: int) -> None:
        super().__init__(patch, steps)
        self._watch: Watch | None = None
        self._first: FirstCall | None = None
        self._loss = SeesLoss()
        self._training: tuple[Any, Any] | None = None
        self._unscreened: str | None = None
        # For good: taking it off in the middle of a script could take another one off.
        self._loss.__enter__()  # type: ignore[no-untyped-call]

    def met(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        call: tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]],
    ) -> None:
        """Keep a copy of everything; the watch begins."""
        super().met(models, optimizers, call)
        self._keep(models, optimizers, call)
        self._watch = watch(models, optimizers, budget=Allowance(SECONDS, self.steps), flight_recorder=False)
        self._watch.__enter__()

    def _keep(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        call: tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]],
    ) -> None:
        one = "" in models
        if set(models) != set(optimizers):
            self._unscreened = f"{len(optimizers)} optimizers move {len(models)} models"
        try:
            own_models, own_optimizers = copy.deepcopy((dict(models), dict(optimizers)))
        except Exception as error:
            self._unscreened = f"the model cannot be copied: {type(error).__name__}: {error}"
            own_models, own_optimizers = dict(models), dict(optimizers)
        module, args, kwargs = call
        path = next(
            (
                ".".join(filter(None, (role, name)))
                for role, model in models.items()
                for name, part in model.named_modules()
                if part is unwrapped(module)
            ),
            None,
        )
        if path is None:
            self._unscreened = "what it calls first is no part of what it trains"
        model = own_models[""] if one else own_models
        optimizer = own_optimizers[""] if one and "" in own_optimizers else own_optimizers
        self._first = FirstCall(model, optimizer, path or "", kept(args), kept(kwargs))

    def lost(self, loss: Tensor) -> None:
        """Log it; the first one ends the look-out for loss functions."""
        super().lost(loss)
        self._loss.looking = False
        if self._watch is not None:
            self._watch.log(loss=loss.detach())

    def result(self, folder: Path) -> dict[str, Any]:
        """What a trial gives; the findings are pickled beside it."""
        known = super().result(folder)
        if self._watch is not None:
            self._watch.__exit__(None, None, None)
        if known["losses"] and self._watch is not None:
            (folder / "findings.pkl").write_bytes(pickle.dumps(self._findings(self._watch)))
        return known

    def _findings(self, watched: Watch) -> Findings:
        assert self._first is not None
        run, steps = watched.run, self.steps
        program = self._first.program(self._loss.call, steps)
        flows: dict[str, Flow] = {}
        if self._unscreened is None and not isinstance(self._first.model, Mapping):
            try:
                flows = first_flows(program)
            except EvenflowError as error:
                self._unscreened = str(error)
        elif self._unscreened is None:
            self._unscreened = "it trains several models"
        flow = next(iter(flows.values()), None) or run.flow(0)
        # A random direction in place of the loss shows the gradient's way, but nothing of the loss.
        exact = bool(flows) and self._loss.call is not None
        report = judged(flows, run) if exact else Report(flow, diagnose(run), run=run, flows=flows)
        findings = Findings(report, unscreened=self._unscreened)
        if flows:
            findings.flows[""] = flow
        if not findings.report.healthy:
            self._propose(findings, program)
        return findings

    def _propose(self, findings: Findings, program: Program) -> None:
        assert self._first is not None
        training = Training(program, 0, self._first.model, self._first.optimizer)
        case = Case(program, findings.report, training)
        findings.candidates, findings.advice = proposed(case)
        for one in findings.candidates:
            why = self._misfit(one.patch) or (screen(case, one.patch) if findings.flows else None)
            if why is not None:
                findings.refuted[one.patch.to_json()] = why
            elif findings.flows:
                flows = first_flows(one.patch.program(program))
                findings.flows[one.patch.to_json()] = next(iter(flows.values()))

    def _misfit(self, patch: Patch) -> str | None:
        """Why a patch cannot be put on this script."""
        assert self._first is not None
        try:
            with patch.on_calls("a script"):
                pass
            if self._unscreened is not None:
                patch.apply(self._first.model, self._first.args)
        except EvenflowError as error:
            return f"It does not fit: {error}"
        return None
