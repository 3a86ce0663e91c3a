"""Initialisers against what they promise, measured on the real modules."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evenflow.surgery import DepthScaled, Fixup, InitRecurrent, Patch, PatchError, Reinitialise, critical
from evenflow.surgery.critical import critical_gains, spread
from evenflow.theory import CriticalPoint, chi, get_activation, q_map
from tests.surgery import nets
from tests.surgery.nets import built, chain, encoder, features


def _fresh(scheme: str, model: nn.Module, inputs: object = None, **settings: object) -> Any:
    return Patch(Reinitialise(scheme, **settings)).apply(model, inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize(("scheme", "variance"), [("glorot", 2 / 500), ("he", 2 / 400), ("lecun", 1 / 400)])
def test_variance_of_a_rectangular_layer(scheme: str, variance: float, distribution: str) -> None:
    layer = _fresh(scheme, nn.Linear(400, 100), distribution=distribution)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    assert weight.var().item() == pytest.approx(variance, rel=0.03)  # 40 000 entries: 0.7 % for a normal
    assert (
        abs(weight).max() < 2 * variance**0.5
        if distribution == "uniform"
        else abs(weight).max() > 3 * variance**0.5
    )
    assert not layer.bias.any()


def test_he_keeps_the_mean_square_through_relus() -> None:
    net = _fresh("he", nn.Sequential(*[x for _ in range(6) for x in (nn.Linear(512, 512), nn.ReLU())]))
    x = features(64, 512)
    assert net[:-1](x).square().mean().item() == pytest.approx(2.0, rel=0.4)


def test_he_of_a_leaky_slope_is_the_papers() -> None:
    layer = _fresh("he", nn.Linear(400, 400), activation="leaky_relu")
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 1.0001 / 400), rel=0.02)


def test_orthogonal_weights_are_orthogonal_also_in_attention() -> None:
    layer = _fresh("orthogonal", nn.Linear(30, 20), gain=2.0)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    torch.testing.assert_close(weight @ weight.T, 4 * torch.eye(20), atol=1e-5, rtol=0)
    attention = _fresh("orthogonal", built(encoder)).layers[0].self_attn
    for part in attention.in_proj_weight.chunk(3):
        torch.testing.assert_close(part @ part.T, torch.eye(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "module", [nn.Conv1d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 5, padding=2), nn.Conv3d(6, 9, 3, padding=1)]
)
def test_delta_orthogonal_convolutions_keep_norms_up_to_the_border(module: nn.Module) -> None:
    conv = _fresh("delta_orthogonal", module)
    x = features(4, 6, *[7] * (conv.weight.ndim - 2))
    torch.testing.assert_close(conv(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))


@pytest.mark.parametrize("name", ["tanh", "relu", "leaky_relu", "elu", "selu", "softsign", "gelu", "sin"])
@pytest.mark.parametrize("layers", [5, 300])
def test_critical_points_are_critical(name: str, layers: int) -> None:
    phi = get_activation(name)
    point = critical_gains(phi, layers)
    assert chi(phi, point.q, point.sigma_w2) == pytest.approx(1.0, abs=1e-9)
    assert q_map(phi, point.q, point.sigma_w2, point.sigma_b2) == pytest.approx(point.q, rel=1e-9)
    if name in ("tanh", "softsign", "sin", "gelu"):
        assert layers * spread(phi, point.q) <= 1.0 + 1e-9
        assert point.q == 1.0 or layers * spread(phi, point.q) == pytest.approx(1.0)


def test_critical_weights_have_the_variances_of_the_critical_point() -> None:
    net = _fresh("critical", built(lambda: chain(6, 256)), distribution="normal")
    point = critical_gains(get_activation("tanh"), 7)
    hidden = net[4]
    assert 256 * hidden.weight.var().item() == pytest.approx(point.sigma_w2, rel=0.03)
    assert hidden.bias.var().item() == pytest.approx(point.sigma_b2, rel=0.4)
    assert net(features(8, 256))[..., 0].numel() == 8


def test_critical_layers_of_different_widths_keep_q() -> None:
    widths = [64, 512, 64, 256, 64]
    stack = [x for a, b in pairwise(widths) for x in (nn.Linear(a, b), nn.Tanh())]
    net = _fresh("critical", nn.Sequential(*stack), activation="tanh")
    q = critical_gains(get_activation("tanh"), 4).q
    x = features(256, 64)
    for index in (0, 2, 4, 6):
        before = net[: index + 1](x)
        assert before.square().mean().item() == pytest.approx(q, rel=0.15)


@pytest.mark.parametrize("name", ["sigmoid", "softplus"])
def test_an_activation_without_a_critical_point_is_told(name: str) -> None:
    with pytest.raises(PatchError, match=f"reinitialise by critical: {name} has no critical point"):
        Patch(Reinitialise("critical", activation=name)).apply(chain())


def test_a_critical_point_that_q_leaves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    point = CriticalPoint("made up", 1.0, 0.0, 1.0, sensitivity=1.2)
    monkeypatch.setattr(critical, "critical_point", lambda phi, q: point)
    assert critical_gains(get_activation("tanh"), 5) is point  # 1.2⁵ = 2.49 < e
    with pytest.raises(PatchError, match=r"is not stable \(K = 1.2 at q = 1, over 6 layers\)"):
        critical_gains(get_activation("tanh"), 6)


@pytest.mark.parametrize(
    ("make", "inputs"), [(lambda: chain(5), features(64, 16)), (nets.Images, features(8, 3, 8, 8))]
)
def test_lsuv_gives_every_layer_unit_variance(make: type[nn.Module], inputs: Tensor) -> None:
    model = built(make)
    edited = _fresh("lsuv", model, 7 * inputs)
    seen = {}
    for name, module in edited.named_modules():
        if hasattr(module, "weight"):
            module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.var().item()}))
    edited(7 * inputs)
    assert len(seen) >= 4
    assert all(abs(variance - 1) < 0.05 for variance in seen.values()), seen


def test_lsuv_needs_a_batch_that_the_model_takes() -> None:
    with pytest.raises(
        PatchError, match=r"none was given. Give what the model is called with: patch.apply\(model, inputs\)"
    ):
        _fresh("lsuv", chain())
    with pytest.raises(PatchError, match="lsuv could not call the model: RuntimeError"):
        _fresh("lsuv", chain(), features(2, 5))


def test_lsuv_of_a_silent_model_is_a_misfit_and_changes_nothing() -> None:
    model = built(chain)
    untouched = copy.deepcopy(model)
    with pytest.raises(PatchError, match=r"reinitialise does not fit this model: .* has the variance 0\.0"):
        Patch(Reinitialise("lsuv")).apply(model, torch.zeros(4, 16), in_place=True)
    assert nets.differences(model, untouched) == []


def test_lsuv_leaves_running_statistics_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    edited = _fresh("lsuv", model, features(16, 8))
    assert torch.equal(edited[1].running_mean, torch.zeros(8))
    assert edited[1].num_batches_tracked == 0


def test_depth_scaled_divides_by_the_root_of_the_branches() -> None:
    model = built(lambda: encoder(3))
    edited = Patch(DepthScaled()).apply(model)
    for before, after in zip(model.layers, edited.layers, strict=True):
        torch.testing.assert_close(after.linear2.weight, before.linear2.weight / 6**0.5)
        torch.testing.assert_close(after.self_attn.out_proj.weight, before.self_attn.out_proj.weight / 6**0.5)
        assert torch.equal(after.linear1.weight, before.linear1.weight)


def test_fixup_scales_the_first_layer_and_silences_the_last() -> None:
    class Wide(nets.Branches):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(
                nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 200)) for _ in range(9)
            )
            self.head = nn.Linear(200, 3)

    edited = Patch(Fixup("branches.*", head="head")).apply(Wide())
    first = edited.branches[0][0].weight
    assert first.std().item() == pytest.approx(math.sqrt(2 / 200) * 9**-0.5, rel=0.02)
    x = features(4, 200)
    assert torch.equal(edited.branches[3](x), torch.zeros(4, 200))
    assert not edited(x).any()


def test_chrono_spreads_memories_evenly_from_one_to_the_longest() -> None:
    model = nn.LSTM(4, 2000)
    edited = Patch(InitRecurrent("chrono", longest=100)).apply(model)
    i, f, g, o = (edited.bias_ih_l0 + edited.bias_hh_l0).detach().chunk(4)
    memories = f.exp().numpy()
    assert memories.min() >= 1.0
    assert memories.max() <= 99.0001
    assert np.quantile(memories, [0.25, 0.5, 0.75]) == pytest.approx([25.5, 50, 74.5], abs=4)
    assert torch.equal(i, -f)
    assert not g.any()
    assert not o.any()
    gru = Patch(InitRecurrent("chrono", longest=100)).apply(nn.GRU(4, 2000))
    r, z, n = (gru.bias_ih_l0 + gru.bias_hh_l0).detach().chunk(3)
    assert np.median(z.exp().numpy()) == pytest.approx(50, abs=4)
    assert not r.any()
    assert not n.any()


def test_the_forget_bias_is_the_sum_of_both_and_opens_the_forget_gate() -> None:
    model = nn.LSTM(3, 5, bidirectional=True, num_layers=2)
    edited = Patch(InitRecurrent("forget_bias", value=3.0)).apply(model)
    for name, bias in edited.named_parameters():
        if name.startswith("bias_ih"):
            whole = bias + edited.get_parameter(name.replace("_ih", "_hh"))
            torch.testing.assert_close(whole.detach().chunk(4)[1], torch.full((5,), 3.0))
            assert whole.detach().chunk(4)[0].any()
    cell = Patch(InitRecurrent("forget_bias", value=100.0)).apply(nn.LSTMCell(3, 5))
    torch.nn.init.zeros_(cell.weight_hh)
    memory = features(2, 5)
    with torch.no_grad():
        cell.bias_ih[:5] = -100.0  # the input gate is shut
        _, kept = cell(torch.zeros(2, 3), (torch.zeros(2, 5), memory))
    torch.testing.assert_close(kept, memory)


def test_the_identity_net_keeps_what_it_has_without_input() -> None:
    rnn = Patch(InitRecurrent("identity")).apply(nn.RNN(3, 5))
    state = features(1, 2, 5).abs()
    outputs, last = rnn(torch.zeros(50, 2, 3), state)
    assert torch.equal(last, state)
    assert torch.equal(outputs[20], state[0])


def test_orthogonal_recurrent_weights_gate_by_gate() -> None:
    gru = Patch(InitRecurrent("orthogonal", value=0.5)).apply(nn.GRU(3, 6))
    for gate in gru.weight_hh_l0.detach().split(6):
        torch.testing.assert_close(gate @ gate.T, 0.25 * torch.eye(6), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{"scheme": "chrono"}, {"scheme": "identity", "longest": 5}, {"scheme": "chrono", "longest": 2}],
)
def test_a_chrono_init_needs_its_length(settings: dict[str, object]) -> None:
    with pytest.raises(PatchError, match="longest"):
        InitRecurrent(**settings)  # type: ignore[arg-type]
