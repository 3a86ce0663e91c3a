"""Residual branches of a model, found by watching one batch: what is added to something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evenflow.errors import EvenflowError
from evenflow.fix.remedy import Case
from evenflow.surgery.layers import is_any_layer

_SUMS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
LEAST = 2
"""Layers of a branch: at fewer there is nothing to scale between them."""


class BranchesError(EvenflowError):
    """The residual branches of a program cannot be told; the text says what failed."""


def branches(case: Case) -> list[str]:
    """Paths of the modules of two layers or more whose output is summed with something as large.

    A sum of two such outputs has no skip, and does not count. Where a block holds its layers
    itself, without a module around the branch, it is not found.

    Args:
        case: Its program is built anew, and its first batch is run forward.

    Raises:
        BranchesError: That fails, as it may in the stand-in for a script.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        training = case.program.start(case.training.seed)
        watching = _Sums()
        handles = [
            module.register_forward_hook(watching.note(f"{role}.{path}".strip(".")))
            for role, model in training.models.items()
            for path, module in model.named_modules()
            if path and sum(map(is_any_layer, module.modules())) >= LEAST
        ]
        try:
            with watching:
                for loss in training.losses.values():
                    loss(training.model, training.first_batch())
        except Exception as error:
            raise BranchesError(f"{type(error).__name__}: {error}") from error
        finally:
            for handle in handles:
                handle.remove()
    return list(dict.fromkeys(watching.found))


class _Sums(TorchFunctionMode):
    """Sees sums, and which of their terms are outputs of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._outputs: dict[int, tuple[str, tuple[Any, ...], Tensor]] = {}

    def note(self, path: str) -> Callable[..., None]:
        """A hook that keeps what a module took and gave, so that their ids stay their own."""

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                self._outputs[id(output)] = path, args, output

        return keep

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _SUMS and len(args) == 2 and not kwargs:
            terms = [one for one in args if isinstance(one, Tensor)]
            if len(terms) == 2 and terms[0].shape == terms[1].shape:
                self.found += self._branch(*terms)
        return func(*args, **(kwargs or {}))

    def _branch(self, one: Tensor, other: Tensor) -> list[str]:
        """Which of two terms is the branch: the one whose input the other is, or that alone is known."""
        known = [
            (path, any(given is skip for given in args))
            for term, skip in ((one, other), (other, one))
            for path, args, _ in [self._outputs.get(id(term), ("", (), term))]
            if path
        ]
        return [path for path, takes_the_other in known if takes_the_other or len(known) == 1]
