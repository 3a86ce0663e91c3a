"""The watching of one script: models and steps are found from its optimizers.

Three things are noticed: an optimizer is made; a module that has its parameters is
called with gradients on (the first time, its models are looked for and the watch
begins, so that the first step is seen whole); ``backward`` is called, on the loss.
All of it comes off when the session ends. An optimizer that steps without a gradient, while the
modules that ran have some, was not made from theirs: that is watched from the next step on.

A script may make new optimizers later (a second phase, the next fold). Then that
watch ends and another begins, in a folder of its own. Optimizers that come before
any step was taken belong to the first.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, final

from evenflow.store.errors import tell

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from evenflow.watch import Watch
    from evenflow.watch.recorder import Flight


@dataclass(frozen=True, slots=True)
class Settings:
    """How a script is watched.

    Attributes:
        path: Folder of the run; None to keep it in memory.
        flights: Folder of its flights; None for none.
        budget: Share of the time that watching may take; None for no limit.
        overwrite: Whether a run at ``path`` may be replaced.
        script: What is run, for ``run.json``.
        arguments: Its arguments.
    """

    path: str | None
    flights: str | None
    budget: float | None
    overwrite: bool
    script: str
    arguments: tuple[str, ...]


@final
class Session:
    """Watches what a script trains.

    Args:
        settings: How.
    """

    def __init__(self, settings: Settings) -> None:
        self.on_begin: Callable[[Watch], None] = lambda watch: None
        """Called with each watch that begins."""
        self.watches: list[Watch] = []
        self.trouble: str | None = None
        """Why no watch could begin; None if one did, or nothing was trained."""
        self.optimizers_made = 0
        self._settings = settings
        self._optimizers: list[weakref.ref[torch.optim.Optimizer]] = []
        self._waiting = False
        self._ran: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._names: dict[int, str] = {}
        self._losses: list[Tensor] = []
        self._stepping: tuple[torch.optim.Optimizer, Any, Any] | None = None
        self._undo: list[Callable[[], None]] = []
        self._entry: Any = None

    def install(self) -> None:
        """Notice optimizers from now on; called once ``torch.optim.optimizer`` is imported."""
        from torch.optim.optimizer import Optimizer

        original = Optimizer.__init__

        @wraps(original)
        def noticed(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            self._guarded(self._made, optimizer)

        Optimizer.__init__ = noticed  # type: ignore[method-assign, assignment]
        self._undo.append(lambda: setattr(Optimizer, "__init__", original))

    def close(self, error: BaseException | None = None) -> None:
        """End watching; what was seen stays."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        self._disarm()
        if self.watches:
            self.watches[-1].__exit__(type(error) if error is not None else None, error, None)

    # --- optimizers and models ------------------------------------------------

    def _made(self, optimizer: torch.optim.Optimizer) -> None:
        import torch.nn.modules.module as modules

        if self.optimizers_made == 0:
            self._follow_losses()
        self.optimizers_made += 1
        self._optimizers.append(weakref.ref(optimizer))
        self._waiting = True
        if self._entry is None:
            self._entry = modules.register_module_forward_pre_hook(self._called)

    def _disarm(self) -> None:
        if self._entry is not None:
            self._entry.remove()
            self._entry = None

    def _called(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        import torch

        if self._waiting and torch.is_grad_enabled():
            frame = sys._getframe(1)
            self._guarded(self._begin_if_trained, module, args, frame.f_locals.get("kwargs") or {})

    def _begin_if_trained(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        from evenflow.scripts import discovery

        latest = discovery.latest(self._optimizers)
        parameters = discovery.moved(latest)
        if not any(id(parameter) in parameters for parameter in module.parameters()):
            self._ran.add(module)
            return
        self._waiting = False
        self._disarm()
        self._ran.clear()
        known = set(module._forward_pre_hooks)
        self._begin(latest, discovery.owners(parameters))
        # Calls that run already have collected their hooks, and would miss the watch's.
        if self._stepping is not None:  # a closure: the model is called inside the step
            optimizer, step_args, step_kwargs = self._stepping
            for step_hook in list(optimizer._optimizer_step_pre_hooks.values())[-1:]:
                step_hook(optimizer, step_args, step_kwargs)
        for key, hook in list(module._forward_pre_hooks.items()):
            if key not in known:
                with_kwargs = key in module._forward_pre_hooks_with_kwargs
                hook(module, args, kwargs) if with_kwargs else hook(module, args)

    def _begin_if_idle(self) -> None:
        """Watch what ran, if its gradients are there and the optimizers' own parameters have none."""
        from evenflow.scripts import discovery

        latest = discovery.latest(self._optimizers)
        held = [p for one in latest for group in one.param_groups for p in group["params"]]
        reached = {id(p) for module in self._ran for p in module.parameters() if p.grad is not None}
        if reached and all(parameter.grad is None for parameter in held):
            self._waiting = False
            self._disarm()
            self._ran.clear()
            self._begin(latest, discovery.owners(reached))

    def _begin(self, optimizers: list[torch.optim.Optimizer], found: list[nn.Module]) -> None:
        from evenflow.scripts import discovery
        from evenflow.watch import watch

        models = discovery.named_models(found)
        named = discovery.named_optimizers(optimizers, models)
        again = bool(self.watches) and self.watches[-1].step == 0
        if again:  # no step was taken: the same run, with all optimizers
            self.watches.pop().close()
        elif self.watches:
            self.watches[-1].close()
        number = len(self.watches) + 1
        settings = self._settings
        path = settings.path if settings.path is None or number == 1 else f"{settings.path}-{number}"
        one = watch(
            models,
            named,
            path=path,
            budget=settings.budget,
            config={"script": settings.script, "arguments": list(settings.arguments)},
            overwrite=settings.overwrite or again,
            flight_recorder=settings.flights if settings.flights is not None else False,
        )
        self._names = {id(optimizer): name for name, optimizer in named.items()}
        self.watches.append(one)
        self.on_begin(one)

    # --- losses ---------------------------------------------------------------

    def _follow_losses(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        from evenflow.scripts.losses import follow_losses

        handles = [
            register_optimizer_step_pre_hook(lambda *step: self._guarded(self._steps, *step)),
            register_optimizer_step_post_hook(lambda *step: self._guarded(self._stepped)),
        ]
        self._undo += [
            follow_losses(lambda loss: self._guarded(self._differentiated, loss)),
            *(handle.remove for handle in handles),
        ]

    def _differentiated(self, loss: Tensor) -> None:
        if not self.watches:
            return
        if len(self._names) == 1:
            self._log("", loss.detach())
        elif self._stepping is not None:
            self._log(self._names.get(id(self._stepping[0]), ""), loss.detach())
        elif len(self._losses) < 64:  # which optimizer it is for shows when one steps
            self._losses.append(loss.detach())

    def _steps(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._stepping = optimizer, args, kwargs
        name = self._names.get(id(optimizer))
        if name is not None:
            losses, self._losses = self._losses, []
            for loss in losses:
                self._log(name, loss)

    def _stepped(self) -> None:
        self._stepping = None
        if self._waiting and not self.watches:
            self._begin_if_idle()

    def _log(self, name: str, loss: Tensor) -> None:
        self.watches[-1].log(**{f"loss/{name}" if name else "loss": loss})

    def _guarded(self, call: Callable[..., None], *args: Any) -> None:
        """No failure of ours reaches the script: the first one is told, and ends the session."""
        try:
            call(*args)
        except Exception as error:
            self.trouble = f"{type(error).__name__}: {error}"
            self._waiting = False
            self._disarm()
            tell(f"evenflow cannot watch this script: {self.trouble} The script runs on without it.")

    @property
    def flights(self) -> list[Flight]:
        """What broke, in all watches."""
        return [flight for one in self.watches for flight in one.flights]
