"""EF501: where it must fire, and what is only worth a note."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.flow import Flow, Role, Row, Site, Stats, Status
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
        "encoder.0.weight, encoder.0.bias, encoder.2.weight and 3 more: used in the forward pass, and layers "
        "that run later learn, but no gradient came back."
    )
    assert finding.source is not None
    assert finding.source.endswith("test_frozen_or_detached.py:28")
    assert finding.remedies[-1].endswith("freeze the part.")
    assert silent(classify(Encoder(cut=False), batch()), RULE)


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
    assert finding.evidence[0].text == "Of 4 parameters: 4 frozen, 0 unused, 0 detached."


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
