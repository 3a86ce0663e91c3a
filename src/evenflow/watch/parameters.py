"""Parameters around an optimizer's step: weight, gradient, update, second moment.

Three moments are seen, all without touching anything:

* the end of each backward pass: gradients are then what the loss gave, before
  anything clips them. They are read together, but a large one in main memory as soon
  as it is complete, while it is in the cache, and again if it has changed since. (Not where
  several processes train together: what reduces gradients over them may write
  past autograd's counts of changes.) The first parameter whose gradient is complete
  asks the autograd engine to call back when the pass is over;
* the call of ``optimizer.step``: the gradients are what the optimizer will use.
  A norm that differs from the first says by how much they were clipped;
* its return: the update is the new weight minus the old one, of which a copy is
  kept (:mod:`evenflow.watch.copies`).

A ``closure`` (LBFGS) evaluates the loss inside ``step``, several times; the
gradient of the first evaluation is reported, which is that at the weights that the
step began with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from evenflow.watch.copies import Copies
from evenflow.watch.inventory import Inventory, Owned
from evenflow.watch.moments import Page, Rows
from evenflow.watch.norms import joint_norm, norms, sums
from evenflow.watch.ranks.local_gradients import LocalGradients
from evenflow.watch.ranks.placement import WHOLE, Piece, local, piece_of, rank_and_size
from evenflow.watch.readings import Readings, Version, version_of

SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum")
"""Under which names optimizers keep a running mean (Adagrad: sum) of squared gradients: Adam and its
relatives; RMSprop and Adadelta; Adagrad."""

_WORTH_A_CALL = 1 << 14
"""Entries from which a gradient is read as soon as it is complete. In the cache an entry takes 0.11 ns, in
memory 0.5 ns; the difference pays for an empty hook, 0.5 to 0.9 µs, from 1100 to 2100 entries on
(benchmarks/watch.py --constants). More than that, for what is done in the hook (a judgement)."""
_SHORT = (torch.float16, torch.bfloat16)


class Addends(NamedTuple):
    """What a rank holds of a gradient that is a sum over ranks: which piece, before clipping, after it."""

    piece: Piece
    before: Tensor
    after: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ParameterPlace:
    """What stays from step to step of a parameter. Made once, and equal to itself only.

    Attributes:
        name: Its full name.
        shape: Its shape.
        dtype: Its format.
        module_type: Class of the module that owns it.
        trainable: Whether gradients are asked of it.
        piece: Which piece of it this rank holds.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    module_type: str
    trainable: bool
    piece: Piece = WHOLE


@dataclass(slots=True, eq=False)
class ParameterSample:
    """What was seen of the parameters of one optimizer in one step.

    A row that is −1 was not written: there was no gradient, no update.

    Attributes:
        places: The parameters.
        weights: Page with moments of weights and of updates (old weight minus new one).
        weight_rows: Row of each parameter's weight before the step.
        change_rows: Row of each parameter's update.
        gradients: Page with moments of gradients before clipping.
        gradient_rows: Row of each parameter's gradient there.
        clipped_rows: ParameterPlace of each parameter in ``clipped_norms``.
        clipped_norms: Norms of gradients as the optimizer got them.
        second_rows: ParameterPlace of each parameter in ``second_moments``.
        second_moments: Sums over what the optimizer keeps of squared gradients.
        lost: Number of a parameter → share of entries with a gradient that the step left as
            they were; of short formats only, in which updates are lost to rounding.
        addends: Number of a parameter → what this rank holds of a gradient that is the sum of what
            several ranks hold, and has no moments yet: before clipping, and as the optimizer got it.
    """

    places: tuple[ParameterPlace, ...]
    weights: Page
    weight_rows: list[int]
    change_rows: list[int]
    gradients: Page
    gradient_rows: list[int]
    clipped_rows: list[int] = field(default_factory=list)
    clipped_norms: Tensor | None = None
    second_rows: list[int] = field(default_factory=list)
    second_moments: Tensor | None = None
    lost: dict[int, Tensor] = field(default_factory=dict)
    addends: dict[int, Addends] = field(default_factory=dict)

    def structure(self) -> tuple[object, ...]:
        """Equal where two samples differ by numbers only."""
        return (
            self.places,
            tuple(self.weight_rows),
            tuple(self.change_rows),
            tuple(self.gradient_rows),
            tuple((index, one.piece) for index, one in self.addends.items()),
        )

    def moments(self) -> tuple[Rows, Rows]:
        """The rows of both pages, of weights and of gradients."""
        last = max((*self.weight_rows, *self.change_rows), default=-1)
        return self.weights.read(last + 1), self.gradients.read(max(self.gradient_rows, default=-1) + 1)


@final
class ParameterProbe:
    """The parameters of one optimizer.

    Args:
        optimizer: The optimizer.
        models: Prefix → model; gives parameters their names.
        timed: Wraps every hook: measures its time and catches its failures.
        readings: Is told which gradients were finite.
        elsewhere: Gives the identities of the parameters that other optimizers move.
        backward_ended: Called when a backward pass that reached a parameter is over.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        models: Mapping[str, Inventory],
        timed: Callable[[Callable[..., None]], Callable[..., None]],
        readings: Readings,
        elsewhere: Callable[[], set[int]] = set,
        backward_ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.optimizer = optimizer
        self._models = models
        self._timed = timed
        self._readings = readings
        self._elsewhere = elsewhere
        self._backward_seen = backward_ended
        self._handles: list[RemovableHandle] = []
        self._complete, self._ask = timed(self._accumulated), timed(self._ask_for_the_end)
        self._asked = False
        self._gradients = Page()
        self._gradient_rows: dict[int, int] = {}
        self._versions: dict[int, Version] = {}
        self._weights = Copies()
        self._places: dict[tuple[str, str], ParameterPlace] = {}
        self._sample: ParameterSample | None = None
        self._sampled: list[Tensor] = []
        self._moved: set[int] = set()
        self._names: dict[int, str] = {}
        self._addends: dict[int, Tensor] = {}
        self._on_ranks = False
        self.before_reduction: LocalGradients | None = None
        """Looks at what this rank alone contributes; None on a single rank."""
        self.frozen_gradients = False
        """Whether the gradients seen last are to be kept, whatever further backward passes bring."""

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters that the optimizer moves, as they are now."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def attach(self) -> None:
        """Listen for gradients that are complete, and for the end of backward passes."""
        self._on_ranks = rank_and_size()[1] > 1
        for parameter in self.tensors:
            if parameter.requires_grad and parameter.is_leaf:
                seen = self._complete if parameter.numel() >= _WORTH_A_CALL else self._noticed
                self._handles.append(parameter.register_post_accumulate_grad_hook(seen))
        if self.before_reduction is not None:
            self.before_reduction.attach(self._models, {id(parameter) for parameter in self.tensors})

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self.before_reduction is not None:
            self.before_reduction.detach()
        self._forget_gradients()
        self._asked = False

    def forget(self) -> None:
        """Give the buffers back."""
        self.detach()
        self._weights.clear()
        self._places.clear()

    def joint_norm(self) -> tuple[Tensor | None, Tensor | None]:
        """As :meth:`norms`, and the norm of all gradients together; None if there are none."""
        gradients = [local(p.grad) for p in self.tensors if p.grad is not None]
        return joint_norm(gradients) if gradients else (None, None)

    def norms(self) -> Tensor | None:
        """Norms of the gradients of :attr:`tensors` that have one, in order; None if there are none."""
        gradients = [local(p.grad) for p in self.tensors if p.grad is not None]
        return norms(gradients) if gradients else None

    def holds_addends(self) -> bool:
        """Whether a gradient is a sum over ranks that nobody has taken yet, so that it has no norm."""
        return any(piece_of(p.grad).addends > 1 for p in self.tensors if p.grad is not None)

    def with_gradient(self) -> tuple[str, ...]:
        """Names of the parameters that :meth:`norms` is about."""
        moved = [id(p) for p in self.tensors if p.grad is not None]
        if not self._names.keys() >= set(moved):
            self._names = {
                id(one.parameter): f"{prefix}.{one.name}" if prefix else one.name
                for prefix, inventory in self._models.items()
                for one in inventory.parameters
            }
        return tuple(self._names.get(key, "") for key in moved)

    def before_step(self, norms: Tensor | None, models: Collection[str], *, closure: bool) -> ParameterSample:
        """Look at weights and gradients as they are in front of the optimizer.

        Args:
            norms: What :meth:`norms` gave.
            models: Prefixes of the models to look at.
            closure: Whether the gradients are still to be taken, by a closure.
        """
        tensors = self.tensors
        moved = {id(parameter) for parameter in tensors}
        places, parameters = self._seen(moved, models)
        nothing = [-1] * len(parameters)
        sample = ParameterSample(
            places=places,
            weights=Page(2 * len(parameters)),
            weight_rows=nothing.copy(),
            change_rows=nothing.copy(),
            gradients=self._gradients,
            gradient_rows=nothing.copy(),
            clipped_norms=norms,
        )
        if norms is not None:
            with_norm = [id(p) for p in tensors if p.grad is not None]
            rows = dict(zip(with_norm, range(len(with_norm)), strict=True))
            sample.clipped_rows = [rows.get(id(parameter), -1) for parameter in parameters]
        if not closure:
            for index, parameter in enumerate(parameters):
                if parameter.grad is not None:
                    sample.gradient_rows[index] = self._gradient_row(parameter, parameter.grad)
                    self._take_addends(sample, index, parameter)
        self._take_weights(sample, parameters, moved)
        self._sample, self._sampled, self._moved = sample, parameters, moved
        return sample

    def after_step(self, *, skipped: bool) -> None:
        """Complete what :meth:`before_step` returned: updates, second moments, gradients after a closure.

        Args:
            skipped: Whether the optimizer did nothing; then there is no update.
        """
        sample, parameters = self._sample, self._sampled
        self._sample, self._sampled = None, []
        assert sample is not None
        sample.gradients = self._gradients
        for index, parameter in enumerate(parameters):
            if sample.gradient_rows[index] < 0:
                sample.gradient_rows[index] = self._gradient_rows.get(id(parameter), -1)
        if not skipped:
            self._take_changes(sample, parameters, self._moved)
        self._take_second_moments(sample, parameters)
        self._forget_gradients()

    def _seen(
        self, moved: set[int], models: Collection[str]
    ) -> tuple[tuple[ParameterPlace, ...], list[Tensor]]:
        """The parameters of some models, without those that only other optimizers move."""
        elsewhere = self._elsewhere() - moved
        places: list[ParameterPlace] = []
        parameters: list[Tensor] = []
        for prefix in models:
            owned = [one for one in self._models[prefix].parameters if id(one.parameter) not in elsewhere]
            places += [self._place(prefix, one) for one in owned]
            parameters += [one.parameter for one in owned]
        return tuple(places), parameters

    def _place(self, prefix: str, owned: Owned) -> ParameterPlace:
        parameter = owned.parameter
        known = self._places.get((prefix, owned.name))
        if (
            known is None
            or known.shape != parameter.shape
            or known.dtype is not parameter.dtype
            or known.trainable != parameter.requires_grad
            or known.module_type != owned.module_type
            or known.piece != piece_of(parameter)
        ):
            name = f"{prefix}.{owned.name}" if prefix else owned.name
            shape = tuple(parameter.shape)
            known = ParameterPlace(
                name, shape, parameter.dtype, owned.module_type, parameter.requires_grad, piece_of(parameter)
            )
            self._places[prefix, owned.name] = known
        return known

    def _gradient_row(self, parameter: Tensor, gradient: Tensor) -> int:
        """Where the gradient of the last backward pass stands; it is read now if there was none."""
        row = self._gradient_rows.get(id(parameter))
        if row is None:
            self._read(parameter, gradient)
            row = self._gradient_rows[id(parameter)]
        return row

    def _take_weights(self, sample: ParameterSample, parameters: list[Tensor], moved: set[int]) -> None:
        """Moments of all weights, and a copy of those that will move, which come first on the page."""
        order = sorted(range(len(parameters)), key=lambda index: id(parameters[index]) not in moved)
        for row, index in enumerate(order):
            sample.weight_rows[index] = row
        moving = sum(id(parameter) in moved for parameter in parameters)
        self._weights.take(sample.weights, [local(parameters[index]) for index in order[:moving]])
        sample.weights.put_all(moving, [local(parameters[index]) for index in order[moving:]])

    def _take_addends(self, sample: ParameterSample, index: int, parameter: Tensor) -> None:
        """Keep what has no moments before the ranks' parts are added up."""
        gradient = parameter.grad
        piece = WHOLE if gradient is None else piece_of(gradient)
        if gradient is not None and piece.addends > 1:
            after = local(gradient).clone()
            sample.addends[index] = Addends(piece, self._addends.get(id(parameter), after), after)

    def _take_changes(self, sample: ParameterSample, parameters: list[Tensor], moved: set[int]) -> None:
        changed = [
            index
            for index, parameter in enumerate(parameters)
            if sample.gradient_rows[index] >= 0 and id(parameter) in moved
        ]
        first = len(parameters)
        for row, index in enumerate(changed, first):
            sample.change_rows[index] = row
        new = [local(parameters[index]) for index in changed]
        places = [sample.weight_rows[index] for index in changed]
        differences = self._weights.put_changes(sample.weights, first, places, new)
        for index, change in zip(changed, differences or (), strict=False):
            gradient = parameters[index].grad
            if change.dtype in _SHORT and gradient is not None:
                sample.lost[index] = ((change == 0) & (local(gradient) != 0)).float().mean()

    def _take_second_moments(self, sample: ParameterSample, parameters: list[Tensor]) -> None:
        states = self.optimizer.state
        found: list[Tensor] = []
        sample.second_rows = [-1] * len(parameters)
        for index, parameter in enumerate(parameters):
            kept = _second_moment(states.get(parameter, {}))
            if isinstance(kept, Tensor) and kept.shape == parameter.shape:
                sample.second_rows[index] = len(found)
                found.append(local(kept))
        if found:
            sample.second_moments = sums(found)

    def _forget_gradients(self) -> None:
        self._gradients, self._gradient_rows, self._versions = Page(len(self.tensors)), {}, {}
        self._addends = {}

    def _accumulated(self, parameter: Tensor) -> None:
        """A gradient is complete: read it as long as it is in the cache."""
        self._noticed(parameter)
        gradient = parameter.grad
        if self._on_ranks or self.frozen_gradients:  # it is still to be reduced
            return
        if gradient is not None and gradient.is_cpu:
            self._read(parameter, gradient)

    def _noticed(self, parameter: Tensor) -> None:
        """A backward pass has reached a parameter."""
        if not self._asked:
            self._ask()

    def _ask_for_the_end(self) -> None:
        self._asked = True
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(self._timed(self._backward_ended))

    def _backward_ended(self) -> None:
        """The backward pass is over, and on several ranks the reduction, which asked to be called later."""
        asked, self._asked = self._asked, False
        if self._on_ranks and asked:
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._timed(self._backward_ended))
            return
        if not self._handles or self.frozen_gradients:
            return
        if self._on_ranks:
            self._gradient_rows, self._versions, self._addends = {}, {}, {}
        new: list[tuple[Tensor, Tensor]] = []
        for parameter in self.tensors:
            gradient = parameter.grad
            if gradient is not None and self._versions.get(id(parameter)) != version_of(gradient):
                if id(parameter) in self._gradient_rows:
                    self._read(parameter, gradient)
                else:
                    new.append((parameter, gradient))
        self._read_all(new)
        if self._on_ranks:
            self._keep_addends()
        self._backward_seen()

    def _keep_addends(self) -> None:
        for parameter in self.tensors:
            gradient = parameter.grad
            if gradient is not None and piece_of(gradient).addends > 1:
                self._addends[id(parameter)] = local(gradient).clone()

    def _read(self, parameter: Tensor, gradient: Tensor) -> None:
        key = id(parameter)
        row = self._gradient_rows.setdefault(key, len(self._gradient_rows))
        self._readings.note_gradient(gradient, self._gradients.put(row, local(gradient)))
        self._versions[key] = version_of(gradient)

    def _read_all(self, new: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Read the gradients of parameters that have no row yet."""
        first = len(self._gradient_rows)
        flag = self._gradients.put_all(first, [local(gradient) for _, gradient in new])
        for row, (parameter, gradient) in enumerate(new, first):
            self._gradient_rows[id(parameter)] = row
            self._versions[id(parameter)] = version_of(gradient)
            self._readings.note_gradient(gradient, False if flag is False else None)


def _second_moment(state: Mapping[str, Any]) -> Any:
    """What an optimizer's state of a parameter has of the kind; None if nothing."""
    for name in SECOND_MOMENTS:
        if name in state:
            return state[name]
    return None
