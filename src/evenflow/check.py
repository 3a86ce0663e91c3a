"""check: measure one batch, or a whole training, and say what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from evenflow.diagnose import diagnose
from evenflow.diagnose.finding import Diagnosis, Finding, Severity, Skipped
from evenflow.flow import Flow, Role, Run
from evenflow.measure import measure, measure_loss
from evenflow.program import Program, Training
from evenflow.trace.pairing import paired

if TYPE_CHECKING:
    from torch import Tensor, nn

_PARAMETER_ROLES = (Role.PARAMETER, Role.PARAMETER_GRADIENT)


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        flow: The measured batch.
        diagnosis: Findings, worst first, and the rules that could not judge.
        predicted: The Flow predicted from the model alone; None if not predicted.
        run: The training that was watched; None if one batch was measured.
        flows: Of a program, the measured batch by the role whose loss it is.
    """

    flow: Flow
    diagnosis: Diagnosis
    predicted: Flow | None = None
    run: Run | None = None
    flows: Mapping[str, Flow] = field(default_factory=dict)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings, worst first."""
        return self.diagnosis.findings

    @property
    def healthy(self) -> bool:
        """Whether no finding is of severity ``warning`` or above."""
        return not self.diagnosis.alarms


@overload
def check(
    model: nn.Module,
    inputs: Any,
    loss: Callable[..., Tensor] | None = None,
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    seed: int = 0,
) -> Report: ...


@overload
def check(
    model: Program,
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    seed: int = 0,
    seconds: float = 5.0,
) -> Report: ...


def check(
    model: nn.Module | Program,
    inputs: Any = None,
    loss: Callable[..., Tensor] | None = None,
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    seed: int = 0,
    seconds: float = 5.0,
) -> Report:
    """Run one batch forward and backward, or a program's whole training, and judge it by the rules.

    Args:
        model: Any module; it is left as it was (see :func:`evenflow.measure`).
            Or a :class:`~evenflow.program.Program`: then its first batch is
            measured, it is trained under watch, and both are judged.
        inputs: What the model is called with: a tensor, a tuple (positional
            arguments) or a mapping (named arguments).
        loss: From the model's output to a scalar; see :func:`evenflow.measure`. One
            that needs two arguments, like ``F.cross_entropy``, gets a target too:
            then ``inputs`` is the pair (inputs, target).
        select: Codes, prefixes of codes or names of the rules to apply; all by default.
        ignore: Rules to leave out, likewise.
        seed: For the random cotangent that stands in for a missing loss; of a
            program, for its weights, batches and draws.
        seconds: What watching may add to a program's training time, about.

    Raises:
        ModelError: The model raised or gave nothing that has a gradient.
        LossError: The loss raised, is no scalar, or has no gradient.
        ProgramError: The parts of a program do not fit.
        EvenflowError: ``select`` or ``ignore`` names no rule.
    """
    select, ignore = tuple(select), tuple(ignore)
    if isinstance(model, Program):
        return _check_program(model, select, ignore, seed, seconds)
    inputs, loss = paired(inputs, loss)
    flow = measure(model, inputs, loss, seed=seed)
    return Report(flow, diagnose(flow, select=select, ignore=ignore))


def _check_program(
    program: Program, select: tuple[str, ...], ignore: tuple[str, ...], seed: int, seconds: float
) -> Report:
    from evenflow.watch import watch_training

    flows = first_flows(program, seed)
    run = watch_training(program, seed=seed, seconds=seconds)
    return judged(flows, run, select=select, ignore=ignore)


def judged(
    flows: Mapping[str, Flow], run: Run, *, select: Iterable[str] = (), ignore: Iterable[str] = ()
) -> Report:
    """What the rules say of a program that was seen before, in memory or on disk.

    Args:
        flows: Its first batch, as :func:`first_flows` gives it.
        run: Its training.
        select: Rules to apply; all by default.
        ignore: Rules to leave out.
    """
    select, ignore = tuple(select), tuple(ignore)
    seen: list[Flow | Run] = [*flows.values(), run]
    said = [diagnose(one, select=select, ignore=ignore) for one in seen]
    return Report(next(iter(flows.values())), _joined(said), run=run, flows=flows)


def first_flows(program: Program, seed: int = 0) -> dict[str, Flow]:
    """The first batch of a program, measured before any training.

    Args:
        program: Whose first batch.
        seed: Of its weights and batches.

    Returns:
        A Flow for each role's loss; ``""`` if there is one only. What another
        role's parameters get from it is left out, for they do not move by it.

    Raises:
        LossError: A loss is no scalar or has no gradient.
        ModelError: A model or a loss raised.
    """
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        training = program.start(seed)
        batch = training.first_batch()
        models = training.models
        whole = models[""] if "" in models else nn.ModuleDict(dict(models))
        flows = {}
        for role, loss in training.losses.items():
            flow = measure_loss(whole, partial(loss, training.model, batch), batch)
            flow.metadata["optimized"] = _optimized(whole, training)
            flows[role] = _of_role(flow, role)
    return flows


def _optimized(model: nn.Module, training: Training) -> list[str]:
    """Names of the parameters that some optimizer holds."""
    held = {
        id(parameter)
        for optimizer in training.optimizers.values()
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return [name for name, parameter in model.named_parameters() if id(parameter) in held]


def _of_role(flow: Flow, role: str) -> Flow:
    """The Flow without the parameters of other roles."""
    if not role:
        return flow
    own = [
        row for row in flow if row.site.role not in _PARAMETER_ROLES or row.site.path.startswith(f"{role}.")
    ]
    return Flow(own, flow.source, {**flow.metadata, "role": role}, flow.notes)


def _joined(said: Iterable[Diagnosis]) -> Diagnosis:
    """All findings; of those of one rule at one place the worst."""
    severities = list(reversed(Severity))
    found: dict[tuple[str, str], Finding] = {}
    skipped: dict[tuple[str, str], Skipped] = {}
    for one in said:
        for finding in one.findings:
            known = found.setdefault((finding.code, finding.site), finding)
            if severities.index(finding.severity) < severities.index(known.severity):
                found[finding.code, finding.site] = finding
        skipped.update({(skip.code, skip.reason): skip for skip in one.skipped})
    findings = sorted(found.values(), key=lambda finding: severities.index(finding.severity))
    return Diagnosis(tuple(findings), tuple(skipped.values()))
