"""Flows and diagnoses made by hand, so that reports can be tested without a model.

The numbers are invented, their shape is not: each sample looks like what
``evenflow.measure`` gives for such a net.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.diagnose import runs

from evenflow.diagnose.finding import (
    Cause,
    CauseName,
    Diagnosis,
    Evidence,
    Finding,
    Severity,
    Skipped,
    Symptom,
)
from evenflow.flow import LOSS_PATH, Exponents, Flow, ModuleCall, Role, Row, Site, Stats, Status
from evenflow.report import ReportContent

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "[bold red]loud[/bold red]",
    "\x1b[2J\x1b]0;owned\x07clear",
    "two\nlines\r\tand a tab",
    "\u202eesrever\u2066 \u200b\u200fmark",
    '" onmouseover="alert(1)" x="',
    "{{ 7*7 }}{% raw %}",
    "'+alert(1)+'`${alert(1)}`<!--",
    "層" * 30,
    "x" * 300,
)
"""Names that do something where they are not escaped. (A module name may hold anything but a dot.)"""


def stats(level: float, count: int = 4096, *, zeros: float = 0.0, nonfinite: int = 0) -> Stats:
    """Statistics of ``count`` Gaussian entries with RMS 10**level; level −inf: all are zero."""
    if level == -math.inf:
        return Stats(count, 0.0, 0.0, 0.0, count, nonfinite, Exponents())
    middle = math.floor(level / math.log10(2.0))
    # P(floor(log2 |z|) = k) for a standard Gaussian z, k = -6 … 1, rounded; the rest lies further below.
    shares = {-6: 0.012, -5: 0.025, -4: 0.05, -3: 0.098, -2: 0.186, -1: 0.3, 0: 0.272, 1: 0.045}
    counts = [max(1, round(count * (1 - zeros) * share)) for share in shares.values()]
    return Stats(
        count,
        0.0,
        10.0 ** (2 * level),
        3.5 * 10.0**level,
        round(count * zeros),
        nonfinite,
        Exponents(middle - 6, tuple(counts)),
    )


@dataclass
class Net:
    """Collects rows op by op, in forward order."""

    rows: list[Row] = field(default_factory=list)
    order: int = 0
    last: tuple[int, ...] = ()

    def op(
        self,
        path: str,
        op: str,
        kind: str,
        activation: float,
        gradient: float | Stats | None,
        *,
        inputs: tuple[int, ...] | None = None,
        output_of: Sequence[str] | None = None,
        status: Status = Status.OK,
        half_width: float | None = None,
        source: str | None = None,
        index: int = 0,
    ) -> int:
        """Add an op with its activation and, unless None, its gradient; returns its order."""
        order = self.order
        inputs = self.last if inputs is None else inputs
        outputs = tuple(ModuleCall(p) for p in ((path,) if output_of is None else output_of))
        for role, level in ((Role.ACTIVATION, activation), (Role.ACTIVATION_GRADIENT, gradient)):
            if level is None and status is Status.FROZEN:  # outside the graph of gradients
                continue
            self.rows.append(
                Row(
                    Site(path, op, role, index=index),
                    order,
                    module_type=kind,
                    shape=(32, 128),
                    status=status if role is Role.ACTIVATION_GRADIENT else Status.OK,
                    source=source,
                    inputs=inputs,
                    output_of=outputs,
                    stats=stats(level) if isinstance(level, float) else level,
                    half_width=half_width,
                )
            )
        self.order += 1
        self.last = (order,)
        return order

    def parameter(
        self, name: str, kind: str, level: float, gradient: float | Stats | None, status: Status = Status.OK
    ) -> None:
        """Add a parameter that the next op reads."""
        for role, value in ((Role.PARAMETER, level), (Role.PARAMETER_GRADIENT, gradient)):
            self.rows.append(
                Row(
                    Site(name, "parameter", role),
                    self.order,
                    module_type=kind,
                    shape=(128, 128),
                    status=status,
                    stats=stats(value, 16384) if isinstance(value, float) else value,
                )
            )

    def loss(self, gradient: float = -1.5) -> None:
        """Add the ops of a cross-entropy loss."""
        self.op(LOSS_PATH, "log_softmax", "", 0.36, gradient - 0.1, output_of=(), source="train.py:31")
        self.op(LOSS_PATH, "nll_loss", "", 0.36, stats(0.0, 1), output_of=(), source="train.py:31")

    def flow(self, source: str = "measured", notes: Sequence[str] = (), **metadata: object) -> Flow:
        """The collected rows as a Flow."""
        facts = {
            "model": "Net",
            "loss": 2.4107,
            "training": True,
            "device": "cpu",
            "torch": "2.13.0",
            **metadata,
        }
        assert source in ("measured", "predicted")
        return Flow(self.rows, source, facts, notes)  # type: ignore[arg-type]


def mlp(
    layers: int = 20,
    gain: float = -0.84,
    *,
    activation: str = "Sigmoid",
    names: Mapping[int, str] | None = None,
    predicted: bool = False,
) -> Flow:
    """A plain net of Linear and activation; the gradient changes by ``gain`` decades a layer."""
    net = Net()
    names = names or {}
    half_width = 0.2 if predicted else None
    for layer in range(layers):
        linear, act = names.get(2 * layer, str(2 * layer)), names.get(2 * layer + 1, str(2 * layer + 1))
        wobble = 0.0 if predicted else 0.12 * math.sin(2.3 * layer)
        level = -2.0 + gain * (layers - 1 - layer) + wobble
        net.parameter(f"{linear}.weight", "Linear", -1.3, None if predicted else level - 0.4)
        net.parameter(f"{linear}.bias", "Linear", -1.4, None if predicted else level - 0.1)
        net.op(linear, "addmm", "Linear", -0.4, level, half_width=half_width, source="net.py:12")
        if layer < layers - 1:
            net.op(
                act,
                activation.lower(),
                activation,
                -0.29,
                level + 0.62 * -gain,
                half_width=half_width,
                source="net.py:13",
            )
    net.loss()
    return net.flow("predicted" if predicted else "measured", model="DeepMLP")


def residual(blocks: int = 12) -> Flow:
    """A pre-norm residual net: the gradient changes little; a frozen embedding and an unused head."""
    net = Net()
    net.parameter("embed.weight", "Linear", -1.0, None, Status.FROZEN)
    net.op("embed", "addmm", "Linear", 0.0, None, status=Status.FROZEN)
    net.last = ()  # gradients know nothing of it
    for block in range(blocks):
        skip = net.last
        path = f"blocks.{block}"
        level = -3.0 - 0.02 * block
        net.parameter(f"{path}.norm.weight", "LayerNorm", 0.0, level - 0.3)
        net.op(f"{path}.norm", "native_layer_norm", "LayerNorm", 0.0, level - 0.5)
        net.parameter(f"{path}.fc.weight", "Linear", -1.1, level - 0.2)
        net.op(f"{path}.fc", "addmm", "Linear", -0.2, level - 0.2)
        net.op(f"{path}.act", "gelu", "GELU", -0.4, level - 0.1)
        branch = net.last
        net.op(path, "add", "Block", 0.05 * block, level, inputs=(*skip, *branch), output_of=(path,))
    net.parameter("head.weight", "Linear", -1.1, -2.0)
    net.op("head", "addmm", "Linear", -0.1, -2.3)
    net.parameter("spare.weight", "Linear", -1.1, None, Status.UNUSED)
    net.loss()
    return net.flow(
        model="ResidualNet", notes=("blocks.3.act: gradients by time step not replayed: no such thing",)
    )


def lstm(steps: int = 100, states: int = 2) -> Flow:
    """A recurrent net with the gradient at every time step."""
    net = Net()
    net.parameter("lstm.weight_hh_l0", "LSTM", -1.2, -3.0)
    order = net.op("lstm", "lstm", "LSTM", -0.8, -4.0)
    for state in range(states):
        name = ("hidden_l0", "cell_l0", "hidden_l1", "cell_l1")[state % 4]
        for time in range(steps):
            level = -4.0 - (0.216 - 0.02 * state) * (steps - 1 - time)
            net.rows.append(
                Row(
                    Site("lstm", name, Role.ACTIVATION_GRADIENT, time=time),
                    order,
                    module_type="LSTM",
                    shape=(32, 64),
                    stats=stats(level),
                )
            )
    net.parameter("head.weight", "Linear", -1.0, -2.5)
    net.op("head", "addmm", "Linear", -0.9, -3.0)
    net.loss()
    return net.flow(model="LSTMClassifier")


def non_finite() -> Flow:
    """A net that overflows: infinite activations, NaN and zero gradients."""
    net = Net()
    levels: list[tuple[float, float | Stats]] = [
        (-0.2, stats(-2.0, nonfinite=4096 - 300)),
        (1.5, stats(-math.inf)),
        (6.0, -9.0),
        (30.0, 2.0),
    ]
    for layer, (activation, gradient) in enumerate(levels):
        net.parameter(f"{layer}.weight", "Linear", 0.3, gradient)
        net.op(str(layer), "addmm", "Linear", activation, gradient)
    net.loss()
    return net.flow(model="Overflowing", loss=math.nan)


def vanishing_diagnosis(site: str = "0", source: str = "net.py:12") -> Diagnosis:
    """What the rules would say of the deep sigmoid net."""
    return Diagnosis(
        findings=(
            Finding(
                code="EF101",
                symptom=Symptom.VANISHING_GRADIENT,
                severity=Severity.ERROR,
                site=site,
                message="The gradient shrinks by 16.1 decades between the loss and the first layer.",
                source=source,
                causes=(
                    Cause(
                        CauseName.SATURATING_ACTIVATION,
                        0.92,
                        "19 sigmoid ops lose 11.9 of the 16.1 decades; the slope of sigmoid is at most 1/4.",
                        confirmed=True,
                    ),
                    Cause(CauseName.DEPTH_WITHOUT_SKIP, 0.4, "20 layers in a row without a skip connection."),
                ),
                evidence=(
                    Evidence(
                        "log10 of first over last gradient RMS is −16.1; a healthy net stays above −3.",
                        -16.1,
                        -3.0,
                    ),
                    Evidence("float16 could hold none of the first layer's gradient.", 1.0, 0.5),
                ),
                remedies=(
                    "Use ReLU with He initialisation instead of sigmoid.",
                    "Add a skip connection around every second layer.",
                    "Normalise the pre-activations (LayerNorm or BatchNorm).",
                ),
            ),
            Finding(
                code="EF105",
                symptom=Symptom.SATURATION,
                severity=Severity.WARNING,
                site="1",
                message="23 % of the outputs of layer 1 are saturated.",
                evidence=(Evidence("Share of saturated entries: 0.23.", 0.23, 0.2),),
            ),
        ),
        skipped=(Skipped("EF202", "needs several steps, found one"),),
    )


EXPLANATION = """\
## What it means

The gradient of the loss reaches the first layers so small that they do not learn.

## Why

Backpropagation multiplies one factor for each layer, `σ'(z) ≤ 1/4` for the sigmoid:

| depth | bound |
|------:|------:|
| 10 | 1e-6 |
| 20 | 4e-12 |

## What to do

* Use **ReLU** with He initialisation.
* Add [skip connections](https://arxiv.org/abs/1512.03385).
"""


def vanishing(layers: int = 20) -> ReportContent:
    """The classic: a deep sigmoid net, measured and predicted."""
    return ReportContent(
        flow=mlp(layers),
        diagnosis=vanishing_diagnosis(),
        predicted=mlp(layers, predicted=True),
        explanations={"EF101": EXPLANATION},
    )


def hostile() -> ReportContent:
    """A net whose modules, parameters, source lines, notes and title are all hostile."""
    flow = mlp(len(HOSTILE) // 2, names=dict(enumerate(HOSTILE)))
    flow = Flow(flow.rows, flow.source, {**flow.metadata, "model": HOSTILE[0]}, HOSTILE)
    findings = tuple(
        Finding(
            code="EF101",
            symptom=Symptom.VANISHING_GRADIENT,
            severity=Severity.ERROR,
            site=name,
            message=f"The gradient vanishes at {name}.",
            source=f"{name}.py:1",
            causes=(Cause(CauseName.UNKNOWN, 0.5, f"seen at {name}"),),
            evidence=(Evidence(f"{name} is small", 1.0, 2.0),),
            remedies=(f"rename {name}",),
        )
        for name in HOSTILE
    )
    return ReportContent(
        flow,
        Diagnosis(findings, (Skipped(HOSTILE[0], HOSTILE[1]),)),
        title=" ".join(HOSTILE),
        explanations={"EF101": "".join(f"{name}\n\n" for name in HOSTILE) + "[go](javascript:alert(1))"},
    )


def healthy() -> ReportContent:
    """Nothing to complain about."""
    return ReportContent(residual(), Diagnosis())


def deep(layers: int = 1000) -> ReportContent:
    """As many sites as anybody has; one finding in the middle."""
    flow = mlp(layers // 2, gain=-0.01, activation="Tanh")
    return ReportContent(
        flow, vanishing_diagnosis(site=str(layers // 2)), predicted=mlp(layers // 2, -0.01, predicted=True)
    )


def training() -> ReportContent:
    """Twelve steps of three layers and their names; the loss falls, then breaks, and so does one gradient."""
    weights = [
        runs.Weight("first.weight", gradient=lambda step: 1e-6 * 2**step),
        runs.Weight(f"{HOSTILE[0]}.weight", gradient=0.0),
        runs.Weight("last.weight", gradient=lambda step: math.nan if step == 11 else 1e-2),
    ]
    run = runs.run(
        12,
        *weights,
        loss=lambda step: math.nan if step == 11 else 2.0**-step,
        events=[(11, "skipped_step", "The gradient was not finite.")],
    )
    return ReportContent(run.flow(), Diagnosis(), title="runs/first", run=run)
