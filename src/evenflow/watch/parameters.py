"""Parameters around an optimizer's step: weight, gradient, update, second moment.

Three moments are seen, all without touching anything:

* the end of each backward pass. The first parameter whose gradient is complete
  asks the autograd engine to call back when the pass is over; the gradients are
  then what the loss gave, before anything clips them;
* the call of ``optimizer.step``: the gradients are what the optimizer will use.
  A norm that differs from the first says by how much they were clipped;
* its return: the update is the new weight minus the old one. Weights are copied
  for that, on sampled steps, into buffers that are kept.

A ``closure`` (LBFGS) evaluates the loss inside ``step``, several times; the
gradient of the first evaluation is reported, which is that at the weights that the
step began with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evenflow.watch.moments import Taken, joint_norm, norms, take

SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum")
"""Under which names optimizers keep a running mean (Adagrad: sum) of squared gradients: Adam and its
relatives; RMSprop and Adadelta; Adagrad."""

_SHORT = (torch.float16, torch.bfloat16)


@dataclass(slots=True)
class ParameterView:
    """What was seen of one parameter in one step.

    Attributes:
        name: Its full name.
        shape: Its shape.
        dtype: PyTorch's name of its format.
        module_type: Class of the module that owns it.
        trainable: Whether gradients are asked of it.
        has_gradient: Whether one came.
        weight: Moments before the step.
        gradient: Moments of the gradient before clipping.
        change: Moments of the old weight minus the new one.
        clipped_norm: Norm of the gradient as the optimizer got it.
        second_moment: Sum over what the optimizer keeps of squared gradients.
        lost: Share of entries with a gradient that the step left as they were; of
            short formats only, in which updates are lost to rounding.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    module_type: str
    trainable: bool
    has_gradient: bool = False
    weight: Taken | None = None
    gradient: Taken | None = None
    change: Taken | None = None
    clipped_norm: Tensor | None = None
    second_moment: Tensor | None = None
    lost: Tensor | None = None


@final
class ParameterProbe:
    """The parameters of one optimizer.

    Args:
        optimizer: The optimizer.
        models: Prefix → model; gives parameters their names.
        timed: Wraps every hook: measures its time and catches its failures.
        elsewhere: Gives the identities of the parameters that other optimizers move.
        backward_ended: Called when a backward pass that reached a parameter is over.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        models: Mapping[str, nn.Module],
        timed: Callable[[Callable[..., None]], Callable[..., None]],
        elsewhere: Callable[[], set[int]] = set,
        backward_ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.optimizer = optimizer
        self._models = models
        self._timed = timed
        self._elsewhere = elsewhere
        self._ended = backward_ended
        self._handles: list[RemovableHandle] = []
        self._gradients: dict[int, Taken] = {}
        self._asked = False
        self._weights: dict[int, Tensor] = {}
        self._views: list[tuple[ParameterView, Tensor]] = []
        self.frozen_gradients = False
        """Whether the gradients seen last are to be kept, whatever further backward passes bring."""

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters that the optimizer moves, as they are now."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def attach(self) -> None:
        """Listen for the end of backward passes."""
        for parameter in self.tensors:
            if parameter.requires_grad and parameter.is_leaf:
                hook = self._timed(self._accumulated)
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._gradients.clear()
        self._asked = False

    def forget(self) -> None:
        """Give the buffers back."""
        self.detach()
        self._weights.clear()

    def joint_norm(self) -> Tensor | None:
        """Norm of all gradients together; None if there are none."""
        gradients = [p.grad for p in self.tensors if p.grad is not None]
        return joint_norm(gradients) if gradients else None

    def norms(self) -> dict[int, Tensor]:
        """Identity of each moved parameter → norm of its gradient; without those that have none."""
        gradients = {id(p): p.grad for p in self.tensors if p.grad is not None}
        if not gradients:
            return {}
        return dict(zip(gradients, norms(list(gradients.values())).unbind(), strict=True))

    def before_step(self, norms: Mapping[int, Tensor], *, closure: bool) -> list[ParameterView]:
        """Look at weights and gradients as they are in front of the optimizer.

        Args:
            norms: What :meth:`norms` gave.
            closure: Whether the gradients are still to be taken, by a closure.
        """
        moved = {id(parameter) for parameter in self.tensors}
        elsewhere = self._elsewhere() - moved
        views: list[tuple[ParameterView, Tensor]] = []
        for prefix, model in self._models.items():
            named = [item for item in _named(model) if id(item[1]) not in elsewhere]
            if not any(id(parameter) in moved for _, parameter, _ in named):
                continue  # another optimizer's model
            for name, parameter, owner in named:
                view = ParameterView(
                    name=f"{prefix}.{name}" if prefix else name,
                    shape=tuple(parameter.shape),
                    dtype=str(parameter.dtype).removeprefix("torch."),
                    module_type=type(owner).__name__,
                    trainable=parameter.requires_grad,
                )
                views.append((view, parameter))
        for view, parameter in views:
            view.weight = take(parameter)
        if not closure:
            self._look_at_gradients(views, norms)
        self._copy([parameter for _, parameter in views if id(parameter) in moved])
        self._views = views
        return [view for view, _ in views]

    def after_step(self, *, skipped: bool) -> None:
        """Complete what :meth:`before_step` returned: updates, second moments, gradients after a closure.

        Args:
            skipped: Whether the optimizer did nothing; then there is no update.
        """
        for view, parameter in self._views:
            if id(parameter) in self._gradients and view.gradient is None:
                view.gradient, view.has_gradient = self._gradients[id(parameter)], True
            old = self._weights.get(id(parameter))
            if old is not None and view.has_gradient and not skipped:
                view.change = take(old.sub_(parameter.detach()))
                if parameter.dtype in _SHORT and parameter.grad is not None:
                    view.lost = ((old == 0) & (parameter.grad != 0)).float().mean()
            state = self.optimizer.state.get(parameter, {})
            kept = next((state[name] for name in SECOND_MOMENTS if name in state), None)
            if isinstance(kept, Tensor) and kept.shape == parameter.shape:
                view.second_moment = kept.sum()
        self._views = []
        self._gradients.clear()

    def _look_at_gradients(
        self, views: list[tuple[ParameterView, Tensor]], norms: Mapping[int, Tensor]
    ) -> None:
        for view, parameter in views:
            if parameter.grad is not None:
                view.has_gradient = True
                view.clipped_norm = norms.get(id(parameter))
                taken = self._gradients.get(id(parameter))
                view.gradient = take(parameter.grad) if taken is None else taken

    def _copy(self, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            old = self._weights.get(id(parameter))
            if old is None or old.shape != parameter.shape or old.dtype != parameter.dtype:
                self._weights[id(parameter)] = parameter.detach().clone()
        known = {id(parameter) for parameter in parameters}
        self._weights = {key: old for key, old in self._weights.items() if key in known}
        with torch.no_grad():
            torch._foreach_copy_([self._weights[id(p)] for p in parameters], [p.detach() for p in parameters])

    def _accumulated(self, parameter: Tensor) -> None:
        if not self._asked:
            self._asked = True
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._timed(self._backward_ended))

    def _backward_ended(self) -> None:
        self._asked = False
        if not self._handles or self.frozen_gradients:
            return
        for parameter in self.tensors:
            if parameter.grad is not None:
                self._gradients[id(parameter)] = take(parameter.grad)
        self._ended()


def _named(model: nn.Module) -> list[tuple[str, Tensor, nn.Module]]:
    """Name, parameter and owner of each parameter, once."""
    seen: set[int] = set()
    found: list[tuple[str, Tensor, nn.Module]] = []
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found.append((f"{path}.{name}" if path else name, parameter, module))
    return found
