"""EF105: where it must fire, what it must name, and the near misses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evenflow.diagnose import CauseName, Severity, Symptom, diagnose
from tests.diagnose.chains import Op, chain
from tests.diagnose.judging import judge, only, silent, top
from tests.diagnose.programs import Program, batch, classify, he
from tests.diagnose.programs import mlp as network

RULE = "EF105"


def dipped(factor: float, undone: float, norm: type[nn.Module] | None = None) -> Program:
    """Ten layers of which the eighth is scaled by ``factor`` and the third by ``undone``."""
    model = network(10, nn.ReLU, he, norm=norm)
    layers = [module for module in model if isinstance(module, nn.Linear)]
    with torch.no_grad():
        layers[7].weight.mul_(factor)
        layers[2].weight.mul_(undone)
    return classify(model, batch())


def test_a_layer_that_shrinks_what_another_one_restores() -> None:
    finding = only(dipped(1e-4, 1e4), RULE)
    assert (finding.severity, finding.symptom) == (Severity.WARNING, Symptom.VANISHING_GRADIENT)
    assert top(finding) is CauseName.INIT_TOO_SMALL
    assert finding.message.endswith("times smaller than at both ends of the network.")
    assert judge(dipped(1e-4, 1e4), "EF101").findings == ()
    large = only(dipped(1e4, 1e-4), RULE)
    assert (large.symptom, top(large)) == (Symptom.EXPLODING_GRADIENT, CauseName.INIT_TOO_LARGE)


def test_what_does_not_come_back_is_the_ends_matter() -> None:
    assert silent(dipped(1e-4, 1.0), RULE)
    assert silent(dipped(1e-2, 1e2), RULE)


def test_scales_that_a_normalisation_takes_away_are_no_fault() -> None:
    assert silent(dipped(1e-4, 1e4, nn.BatchNorm1d), RULE)


@pytest.mark.parametrize(("decades", "alarm"), [(2.9, False), (3.1, True)])
def test_three_decades_below_the_nearer_end(decades: float, alarm: bool) -> None:
    """The last layer and the first are level; one that the gradient crosses between them is not."""
    ops = [Op("addmm"), Op("addmm", 10.0**decades), Op("addmm"), Op("addmm", 10.0**-decades), Op("addmm")]
    (finding,) = diagnose(chain(ops), select=RULE).findings or (None,)
    assert (finding is not None) is alarm
    if finding is not None:
        assert finding.site == "2"
        assert finding.evidence[0].value == pytest.approx(-decades)
