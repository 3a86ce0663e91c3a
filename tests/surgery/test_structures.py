"""Transformers, recurrent cells, spectral norm and floating types against references of other making."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evenflow.surgery import (
    DeepNormScaling,
    InitRecurrent,
    InsertNorm,
    InsertSkip,
    Patch,
    PatchError,
    PreNorm,
    QKNorm,
    ReplaceCell,
    SetDtype,
    SpectralNorm,
    layers,
)
from evenflow.surgery.pieces.cells import LSTMForRNN, OrthogonalRNN
from evenflow.surgery.pieces.residual import Residual
from evenflow.theory import deepnorm
from tests.surgery import nets
from tests.surgery.nets import built, chain, encoder, features

X = features(2, 5, 8)


def _perturbed(model: nn.Module) -> nn.Module:
    """Norms with other scales than 1, so that they can be told apart."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def test_pre_norm_is_pytorchs_own_with_a_norm_at_the_end() -> None:
    model = _perturbed(built(encoder))
    edited = Patch(PreNorm()).apply(model)
    reference = encoder(norm_first=True)
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(edited(X), nn.LayerNorm(8)(reference(X)))


def test_pre_norm_of_blocks_of_the_users_own() -> None:
    model: Any = _perturbed(nn.Sequential(*(built(nets.PostBlock) for _ in range(3))))
    edited = Patch(PreNorm()).apply(model)
    x = X
    for block in model:
        x = x + block.branch(block.norm(x))
    torch.testing.assert_close(edited(X), nn.LayerNorm(8)(x))


def test_a_block_that_computes_something_else_is_refused() -> None:
    class Other(nets.PostBlock):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(2 * x + self.branch(x))

    for edit in (PreNorm(), DeepNormScaling()):
        with pytest.raises(
            PatchError, match=r"Expected post-LN blocks: .* that gives norm\(x \+ branch\(x\)\)"
        ):
            Patch(edit).apply(Other())


def test_deepnorm_is_a_scaled_skip() -> None:
    model = built(lambda: encoder(6)).train()
    edited = Patch(DeepNormScaling()).apply(model)
    constants = deepnorm(6)
    x = X
    for layer in edited.layers:
        attended, _ = layer.self_attn(x, x, x)
        plain = [copy.deepcopy(layer.norm1), copy.deepcopy(layer.norm2)]
        for norm in plain:
            norm.eps = 1e-5
        x = plain[0](constants.alpha * x + attended)
        x = plain[1](constants.alpha * x + layer.linear2(torch.relu(layer.linear1(x))))
    torch.testing.assert_close(edited(X), x)
    with torch.no_grad():
        torch.testing.assert_close(edited.eval()(X), x)


def test_deepnorm_draws_small_values_and_plain_queries() -> None:
    block = nn.TransformerEncoderLayer(128, 2, 256, batch_first=True)
    edited = Patch(DeepNormScaling(layers=24)).apply(block)
    beta = deepnorm(24).beta
    q, k, v = edited.self_attn.in_proj_weight.detach().chunk(3)
    glorot = (2 / 256) ** 0.5
    assert [x.std().item() / glorot for x in (q, k, v)] == pytest.approx([1, 1, beta], rel=0.03)
    assert edited.linear1.weight.std().item() == pytest.approx(beta * (2 / 384) ** 0.5, rel=0.03)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"kdim": 6, "vdim": 6}])
def test_qk_norm_is_attention_with_normalised_heads(settings: dict[str, Any], batch_first: bool) -> None:
    plain: Any = built(lambda: nn.MultiheadAttention(8, 2, batch_first=batch_first, **settings))
    edited = Patch(QKNorm()).apply(nn.ModuleDict({"a": plain}))["a"]
    with torch.no_grad():
        edited.norm_query.weight.copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]))
    query, key = X, features(2, 7, settings.get("kdim", 8))
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    causal = torch.ones(5, 7, dtype=torch.bool).triu(1)
    weights = (
        plain.in_proj_weight.chunk(3)
        if plain.in_proj_weight is not None
        else (plain.q_proj_weight, plain.k_proj_weight, plain.v_proj_weight)
    )
    biases = plain.in_proj_bias.chunk(3) if plain.in_proj_bias is not None else (0.0,) * 3
    outputs, scores = torch.zeros(2, 5, 8), torch.zeros(2, 2, 5, 7)
    for b in range(2):
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            q, k, v = (
                (x[b] @ w.T + bias)[:, part]
                for x, w, bias in zip((query, key, key), weights, biases, strict=True)
            )
            q = (
                q
                / q.square().mean(-1, keepdim=True).add(torch.finfo(q.dtype).eps).sqrt()
                * torch.tensor([0.5, 1.0, 1.5, 2.0])
            )
            k = k / k.square().mean(-1, keepdim=True).add(torch.finfo(q.dtype).eps).sqrt()
            raw = (q @ k.T / 2).masked_fill(causal | padding[b], float("-inf"))
            scores[b, h] = raw.softmax(-1)
            outputs[b, :, part] = scores[b, h] @ v
    outputs = plain.out_proj(outputs)
    given = (query, key, key) if batch_first else tuple(x.transpose(0, 1) for x in (query, key, key))
    for need in (True, False):
        got, told = edited(*given, key_padding_mask=padding, attn_mask=causal, need_weights=need)
        torch.testing.assert_close(got if batch_first else got.transpose(0, 1), outputs)
        if need:
            torch.testing.assert_close(told, scores.mean(1))
    one, _ = edited(query[0], key[0], key[0], attn_mask=causal)
    torch.testing.assert_close(one, outputs[0])


def test_qk_norm_keeps_the_parameters_of_the_attention() -> None:
    edited = Patch(QKNorm()).apply(built(encoder))
    assert {"layers.0.self_attn.in_proj_weight", "layers.0.self_attn.norm_key.weight"} <= set(
        edited.state_dict()
    )
    with torch.no_grad():
        torch.testing.assert_close(edited.eval()(X), edited.train()(X))


def test_spectral_norm_is_one() -> None:
    edited = Patch(SpectralNorm()).apply(built(chain))
    for _ in range(30):
        edited(features(5, 16))
    assert torch.linalg.matrix_norm(edited[0].weight, 2).item() == pytest.approx(1.0, abs=1e-3)


def test_the_state_of_an_lstm_goes_on_through_a_detached_tensor() -> None:
    ours, plain = (
        built(lambda: LSTMForRNN(4, 8, batch_first=True)),
        built(lambda: nn.LSTM(4, 8, batch_first=True)),
    )
    x = features(2, 12, 4)
    expected, (hidden, _) = plain(x)
    state: Any = torch.zeros(1, 2, 8)
    parts = []
    for piece in x.split(5, 1):
        out, state = ours(piece, state.detach())
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), expected)
    torch.testing.assert_close(state[-1], hidden[-1])
    assert type(state[-1]) is not type(state)
    out, state = ours(x)
    torch.testing.assert_close(state + 0, hidden)
    again, _ = ours(x, state.data)
    torch.testing.assert_close(again, plain(x, plain(x)[1])[0])
    tupled, _ = ours(x, plain(x)[1])
    torch.testing.assert_close(tupled, again)


def test_a_replaced_cell_has_the_sizes_of_the_old_one() -> None:
    rnn = nn.RNN(3, 5, num_layers=2, bidirectional=True, dropout=0.1, batch_first=True, bias=False)
    for to in ("lstm", "gru"):
        new = Patch(ReplaceCell(to)).apply(nn.ModuleDict({"rnn": rnn}))["rnn"]
        for name in (
            "input_size",
            "hidden_size",
            "num_layers",
            "bidirectional",
            "dropout",
            "batch_first",
            "bias",
        ):
            assert getattr(new, name) == getattr(rnn, name), name


def test_an_orthogonal_recurrence_is_called_as_an_rnn() -> None:
    x = features(2, 6, 4)
    for first in (True, False):
        plain = nn.RNN(4, 5, batch_first=first)
        ours = Patch(ReplaceCell("orthogonal")).apply(nn.ModuleDict({"rnn": plain}))["rnn"]
        for given in (x, x[0]):
            (out, state), (expected, last) = ours(given), plain(given)
            assert out.shape == expected.shape
            assert state.shape == last.shape
        batch = x if first else x.transpose(0, 1)
        out, state = ours(batch)
        parts = batch.split(2, 1 if first else 0)
        going = None
        for part in parts:
            _, going = ours(part, going)
        torch.testing.assert_close(going, state)
        assert torch.equal(state[0], out[:, -1] if first else out[-1])


def test_an_orthogonal_recurrence_is_what_its_formula_says() -> None:
    cell = built(lambda: OrthogonalRNN(3, 5, batch_first=True))
    with torch.no_grad():
        cell.skew.copy_(features(5, 5))
        cell.bias.copy_(0.1 * features(5))
    x = features(1, 4, 3)
    turn = torch.linalg.matrix_exp(0.1 * (cell.skew - cell.skew.T)).detach()
    h = torch.zeros(5)
    for drive in x[0]:
        z = cell.weight_ih.detach() @ drive + cell.rotation @ turn @ h
        h = torch.where(z.abs() + cell.bias > 0, z + z.sign() * cell.bias, 0.0)
    torch.testing.assert_close(cell(x)[1][0, 0], h)


@pytest.mark.parametrize("size", [6, 7])
def test_through_an_orthogonal_recurrence_gradients_keep_their_length(size: int) -> None:
    cell = built(lambda: OrthogonalRNN(3, size))
    state = features(1, 1, size).requires_grad_()
    back = features(2, 1, size)[1:]
    for skew in (torch.zeros(size, size), 3.0 * features(size, size)):
        with torch.no_grad():
            cell.skew.copy_(skew)
        (gradient,) = torch.autograd.grad(cell(torch.zeros(500, 1, 3), state)[1], state, back)
        assert float(gradient.norm() / back.norm()) == pytest.approx(1.0, abs=1e-3)
    u = cell.recurrence().detach()
    torch.testing.assert_close(u @ u.T, torch.eye(size), atol=1e-5, rtol=0.0)


def test_the_new_lstm_starts_with_an_open_forget_gate() -> None:
    lstm = Patch(ReplaceCell(forget_bias=2.0)).apply(nn.ModuleDict({"rnn": nn.RNN(3, 5)}))["rnn"]
    assert torch.equal((lstm.bias_ih_l0 + lstm.bias_hh_l0).detach()[5:10], torch.full((5,), 2.0))
    chrono = Patch([ReplaceCell(), InitRecurrent("chrono", longest=20)]).apply(
        nn.ModuleDict({"rnn": nn.RNN(3, 5)})
    )
    assert (chrono["rnn"].bias_ih_l0.detach()[5:10] >= 0).all()


def test_a_part_in_another_type_takes_and_gives_the_old_one() -> None:
    model = built(chain)
    edited = Patch(SetDtype("float64", where="[2-5]")).apply(model)
    seen = []
    edited[4].register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    x = features(5, 16)
    torch.testing.assert_close(edited(x), model(x))
    assert edited(x).dtype == torch.float32
    assert edited[2].weight.dtype == torch.float64
    assert seen[0] in (torch.float32, torch.float64)


def test_a_skip_around_a_users_own_layer_adds_what_the_layer_took() -> None:
    model, x = nets.mixes(), features(5, 8)
    edited = Patch(InsertSkip("plain")).apply(model)
    hidden = x + torch.relu(model[0](x))
    hidden = hidden + torch.relu(model[2](hidden))
    torch.testing.assert_close(edited(x), model[6](torch.relu(model[4](hidden))))


def test_a_skip_hands_on_what_else_the_layer_takes() -> None:
    class Graph(nn.Module):
        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return edges @ x

    x, edges = features(5, 8), features(5, 5)
    torch.testing.assert_close(Residual(Graph())(x, edges), x + edges @ x)


@pytest.mark.parametrize("module", [nn.Embedding(8, 8), nn.RNNCell(8, 8), nets.mixes(), nets.Mix(8, 4)])
def test_what_is_no_square_layer_of_the_users_own_is_not_taken_for_one(module: nn.Module) -> None:
    assert layers.own_square(module) is None
    assert layers.own_square(nets.Mix(8, 8)) == 8


def test_an_activation_behind_a_sum_gets_no_norm() -> None:
    edited = Patch(InsertNorm("layer")).apply(nets.Summed())
    assert isinstance(edited.body[1], nn.Sequential)
    assert isinstance(edited.after[0], nn.ReLU)
