"""EF103: where it must fire, what it must name, and the near misses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.measure import measure
from tests.diagnose.chains import along_time
from tests.diagnose.judging import only, silent, top
from tests.diagnose.programs import Loop, Sequence, classify

RULE = "EF103"


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_the_last_step_of_a_long_sequence_does_not_feel_the_first(cell: type[nn.Module]) -> None:
    program = classify(Sequence(cell(8, 64, batch_first=True), 64), torch.randn(8, 100, 8))
    finding = only(program, RULE)
    assert (finding.severity, finding.site, top(finding)) == (
        Severity.WARNING,
        "layer",
        CauseName.LONG_RECURRENCE,
    )
    short = Sequence(cell(8, 64, batch_first=True), 64)
    assert silent(classify(short, torch.randn(8, 28, 8)), RULE)
    every = Sequence(cell(8, 64, batch_first=True), 64, mean=True)
    assert silent(classify(every, torch.randn(8, 100, 8)), RULE)


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_in_a_loop_is_judged_as_a_layer_would_be(cell: type[nn.Module]) -> None:
    finding = only(classify(Loop(cell(8, 32)), torch.randn(8, 120, 8)), RULE)
    assert (finding.site, top(finding)) == ("cell", CauseName.LONG_RECURRENCE)


def test_a_sequence_so_long_that_its_gradient_is_exactly_zero_is_still_judged_along_time() -> None:
    finding = only(classify(Sequence(nn.RNN(8, 32, batch_first=True), 32), torch.randn(4, 250, 8)), RULE)
    assert (finding.site, top(finding)) == ("layer", CauseName.LONG_RECURRENCE)


def test_a_layer_has_forgotten_only_what_both_of_its_states_have_lost() -> None:
    falling = [-0.3 * (60 - t) for t in range(60)]
    flat = [0.0] * 60
    assert len(diagnose(along_time(hidden_l0=falling, cell_l0=falling), select=RULE).findings) == 1
    assert diagnose(along_time(hidden_l0=falling, cell_l0=flat), select=RULE).findings == ()
    assert diagnose(along_time(hidden_l0=flat, cell_l0=falling), select=RULE).findings == ()
    (finding,) = diagnose(along_time(hidden_l0=flat, hidden_l1=falling), select=RULE).findings
    assert "hidden_l1" in finding.evidence[0].text


def test_a_layer_that_runs_backwards_in_time_is_read_in_its_own_order() -> None:
    rising = [-0.3 * t for t in range(60)]  # the last state that it computes is the one at t = 0
    assert len(diagnose(along_time(hidden_l0_reverse=rising), select=RULE).findings) == 1
    assert diagnose(along_time(hidden_l0=rising), select=RULE).findings == ()


@pytest.mark.parametrize(("per_step", "alarm"), [(0.23, False), (0.25, True)])
def test_half_of_the_sequence_must_be_lost_to_rounding(per_step: float, alarm: bool) -> None:
    """7.22 decades at .25 a step are 28.9 steps: 31 of 60 are lost; at .23 they are 31.4 and 28 are lost."""
    profile = [-per_step * (59 - t) for t in range(60)]
    assert bool(diagnose(along_time(hidden_l0=profile), select=RULE).findings) is alarm


def test_an_open_forget_gate_remembers() -> None:
    layer = nn.LSTM(8, 64, batch_first=True)
    with torch.no_grad():
        layer.all_weights[0][3][64:128] = 4.0
    assert silent(classify(Sequence(layer, 64), torch.randn(8, 100, 8)), RULE)


def test_the_text_of_a_finding_along_time() -> None:
    flow = measure(Sequence(nn.RNN(8, 64, batch_first=True), 64), torch.randn(8, 100, 8))
    (finding,) = diagnose(flow, select=RULE).findings
    norms = [stats.log10_norm for stats in flow.time_profile()["layer:hidden_l0"].values()]
    lost = sum(norm < max(norms) - 7.2247 for norm in norms)
    rate = (norms[-1] - norms[0]) / 99
    assert finding.message == f"The loss feels only the last {100 - lost} of 100 time steps of layer."
    assert finding.evidence[0].text == (
        f"At {lost} of 100 time steps the gradient of hidden_l0 is more than 7.2 decades below its largest, "
        "and lost when float32 sums over time."
    )
    assert finding.causes[0].evidence == (
        f"Each step back in time costs {rate:.2f} decades, a factor of {10**rate:.1f}; 100 steps multiply."
    )
    last, first = norms[-1], norms[0]
    assert finding.evidence[1].text.startswith("log10 of the gradient at steps 1, 26, 51, 75, 100: ")
    assert finding.evidence[1].text.endswith(f"{last:.1f}.")
    assert f": {first:.1f}, " in finding.evidence[1].text
