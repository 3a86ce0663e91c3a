"""What swapping activations touches and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.surgery import (
    InsertNorm,
    InsertSkip,
    Patch,
    PatchError,
    RemoveOutputActivation,
    SetOutputActivation,
    SwapActivation,
)
from tests.surgery import nets
from tests.surgery.nets import built, chain, features


def test_calls_of_a_module_are_swapped_and_those_of_its_children_are_not() -> None:
    model = built(nets.Called)
    edited = Patch(SwapActivation(to="relu", where="")).apply(model)
    x = features(4, 8)
    by_hand = F.relu(
        F.relu(
            F.relu(F.relu(model.one(x)).mm(model.two.weight.T) + model.two.bias).mm(model.three.weight.T)
            + model.three.bias
        )
    )
    torch.testing.assert_close(edited(x), model.child(by_hand))
    both = Patch(SwapActivation(to="relu", where=("", "child"), from_="tanh")).apply(model)
    torch.testing.assert_close(both(x), model.child.head(F.relu(0.5 * F.relu(model.child.fc(by_hand)))))


def test_calls_are_counted_anew_in_each_forward() -> None:
    model = built(nets.Called)
    edited = Patch(SwapActivation(to="relu", where="", calls=(1,))).apply(model)
    x = features(4, 8)
    second = F.relu(model.two(torch.tanh(model.one(x))))
    expected = model.child(torch.tanh(torch.tanh(model.three(second))))
    torch.testing.assert_close(edited(x), expected)
    torch.testing.assert_close(edited(x), expected)


def test_a_learned_activation_in_a_call_learns_and_follows_the_model() -> None:
    edited = Patch(SwapActivation(to="prelu", where="")).apply(built(nets.Called))
    slope = edited.swapped_calls["tanh"].weight
    assert any(p is slope for p in edited.parameters())
    edited(features(4, 8)).sum().backward()
    assert slope.grad is not None
    assert slope.grad.abs() > 0
    assert edited.double()(features(4, 8).double()).dtype == torch.float64
    assert type(edited) is not nets.Called
    assert isinstance(edited, nets.Called)


def test_swapping_twice_swaps_what_is_there() -> None:
    model = built(nets.Called)
    patch = Patch(
        [
            SwapActivation(to="relu", where=""),
            SwapActivation(to="silu", where="swapped_calls.*", from_="relu"),
        ]
    )
    once = Patch(SwapActivation(to="silu", where="")).apply(model)
    torch.testing.assert_close(patch.apply(model)(features(4, 8)), once(features(4, 8)))


class Output(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = chain(2, 8, nn.Sigmoid, 8)
        self.head, self.squash = nn.Linear(8, 1), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.squash(self.head(self.body(x))).squeeze(-1)


@pytest.mark.parametrize(
    ("make", "last"),
    [(lambda: nn.Sequential(*chain(2, 8, nn.Sigmoid), nn.Sigmoid(), nn.Flatten()), "5"), (Output, "squash")],
)
def test_the_output_activation_is_left_alone_unless_it_is_named(make: type[nn.Module], last: str) -> None:
    edited = Patch(SwapActivation(to="relu")).apply(built(make))
    assert isinstance(edited.get_submodule(last), nn.Sigmoid)
    assert sum(isinstance(one, nn.ReLU) for one in edited.modules()) == 2
    named = Patch(SwapActivation(to="tanh", where=last)).apply(built(make))
    assert isinstance(named.get_submodule(last), nn.Tanh)
    removed = Patch(RemoveOutputActivation()).apply(built(make))
    assert isinstance(removed.get_submodule(last), nn.Identity)
    assert sum(isinstance(one, nn.Sigmoid) for one in removed.modules()) == 2


def test_a_softmax_over_one_unit_becomes_a_sigmoid() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Softmax(-1))
    x = torch.randn(3, 4)
    assert torch.equal(model(x), torch.ones(3, 1))
    edited = Patch(SetOutputActivation("sigmoid")).apply(model)
    assert torch.equal(edited(x), model[0](x).sigmoid())
    assert torch.equal(Patch(SetOutputActivation("softmax")).apply(edited)(x), torch.ones(3, 1))


def test_an_activation_that_serves_two_places_is_swapped_in_both() -> None:
    shared = nn.Tanh()
    model = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared, nn.Linear(4, 2))
    edited = Patch(SwapActivation(to="prelu")).apply(model)
    assert edited[1] is edited[3]
    assert isinstance(edited[3], nn.PReLU)


def test_code_quotes_the_users_lines() -> None:
    code = Patch(SwapActivation(to="relu", where=("", "child", "other"))).code(built(nets.Called))
    assert "x = torch.tanh(self.one(x))" in code
    assert "nets.py:" in code
    held = Patch(SwapActivation(to="relu")).code(built(nets.Held))
    assert "self.act = torch.tanh" in held
    assert "self.other = nn.Sigmoid()" in held
    assert "    model.act = nn.ReLU()" in held


def test_runs_of_equal_steps_become_loops() -> None:
    code = Patch([SwapActivation(to="relu"), InsertSkip()]).code(chain(6))
    assert "for i in range(1, 12, 2):\n            model[i] = nn.ReLU()" in code
    assert "model[i] = Residual(nn.Sequential(model[i], model[i + 1]), alpha=0.0)" in code


def test_a_fast_path_that_would_not_see_the_change_is_left() -> None:
    model = built(lambda: nets.encoder(1)).eval()
    edited = Patch(SwapActivation(to="silu")).apply(model)
    x = features(2, 5, 8)
    with torch.no_grad():
        fast = edited(x)
    torch.testing.assert_close(fast, edited(x))
    assert not torch.allclose(fast, model(x))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda: SwapActivation(to="reLU6x"),
            "swap_activation has to='reLU6x'. Expected one of: 'celu', 'elu'",
        ),
        (
            lambda: SwapActivation(to="relu", settings={"slope": 1}),
            "swap_activation has settings={'slope': 1}",
        ),
        (lambda: InsertNorm("weight"), "insert_norm has kind='weight'. Expected one of: 'batch', 'layer'"),
    ],
)
def test_wrong_settings_are_told_at_once(edit: object, said: str) -> None:
    with pytest.raises(PatchError) as caught:
        edit()  # type: ignore[operator]
    assert str(caught.value).startswith(said)


def test_norms_have_the_features_that_pass_there() -> None:
    shared = built(nets.Held)
    edited = Patch(InsertNorm("batch", where="other")).apply(shared)
    assert edited.other[0].num_features == 8
    x = 5 + 3 * features(64, 8)
    out = edited.other[0](x)
    torch.testing.assert_close(out.mean(0), torch.zeros(8), atol=1e-5, rtol=0)

    class Unclear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head, self.act = nn.Linear(8, 4), nn.Linear(4, 6), nn.Linear(6, 2), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(self.b(self.act(self.a(x)))))

    with pytest.raises(PatchError, match="no layer before it tells the number of features"):
        Patch(InsertNorm("batch")).apply(Unclear())


@pytest.mark.parametrize("kind", ["batch", "layer", "group", "rms"])
def test_norms_of_images_normalise(kind: str) -> None:
    edited = Patch(InsertNorm(kind, where="body.1", groups=2)).apply(built(nets.Images))
    out = edited.body[1][0](7 * features(6, 8, 4, 4))
    assert out.square().mean().item() == pytest.approx(1.0, rel=1e-3)


def test_a_skip_from_zero_makes_a_plain_chain_the_identity() -> None:
    edited = Patch(InsertSkip("rezero")).apply(chain(50, 16, nn.Tanh, out=16))
    x = features(4, 16)
    assert torch.equal(edited[:-1](x), x)
    assert sum(p.numel() == 1 for p in edited.parameters()) == 50
