"""EF501: where it must fire, and what is only worth a note."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.flow import Flow, Role, Row, Site, Stats, Status
from evenflow.measure import measure
from tests.diagnose.judging import judge, only, silent, top
from tests.diagnose.programs import Program, batch, classify, he
from tests.diagnose.programs import mlp as network

RULE = "EF501"


class Encoder(nn.Module):
    """An encoder that may be cut off, and a head."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.encoder, self.head, self.cut = network(3, nn.ReLU, he, outputs=64), nn.Linear(64, 10), cut

    def forward(self, x: Tensor) -> Tensor:
        if self.cut:
            with torch.no_grad():
                features = self.encoder(x)
        else:
            features = self.encoder(x)
        return self.head(features)


class Pooled(Encoder):
    """An encoder with a pooler at its end that no loss reads."""

    def __init__(self) -> None:
        super().__init__(cut=False)
        self.pooler = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        self.pooler(output)
        return output


def test_an_encoder_under_no_grad() -> None:
    finding = only(classify(Encoder(cut=True), batch()), RULE)
    assert (finding.severity, finding.site, top(finding)) == (
        Severity.WARNING,
        "encoder",
        CauseName.FROZEN_OR_DETACHED,
    )
    assert finding.message == "6 parameters are cut off from the loss: encoder."
    assert finding.evidence[0].text == (
        "encoder.0.weight, encoder.0.bias, encoder.2.weight and 3 more: Linear head learns "
        "from what they give, and no gradient goes back there."
    )
    assert finding.source is not None
    assert finding.source.endswith("test_frozen_or_detached.py:32")
    assert finding.remedies[-1].endswith("freeze the part.")
    assert silent(classify(Encoder(cut=False), batch()), RULE)


class Detour(Encoder):
    """An encoder whose features leave PyTorch on their way."""

    def __init__(self, detour: Callable[[Tensor], Tensor]) -> None:
        super().__init__(cut=False)
        self.detour = detour

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.detour(self.encoder(x)))


@pytest.mark.parametrize(
    "detour",
    [
        lambda x: x.detach() * 2,
        lambda x: x.data,
        lambda x: torch.from_numpy(x.detach().numpy()),
        lambda x: torch.tensor(x.tolist()),
        lambda x: torch.cat([x.detach(), x.detach()]),
    ],
    ids=["detach", "data", "numpy", "tensor", "cat"],
)
def test_every_way_to_cut_off_an_encoder(detour: Callable[[Tensor], Tensor]) -> None:
    program = Program(Detour(detour), batch(), lambda output: output.square().mean())
    finding = only(program, RULE)
    assert (finding.severity, finding.site) == (Severity.WARNING, "encoder")
    assert silent(Program(Detour(torch.relu), batch(), lambda output: output.square().mean()), RULE)


def test_features_that_no_optimizer_trains_are_cut_off_on_purpose() -> None:
    program = classify(Encoder(cut=True), batch())
    flow = measure(program.model, program.inputs, program.loss)
    flow.metadata["optimized"] = ["head.weight", "head.bias"]
    (finding,) = diagnose(flow, select=RULE).findings
    assert finding.severity is Severity.NOTE
    assert finding.evidence[0].text.endswith("; no optimizer holds them.")
    flow.metadata["optimized"].append("encoder.0.bias")
    (finding,) = diagnose(flow, select=RULE).findings
    assert finding.severity is Severity.WARNING


class Gan(nn.Module):
    """The discriminator's step: real and made samples, apart or stacked."""

    def __init__(self, *, stacked: bool, cut: bool = True) -> None:
        super().__init__()
        self.g, self.d = network(3, nn.ReLU, he, outputs=64), network(3, nn.ReLU, he, outputs=1)
        self.stacked, self.cut = stacked, cut

    def forward(self, x: Tensor) -> Tensor:
        made = self.g(torch.randn(len(x), 64))
        made = made.detach() if self.cut else made
        if self.stacked:
            return self.d(torch.cat([x, made]))
        return torch.cat([self.d(x), self.d(made)])


@pytest.mark.parametrize("stacked", [False, True])
def test_a_generator_rests_while_its_discriminator_learns(stacked: bool) -> None:
    real = torch.cat([torch.ones(128, 1), torch.zeros(128, 1)])

    def loss(output: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, real)

    finding = only(Program(Gan(stacked=stacked), batch(), loss), RULE)
    assert (finding.severity, finding.site) == (Severity.NOTE, "g")
    assert "as it reads other data" in finding.evidence[0].text
    assert silent(Program(Gan(stacked=stacked, cut=False), batch(), loss), RULE)


def test_a_teacher_is_a_target() -> None:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = network(3, nn.ReLU, he), network(3, nn.ReLU, he)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.student(x), self.teacher(x)

    finding = only(
        Program(Student(), batch(), lambda output: F.mse_loss(output[0], output[1].detach().tanh())), RULE
    )
    assert (finding.severity, finding.site) == (Severity.NOTE, "teacher")
    assert "the loss compares with what they give" in finding.evidence[0].text


class Steps(nn.Module):
    """A cell in a loop whose state may be cut at every step."""

    def __init__(self, *, cut: bool, every: bool, stacked: bool = False) -> None:
        super().__init__()
        self.cell, self.head, self.cut, self.every = nn.GRUCell(8, 16), nn.Linear(16, 10), cut, every
        self.stacked = stacked

    def forward(self, x: Tensor) -> Tensor:
        state, total = x.new_zeros(len(x), 16), x.new_zeros(len(x), 16)
        states = []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state.detach() if self.cut else state)
            total = total + state
            states.append(state)
        if self.stacked:  # all states get a gradient, and of all but the last it is zero
            return self.head(torch.stack(states)[-1])
        return self.head(total if self.every else state)


def test_a_state_that_is_cut_at_every_step() -> None:
    steps = torch.randn(8, 6, 8)
    finding = only(classify(Steps(cut=True, every=False), steps), RULE)
    assert (finding.severity, finding.site) == (Severity.WARNING, "cell")
    assert finding.evidence[0].text.endswith("; no gradient comes to 5 of them.")
    assert only(classify(Steps(cut=True, every=True), steps), RULE).severity is Severity.NOTE
    stacked = only(classify(Steps(cut=True, every=False, stacked=True), steps), RULE)
    assert stacked.evidence[0].text.endswith("; no gradient comes to 5 of them.")
    assert silent(classify(Steps(cut=False, every=False, stacked=True), steps), RULE)
    assert silent(classify(Steps(cut=False, every=False), steps), RULE)


def test_a_frozen_backbone_is_a_note() -> None:
    model = Encoder(cut=True)
    model.encoder.requires_grad_(False)
    finding = only(classify(model, batch()), RULE)
    assert finding.severity is Severity.NOTE
    assert finding.message == "6 of 8 parameters are frozen (requires_grad is off): encoder."
    assert finding.remedies == ()


def test_an_unused_parameter_is_a_note() -> None:
    model = Encoder(cut=False)
    model.spare = nn.Linear(2, 2)
    finding = only(classify(model, batch()), RULE)
    assert (finding.severity, finding.message) == (
        Severity.NOTE,
        "2 of 10 parameters are not used by this forward pass: spare.",
    )


def test_a_head_that_the_loss_does_not_read_comes_last_and_is_a_note() -> None:
    finding = only(classify(Pooled(), batch()), RULE)
    assert (finding.severity, finding.site) == (Severity.NOTE, "pooler")
    assert finding.evidence[0].text == (
        "pooler.weight, pooler.bias: used in the forward pass, but the loss does not depend on what "
        "came of it."
    )


def test_a_product_in_the_loss_is_no_layer() -> None:
    finding = only(Program(Pooled(), batch(), lambda z: (z @ z.T).square().mean()), RULE)
    assert finding.severity is Severity.NOTE


def test_one_parameter_of_a_module_is_called_by_its_name() -> None:
    model = network(2, nn.ReLU, he)
    model[0].bias.requires_grad_(False)
    finding = only(classify(model, batch()), RULE)
    assert (finding.site, finding.message) == (
        "0.bias",
        "1 of 4 parameters is frozen (requires_grad is off): 0.bias.",
    )


def test_nothing_learns_at_all() -> None:
    inputs = batch().requires_grad_()
    model = network(2, nn.ReLU, he).requires_grad_(False)
    finding = only(Program(model, inputs, lambda out: F.mse_loss(out, out * 0)), RULE)
    assert finding.severity is Severity.ERROR
    assert finding.message == "No parameter gets a gradient: nothing can learn."
    assert finding.evidence[0].text == "Of 4 parameters: 4 frozen, 0 unused, 0 detached, 0 not read."


def test_a_model_without_parameters_cannot_be_judged() -> None:
    diagnosis = judge(Program(nn.ReLU(), batch().requires_grad_()), RULE)
    assert diagnosis.findings == ()
    assert diagnosis.skipped[0].reason == "the Flow holds no gradients of parameters"


def test_a_stored_flow_is_judged_by_status_alone() -> None:
    def parameter(name: str, status: Status) -> Row:
        return Row(
            Site(name, "parameter", Role.PARAMETER_GRADIENT),
            order=0,
            status=status,
            stats=Stats(1, 0.0, 1.0) if status is Status.OK else None,
        )

    flow = Flow([parameter("a.weight", Status.OK), parameter("b.weight", Status.DETACHED)], "measured")
    (finding,) = diagnose(flow, select=RULE).findings
    assert (finding.severity, finding.site) == (Severity.NOTE, "b")
