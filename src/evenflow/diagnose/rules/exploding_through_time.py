"""EF104: a recurrence amplifies the gradient on its way back in time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.limits import UNIT_RADIUS
from evenflow.diagnose.recurrence import TimeProfile, profiles
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import factor, module_name
from evenflow.flow import Flow, Role

GROWN = Threshold(
    3.0,
    "decades gained along time, beyond the log10 of the number of steps",
    "as in EF102; a loss at every step adds up to T equal parts, which is no fault",
)


@final
class ExplodingThroughTime(Rule):
    """Compares the gradients of a recurrence's states, step by step."""

    code = "EF104"
    name = "exploding_through_time"
    symptom = Symptom.EXPLODING_GRADIENT
    summary = "The gradient of a recurrent layer grows by orders of magnitude along time."
    causes = (CauseName.RECURRENT_GAIN_TOO_LARGE, CauseName.INIT_TOO_LARGE)
    thresholds = (GROWN, UNIT_RADIUS)
    page = Page(
        what="""\
The gradient of a recurrent net is huge for some batches and moderate for others; the
loss jumps, and without clipping it turns NaN. Longer sequences make it worse.""",
        why="""\
The same step is applied again and again, and it amplifies: recurrent weights whose
spectral radius is above 1, not held back by a squashing function or a gate.""",
        mathematics="""\
‖∂L/∂h_t‖ ~ ρ^(T−t) with ρ the gain of one step. For a rectified or linear step and
random weights, ρ is the spectral radius √n · RMS(W_hh) (Ginibre 1965), times the
activation's slope. A loss at every step adds up to T equal parts, a growth by log10 T
that is no fault.""",
        detection="""\
The gradients at the states of `nn.RNN`, `nn.LSTM`, `nn.GRU`, and at each turn of a loop
over a cell: from the last step that has a gradient back to the largest. There is an
alarm beyond three decades, and log10 T on top for T steps.""",
        remedies="""\
Clip the gradient by its norm; initialise recurrent weights orthogonally, or scale them
to a spectral radius of at most 1; use an LSTM or a GRU.""",
        references=(
            "Bengio, Simard, Frasconi, Learning long-term dependencies with gradient descent is difficult, "
            "IEEE TNN 1994.",
            "Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, ICML 2013.",
            "Le, Jaitly, Hinton, A simple way to initialize recurrent networks of rectified linear units, "
            "2015.",
            "Ginibre, Statistical ensembles of complex, quaternion, and real matrices, J. Math. Phys. 1965.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        graph.refuse_non_finite()
        grown: dict[str, TimeProfile] = {}
        for profile in profiles(flow, graph):
            if profile.growth > _allowed(profile) and (
                profile.place not in grown or profile.growth > grown[profile.place].growth
            ):
                grown[profile.place] = profile
        for profile in grown.values():
            yield _finding(flow, profile)


def _allowed(profile: TimeProfile) -> float:
    """Decades that may be gained along time: a loss at every step adds up to T equal parts."""
    return GROWN.value + math.log10(profile.steps)


def _finding(flow: Flow, profile: TimeProfile) -> Finding:
    allowed = _allowed(profile)
    radius = _radius(flow, profile)
    text = f"{profile.steps} steps with the same weights, and the step amplifies."
    causes = [Cause(CauseName.RECURRENT_GAIN_TOO_LARGE, 1.0, text)]
    if radius is not None and radius[0] > UNIT_RADIUS.value:
        causes[0] = Cause(CauseName.RECURRENT_GAIN_TOO_LARGE, 0.5, text)
        causes.append(
            Cause(
                CauseName.INIT_TOO_LARGE,
                0.5,
                f"{radius[1]} has a spectral radius of about {radius[0]:.2g} (√n · RMS); "
                f"{UNIT_RADIUS.value:g} keeps the gradient.",
            )
        )
    return Finding(
        code=ExplodingThroughTime.code,
        symptom=Symptom.EXPLODING_GRADIENT,
        severity=Severity.WARNING,
        site=profile.place,
        message=f"The gradient grows by a factor of {factor(profile.growth)} over the {profile.steps} "
        f"time steps of {module_name(profile.place)}.",
        source=profile.source,
        causes=tuple(causes),
        evidence=(
            Evidence(
                f"log10 of the largest gradient of {profile.state} over that at the last step: "
                f"{profile.growth:.2f} (alarm above {allowed:.2f} for {profile.steps} steps).",
                profile.growth,
                allowed,
            ),
            Evidence(profile.told()),
        ),
        remedies=remedies(causes),
    )


def _radius(flow: Flow, profile: TimeProfile) -> tuple[float, str] | None:
    """Spectral radius of a plain RNN's recurrent weights by their size, and their name."""
    start = f"{profile.place}." if profile.place else ""
    for row in flow.select(Role.PARAMETER):
        is_square = len(row.shape) == 2 and row.shape[0] == row.shape[1]
        if is_square and row.site.path.startswith(f"{start}weight_hh") and row.stats is not None:
            radius = math.sqrt(row.shape[0]) * row.stats.rms
            return radius, row.site.path
    return None
