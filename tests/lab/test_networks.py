"""Networks against hand computations: shapes, parameter counts, functions and gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evenflow.errors import EvenflowError
from evenflow.lab.networks import (
    ACTIVATIONS,
    DeepNet,
    Discriminator,
    Generator,
    Init,
    PlainCNN,
    RecurrentNet,
    ResidualNet,
    ResNet,
    Transformer,
    activation,
    discriminator_loss,
    dks,
    generator_loss,
    gradient_penalty,
    norm,
)
from evenflow.lab.networks.tailored import leaky_correlation, leaky_slope
from evenflow.lab.seeds import generator, seeded
from evenflow.theory import activation_names, c_map, deepnorm, get_activation
from evenflow.theory.activations import leaky_relu


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_same_seed_gives_the_same_net_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    nets = []
    for seed in (1, 1, 2):
        with seeded(seed):
            nets.append(DeepNet(depth=2, width=4, inputs=3))
    first, second, other = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(3), expected)


def test_deep_net_is_the_chain_that_it_says() -> None:
    net: Any = DeepNet(inputs=3, width=5, depth=3, outputs=2, act="tanh")
    assert _parameters(net) == (3 * 5 + 5) + (5 * 5 + 5) + (5 * 2 + 2)
    x = torch.randn(4, 3, generator=generator(0))
    weights = [layer.linear for layer in net.layers]
    h = torch.tanh(x @ weights[0].weight.T + weights[0].bias)
    h = torch.tanh(h @ weights[1].weight.T + weights[1].bias)
    torch.testing.assert_close(net(x), h @ weights[2].weight.T + weights[2].bias)


def test_the_gradient_of_a_deep_net_is_the_product_of_its_factors() -> None:
    with seeded(0):
        net: Any = DeepNet(inputs=4, width=4, depth=3, act="sigmoid").double()
    x = torch.randn(4, dtype=torch.float64, generator=generator(1)).requires_grad_()
    jacobian = torch.autograd.functional.jacobian(net, x)
    first, second, third = (layer.linear for layer in net.layers)
    a = torch.sigmoid(first(x))
    b = torch.sigmoid(second(a))
    by_hand = third.weight @ torch.diag(b * (1 - b)) @ second.weight @ torch.diag(a * (1 - a)) @ first.weight
    torch.testing.assert_close(jacobian, by_hand)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_those_of_theory(name: str) -> None:
    assert name in activation_names()
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    expected = torch.tensor(get_activation(name)(x.numpy()))
    torch.testing.assert_close(activation(name).double()(x).detach(), expected, rtol=1e-6, atol=1e-9)


def test_an_unknown_part_is_named_with_what_there_is() -> None:
    with pytest.raises(EvenflowError, match=r"There is no activation 'rellu' in the lab. It has: identity, "):
        activation("rellu")
    with pytest.raises(
        EvenflowError, match=r"There is no init 'xavier' in the lab. It has: default, glorot, "
    ):
        Init("xavier")  # type: ignore[arg-type]
    with pytest.raises(EvenflowError, match="There is no norm 'bn' in the lab"):
        norm("bn", 4)  # type: ignore[arg-type]
    with pytest.raises(EvenflowError, match="There is no recurrent cell 'gruu'"):
        RecurrentNet(cell="gruu")  # type: ignore[arg-type]
    with pytest.raises(EvenflowError, match=r"forget_bias and chrono are for the cell 'lstm', got 'gru'"):
        RecurrentNet(cell="gru", forget_bias=1.0)
    with pytest.raises(EvenflowError, match="multiple of its heads, got 6 and 4"):
        Transformer(width=6, heads=4)


@pytest.mark.parametrize(
    ("init", "variance"),
    [
        (Init("glorot"), 2 / (200 + 400)),
        (Init("he"), 2 / 200),
        (Init("lecun", gain=2.0), 4 / 200),
        (Init("normal", gain=3.0), 9 / 200),
        (Init("orthogonal", gain=2.0), 4 / 400),
        (Init("default"), 1 / (3 * 200)),
    ],
)
def test_inits_have_their_variance(init: Init, variance: float) -> None:
    with seeded(0):
        layer = nn.Linear(200, 400)
        init.apply(layer)
    # 80 000 entries: one standard error of a Gaussian's variance is 0.5 %.
    assert float(layer.weight.detach().square().mean()) == pytest.approx(variance, rel=0.025)
    assert (float(layer.bias.detach().abs().max()) == 0.0) is (init.name != "default")


def test_biases_and_orthogonal_columns() -> None:
    with seeded(0):
        layer = nn.Linear(50, 5000)
        Init("orthogonal", gain=1.5, bias_std=0.3).apply(layer)
    gram = layer.weight.detach().T @ layer.weight.detach()
    torch.testing.assert_close(gram, 2.25 * torch.eye(50), atol=1e-4, rtol=0)
    assert float(layer.bias.detach().std()) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("name", ["batch", "layer", "rms", "group"])
@pytest.mark.parametrize("images", [False, True])
def test_norms_bring_the_mean_square_to_one(name: Any, images: bool) -> None:
    shape = (32, 16, 6, 6) if images else (32, 16)
    x = 5 * torch.randn(shape, generator=generator(0)) + (3 if name != "rms" else 0)
    layer = norm(name, 16, images=images)
    assert layer is not None
    assert float(layer(x).detach().square().mean()) == pytest.approx(1.0, rel=2e-3)


def test_residual_branches_start_as_they_should() -> None:
    x = torch.randn(5, 8, generator=generator(0))
    branch: Any
    for branch in ("skipinit", "fixup"):
        with seeded(0):
            net: Any = ResidualNet(inputs=8, width=8, blocks=7, branch=branch)
        torch.testing.assert_close(net(x), net.head(net.stem(x)))  # every block is the identity
    with seeded(0):
        scaled: Any = ResidualNet(inputs=8, width=8, blocks=16, branch="scaled")
    block = scaled.blocks[0]
    stream = scaled.stem(x)
    branch_only = block.second(torch.relu(block.first(stream)))
    torch.testing.assert_close(block(stream), stream + branch_only / 4)
    assert "blocks.0.alpha" in dict(scaled.named_buffers())


def test_the_addition_comes_before_the_activation() -> None:
    with seeded(0):
        net: Any = ResidualNet(inputs=8, width=8, blocks=1, act_after_sum=True)
    assert float(net.blocks(torch.randn(9, 8, generator=generator(0))).detach().min()) == 0.0
    with seeded(0):
        images: Any = ResNet(channels=8, units=2, norm_name="none")
    unit = images.body[0]
    x = torch.randn(2, 8, 4, 4, generator=generator(1))
    torch.testing.assert_close(unit(x), torch.relu(x + unit.branch(x)))


def test_image_nets_have_their_shapes_and_counts() -> None:
    x = torch.randn(2, 1, 8, 8, generator=generator(0))
    plain = PlainCNN(channels=4, depth=3)
    assert plain(x).shape == (2, 10)
    assert _parameters(plain) == (9 * 4 + 4) + 2 * (9 * 16 + 4) + (4 * 10 + 10)
    basic = ResNet(channels=8, units=2, norm_name="none")
    assert _parameters(basic) == (9 * 8 + 8) + 2 * 2 * (9 * 64 + 8) + (8 * 10 + 10)
    bottleneck = ResNet(channels=8, units=1, kind="bottleneck", norm_name="batch")
    inside = (8 * 2 + 2 + 4) + (9 * 4 + 2 + 4) + (2 * 8 + 8 + 16)
    assert _parameters(bottleneck) == (9 * 8 + 8 + 16) + inside + (8 * 10 + 10)
    assert bottleneck(x).shape == basic(x).shape == (2, 10)


def test_recurrent_nets_read_and_start_as_they_should() -> None:
    x = torch.randn(3, 7, 2, generator=generator(0))
    assert RecurrentNet(cell="gru", hidden=5)(x).shape == (3, 1)
    assert RecurrentNet(cell="rnn", hidden=5, layers=2, every_step=True, outputs=4)(x).shape == (3, 7, 4)
    forget: Any = RecurrentNet(hidden=6, forget_bias=1.0).cell
    bias = forget.bias_ih_l0 + forget.bias_hh_l0
    assert bias.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12  # PyTorch's order: input, forget, cell, output
    with seeded(0):
        chrono: Any = RecurrentNet(hidden=2000, chrono=100).cell
    bias = (chrono.bias_ih_l0 + chrono.bias_hh_l0).detach()
    assert torch.equal(bias[:2000], -bias[2000:4000])
    assert float(bias[2000:4000].exp().mean()) == pytest.approx(50.0, abs=2.0)  # of U(1, 99)
    assert float(bias[2000:4000].max()) <= math.log(99)


def test_recurrent_weights_are_drawn_gate_by_gate() -> None:
    with seeded(0):
        net: Any = RecurrentNet(cell="lstm", hidden=16, recurrent_init="orthogonal", gain=2.0)
    for gate in net.cell.weight_hh_l0.detach().split(16):
        torch.testing.assert_close(gate @ gate.T, 4 * torch.eye(16), atol=1e-5, rtol=0)
    identity: Any = RecurrentNet(cell="rnn", hidden=4, recurrent_init="identity", nonlinearity="relu")
    assert torch.equal(identity.cell.weight_hh_l0, torch.eye(4))


def test_a_decoder_does_not_see_the_future_and_an_encoder_does() -> None:
    tokens = torch.randint(16, (1, 10), generator=generator(0))
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 16
    for causal in (True, False):
        with seeded(0):
            net: Any = Transformer(width=16, heads=2, blocks=2, causal=causal)
        before, after = net(tokens), net(changed)
        assert torch.equal(before[:, :6], after[:, :6]) is causal
        assert not torch.equal(before[:, 6:], after[:, 6:])
        assert before.shape == (1, 10, 16)


def test_attention_is_that_of_pytorch() -> None:
    with seeded(0):
        ours: Any = Transformer(width=12, heads=3, blocks=1, causal=True).blocks[0].branch
    x = torch.randn(2, 5, 12, generator=generator(0))
    theirs: Any = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        parts = [ours.query, ours.key, ours.value]
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.out_proj.weight.copy_(ours.out.weight)
    ahead = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected, _ = theirs(x, x, x, attn_mask=ahead, need_weights=False)
    torch.testing.assert_close(ours(x), expected, atol=1e-6, rtol=1e-5)


def test_arrangements_of_a_transformer() -> None:
    x = torch.randn(2, 5, 8, generator=generator(0))
    arrangement: Any
    for arrangement in ("pre", "post", "deep"):
        with seeded(0):
            net: Any = Transformer(width=8, heads=2, blocks=3, arrangement=arrangement)
        part = net.blocks[0]
        alpha = deepnorm(3).alpha if arrangement == "deep" else 1.0
        if arrangement == "pre":
            expected = x + part.branch(part.norm(x))
        else:
            expected = part.norm(alpha * x + part.branch(x))
        torch.testing.assert_close(part(x), expected)
    with seeded(0):
        wide: Any = Transformer(width=128, heads=2, blocks=50, arrangement="deep")
    beta2 = deepnorm(50).beta ** 2
    for name, scale in (("query", 1.0), ("key", 1.0), ("value", beta2), ("out", beta2)):
        weight = getattr(wide.blocks[0].branch, name).weight
        assert float(weight.detach().square().mean()) == pytest.approx(scale / 128, rel=0.05)


def test_a_transformer_takes_an_init_and_a_norm() -> None:
    with seeded(0):
        net: Any = Transformer(
            width=64, heads=2, blocks=1, init=Init("orthogonal", gain=2.0), norm_name="rms"
        )
    weight = net.blocks[0].branch.query.weight.detach()
    torch.testing.assert_close(weight @ weight.T, 4 * torch.eye(64), atol=1e-4, rtol=0)
    assert isinstance(net.blocks[1].norm, nn.RMSNorm)
    assert isinstance(net.last_norm, nn.RMSNorm)
    bare: Any = Transformer(width=8, heads=2, blocks=1, norm_name="none")
    x = torch.randn(2, 5, 8, generator=generator(0))
    torch.testing.assert_close(bare.blocks[0](x), x + bare.blocks[0].branch(x))
    with pytest.raises(EvenflowError, match="normalised by 'layer', 'rms' or 'none', got 'batch'"):
        Transformer(norm_name="batch")


@pytest.mark.parametrize(("layers", "known"), [(20, 0.18138), (50, 0.43052), (100, 0.57044), (1000, 0.84435)])
def test_tat_has_the_slopes_of_the_table(layers: int, known: float) -> None:
    assert round(leaky_slope(layers), 5) == known  # THEORY.md, section 4
    assert leaky_slope(5) == 0.0  # five plain ReLUs leave inputs at .74


def test_the_correlation_of_a_leaky_relu_is_that_of_theory() -> None:
    c = 0.0
    for _ in range(3):
        c = c_map(leaky_relu(0.3), c, 1.0, 2 / (1 + 0.3**2))
    assert leaky_correlation(0.3, 3) == pytest.approx(c, abs=1e-9)


@pytest.mark.parametrize("name", ["tanh", "softplus", "silu"])
def test_dks_has_the_moments_that_define_it(name: str) -> None:
    """By another quadrature: Gauss–Hermite over the module itself, with autograd's derivative."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    z = torch.tensor(nodes).requires_grad_()
    weight = torch.tensor(weights / weights.sum())
    y = dks(name, 40).double()(z)
    (slope,) = torch.autograd.grad(y.sum(), z)
    y, z = y.detach(), z.detach()
    found = [float((weight * part).sum()) for part in (y, y**2, y * slope * z, slope**2)]
    assert found == pytest.approx([0.0, 1.0, 1.0, 1.5 ** (1 / 40)], abs=1e-6)


def test_dks_says_what_it_cannot_tailor() -> None:
    with pytest.raises(EvenflowError, match=r"no constants that tailor 'relu' to 10 layers. It takes smooth"):
        dks("relu", 10)


def test_adversarial_losses_have_the_slopes_that_they_claim() -> None:
    d = torch.tensor([-6.0, -1.0, 0.5, 4.0], dtype=torch.float64, requires_grad=True)
    slopes = {}
    kind: Any
    for kind in ("saturating", "non_saturating", "hinge", "wasserstein"):
        (slopes[kind],) = torch.autograd.grad(generator_loss(kind, d), d)
    belief = torch.sigmoid(d.detach())
    torch.testing.assert_close(slopes["saturating"], -belief / 4)
    torch.testing.assert_close(slopes["non_saturating"], -(1 - belief) / 4)
    torch.testing.assert_close(slopes["hinge"], torch.full((4,), -0.25, dtype=torch.float64))
    torch.testing.assert_close(slopes["wasserstein"], slopes["hinge"])
    real, fake = torch.tensor([0.0]), torch.tensor([0.0])
    assert float(discriminator_loss("non_saturating", real, fake)) == pytest.approx(2 * math.log(2))
    assert float(discriminator_loss("hinge", real, fake)) == 2.0


def test_the_gradient_penalty_of_a_linear_critic() -> None:
    critic = nn.Linear(2, 1)
    with torch.no_grad():
        critic.weight.copy_(torch.tensor([[3.0, 4.0]]))
    real, fake = torch.randn(2, 6, 2, generator=generator(0))
    assert float(gradient_penalty(critic, real, fake, generator(1)).detach()) == pytest.approx(
        10 * (5 - 1) ** 2
    )


def test_adversarial_nets_fit_each_other() -> None:
    points = Generator()(torch.randn(6, 8, generator=generator(0)))
    assert points.shape == (6, 2)
    assert Discriminator()(points).shape == (6,)
