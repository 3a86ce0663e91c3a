"""The flight recorder: when something breaks, it says which op and module broke first.

To look at every op of every step would make training several times slower, so
four witnesses are heard, from cheap to dear:

1. *Gradient norms*, one multi-tensor reduction per step, say that a step is bad
   before the optimizer makes use of it (on the CPU; elsewhere nothing waits, and
   it is known later).
2. *The passes* (``passes.py``): references to what the models were called with, and
   the random state. Some 20 µs a step.
3. *Sentinels* (``sentinels.py``) at the doors of all modules, forwards and
   backwards. They name the module even if the fault never comes again. Some 20 µs
   for each module call; they are posted while the budget has room for them, and
   always without a budget.
4. *The replay* (``replay.py``), only once a step turned out bad: while the weights
   are still those of the step, its passes are run again op by op. It names the op
   and the user's line, and costs a normal step nothing.

A fault that comes again (a bug, an overflow, a batch) is so named to the op at the
default budget; one that does not (a race, a failing chip) is named to the module
where sentinels stood, and else bounded by the parameters whose gradients it
reached.

What was known is then kept as a :class:`~evenflow.watch.recorder.flight.Flight`.
"""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from evenflow.flow import LOSS_PATH, Flow
from evenflow.watch.finite import bad, is_bad
from evenflow.watch.guard import Guard
from evenflow.watch.readings import Readings
from evenflow.watch.recorder.culprit import Culprit, Direction, Witness
from evenflow.watch.recorder.dump import write_flight
from evenflow.watch.recorder.flight import Flight, Trouble, folder_name
from evenflow.watch.recorder.meter import Meter
from evenflow.watch.recorder.passes import LoggedPass, PassLog
from evenflow.watch.recorder.replay import cannot_replay, replay
from evenflow.watch.recorder.ring import Ring
from evenflow.watch.recorder.sentinels import Sentinels
from evenflow.watch.sample import Step

_MOST_FLIGHTS = 8
"""Flights of one run: what breaks more often is no accident, and the first ones tell most."""
_MOST_REPLAYS = 8
"""Passes that are run again for one flight, the latest; each takes as long as measuring a batch."""
_LOG_SHARE, _SENTINEL_SHARE = 0.25, 0.125
"""Shares of the budget that passes and sentinels may take; figures of the whole model may take the rest."""
_WATCHPOINT_ENTRIES = (1 << 12, 1 << 20)
"""Sizes of the largest gradient that is looked at in steps that cannot pay for the norm of all: of a bias or
of a scale, as there mostly is one, which is read in no time; else of a weight."""
_LOSS = "loss"
_FROM_ELSEWHERE = (
    "; nothing that this rank computed was bad, so it came from another one: see that rank's flight"
)
_MAYBE_FROM_ELSEWHERE = "; it came from another rank, or from what was not watched on this one"


@dataclass(frozen=True, slots=True)
class Due:
    """Something that calls for a flight."""

    trouble: Trouble
    text: str


@final
class FlightRecorder:
    """Keeps the last steps, and writes down what broke.

    Args:
        models: Prefix → model.
        optimizers: Name → optimizer.
        guard: Runs all hooks.
        budget: Share of the training time that evenflow may take; None for no limit.
        folder: Where flights are kept; None to keep them in memory.
        written: Called with each flight.
        ring: The last steps.
        readings: Says of tensors that were read already whether they were finite.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        guard: Guard,
        budget: float | None,
        folder: str | None,
        written: Callable[[Flight], None],
        ring: Ring,
        readings: Readings,
    ) -> None:
        self.flights: list[Flight] = []
        self.ring = ring
        self._models = dict(models)
        self._optimizers = dict(optimizers)
        self._guard, self._budget, self._folder, self._written = guard, budget, folder, written
        self._log_meter = Meter(guard.timed, _LOG_SHARE)
        self._sentinel_meter = Meter(guard.timed, _SENTINEL_SHARE)
        self._log = PassLog(models, self._log_meter.timed, self._backward_began)
        self._sentinels = Sentinels(models, self._sentinel_meter.timed, readings)
        self._names = {
            id(parameter): ".".join(filter(None, (prefix, name)))
            for prefix, model in models.items()
            for name, parameter in model.named_parameters()
        }
        self._watchpoints = {name: _watchpoints(one, models) for name, one in optimizers.items()}
        self._due: list[Due] = []
        self._ill: set[str] = set()
        self._step = 0
        self._closure: str | None = None
        self._asked = False
        self._log.attach()
        self._sentinels.attach()

    # --- what the watch tells -------------------------------------------------

    def logged(self, figures: Mapping[str, float | Tensor]) -> None:
        """The user gave figures; a loss that spikes or is not finite calls for a flight.

        Args:
            figures: Numbers, or tensors that nobody waits for.
        """
        for name, loss in figures.items():
            if name.partition("/")[0] == _LOSS and not isinstance(loss, Tensor):
                self._judge_loss(name, loss)

    def before_step(self, name: str, joint: Tensor | None, *, closure: bool) -> None:
        """An optimizer is about to step.

        Args:
            name: Which.
            joint: Norm of all its gradients together, if taken.
            closure: Whether the gradients are still to be taken, inside the step.
        """
        self._closure = name if closure else None
        if closure:
            return
        self._judge(name, joint)

    def skipped(self, name: str) -> None:
        """A scaler skipped the step: overflowing gradients are how it finds its scale, outputs are not."""
        broken = any(is_bad(flag) for one in self._log.passes if one.reached for flag in one.output_bad)
        if broken and not self._ill:
            self._write(Due(Trouble.NON_FINITE, "an output of the model is not finite"))
        self._mark(f"gradient/{name}", broken=broken)

    def after_step(self, name: str) -> None:
        """An optimizer has stepped: what its weights were is gone."""
        self._closure = None
        if self._log.passes:
            self._log.moved({id(p) for group in self._optimizers[name].param_groups for p in group["params"]})

    def step_ended(self, step: Step, seconds: float | None) -> None:
        """The next step runs from here on."""
        if self._due:
            self._write(self._due.pop(0))
            self._due.clear()
        elif not self._ill and self._sentinels.attached:
            self._sentinels.healthy()
        self._step = step.number + 1
        self._asked = False
        if self._log.attached:
            self._log.step_ended()
        if self._sentinels.attached:
            self._sentinels.clear()
        _post(self._log, wanted=self._log_meter.affordable(seconds, self._budget))
        _post(self._sentinels, wanted=self._sentinel_meter.affordable(seconds, self._budget))

    def failed(self, error: BaseException) -> None:
        """Training ended with an exception."""
        if isinstance(error, Exception):
            self._write(Due(Trouble.EXCEPTION, f"{type(error).__name__}: {_first_line(error)}"), error)

    def close(self) -> None:
        """Take everything off and let the models go."""
        self._log.close()
        self._sentinels.close()
        self._models, self._optimizers, self._watchpoints = {}, {}, {}

    def _mark(self, what: str, *, broken: bool) -> None:
        """Only the first of a series of bad steps is written down."""
        (self._ill.add if broken else self._ill.discard)(what)

    # --- judging a step -------------------------------------------------------

    def _judge_loss(self, name: str, value: float) -> None:
        if self.ring.spikes(name, value):
            self._due.append(Due(Trouble.LOSS_SPIKE, f"the {name} jumped to {value:.4g}"))
        elif not math.isfinite(value) and not self._ill:
            self._due.append(Due(Trouble.NON_FINITE, f"the {name} is {value}"))
        self._mark(name, broken=not math.isfinite(value))

    def _judge(self, name: str, joint: Tensor | None) -> None:
        if joint is None:
            seen = next((p.grad for p in self._watchpoints[name] if p.grad is not None), None)
            broken = seen is not None and bad(seen) is True
        elif joint.is_cpu:
            norm = float(joint)
            broken = not math.isfinite(norm)
            if not broken and self.ring.spikes(f"gradient_norm/{name}", norm, logarithmic=True):
                self._due.append(Due(Trouble.GRADIENT_SPIKE, f"the gradient norm jumped to {norm:.4g}"))
        else:
            return  # nobody waits for a device
        if broken and not self._ill:
            self._due.append(Due(Trouble.NON_FINITE, "the gradient is not finite"))
        self._mark(f"gradient/{name}", broken=broken)
        if self._due:
            self._write(self._due.pop(0))
            self._due.clear()

    def _backward_began(self) -> None:
        """A closure's gradients are judged when its backward pass is over, for nobody else sees them."""
        if self._closure is not None and not self._asked:
            self._asked = True
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._log_meter.timed(self._closure_ended))

    def _closure_ended(self) -> None:
        name = self._closure
        if name is not None:
            gradients = [
                p.grad for group in self._optimizers[name].param_groups for p in group["params"]
                if p.grad is not None
            ]  # fmt: skip
            self._judge(name, torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))

    # --- the flight -----------------------------------------------------------

    def _write(self, due: Due, error: BaseException | None = None) -> None:
        if len(self.flights) >= _MOST_FLIGHTS:
            return
        self._guard.paused = True  # a replay calls the modules, and it is no step
        try:
            flight, flow = self._investigate(due, error)
        finally:
            self._guard.paused = False
        if self._folder is not None:
            name = folder_name(self._step, *rank_and_world())
            flight = write_flight(f"{self._folder}/{name}", flight, self.ring, flow)
        self.flights.append(flight)
        self._written(flight)

    def _investigate(self, due: Due, error: BaseException | None) -> tuple[Flight, Flow | None]:
        broken = self._bad_parameters()
        notes: list[str] = []
        culprit, flow, elsewhere = None, None, ""
        passes = [one for one in self._log.passes if one.reached or any(map(is_bad, one.output_bad))]
        finite = not broken and not any(is_bad(flag) for one in passes for flag in one.output_bad)
        if due.trouble is Trouble.EXCEPTION and finite:
            culprit = self._from_traceback(error)
        else:
            seen = self._in_situ() if not finite else None
            found, flow = self._replay(passes, notes)
            culprit = _joined(seen, found, notes)
            if culprit is None and broken and _reduces():
                elsewhere = _FROM_ELSEWHERE if self._sentinels.complete else _MAYBE_FROM_ELSEWHERE
            elif culprit is None and broken:
                culprit = self._from_gradients(broken)
        rank, _ = rank_and_world()
        message = f"Step {self._step}: {due.text}{elsewhere}"
        if culprit is not None:
            place = f"micro-batch {culprit.micro_batch}, rank {rank}"
            message += f"; {culprit.sentence()} ({place})"
        return Flight(due.trouble, self._step, rank, message + ".", culprit, broken, notes), flow

    def _in_situ(self) -> Culprit | None:
        weights = self._bad_weights()
        if weights is not None:
            return weights
        return self._sentinels.culprit() if self._sentinels.complete else None

    def _replay(self, passes: Sequence[LoggedPass], notes: list[str]) -> tuple[Culprit | None, Flow | None]:
        """Run passes again: bad ones in their order, then the others from the loss backwards."""
        if not passes:
            notes.append("No pass could be run again: what the models were called with was not kept.")
            return None, None
        bad_ones = [one for one in passes if any(map(is_bad, one.output_bad))]
        good_ones = [one for one in reversed(passes) if one not in bad_ones]
        flow = None
        for one in (*bad_ones, *good_ones)[:_MOST_REPLAYS]:
            model = self._models[one.prefix]
            why = "an input was overwritten" if one.overwritten else cannot_replay(model)
            if why is not None:
                notes.append(f"A pass could not be run again: {why}.")
                continue
            try:
                replayed = replay(model, one, self._sentinels.usual)
            except Exception as trouble:
                notes.append(
                    f"A pass could not be run again: {type(trouble).__name__}: {_first_line(trouble)}."
                )
                continue
            flow = flow if flow is not None else replayed.flow
            if replayed.culprit is not None:
                return replayed.culprit, replayed.flow
        late = next((one for one in good_ones if any(map(is_bad, one.gradient_bad))), None)
        if late is not None and not bad_ones and not any(late.feeds(one) for one in passes):
            return Culprit(Direction.LOSS, LOSS_PATH, late.number, Witness.REPLAY), flow
        if bad_ones or any(is_bad(flag) for one in passes for flag in one.gradient_bad):
            notes.append(
                "Run again, the passes were finite: the fault does not come by itself a second time."
            )
        return None, flow

    def _from_gradients(self, broken: Sequence[str]) -> Culprit:
        """The last bad gradient in the model's order: it or what comes after it was first on the way back."""
        names = list(self._names.values())
        last = broken[-1].rpartition(".")[0]
        after = [name.rpartition(".")[0] for name in names[names.index(broken[-1]) + 1 :]]
        others = [name for name in dict.fromkeys(after) if name != last][:1]
        if len(broken) == len(names):
            others = [LOSS_PATH]
        return Culprit(Direction.BACKWARD, last, 0, Witness.GRADIENTS, others=others)

    def _from_traceback(self, error: BaseException | None) -> Culprit | None:
        """The innermost module of ours that was running when the exception was raised."""
        paths = {
            id(module): ".".join(filter(None, (prefix, path)))
            for prefix, model in self._models.items()
            for path, module in model.named_modules()
        }
        found = None
        for frame, _ in traceback.walk_tb(error.__traceback__ if error is not None else None):
            path = paths.get(id(frame.f_locals.get("self")))
            found = path if path is not None else found
        if found is None:
            return None
        number = self._log.passes[-1].number if self._log.passes else 0
        return Culprit(Direction.FORWARD, found, number, Witness.TRACEBACK)

    def _bad_parameters(self) -> list[str]:
        return [
            self._names.get(id(p), "")
            for p in self._parameters()
            if p.grad is not None and is_bad(bad(p.grad))
        ]

    def _bad_weights(self) -> Culprit | None:
        for p in self._parameters():
            if is_bad(bad(p)):
                owner = self._names.get(id(p), "").rpartition(".")[0]
                return Culprit(Direction.WEIGHTS, owner, 0, Witness.IN_SITU)
        return None

    def _parameters(self) -> Iterable[Tensor]:
        seen = {id(p): p for model in self._models.values() for p in model.parameters()}
        return seen.values()


def rank_and_world() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _reduces() -> bool:
    """Whether gradients may hold what other processes computed."""
    known = torch.distributed.is_available() and torch.distributed.is_initialized()
    return known and torch.distributed.get_world_size() > 1


def _joined(seen: Culprit | None, found: Culprit | None, notes: list[str]) -> Culprit | None:
    """What sentinels saw in the step itself goes first; the replay adds the op where both agree."""
    if seen is None or found is None:
        return seen or found
    if seen.module == found.module:
        return replace(found, direction=seen.direction, witness=Witness.IN_SITU)
    notes.append(f"Run again, {found.sentence()}.")
    return seen


def _watchpoints(optimizer: torch.optim.Optimizer, models: Mapping[str, nn.Module]) -> Sequence[Tensor]:
    """The optimizer's first two small parameters: what goes wrong on the way back ends there.

    The second stands in where the first gets no gradient.
    """
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = [
        p for model in models.values() for p in model.parameters() if id(p) in moved and p.requires_grad
    ]
    for entries in _WATCHPOINT_ENTRIES:
        found = [p for p in trained if p.numel() <= entries]
        if found:
            return found[:2]
    return []


def _post(part: PassLog | Sentinels, *, wanted: bool) -> None:
    if wanted and not part.attached:
        part.attach()
    elif part.attached and not wanted:
        part.detach()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["(no message)"])[0]
