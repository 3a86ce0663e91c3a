"""The promises of predict: same sites as measure, initialisers, honest gaps, no trace on the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evenflow.errors import ModelError
from evenflow.flow import Role
from evenflow.measure import measure
from evenflow.predict import Described, depth_law, predict, underflow_margin


def net(
    init: Callable[[Tensor], Any] | None = None, depth: int = 3, width: int = 64
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layer = nn.Linear(width, width)
            if init is not None:
                init(layer.weight)
            layers += [layer, nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(width, 5))

    return build


def batch(*shape: int) -> Tensor:
    return torch.randn(*(shape or (16, 64)), generator=torch.Generator().manual_seed(0))


LABELS = torch.arange(16) % 5


def loss(output: Tensor) -> Tensor:
    return F.cross_entropy(output, LABELS)


def test_sites_are_those_of_measure() -> None:
    predicted, measured = predict(net(), batch(), loss), measure(net()(), batch(), loss)
    assert [(row.site, row.order, row.shape, row.inputs) for row in predicted] == [
        (row.site, row.order, row.shape, row.inputs) for row in measured
    ]
    assert predicted.source == "predicted"


INITIALISERS: dict[str, Callable[[Tensor], Any]] = {
    "normal": lambda w: nn.init.normal_(w, 0.01, 0.3),
    "uniform": lambda w: nn.init.uniform_(w, -0.1, 0.3),
    "normal, by names": torch.no_grad()(lambda w: w.normal_(mean=0.01, std=0.3)),
    "uniform, by a name": torch.no_grad()(lambda w: w.uniform_(-0.1, to=0.3)),
    "uniform, no gradient": torch.no_grad()(lambda w: w.uniform_(-0.1, 0.3, generator=None)),
    "truncated": lambda w: nn.init.trunc_normal_(w, 0.1, 0.5, -0.4, 1.0),
    "constant": lambda w: nn.init.constant_(w, 0.25),
    "orthogonal": lambda w: nn.init.orthogonal_(w, 1.4),
    "xavier uniform": nn.init.xavier_uniform_,
    "kaiming normal": nn.init.kaiming_normal_,
    "sparse": lambda w: nn.init.sparse_(w, 0.25, 0.4),
    "dirac": nn.init.eye_,
    "by hand": lambda w: w.data.normal_().mul_(0.02),
}


@pytest.mark.parametrize("name", INITIALISERS)
def test_initial_moments(name: str) -> None:
    build = net(INITIALISERS[name], depth=1, width=256)
    row = next(
        r for r in predict(build, batch(16, 256), loss).select(Role.PARAMETER) if r.site.path == "0.weight"
    )
    weight = build().get_parameter("0.weight").detach().double()
    assert row.stats is not None
    assert row.stats.mean == pytest.approx(float(weight.mean()), abs=5 * float(weight.std()) / 256 + 1e-12)
    assert row.stats.mean_square == pytest.approx(float(weight.square().mean()), rel=0.05)


def test_initialiser_imported_under_another_name() -> None:
    from torch.nn.init import trunc_normal_ as squeeze

    row = predict(net(lambda w: squeeze(w, std=0.5), depth=1), batch(), loss).select(Role.PARAMETER)[0]
    assert row.stats is not None
    assert row.stats.rms == pytest.approx(0.5, rel=0.02)


def test_a_builder_allocates_nothing() -> None:
    """A layer of 2^40 weights, 4 TiB."""
    flow = predict(
        lambda: nn.Sequential(nn.Linear(2**20, 2**20), nn.Linear(2**20, 5)), Described((16, 2**20)), loss
    )
    assert not flow.notes
    assert all(row.stats is not None for row in flow)


def test_a_model_is_predicted_from_its_weights_and_left_alone() -> None:
    model = net()()
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(3)
    before = dict(model.named_parameters())
    contents = {name: parameter.detach().clone() for name, parameter in before.items()}
    state = torch.get_rng_state()
    flow = predict(model, batch(), loss)
    assert torch.equal(torch.get_rng_state(), state)
    after = dict(model.named_parameters())
    assert all(after[name] is before[name] and torch.equal(after[name], contents[name]) for name in before)
    assert all(parameter.grad is None for parameter in after.values())
    rms = flow.rms(Role.PARAMETER)
    assert rms["2.weight"] == pytest.approx(float(contents["2.weight"].square().mean().sqrt()), rel=1e-3)


def test_biases_before_batch_norm_get_exactly_nothing() -> None:
    flow = predict(
        lambda: nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 5)), batch(), loss
    )
    stats = flow.stats(Role.PARAMETER_GRADIENT)
    assert stats["0.bias"].mean_square == 0.0
    assert stats["0.weight"].mean_square > 0.0


def test_an_op_without_a_rule_is_named_and_what_follows_is_unknown() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.first(x).sort(-1).values)
            return y

    flow = predict(Sorted, batch(), loss)
    assert any(note.startswith("sort: no rule") for note in flow.notes)
    by_name = {row.site.path: row for row in flow.select(Role.PARAMETER_GRADIENT)}
    assert by_name["last.weight"].stats is None
    activations = {row.site.path: row for row in flow.select(Role.ACTIVATION)}
    assert activations["first"].stats is not None
    assert activations["last"].stats is None


def test_a_model_of_transformers_inside_another_is_initialised() -> None:
    """On the meta device transformers leaves its weights as PyTorch made them."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_embd=64, n_layer=1, n_head=2, n_positions=16)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = transformers.GPT2Model(config)

        def forward(self, ids: Tensor) -> Tensor:
            hidden: Tensor = self.body(ids).last_hidden_state
            return hidden

    flow = predict(Wrapped, torch.zeros(2, 8, dtype=torch.long))
    stats = flow.stats(Role.PARAMETER)["body.wte.weight"]
    assert stats.mean_square**0.5 == pytest.approx(0.02)


@pytest.mark.parametrize("loss", [F.multi_margin_loss, F.multilabel_margin_loss])
def test_a_backward_pass_that_pytorch_cannot_shape_is_named(loss: Callable[..., Tensor]) -> None:
    """Its forward pass has a meta kernel and its backward pass has none (torch 2.13)."""
    labels = torch.zeros(8, 10, dtype=torch.long) if "label_" in loss.__name__ else torch.arange(8)
    with pytest.raises(ModelError, match=rf"backward pass .* {loss.__name__}_backward .* Measure one batch"):
        predict(lambda: nn.Linear(64, 10), torch.randn(8, 64), lambda y: loss(y, labels))


def test_a_loss_that_asks_for_a_value_is_told() -> None:
    with pytest.raises(ModelError, match=r"The loss cannot be predicted: .* value of a tensor"):
        predict(lambda: nn.Linear(64, 10), torch.randn(8, 64), lambda y: y[y.argmax()].sum())


def test_a_builder_that_raises_is_told() -> None:
    def build() -> nn.Module:
        raise RuntimeError("no such file")

    with pytest.raises(ModelError, match=r"The builder raised RuntimeError .* no such file"):
        predict(build, batch())


def test_a_parameter_never_filled_is_refused() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.empty(4, 4))

    with pytest.raises(ModelError, match="The parameter w has no initial value"):
        predict(Empty, batch())


@pytest.mark.parametrize("depth", [4, 16])
def test_the_interval_holds_single_draws(depth: int) -> None:
    build = net(nn.init.kaiming_normal_, depth=depth, width=64)
    predicted = {row.site: row for row in predict(build, batch(), loss).select(Role.PARAMETER_GRADIENT)}
    inside = []
    for seed in range(12):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build()
        for row in measure(model, batch(), loss).select(Role.PARAMETER_GRADIENT):
            ours = predicted[row.site]
            assert ours.half_width is not None
            assert ours.stats is not None
            assert row.stats is not None
            inside.append(abs(ours.stats.log10_rms - row.stats.log10_rms) <= ours.half_width)
    assert sum(inside) / len(inside) > 0.9


def test_depth_law_of_sigmoid_layers() -> None:
    """THEORY: χ₁ = σ_w² E φ'²; at the default σ_w² = 1/3 and q → q*, −0.39 decades per layer."""
    build = lambda: nn.Sequential(  # noqa: E731
        *[layer for _ in range(20) for layer in (nn.Linear(128, 128), nn.Sigmoid())], nn.Linear(128, 5)
    )
    flow = predict(build, batch(16, 128), loss)
    law = depth_law(flow, "addmm")
    # q = (E σ(u)² + 1/128)/3 with σ ≈ 1/2 + u/4: E φ'² is 1/16 less 1/128 of q
    assert law.slope == pytest.approx(0.5 * math.log10(1 / 3 / 16), abs=0.02)
    assert law.depth_scale == pytest.approx(-1 / (2 * law.slope * math.log(10)))
    assert law.depth_until_underflow("float16") < 20 < law.depth_until_underflow("float32")
    margins = underflow_margin(flow, "float16")
    assert margins["0.weight"] < 0 < margins["40.weight"]


def test_depth_law_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="at least three ops named 'conv'"):
        depth_law(predict(net(), batch(), loss), "conv")


def test_a_weight_that_autograd_forbids_to_draw_is_told() -> None:
    def build() -> nn.Module:
        model = nn.Linear(4, 4)
        model.weight.uniform_(-0.1, 0.3)
        return model

    with pytest.raises(ModelError, match="leaf Variable that requires grad"):
        predict(build, Described((8, 4)))


def test_a_builder_may_make_parameters_with_entries() -> None:
    """``torch.Tensor(n)`` takes no notice of the meta device; written into a tensor, autograd refused it."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
            self.vector = nn.Parameter(torch.Tensor(64).uniform_())

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            y[torch.arange(len(x), device=x.device) % 2 == 0] = self.vector
            z: Tensor = self.last(y)
            return z

    flow = predict(Masked, torch.randn(8, 64))
    assert any(row.site.label == "last.bias" and row.stats is not None for row in flow)
