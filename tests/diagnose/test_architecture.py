"""EF401 to EF405: what a design does by itself; notes, and an alarm where a stream explodes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.diagnose.rules.normalization_explosion import PER_BLOCK
from evenflow.measure import measure
from tests.diagnose.chains import Op, chain
from tests.diagnose.judging import judge, only, silent, top
from tests.diagnose.programs import Branch, Program, batch, classify, glorot, he
from tests.diagnose.programs import mlp as network

PLAIN, NORMS, POST_LN, GROWTH, BARE = "EF401", "EF402", "EF403", "EF404", "EF405"


def note(program: Program, rule: str, cause: CauseName) -> str:
    """The text of a finding that is no alarm."""
    finding = only(program, rule)
    assert (finding.severity, top(finding)) == (Severity.NOTE, cause)
    return finding.message


# depth


def test_a_deep_plain_stack_is_noted_and_skips_are_not() -> None:
    deep = classify(network(30, nn.Tanh, glorot), batch())
    assert note(deep, PLAIN, CauseName.DEPTH_WITHOUT_SKIP) == (
        "30 layers in a row, from Linear 0 to Linear 58, have no skip connection."
    )
    blocks = [Branch(network(2, nn.ReLU, he, inputs=64, outputs=64), 0.3) for _ in range(15)]
    assert silent(classify(nn.Sequential(nn.Linear(64, 64), *blocks, nn.Linear(64, 10)), batch()), PLAIN)


@pytest.mark.parametrize(("layers", "noted"), [(20, False), (21, True)])
def test_twenty_layers_train(layers: int, noted: bool) -> None:
    assert bool(diagnose(chain([Op("addmm")] * layers), select=PLAIN).findings) is noted


# normalisation


def test_batchnorm_in_a_plain_stack() -> None:
    message = note(
        classify(network(50, nn.ReLU, norm=nn.BatchNorm1d), batch()), NORMS, CauseName.NORMALIZATION_EXPLOSION
    )
    assert message.startswith(
        "BatchNorm in a plain stack makes the gradient 10^4.1 times as large at Linear 0"
    )


def test_near_misses_of_normalisation() -> None:
    assert silent(classify(network(12, nn.ReLU, norm=nn.BatchNorm1d), batch()), NORMS)
    assert silent(classify(network(50, nn.ReLU, norm=nn.LayerNorm), batch()), NORMS)
    assert silent(classify(network(50, nn.Tanh, norm=nn.BatchNorm1d), batch()), NORMS)
    assert silent(classify(network(50, nn.ReLU, he, norm=nn.BatchNorm1d).eval(), batch()), NORMS)


def test_the_growth_per_block_is_that_of_a_normal_through_a_rectifier() -> None:
    z = torch.randn(2_000_000, dtype=torch.float64)
    grown = 0.5 * math.log10(float((z > 0).double().mean() / z.relu().var()))
    assert grown == pytest.approx(PER_BLOCK.value, abs=3e-4)


# post-LN


def encoder(layers: int, *, norm_first: bool) -> Program:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0, norm_first=norm_first)
    stack = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return classify(
        nn.Sequential(nn.Linear(16, 16), stack, nn.Flatten(), nn.Linear(96, 10)), torch.randn(4, 6, 16)
    )


def test_a_deep_post_ln_transformer() -> None:
    message = note(encoder(14, norm_first=False), POST_LN, CauseName.POST_LN_DEPTH)
    assert message == "28 normalisations after additions lie on the gradient's way (post-LN)."
    assert silent(encoder(14, norm_first=True), POST_LN)
    assert silent(encoder(12, norm_first=False), POST_LN)


def test_what_post_ln_loses_is_put_on_it_where_the_gradient_vanishes() -> None:
    class Block(nn.Module):
        """LN(x + f(x)), whose branch outweighs the skip and passes no gradient itself: √(1/10) a block."""

        def __init__(self) -> None:
            super().__init__()
            self.f, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x + 3.0 * self.f(x).sign())

    blocks = [Block() for _ in range(10)]
    program = classify(nn.Sequential(nn.Linear(64, 64), *blocks, nn.Linear(64, 10)), batch())
    finding = only(program, "EF101")
    assert CauseName.POST_LN_DEPTH in [cause.name for cause in finding.causes]


# residual growth


def residual(blocks: int, scale: float, norm: type[nn.Module] | None = None) -> nn.Sequential:
    stream = [Branch(network(2, nn.ReLU, he, inputs=64, outputs=64, norm=norm), scale) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(64, 64), *stream, nn.Linear(64, 10))


def test_branches_that_add_up_unscaled() -> None:
    finding = only(classify(residual(30, 1.0), batch()), GROWTH)
    assert finding.severity is Severity.WARNING
    assert {cause.name for cause in finding.causes} == {
        CauseName.RESIDUAL_GROWTH,
        CauseName.MISSING_NORMALIZATION,
    }
    assert only(classify(residual(10, 1.0), batch()), GROWTH).severity is Severity.NOTE


def test_the_stream_of_a_linear_residual_net_grows_as_theory_says() -> None:
    """Branches of power k on a stream: (1 + k)^(L/2) in size."""

    def branch() -> nn.Module:
        layer = nn.Linear(512, 512, bias=False)
        nn.init.normal_(layer.weight, std=512**-0.5)
        return Branch(layer)

    model = nn.Sequential(nn.Linear(64, 512), *[branch() for _ in range(24)], nn.Linear(512, 10))
    finding = only(classify(model, batch()), GROWTH)
    assert finding.evidence[0].value == pytest.approx(12.0 * math.log10(2.0), abs=0.15)


def test_near_misses_of_growth() -> None:
    assert silent(classify(residual(30, 30**-0.5), batch()), GROWTH)
    assert silent(classify(residual(1, 1.0), batch()), GROWTH)
    body = [Branch(nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64))) for _ in range(60)]
    assert silent(classify(nn.Sequential(nn.Linear(64, 64), *body, nn.Linear(64, 10)), batch()), GROWTH)
    taken_away = nn.Sequential(residual(30, 1.0)[:-1], nn.LayerNorm(64), nn.Linear(64, 10))
    assert only(classify(taken_away, batch()), GROWTH).severity is Severity.NOTE


# no normalisation


def test_signals_that_drift_where_nothing_holds_them() -> None:
    program = classify(network(16, nn.ReLU, glorot), batch())
    assert "shrinks by a factor of" in note(program, BARE, CauseName.MISSING_NORMALIZATION)
    assert judge(classify(network(16, nn.ReLU, glorot, norm=nn.BatchNorm1d), batch()), BARE).findings == ()
    assert silent(classify(network(16, nn.ReLU, he), batch()), BARE)
    assert silent(classify(network(4, nn.ReLU, glorot), batch()), BARE)
    assert silent(classify(network(30, nn.ReLU, glorot, units=16), batch()), BARE)  # chance does as much


@pytest.mark.parametrize(("size", "noted"), [(0.11, False), (0.09, True)])
def test_a_decade_of_drift(size: float, noted: bool) -> None:
    ops = [Op("addmm"), *[Op("relu"), Op("addmm")] * 9, Op("relu", size=size), Op("addmm")]
    assert bool(diagnose(chain(ops), select=BARE).findings) is noted


def test_measured_flows_are_read_without_a_loss() -> None:
    flow = measure(network(30, nn.Tanh, glorot), batch())
    assert diagnose(flow, select=PLAIN).findings
