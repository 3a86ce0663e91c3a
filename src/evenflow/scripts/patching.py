"""A patch on a script that knows nothing of it.

Its optimizers are tuned once they are made, so that schedulers see them as they
are to be. Its models are edited in place before they first run, and parameters that
the patch adds join the optimizer that moves their neighbours. Losses are changed
where they are called (:mod:`evenflow.surgery.pieces.ambient`). Random numbers of
the script are as without the patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from evenflow.scripts.meeting import Listener

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from evenflow.surgery import Patch


class Patching(Listener):
    """Puts a patch on what a script trains.

    Args:
        patch: The patch as JSON; PyTorch is not imported before the script does. None: no patch.
    """

    def __init__(self, patch: str | None) -> None:
        self._text = patch
        self._patch: Patch | None = None
        self._stack = ExitStack()
        self._check_losses: Any = None
        self.code: str | None = None
        """The patch as Python, once it is on."""
        self.misfit: str | None = None
        """Why the patch cannot be put on; the script may have caught the error."""

    def made(self, optimizer: torch.optim.Optimizer) -> None:
        """Tune it."""
        if self._text is None:
            return
        from evenflow.surgery import Patch

        with self._noting_misfits():
            if self._patch is None:
                self._patch = Patch.from_json(self._text)
                self._check_losses = self._stack.enter_context(self._patch.on_calls("a script"))
            self._patch.tune(optimizer, in_place=True)

    def met(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        call: tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]],
    ) -> None:
        """Edit the models, and let the optimizers have what is new."""
        if self._patch is None:
            return
        from evenflow.errors import EvenflowError

        model: Any = models[""] if "" in models else dict(models)
        _, args, kwargs = call
        inputs = kwargs if kwargs else args[0] if len(args) == 1 else args
        try:
            self.code = self._patch.code(model, inputs)
        except EvenflowError:  # what does not fit is said below
            self.code = self._patch.code()
        before = {name: id(p) for name, p in _parameters(models)}
        with self._noting_misfits():
            self._patch.apply(model, inputs, in_place=True)
        _adopt(models, optimizers, before)

    def stepped(self) -> None:
        """After the first step it is known whether there was a loss to change."""
        if self._check_losses is not None:
            with self._noting_misfits():
                self._check_losses()
            self._check_losses = None

    @contextmanager
    def _noting_misfits(self) -> Iterator[None]:
        from evenflow.errors import EvenflowError

        try:
            yield
        except EvenflowError as error:
            self.misfit = str(error)
            raise


def _parameters(models: Mapping[str, nn.Module]) -> list[tuple[str, Tensor]]:
    return [
        (f"{role}.{name}" if role else name, parameter)
        for role, model in models.items()
        for name, parameter in model.named_parameters()
    ]


def _adopt(
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    before: Mapping[str, int],
) -> None:
    """Each new parameter goes to the optimizer that moves its nearest neighbour by path."""
    from evenflow.scripts import discovery
    from evenflow.surgery.adopt import adopt

    owner = {one: optimizer for optimizer in optimizers.values() for one in discovery.moved([optimizer])}
    homes = [(name, owner[one]) for name, one in before.items() if one in owner]
    old = set(before.values())
    for name, parameter in _parameters(models):
        if id(parameter) not in old:
            _, optimizer = max(homes, key=lambda home: _shared(home[0], name))
            adopt(optimizer, {name: parameter})  # type: ignore[dict-item]


def _shared(one: str, other: str) -> int:
    """How many leading parts two paths share."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(one.count("."), other.count(".")) + 1)
