"""What a step was called with, so that it can be run again.

Hooks are on the modules that a training loop calls itself (learned from the first
step; a model whose ``forward`` is never called has others). For each such call the
log keeps what it would take to repeat it: references to the inputs, the random
state, the autocast setting, and the gradient that came to its outputs. Nothing is
copied but the random state (5 KB); a batch stays in memory until the next step,
as most loops keep it anyway. Gradients of outputs above :data:`_MOST_BYTES` are let go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evenflow.trace.structure import differentiable, tensors_in
from evenflow.watch.finite import Flag, bad
from evenflow.watch.recorder.eager import eager_only

_MOST_PASSES = 32
"""Passes of one step that can be repeated; of more micro-batches the last ones."""
_MOST_BYTES = 64 << 20
"""Size from which the gradient of an output is not kept: the logits of a large vocabulary."""


@dataclass(slots=True, eq=False)
class LoggedPass:
    """One call of a model by the training loop.

    Attributes:
        prefix: Of the model in which the module is.
        module: What was called; the model itself, or a part of it.
        number: Which micro-batch of the step.
        args: Positional arguments, detached.
        kwargs: Named arguments, detached.
        versions: PyTorch's version counters of the tensors among them.
        random_state: Of the host's generator, and of devices by index.
        autocast: Device type and format; None without autocast.
        output_bad: Whether an output was not finite.
        output_places: Where in memory outputs began, to recognise them as inputs of other passes.
        gradients: Position of an output among the outputs → the gradient that came to it.
        gradient_bad: Whether one of these was not finite.
    """

    prefix: str
    module: nn.Module
    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: list[tuple[Tensor, int]]
    random_state: tuple[Tensor, dict[int, Tensor]]
    autocast: tuple[str, torch.dtype] | None
    output_bad: list[Flag] = field(default_factory=list)
    output_places: set[int] = field(default_factory=set)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    gradient_bad: list[Flag] = field(default_factory=list)

    @property
    def reached(self) -> bool:
        """Whether a gradient came to it."""
        return bool(self.gradient_bad)

    def feeds(self, other: LoggedPass) -> bool:
        """Whether another pass got an output of this one with its graph."""
        return any(
            tensor.requires_grad and tensor.data_ptr() in self.output_places
            for tensor in tensors_in((other.args, other.kwargs))
        )

    @property
    def overwritten(self) -> bool:
        """Whether an input was changed in place since."""
        return any(tensor._version != version for tensor, version in self.versions)


@final
class PassLog:
    """Logs the passes of the step that runs.

    Args:
        models: Prefix → model.
        timed: Wraps every hook: measures its time and catches its failures.
        backward_began: Called when the first gradient of a backward pass comes to a model's output.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        timed: Callable[[Callable[..., None]], Callable[..., None]],
        backward_began: Callable[[], None] = lambda: None,
    ) -> None:
        self.passes: deque[LoggedPass] = deque(maxlen=_MOST_PASSES)
        self._models = models
        self._timed = timed
        self._began = backward_began
        self._handles: list[RemovableHandle] = []
        self._entries: set[nn.Module] = set()
        self._depth = 0
        self._narrow = False
        self._numbers: dict[nn.Module, int] = {}

    @property
    def attached(self) -> bool:
        """Whether hooks are on the modules."""
        return bool(self._handles)

    def attach(self) -> None:
        """Put hooks on all modules; after the first step, on those that the loop calls."""
        leave = self._timed(self._leave)
        for prefix, model in self._models.items():
            for module in model.modules():
                wanted = module is model or not self._narrow or module in self._entries
                if wanted and not isinstance(module, torch.jit.ScriptModule):
                    enter = self._timed(self._enterer(prefix))
                    self._handles += [
                        module.register_forward_pre_hook(eager_only(enter), with_kwargs=True),
                        module.register_forward_hook(eager_only(leave), always_call=True),
                    ]

    def detach(self) -> None:
        """Take the hooks off and forget everything."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.passes.clear()
        self._numbers.clear()

    def close(self) -> None:
        """Let the models go."""
        self.detach()
        self._models, self._entries = {}, set()

    def step_ended(self) -> None:
        """The next step runs from here on."""
        if not self._narrow and self._entries:
            self._narrow = True
            self.detach()
            self.attach()
        self.passes.clear()
        self._numbers.clear()
        self._depth = 0

    def moved(self, parameters: set[int]) -> None:
        """Parameters, by identity, have moved: passes of their models cannot be repeated any more."""
        stale = {
            prefix
            for prefix, model in self._models.items()
            if any(id(parameter) in parameters for parameter in model.parameters())
        }
        kept = [one for one in self.passes if one.prefix not in stale]
        if len(kept) != len(self.passes):
            self.passes.clear()
            self.passes.extend(kept)

    def _enterer(self, prefix: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._depth += 1
            if self._depth > 1 or not torch.is_grad_enabled():
                return
            self._entries.add(module)
            number = self._numbers.get(module, 0)
            self._numbers[module] = number + 1
            versions = [(tensor, tensor._version) for tensor in tensors_in((args, kwargs))]
            self.passes.append(
                LoggedPass(
                    prefix,
                    module,
                    number,
                    _detached(args),
                    _detached(kwargs),
                    [(tensor.detach(), version) for tensor, version in versions],
                    _random_state(tensor for tensor, _ in versions),
                    _autocast(tensor for tensor, _ in versions),
                )
            )

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth = max(self._depth - 1, 0)
        if self._depth or not torch.is_grad_enabled() or not self.passes:
            return
        one = self.passes[-1]
        if one.module is not module:
            return
        for place, tensor in enumerate(tensors_in(output)):
            if differentiable(tensor):
                one.output_bad.append(bad(tensor))
                one.output_places.add(tensor.data_ptr())
                if tensor.requires_grad:
                    tensor.register_hook(self._timed(self._arrival(one, place)))

    def _arrival(self, one: LoggedPass, place: int) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            one.gradient_bad.append(bad(gradient))
            if gradient.numel() * gradient.element_size() <= _MOST_BYTES:
                one.gradients[place] = gradient.detach()
            self._began()

        return hook


def _detached(value: Any) -> Any:
    """The same containers with tensors that hold no graph, and ask for gradients as before."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad) if differentiable(value) else value
    if isinstance(value, dict):
        return {key: _detached(child) for key, child in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_detached(child) for child in value)
    return value


def _random_state(tensors: Iterable[Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    devices = {tensor.device.index or 0 for tensor in tensors if tensor.is_cuda}
    return torch.get_rng_state(), {index: torch.cuda.get_rng_state(index) for index in devices}


def _autocast(tensors: Iterable[Tensor]) -> tuple[str, torch.dtype] | None:
    kind = next((tensor.device.type for tensor in tensors), "cpu")
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return kind, torch.get_autocast_dtype(kind)
    return None
