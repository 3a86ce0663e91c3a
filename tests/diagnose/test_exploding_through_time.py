"""EF104: where it must fire, what it must name, and the near misses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evenflow.diagnose import CauseName, diagnose
from tests.diagnose.chains import along_time
from tests.diagnose.judging import only, silent, top
from tests.diagnose.programs import Loop, Sequence, classify

RULE = "EF104"


def test_a_recurrence_that_amplifies() -> None:
    def program(gain: float) -> nn.Module:
        layer = nn.RNN(8, 64, nonlinearity="relu", batch_first=True)
        nn.init.orthogonal_(layer.all_weights[0][1], gain)
        return Sequence(layer, 64)

    steps = torch.randn(8, 60, 8)
    finding = only(classify(program(2.0), steps), RULE)
    assert (finding.site, top(finding)) == ("layer", CauseName.RECURRENT_GAIN_TOO_LARGE)
    assert finding.message.endswith("over the 60 time steps of layer.")
    assert [cause.name for cause in finding.causes] == [
        CauseName.RECURRENT_GAIN_TOO_LARGE,
        CauseName.INIT_TOO_LARGE,
    ]
    assert finding.causes[1].evidence.startswith("layer.weight_hh_l0 has a spectral radius of about 2 ")
    assert silent(classify(program(1.0), steps), RULE)


def test_a_loss_at_every_step_may_add_up() -> None:
    """A perfect memory read out at each of T steps has a gradient that grows to T: no fault."""
    layer = nn.RNN(8, 64, nonlinearity="relu", batch_first=True)
    nn.init.eye_(layer.all_weights[0][1])
    nn.init.zeros_(layer.all_weights[0][3])
    assert silent(classify(Sequence(layer, 64, mean=True), torch.rand(8, 400, 8)), RULE)


@pytest.mark.parametrize(("growth", "alarm"), [(4.9, False), (5.1, True)])
def test_the_allowance_for_adding_up_is_the_number_of_steps(growth: float, alarm: bool) -> None:
    profile = [growth * (99 - t) / 99 for t in range(100)]
    assert bool(diagnose(along_time(hidden_l0=profile), select=RULE).findings) is alarm


def test_a_loop_that_amplifies() -> None:
    cell = nn.RNNCell(8, 32, nonlinearity="relu")
    nn.init.orthogonal_(cell.weight_hh, 2.0)
    finding = only(classify(Loop(cell), torch.randn(8, 60, 8)), RULE)
    assert (finding.site, top(finding)) == ("cell", CauseName.RECURRENT_GAIN_TOO_LARGE)
