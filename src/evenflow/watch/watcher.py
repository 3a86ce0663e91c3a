"""Watching: training observed at a cost that the user sets.

    with evenflow.watch(model, optimizer, path="runs/1") as run:
        for batch in data:
            loss = ...
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.log(loss=loss)

A step is found from the optimizers: it ends when each of them has stepped once, or
when one of them steps again (a discriminator that takes several turns). Before
every step the governor decides whether it is sampled; then, and only then, hooks
are on modules and parameters. Otherwise two hooks on the optimizer are all
there is.

Nothing here changes what training computes, and no failure of evenflow's reaches
it: the first one takes everything off and becomes one warning.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from types import TracebackType
from typing import Any, Self, final

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evenflow.flow import Run
from evenflow.store import RunWriter, open_run
from evenflow.store.errors import tell
from evenflow.store.reader import StoredTables
from evenflow.watch.arguments import Models, Optimizers, check, models_by_role, optimizers_by_name, unmoved
from evenflow.watch.errors import WatchWarning
from evenflow.watch.facts import facts
from evenflow.watch.governor import Allowance, Budget, Cost, Governor
from evenflow.watch.graph import HookGuards, compile_again, is_compiled
from evenflow.watch.guard import Guard
from evenflow.watch.moments import load
from evenflow.watch.probes import Probes
from evenflow.watch.ranks.local_gradients import LocalGradients
from evenflow.watch.ranks.placement import is_sharded, rank_and_size
from evenflow.watch.ranks.team import Team
from evenflow.watch.record import Recorder
from evenflow.watch.recorder import Flight, FlightRecorder
from evenflow.watch.recorder.flight import FOLDER
from evenflow.watch.recorder.ring import Ring
from evenflow.watch.scaling import LossScale, found_overflow, remaining_scale
from evenflow.watch.timeline import Timeline

_MOST_WAITING_STEPS = 4096
"""Steps that wait for the writing thread before it is hurried."""


def watch(
    model: Models,
    optimizer: Optimizers,
    *,
    path: str | os.PathLike[str] | None = None,
    budget: Budget = 0.01,
    modules: str | None = None,
    scaler: torch.amp.GradScaler | None = None,
    config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    flight_recorder: bool | str | os.PathLike[str] = True,
) -> Watch:
    """Watch training until the returned object is closed.

    Args:
        model: The model, or several by role: ``{"generator": G, "discriminator": D}``.
            Roles become the first part of every path.
        optimizer: The optimizer, or several.
        path: Folder or fsspec URL of the run; None keeps it in memory.
        budget: Share of the training time that watching may take; None for
            everything at every step. Or an :class:`Allowance` in seconds.
        modules: Regular expression that the whole path of a module must match for
            its outputs to be recorded; all modules by default.
        scaler: The GradScaler in use; found by itself when it first steps.
        config: Whatever should stand in run.json: anything that fits in JSON.
        overwrite: Whether a run that is already at ``path`` may be replaced.
        flight_recorder: Whether to keep the last steps, and to write down what broke
            first when there is a NaN, a spike or an exception: in ``flight/`` in the
            run, or in a folder of its own.

    An optimizer that holds no parameter of the model is a fault of the training, not of the
    call: it is warned of, and watched all the same.

    Returns:
        The watch, a context manager; ``log`` adds figures, ``run`` reads what was seen.

    Raises:
        WatchError: An argument is of no use: no model, no optimizer, a budget out of
            range, an invalid pattern.
        StoreError: The run cannot be written to ``path``.
    """
    models, optimizers = models_by_role(model), optimizers_by_name(optimizer)
    check(models, optimizers, budget, modules)
    given = model.values() if isinstance(model, Mapping) else [model]
    compiled = any(is_compiled(part) for one in given for part in one.modules())
    for one in given:
        compile_again(one)
    made = Watch(
        models,
        optimizers,
        path=path,
        budget=budget,
        modules=modules,
        scaler=scaler,
        config=config or {},
        overwrite=overwrite,
        flight_recorder=flight_recorder,
        compiled=compiled,
    )
    trouble = unmoved(models, optimizers)
    if trouble is not None:
        made.event("unmoved", trouble)
        tell(trouble, WatchWarning)
    return made


@final
class Watch:
    """Training that is being watched; made by :func:`watch`."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        *,
        path: str | os.PathLike[str] | None,
        budget: Budget,
        modules: str | None,
        scaler: torch.amp.GradScaler | None,
        config: Mapping[str, Any],
        overwrite: bool,
        flight_recorder: bool | str | os.PathLike[str],
        compiled: bool,
    ) -> None:
        began = perf_counter()
        self._rank, self._ranks = rank_and_size()
        self._path = path if self._rank == 0 else None
        self._optimizers = dict(optimizers)
        self._governor = Governor(budget)
        self._guard = Guard(self._governor, self._fail)
        self._recorder = Recorder()
        self._timeline = Timeline()
        self._stepped: set[str] = set()
        self._step_began: float | None = None
        self._closed = False
        timed = self._guard.timed
        self._scale = LossScale(scaler, timed(self._skipped))
        self._probes = Probes(models, self._optimizers, modules, timed)
        self._team: Team | None = None
        self._writer = RunWriter(
            self._path,
            facts(models, optimizers, budget, config, self._ranks),
            overwrite=overwrite,
            gather=self._gather,
            spent=self._governor.spend_apart,
        )
        self._team = Team.join(
            models.values(),
            every=budget is None,
            failed=self._guard.fail,
            spent=self._governor.spend_apart,
        )
        if self._team is not None:
            for probe in self._probes.parameters.values():
                probe.before_reduction = LocalGradients(timed)
        self.recent = Ring()
        """The last steps: figures, and gradient norms of single parameters."""
        self._attach()  # before the sentinels, which need not read what was read already
        self._flight: FlightRecorder | None = None
        if flight_recorder is not False and is_sharded(models.values()):
            self.event("unsupported", "The flight recorder is off: it cannot run sharded models again.")
        elif flight_recorder is not False and compiled:
            self.event("unsupported", "The flight recorder is off: it cannot look into compiled models.")
        elif flight_recorder is not False:
            folder = f"{os.fspath(path).rstrip('/')}/{FOLDER}" if path is not None else None
            share = None if isinstance(budget, Allowance) else budget
            self._flight = FlightRecorder(
                models,
                self._optimizers,
                self._guard,
                share,
                folder if flight_recorder is True else os.fspath(flight_recorder),
                self._flight_written,
                self.recent,
                self._probes.readings,
            )
        self._handles: list[RemovableHandle | HookGuards] = [HookGuards()]
        for name, one in self._optimizers.items():
            self._handles += [
                one.register_step_pre_hook(timed(self._before(name))),
                one.register_step_post_hook(timed(self._after(name))),
            ]
        load()
        self._governor.startup_seconds = perf_counter() - began

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is not None:
            self.event("exception", f"{type(error).__name__}: {error}")
            if self._flight is not None:
                self._guard.run(self._flight.failed, error)
        self.close("finished" if error is None else "failed")

    @property
    def trouble(self) -> str | None:
        """The failure that ended watching before its time; None if there was none."""
        return self._guard.trouble

    @property
    def step(self) -> int:
        """Number of the step that runs, from 0."""
        return self._timeline.running.number

    @property
    def flights(self) -> tuple[Flight, ...]:
        """What broke so far; see :mod:`evenflow.watch.recorder`."""
        return tuple(self._flight.flights) if self._flight is not None else ()

    @property
    def cost(self) -> Cost:
        """What watching cost so far."""
        return self._governor.cost

    @property
    def run(self) -> Run:
        """What was seen so far, to be read.

        While training goes on the step that ended last is not in it, for figures
        may still be logged to it.
        """
        self._writer.flush()
        return Run(StoredTables(self._writer.storage)) if self._path is None else open_run(self._path)

    def log(self, **figures: float | Tensor) -> None:
        """Add figures to the step: ``run.log(loss=loss, accuracy=0.9)``.

        Args:
            figures: Numbers or tensors of one entry, which are not waited for. Several
                values of one name in one step are averaged. A figure that was
                first logged after ``optimizer.step()`` belongs to the step that
                had ended, from then on; one that came before it to the step
                that runs.

        Raises:
            WatchError: A value is no number.
        """
        if self._closed or self.trouble is not None:
            return
        began = perf_counter()
        kept = self._timeline.log(figures, between_steps=not self._stepped)
        if self._flight is not None:
            self._guard.run(self._flight.logged, kept)
        self._governor.spend(perf_counter() - began)

    def charge(self, seconds: float) -> None:
        """Another thread took processor time on the watch's behalf, which the budget pays for."""
        self._governor.spend_apart(seconds)

    def event(self, kind: str, text: str) -> None:
        """Write down that something happened in this step."""
        self._timeline.event(kind, text)

    def close(self, state: str = "finished") -> None:
        """Stop watching: take every hook off and finish the run on disk."""
        if self._closed:
            return
        self._closed = True
        self._remove_hooks()
        cost = self._governor.cost
        self.event("cost", str(cost))
        self._timeline.end()
        if self._team is not None:
            self._team.close(self._timeline.take(), failed=state == "failed" or self.trouble is not None)
        self._writer.close(state)

    # --- the steps ------------------------------------------------------------

    def _before(self, name: str) -> Callable[..., None]:
        def hook(optimizer: torch.optim.Optimizer, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            self._scale.stepping()
            if not self._scale.active and self._governor.sampling:
                self._scale.find()
            if name in self._stepped:  # it steps again before others did: a new step
                self._end_step()
            closure = (args[1] if len(args) > 1 else kwargs.get("closure")) is not None
            norms, joint = self._figures(name, closure=closure)
            if norms is not None:
                self.recent.put_norms(self.step, name, self._probes.parameters[name].with_gradient(), norms)
            if self._flight is not None:
                self._flight.before_step(name, joint, closure=closure)
            if self._governor.sampling:
                self._begin_sample(name, norms, closure=closure)
            self._probes.in_closure = closure

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(optimizer: torch.optim.Optimizer, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            self._probes.in_closure = False
            skipped = found_overflow(optimizer)
            if skipped:
                self._note_skip()
            if self._probes.sampling:
                self._end_sample(skipped=skipped)
            if self._flight is not None:
                self._flight.after_step(name)
            self._end_turn(name)

        return hook

    def _figures(self, name: str, *, closure: bool) -> tuple[Tensor | None, Tensor | None]:
        """Figures of the whole model, if the budget allows; norms of single gradients and of all together."""
        suffix = f"/{name}" if name else ""
        groups = self._optimizers[name].param_groups
        rates = [group["lr"] for group in groups if "lr" in group]
        for index, rate in enumerate(rates):
            if index == 0 or rate != rates[0]:
                self._timeline.add(f"lr{suffix}" if index == 0 else f"lr{suffix}/{index}", float(rate))
        if self._scale.active:
            self._timeline.add("loss_scale", self._scale.value)
        if closure or not self._governor.figures:
            return None, None
        began = perf_counter()
        probe = self._probes.parameters[name]
        if self._governor.sampling:
            norms = probe.norms()
            joint = torch.linalg.vector_norm(norms) if norms is not None else None
        else:
            norms, joint = probe.joint_norm()
        self._governor.spend_on_figures(perf_counter() - began)
        left = remaining_scale(self._optimizers[name])
        if self._team is not None:  # which of them count on this rank is agreed on later
            if norms is not None and not probe.holds_addends():
                self._timeline.running.norms[name] = probe.with_gradient(), norms / left
        elif joint is not None:
            self._timeline.add(
                f"gradient_norm_after_clipping{suffix}", joint / left if left != 1.0 else joint
            )
        return norms, joint

    def _begin_sample(self, name: str, norms: Tensor | None, *, closure: bool) -> None:
        self._probes.begin_sample(
            name,
            norms,
            closure=closure,
            scale=self._scale.value,
            remaining=remaining_scale(self._optimizers[name]),
        )

    def _end_sample(self, *, skipped: bool) -> None:
        self._timeline.running.samples.append(self._probes.end_sample(skipped=skipped))

    def _end_turn(self, name: str) -> None:
        self._stepped.add(name)
        self._probes.end_turn()
        if len(self._stepped) == len(self._optimizers):
            self._end_step()

    def _end_step(self) -> None:
        now = perf_counter()
        began, self._step_began = self._step_began, now
        seconds = None if began is None else now - began
        self._governor.step(seconds)
        if self._flight is not None:
            self._flight.step_ended(self._timeline.running, seconds)
        self.recent.put(self._timeline.running)
        self._timeline.end_step()
        self._probes.readings.clear()
        self._stepped.clear()
        if self._team is not None:
            sampling = self._team.step_ended(self._timeline, self._governor.wait)
            self._governor.decide(sampling=sampling)
        if self._timeline.waiting >= _MOST_WAITING_STEPS:
            self._writer.hurry()
        if self._governor.sampling and not self._probes.attached:
            self._probes.refresh()
            self._attach()
        elif self._probes.attached and not self._governor.sampling:
            self._probes.detach()
        elif self._probes.attached and self._probes.refresh():
            self._probes.detach()
            self._attach()

    def _skipped(self, optimizer: torch.optim.Optimizer) -> None:
        """The scaler did not let the optimizer step."""
        name = next((name for name, one in self._optimizers.items() if one is optimizer), None)
        if name is None or self._closed:
            return
        if name in self._stepped:
            self._end_step()
        self._note_skip()
        norms, _ = self._figures(name, closure=False)
        if self._flight is not None:
            self._flight.skipped(name)
        if self._governor.sampling:
            self._begin_sample(name, norms, closure=False)
            self._end_sample(skipped=True)
        self._end_turn(name)

    def _note_skip(self) -> None:
        self._timeline.add("skipped", 1.0)
        self.event(
            "skipped_step", "The scaler found gradients that are not finite, and the step was skipped."
        )

    # --- hooks and failures ---------------------------------------------------

    def _attach(self) -> None:
        parts = self._probes.attach()
        if parts:
            self.event(
                "unseen",
                f"{', '.join(parts)}: compiled by itself, inside a model that is not. Its outputs are not "
                "recorded; its parameters are. Compile the whole model to see them.",
            )

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._probes.remove()
        self._scale.remove()
        if self._flight is not None:
            self._flight.close()
        self._optimizers = {}  # the watch may outlive the model

    def _flight_written(self, flight: Flight) -> None:
        self.event("flight", flight.message)

    def _fail(self, trouble: str) -> None:
        self._remove_hooks()
        self.event("trouble", trouble)
        if self._team is not None:
            self._team.leave()
        tell(
            f"evenflow stopped watching at step {self.step}, because of an error of its own: {trouble}. "
            "Training goes on as if it were not there; what was seen before is kept.",
            WatchWarning,
        )

    def _gather(self) -> Iterator[tuple[str, pa.Table]]:
        """Called in the writing thread: the tables of all steps that have ended."""
        try:
            if self._team is None:
                yield from self._recorder.tables(self._timeline.take() if self._rank == 0 else [])
            else:
                yield from self._team.tables()
                yield from self._recorder.tables(self._team.untold())
        except Exception as error:
            self._guard.fail(error)
