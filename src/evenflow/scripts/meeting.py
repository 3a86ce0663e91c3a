"""The moments in a script at which a patch can be put on: an optimizer was made; its model is about to run.

An optimizer is *made* when the outermost ``__init__`` of its class has returned:
schedulers and wrappers come later and see it as it is then. A model *meets* its
optimizers when a module that holds their parameters is called with gradients on for
the first time, before anything of that call has happened. A *step* is over when
every optimizer has stepped once, or when one of them steps again.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Listener:
    """What is told of a script's training. Each method does nothing; override those that matter."""

    def made(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer was made."""

    def met(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        call: tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]],
    ) -> None:
        """The models by role, the optimizers by name, and the call that is about to happen."""

    def lost(self, loss: Tensor) -> None:
        """A scalar is about to be differentiated."""

    def stepped(self) -> None:
        """A step is over."""


@final
class Meeting:
    """Tells a listener of the first training of a script.

    Args:
        listener: Who is told.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._optimizers: list[weakref.ref[torch.optim.Optimizer]] = []
        self._made: set[int] = set()
        self._turns: set[int] = set()
        self._known: set[int] = set()
        self._inside = 0
        self._over = False

    def install(self) -> None:
        """Listen from now on; called once ``torch.optim.optimizer`` is imported."""
        from torch.optim.optimizer import Optimizer

        original = Optimizer.__init__

        @wraps(original)
        def begun(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            self._made.add(id(optimizer))
            if self._inside == 0:  # a class whose own __init__ was not wrapped
                self._finished(optimizer)

        Optimizer.__init__ = begun  # type: ignore[method-assign, assignment]
        former = Optimizer.__init_subclass__

        def subclassed(kind: Any, /, **kwargs: Any) -> None:
            former(**kwargs)
            self._wrap(kind)

        Optimizer.__init_subclass__ = classmethod(subclassed)  # type: ignore[assignment]
        kinds = list(Optimizer.__subclasses__())  # none, if the module was imported just now
        while kinds:
            kind = kinds.pop()
            kinds += kind.__subclasses__()
            self._wrap(kind)

    def _wrap(self, kind: Any) -> None:
        """Notice when the outermost ``__init__`` of an optimizer has returned."""
        original = kind.__dict__.get("__init__")
        if original is None:
            return

        @wraps(original)
        def noticed(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            self._inside += 1
            try:
                original(optimizer, *args, **kwargs)
            finally:
                self._inside -= 1
            if self._inside == 0 and id(optimizer) in self._made:
                self._finished(optimizer)

        kind.__init__ = noticed

    def _finished(self, optimizer: torch.optim.Optimizer) -> None:
        self._made.discard(id(optimizer))
        if self._over:
            return
        self._optimizers.append(weakref.ref(optimizer))
        self._inside += 1  # what the listener makes is not the script's
        try:
            self._listener.made(optimizer)
        finally:
            self._inside -= 1
            self._made.clear()
        if len(self._optimizers) == 1:  # last, so that losses are seen before a patch scales them
            self._begin()

    def _begin(self) -> None:
        """The first optimizer was made: all of PyTorch is there."""
        import torch
        from torch import nn
        from torch.optim.optimizer import register_optimizer_step_post_hook

        from evenflow.scripts.losses import follow_losses

        called = nn.Module.__call__

        @wraps(called)
        def first(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled() and self._trains(module):
                nn.Module.__call__ = called  # type: ignore[method-assign]
                self._meet(module, args, kwargs)
            return called(module, *args, **kwargs)

        nn.Module.__call__ = first  # type: ignore[method-assign]
        follow_losses(self._differentiated)
        register_optimizer_step_post_hook(lambda optimizer, args, kwargs: self._stepped(optimizer))

    # ----------------------------------------------------------------------- models

    def _trains(self, module: nn.Module) -> bool:
        from evenflow.scripts import discovery

        parameters = discovery.moved(discovery.latest(self._optimizers))
        return any(id(parameter) in parameters for parameter in module.parameters())

    def _meet(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        from evenflow.scripts import discovery

        latest = discovery.latest(self._optimizers)
        found = discovery.owners(discovery.moved(latest))
        own = set(module.parameters())
        # A LightningModule is never called itself: then what is called stands for the model.
        found = [discovery.unwrapped(module) if set(one.parameters()) <= own else one for one in found]
        models = discovery.named_models(found)
        optimizers = discovery.named_optimizers(latest, models)
        self._known, self._over = {id(one) for one in latest}, True
        self._listener.met(models, optimizers, (module, args, kwargs))

    # ------------------------------------------------------------------ what happens

    def _differentiated(self, loss: Tensor) -> None:
        if self._known:
            self._listener.lost(loss)

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if id(optimizer) not in self._known:
            return
        if id(optimizer) in self._turns:
            self._turns = {id(optimizer)}
            self._listener.stepped()
            return
        self._turns.add(id(optimizer))
        if self._turns == self._known:
            self._turns = set()
            self._listener.stepped()
