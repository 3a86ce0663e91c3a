"""Models that break naive instruments, each with the batch and the loss to run it with."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint


@dataclass
class Case:
    """A program for ``measure``; ``error`` is a part of the message if it must refuse."""

    model: Any
    inputs: Any
    loss: Callable[[Any], Tensor] | None = None
    error: str | None = None
    context: Callable[[], Any] | None = None


CASES: dict[str, Callable[[], Case]] = {}


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    CASES[build.__name__] = build
    return build


class Fn(nn.Module):
    """A module around a function of (module, *args); children and parameters are given by name."""

    def __init__(self, forward: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self._function = forward
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self, *args, **kwargs)


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*(shape or (6, 8)), dtype=dtype)


def mean_square(output: Any) -> Tensor:
    return output.square().mean()


@dataclass
class Output:
    logits: Tensor
    extra: int = 0


@dataclass
class OutputWithLoss:
    loss: Tensor
    logits: Tensor


@case
def tuple_output() -> Case:
    model = Fn(lambda m, x: (m.a(x), m.b(x)), a=nn.Linear(8, 4), b=nn.Linear(8, 4))
    return Case(model, batch(), lambda out: (out[0] * out[1]).mean())


@case
def dict_output() -> Case:
    model = Fn(lambda m, x: {"x": m.a(x), "n": 3}, a=nn.Linear(8, 4))
    return Case(model, batch(), lambda out: out["x"].mean())


@case
def dataclass_output_without_loss() -> Case:
    return Case(Fn(lambda m, x: Output(m.a(x)), a=nn.Linear(8, 4)), batch())


@case
def dataclass_output_with_its_own_loss() -> Case:
    return Case(Fn(lambda m, x: OutputWithLoss(m.a(x).square().mean(), m.a(x)), a=nn.Linear(8, 4)), batch())


@case
def named_inputs() -> Case:
    model = Fn(lambda m, x, scale: m.a(x) * scale, a=nn.Linear(8, 4))
    return Case(model, {"x": batch(), "scale": 2.0}, mean_square)


@case
def several_inputs() -> Case:
    return Case(Fn(lambda m, x, y: m.a(x) + m.a(y), a=nn.Linear(8, 4)), (batch(), batch()), mean_square)


@case
def functional_calls_and_operators() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = F.relu(F.linear(x, m.w) + m.b)
        return (h @ m.w[:4].T) ** 2 / (1 + h.sum(-1, keepdim=True).abs())

    weights = {"w": nn.Parameter(torch.randn(8, 8)), "b": nn.Parameter(torch.zeros(8))}
    return Case(Fn(forward, **weights), batch(), mean_square)


@case
def in_place_relu() -> Case:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True))
    return Case(model, batch(), mean_square)


@case
def in_place_on_a_view() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        h[:, 2:5].mul_(m.scale)
        h[:, 0] = 1.0
        return h.add_(1.0)

    return Case(Fn(forward, a=nn.Linear(8, 8), scale=nn.Parameter(torch.ones(3))), batch(), mean_square)


@case
def module_called_several_times() -> Case:
    return Case(Fn(lambda m, x: m.a(F.tanh(m.a(F.tanh(m.a(x))))), a=nn.Linear(8, 8)), batch(), mean_square)


@case
def one_module_at_two_paths() -> Case:
    shared = nn.Linear(8, 8)
    return Case(nn.Sequential(shared, nn.Tanh(), shared), batch(), mean_square)


@case
def tied_weights() -> Case:
    embedding = nn.Embedding(10, 8)
    model = Fn(lambda m, t: m.head(m.embedding(t)), embedding=embedding, head=nn.Linear(8, 10, bias=False))
    model.head.weight = embedding.weight  # type: ignore[union-attr]
    return Case(model, torch.randint(10, (4, 3)), mean_square)


@case
def frozen_backbone() -> Case:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    return Case(model, batch(), mean_square)


@case
def unused_parameter() -> Case:
    return Case(Fn(lambda m, x: m.a(x), a=nn.Linear(8, 2), b=nn.Linear(8, 2)), batch(), mean_square)


@case
def detached_branch() -> Case:
    model = Fn(lambda m, x: m.b(F.relu(m.a(x)).detach()), a=nn.Linear(8, 8), b=nn.Linear(8, 2))
    return Case(model, batch(), mean_square)


@case
def sparse_embedding() -> Case:
    model = nn.Sequential(nn.Embedding(50, 8, sparse=True), nn.Linear(8, 2))
    return Case(model, torch.randint(50, (4, 3)), mean_square)


@case
def sparse_embedding_bag() -> Case:
    model = nn.Sequential(nn.EmbeddingBag(50, 8, sparse=True), nn.Linear(8, 2))
    return Case(model, torch.randint(50, (4, 3)), mean_square)


@case
def embedding_that_renormalises_its_weight() -> Case:
    model = nn.Sequential(nn.Embedding(50, 8, max_norm=0.5), nn.Linear(8, 2))
    return Case(model, torch.randint(50, (4, 3)), mean_square)


def _block() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.GELU())


@case
def checkpoint_without_reentry() -> Case:
    model = Fn(lambda m, x: checkpoint(m.b, checkpoint(m.a, x, use_reentrant=False), use_reentrant=False))
    model.a, model.b = _block(), _block()
    return Case(model, batch(), mean_square)


@case
def checkpoint_with_reentry() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(checkpoint(m.b, checkpoint(m.a, m.stem(x), use_reentrant=True), use_reentrant=True))

    return Case(
        Fn(forward, stem=nn.Linear(8, 8), a=_block(), b=_block(), head=nn.Linear(8, 2)), batch(), mean_square
    )


@case
def shared_module_in_two_checkpoints() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        return checkpoint(m.a, checkpoint(m.a, m.stem(x), use_reentrant=True), use_reentrant=True)

    return Case(Fn(forward, stem=nn.Linear(8, 8), a=_block()), batch(), mean_square)


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grads[0] * (s + x * s * (1 - s))


class _Refuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise ArithmeticError("no way back")


@case
def custom_function() -> Case:
    model = Fn(lambda m, x: m.b(_Swish.apply(m.a(x))), a=nn.Linear(8, 8), b=nn.Linear(8, 2))
    return Case(model, batch(), mean_square)


@case
def custom_function_as_last_op() -> Case:
    return Case(Fn(lambda m, x: _Swish.apply(m.a(x)), a=nn.Linear(8, 8)), batch())


@case
def backward_raises() -> Case:
    model = Fn(lambda m, x: _Refuses.apply(m.a(x)), a=nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))
    return Case(model, batch(), mean_square, error="backward pass raised ArithmeticError")


@case
def autocast_bfloat16() -> Case:
    context = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    return Case(
        nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8)), batch(), mean_square, context=context
    )


@case
def autocast_float16_inside_the_model() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return m.b(F.relu(m.a(x)))

    model = Fn(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 2))
    return Case(model, batch(), lambda out: out.float().square().mean())


@case
def float64_model() -> Case:
    return Case(nn.Sequential(nn.Linear(8, 8), nn.Tanh()).double(), batch(dtype=torch.float64), mean_square)


@case
def bfloat16_model() -> Case:
    return Case(nn.Sequential(nn.Linear(8, 8), nn.Tanh()).bfloat16(), batch().bfloat16(), mean_square)


@case
def complex_numbers() -> Case:
    model = Fn(lambda m, x: torch.fft.irfft(torch.fft.rfft(m.a(x)) * m.w), a=nn.Linear(8, 8))
    model.w = nn.Parameter(torch.randn(5, dtype=torch.complex64))
    return Case(model, batch(), mean_square)


@case
def batch_norm_and_dropout_in_training() -> Case:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.5))
    return Case(model, batch(5, 3, 8, 8), mean_square)


@case
def evaluation_mode() -> Case:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).eval()
    return Case(model, batch(), mean_square)


@case
def state_kept_in_an_attribute() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.hidden = torch.tanh(m.a(x) + m.hidden)
        m.steps += 1
        return m.hidden

    model = Fn(forward, a=nn.Linear(8, 8), steps=0)
    model.hidden = torch.zeros(6, 8)
    return Case(model, batch(), mean_square)


@case
def raises_half_way() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.hidden = m.norm(m.a(x))
        return m.b(m.hidden)

    model = Fn(forward, a=nn.Linear(8, 8), norm=nn.BatchNorm1d(8), b=nn.Linear(5, 2))
    return Case(model, batch(), mean_square, error="in b (Linear)")


@case
def catches_its_own_exception() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        try:
            return m.bad(x)
        except RuntimeError:
            return m.good(x)

    return Case(Fn(forward, bad=nn.Linear(5, 2), good=nn.Linear(8, 2)), batch(), mean_square)


@case
def spectral_norm() -> Case:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))
    return Case(model, batch(), mean_square)


@case
def weight_norm() -> Case:
    return Case(nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU()), batch(), mean_square)


@case
def no_grad_inside() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = m.a(x)
        return m.b(features)

    return Case(Fn(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 2)), batch(), mean_square)


@case
def packed_lstm() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([5, 3, 1]), batch_first=True)
        return m.head(m.lstm(packed)[1][0][-1])

    lstm = nn.LSTM(4, 6, num_layers=2, bidirectional=True, dropout=0.2, batch_first=True)
    return Case(Fn(forward, lstm=lstm, head=nn.Linear(6, 2)), batch(3, 5, 4), mean_square)


@case
def transformer_encoder() -> Case:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return Case(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), batch(3, 5, 8), mean_square)


@case
def multihead_attention() -> Case:
    model = Fn(lambda m, x: m.attention(x, x, x), attention=nn.MultiheadAttention(8, 2, batch_first=True))
    return Case(model, batch(3, 5, 8), lambda out: out[0].square().mean() + out[1].square().mean())


@case
def randomness_of_python_and_numpy() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.a(x) * random.random() + np.random.rand()  # noqa: NPY002

    return Case(Fn(forward, a=nn.Linear(8, 2)), batch(), mean_square)


@case
def writes_to_its_input() -> Case:
    return Case(Fn(lambda m, x: m.a(x.mul_(2.0)), a=nn.Linear(8, 2)), batch(), mean_square)


@case
def writes_to_its_parameter() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.a.weight.data.clamp_(-0.01, 0.01)
        return m.a(x)

    return Case(Fn(forward, a=nn.Linear(8, 2)), batch(), mean_square)


@case
def input_that_requires_gradients() -> Case:
    return Case(nn.Linear(8, 2), batch().requires_grad_(), mean_square)


@case
def optimizer_that_steps_inside_backward() -> Case:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    for parameter in model.parameters():
        optimizer = torch.optim.Adam([parameter], foreach=False)

        def step(p: Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(step)
    return Case(model, batch(), mean_square)


@case
def gradients_that_the_user_holds() -> Case:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    model(batch()).sum().backward()
    return Case(model, batch(), mean_square)


@case
def hooks_of_the_user() -> Case:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))

    def doubled(module: nn.Module, grad_in: Any, grad_out: Any) -> tuple[Tensor]:
        return (grad_in[0] * 2,)

    model[1].register_full_backward_hook(doubled)
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    return Case(model, batch(), mean_square)


@case
def gradient_penalty() -> Case:
    def loss(out: tuple[Tensor, Tensor]) -> Tensor:
        value, x = out
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return value.mean() + 10 * (slope.norm(dim=1) - 1).square().mean()

    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        return m.b(torch.tanh(m.a(x))), x

    return Case(Fn(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 1)), batch(), loss)


@case
def vectorised_map() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.func.vmap(lambda row: torch.tanh(m.w @ row))(x)

    return Case(Fn(forward, w=nn.Parameter(torch.randn(4, 8))), batch(), mean_square)


@case
def data_parallel_wrapper() -> Case:
    return Case(nn.DataParallel(nn.Sequential(nn.Linear(8, 2), nn.Tanh())), batch(), mean_square)


@case
def compiled_part() -> Case:
    part = torch.compile(nn.Linear(8, 8), backend="eager")
    return Case(Fn(lambda m, x: m.b(F.relu(m.a(x))), a=part, b=nn.Linear(8, 2)), batch(), mean_square)


@case
def parameter_containers() -> Case:
    model = Fn(lambda m, x: x @ m.ws[0] @ m.ws[1] * m.named["scale"])
    model.ws = nn.ParameterList([torch.randn(8, 4), torch.randn(4, 2)])
    model.named = nn.ParameterDict({"scale": nn.Parameter(torch.ones(2))})
    return Case(model, batch(), mean_square)


@case
def not_finite() -> Case:
    return Case(Fn(lambda m, x: (m.a(x) - 100).log(), a=nn.Linear(8, 2)), batch(), lambda out: out.mean())


@case
def parameter_of_the_loss() -> Case:
    scale = nn.Parameter(torch.ones(()))
    return Case(nn.Linear(8, 2), batch(), lambda out: (out * scale).square().mean())


@case
def unbound_steps_of_a_hand_written_recurrence() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 8)
        for step in x.unbind(1):
            h = m.cell(step, h)
        return h

    return Case(Fn(forward, cell=nn.GRUCell(4, 8)), batch(3, 5, 4), mean_square)


@case
def lazy_module() -> Case:
    return Case(nn.Sequential(nn.LazyLinear(4)), batch(), mean_square, error="has no shape yet")


@case
def not_a_module() -> Case:
    return Case(lambda x: x, batch(), mean_square, error="expected a torch.nn.Module")


@case
def wrong_shape() -> Case:
    return Case(nn.Sequential(nn.Linear(9, 4)), batch(), mean_square, error="in 0 (Linear)")


@case
def missing_argument() -> Case:
    return Case(Fn(lambda m, x, y: m.a(x + y), a=nn.Linear(8, 4)), batch(), error="Give a tuple")


@case
def loss_that_is_no_scalar() -> Case:
    return Case(nn.Linear(8, 4), batch(), lambda out: out, error="has shape [6, 4]; expected a scalar")


@case
def loss_that_is_no_tensor() -> Case:
    return Case(nn.Linear(8, 4), batch(), lambda out: out.sum().item(), error="is of type float")


@case
def loss_without_gradient() -> Case:
    return Case(nn.Linear(8, 4), batch(), lambda out: out.detach().mean(), error="has no gradient")


@case
def loss_that_needs_a_target() -> Case:
    return Case(nn.Linear(8, 4), batch(), nn.CrossEntropyLoss(), error="Close over the targets")


@case
def output_without_gradient() -> Case:
    return Case(
        Fn(lambda m, x: m.a(x).argmax(-1), a=nn.Linear(8, 4)), batch(), error="nothing in it has a gradient"
    )


@case
def model_without_parameters() -> Case:
    return Case(nn.Sequential(nn.Tanh()), batch(), mean_square, error="has no gradient")
