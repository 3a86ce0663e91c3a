"""History: a run, asked for what rules over many steps want to know.

Everything is read once, when first asked for. A *role* is a part with an
optimizer of its own, such as a generator; a run with one optimizer has the one
role ``""``. Names follow the watcher: ``loss/generator``, ``lr/generator``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np

from evenflow.diagnose.data import cost_of_frequencies, target_of_squares
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.history.grid import COLUMNS, Floats, Grid, Integers, grids
from evenflow.diagnose.history.loss import LossCurve
from evenflow.diagnose.limits import GUESSING, HALVED
from evenflow.diagnose.modules import in_ops
from evenflow.diagnose.rule import CannotJudgeError
from evenflow.flow import Flow, Role, Row, Run, Series, Stats

ENOUGH = 20
"""Losses below which a curve is not judged: a tenth of them is then two values (a judgement)."""

SAMPLE = 16
"""Entries of a batch of targets below which their variance is not taken (a judgement: the standard error is
√(2/n), a third, for the normal distribution)."""

_LOSS_NAMES = ("loss", "train_loss", "train/loss", "loss/train", "training_loss")


@dataclass(frozen=True, slots=True)
class Guess:
    """The level of guessing.

    Attributes:
        classes: Outputs of the model.
        loss: Cross-entropy of giving all of them alike: ln C; ln 2 for a single one,
            which is then a probability or its logit.
    """

    classes: int
    loss: float


@final
class History:
    """What happened in a run, by columns.

    Args:
        run: The run.
        measured: Its first batch, op by op, by the role whose loss it is; empty if it was not measured.
    """

    def __init__(self, run: Run, measured: Mapping[str, Flow] | None = None) -> None:
        self.run = run
        self.measured: Mapping[str, Flow] = measured or {}
        self._flows: dict[int, Flow] = {}
        self._flows_in_ops: dict[int, Flow] = {}
        self._figures: dict[str, Mapping[str, Series]] = {}

    @cached_property
    def grids(self) -> Mapping[Role, Grid]:
        """The statistics of each role of tensor over the sampled steps; roles without rows are left out."""
        return grids(self.run.table("flow", COLUMNS))

    def flow(self, step: int) -> Flow:
        """The Flow of one sampled step."""
        if step not in self._flows:
            self._flows[step] = self.run.flow(step)
        return self._flows[step]

    def flow_in_ops(self, step: int) -> Flow:
        """The same in the words of ops; see :mod:`evenflow.diagnose.modules`."""
        if step not in self._flows_in_ops:
            self._flows_in_ops[step] = in_ops(self.flow(step))
        return self._flows_in_ops[step]

    @cached_property
    def first(self) -> Flow | None:
        """The Flow of the first sampled step; None if no step was sampled."""
        return self.flow(int(self.steps[0])) if self.steps.size else None

    # --- roles and their optimizers --------------------------------------------

    @cached_property
    def optimizers(self) -> Mapping[str, Mapping[str, Any]]:
        """Role → class and settings of its optimizer, as run.json has them; one role ``""`` if unknown."""
        known = self.run.metadata.get("optimizer")
        if not isinstance(known, Mapping) or not known:
            return {"": {}}
        return {str(role): one if isinstance(one, Mapping) else {} for role, one in known.items()}

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles."""
        return tuple(self.optimizers)

    def setting(self, role: str, name: str) -> float | None:
        """A number among an optimizer's settings."""
        value = self.optimizers[role].get(name)
        return float(value) if isinstance(value, (int, float)) else None

    def is_sgd(self, role: str) -> bool:
        """Whether the optimizer steps along the gradient itself (momentum included)."""
        return self.optimizers[role].get("class") == "SGD"

    def has_second_moments(self, role: str) -> bool:
        """Whether it divides by running root mean squares, as Adam does."""
        return bool(self.setting(role, "eps")) and not self.is_sgd(role)

    def second_moment_decay(self, role: str) -> float | None:
        """β₂ of an optimizer that corrects its second moments for their start; None of others."""
        betas = self.optimizers[role].get("betas")
        return float(betas[1]) if isinstance(betas, (list, tuple)) and len(betas) > 1 else None

    def owns(self, role: str, label: str) -> bool:
        """Whether a parameter or module belongs to a role."""
        models = self.run.metadata.get("model")
        if not isinstance(models, Mapping) or role not in models:
            return True  # several optimizers of one model: which moves what is not known
        return not role or label == role or label.startswith(f"{role}.")

    # --- figures ----------------------------------------------------------------

    def scalar(self, name: str, role: str = "") -> Series | None:
        """A figure of the watcher, by role; None if it was not taken."""
        return self.run.scalars.get(f"{name}/{role}" if role else name)

    def loss(self, role: str = "", *, at_least: int = ENOUGH) -> LossCurve:
        """The loss of a role.

        Args:
            role: Whose.
            at_least: How many values it must have.

        Raises:
            CannotJudgeError: It was not logged, or for too few steps.
        """
        name = self._loss_name(role) or (None if self.is_adversarial else self._loss_name(""))
        if name is None:
            of = f" of the {role}" if role else ""
            raise CannotJudgeError(f"the run has no loss{of}: log it with run.log(loss=...)")
        series = self.run.scalars[name]
        if len(series) < at_least:
            text = f"{len(series)} losses are too few to judge a curve; {at_least} are needed"
            raise CannotJudgeError(text)
        curve = LossCurve(name, series.steps, series.values)
        if not curve.finite.size:
            raise CannotJudgeError("the loss was never a number (see EF702)")
        return curve

    def figure(self, name: str) -> Mapping[str, Series]:
        """A figure of single parameters that no Flow holds: parameter → its values over the steps."""
        if name not in self._figures:
            self._figures[name] = self.run.parameter(name)
        return self._figures[name]

    def _loss_name(self, role: str) -> str | None:
        return next((name for name in _loss_names(role) if name in self.run.scalars), None)

    @cached_property
    def has_learned(self) -> bool:
        """Whether a loss that ought to fall fell by more than half, and by half of what guessing costs."""
        try:
            curves = [self.loss(role) for role in self.learners[:1]]
        except CannotJudgeError:
            return False
        guessing = math.inf
        if self.guess is not None and self.guess.classes > 1:
            guessing = (1.0 - GUESSING.value) * self.guess.loss
        if self.variance is not None:
            guessing = self.variance
        return any(
            curve.learned and curve.end < guessing and self.gained(curve) > HALVED.value for curve in curves
        )

    def gained(self, curve: LossCurve) -> float:
        """The share by which a loss came down, at most from what an answer costs that ignores the input.

        A loss starts above that by whatever the first output is off, and coming down to it means
        nothing but that the output's size or bias was learned. For a squared error it is the variance
        of the targets, and 1 − loss/variance is the coefficient of determination R²; for a mean
        cross-entropy, known where the first batch was measured, ln C.
        """
        idle = self.variance
        if idle is None and self.guess is not None and self.frequencies is not None:
            idle = self.guess.loss
        if idle is None or not 0.0 < idle < curve.start:
            return curve.relative_fall
        return 1.0 - curve.end / idle

    @cached_property
    def is_adversarial(self) -> bool:
        """Whether several roles have losses of their own: one may win by another's losing."""
        return len(self.roles) > 1 and all(self._loss_name(role) for role in self.roles)

    @cached_property
    def adversaries(self) -> tuple[str, str] | None:
        """Generator and discriminator, told by their names; None if there is no such pair."""
        if not self.is_adversarial or len(self.roles) != 2:
            return None
        judges = [role for role in self.roles if _is_judge(role)]
        if len(judges) != 1:
            return None
        return next(role for role in self.roles if role not in judges), judges[0]

    @cached_property
    def learners(self) -> tuple[str, ...]:
        """The roles whose loss ought to fall; empty where roles play against each other."""
        return () if self.is_adversarial else self.roles

    # --- parameters ---------------------------------------------------------------

    @cached_property
    def matrices(self) -> tuple[str, ...]:
        """Parameters of two axes or more: weights, as opposed to biases and gains."""
        if self.first is None:
            return ()
        ends = dict.fromkeys((int(self.steps[0]), int(self.steps[-1])))
        rows = [row for step in ends for row in self.flow(step).select(Role.PARAMETER)]
        return tuple(dict.fromkeys(row.site.path for row in rows if len(row.shape) >= 2))

    def parameters(self, role: str = "", *, matrices: bool = False) -> list[str]:
        """Names of a role's parameters, in forward order; none if no step was sampled."""
        grid = self.grids.get(Role.PARAMETER)
        if grid is None:
            return []
        wanted = set(self.matrices) if matrices else None
        return [
            label for label in grid.labels if self.owns(role, label) and (wanted is None or label in wanted)
        ]

    def of(self, role: Role, labels: list[str], column: str = "rms") -> Floats:
        """A column of some sites [steps, labels]; NaN where there is no such row."""
        grid = self.grids.get(role)
        if grid is None:
            return np.full((self.steps.size, len(labels)), np.nan)
        values: Floats = getattr(grid, column)
        places = [grid.column_of(label) for label in labels]
        empty = np.full((self.steps.size, 1), np.nan)
        return np.hstack([values, empty])[:, [-1 if place is None else place for place in places]]

    def update_ratios(self, role: str = "", *, matrices: bool = True) -> tuple[list[str], Floats]:
        """RMS of each update over RMS of the weight before it [steps, parameters]; NaN where unknown."""
        labels = self.parameters(role, matrices=matrices)
        weights = self.of(Role.PARAMETER, labels)
        updates = self.of(Role.UPDATE, labels)
        with np.errstate(divide="ignore", invalid="ignore"):
            return labels, np.where(weights > 0.0, updates / weights, np.nan)

    def largest_update_ratio(self, before: int) -> float | None:
        """Largest update of any weight over its size, up to a step; None if none is known."""
        found = [
            ratios[self.steps <= before] for role in self.roles for ratios in (self.update_ratios(role)[1],)
        ]
        known = np.concatenate([ratio[np.isfinite(ratio)] for ratio in found])
        return float(known.max()) if known.size else None

    def updates_together(self, before: int) -> float | None:
        """The typical weight matrix's updates over its size, added up to a step; None if none is known."""
        sums = []
        for role in self.roles:
            ratios = self.update_ratios(role)[1][self.steps <= before]
            known = ratios[np.isfinite(ratios)]
            if known.size:
                sums.append(float(np.median(known)) * (before - int(self.steps[0]) + 1))
        return max(sums, default=None)

    @cached_property
    def first_broken(self) -> int | None:
        """The first sampled step of which some row holds NaN or infinity; None if there is none."""
        bad = np.zeros(self.steps.size, bool)
        for grid in self.grids.values():
            bad |= np.nansum(grid.nonfinite_count, axis=1) > 0
        return int(self.steps[bad.argmax()]) if bad.any() else None

    @property
    def steps(self) -> Integers:
        """The sampled steps, ascending."""
        grid = next(iter(self.grids.values()), None)
        return np.empty(0, np.int64) if grid is None else grid.steps

    # --- the level of guessing -----------------------------------------------------

    @cached_property
    def guess(self) -> Guess | None:
        """What guessing among as many classes as the model has outputs costs; None if it has none."""
        row = self._output_row(self.first)
        if row is None:
            return None
        classes = row.shape[1 if len(row.shape) > 3 else -1]
        return Guess(classes, math.log(max(classes, 2)))

    @cached_property
    def target(self) -> Stats | None:
        """The targets of the first batch, if the loss is a mean squared error; None if not known."""
        for flow in self.measured.values():
            try:
                target = target_of_squares(flow, op_graph(flow))
            except CannotJudgeError:
                continue
            if target is not None and target.count >= SAMPLE:
                return target
        return None

    @cached_property
    def variance(self) -> float | None:
        """What giving the mean of the targets costs, if the loss is a mean squared error; None if not known.

        It is the targets' variance over all samples and outputs of the first batch, so for several
        outputs no less than what the mean of each of them costs.
        """
        return None if self.target is None else self.target.mean_square - self.target.mean**2

    @cached_property
    def frequencies(self) -> float | None:
        """What giving each class as often as it comes costs, by the first batch; None if not known.

        Known for a mean cross-entropy whose first batch was measured and shows what classes there are.
        """
        for flow in self.measured.values():
            try:
                cost = cost_of_frequencies(flow, op_graph(flow))
            except CannotJudgeError:
                continue
            if cost is not None:
                return cost
        return None

    @cached_property
    def gives_probabilities(self) -> bool:
        """Whether the model ends in a softmax: its loss is no distance to a target, whatever its size."""
        row = self._output_row(self.first)
        return row is not None and (
            row.module_type in ("Softmax", "LogSoftmax") or row.site.op in ("_softmax", "_log_softmax")
        )

    def output(self, flow: Flow | None) -> Stats | None:
        """Statistics of the last output of a step; None if none is known."""
        row = self._output_row(flow)
        return None if row is None else row.stats

    def _output_row(self, flow: Flow | None) -> Row | None:
        outputs = [row for row in flow.select(Role.ACTIVATION) if row.shape] if flow is not None else []
        return max(outputs, key=lambda row: row.order, default=None)


def _is_judge(role: str) -> bool:
    plain = role.lower()
    return plain in ("d", "netd", "d_net") or any(word in plain for word in ("discrim", "critic", "disc"))


def _loss_names(role: str) -> list[str]:
    if not role:
        return list(_LOSS_NAMES)
    short = role[0]
    return [
        f"loss/{role}", f"{role}/loss", f"{role}_loss", f"loss_{role}",
        f"{short}_loss", f"loss_{short}", f"loss_{short.upper()}", f"err{short.upper()}",
    ]  # fmt: skip
