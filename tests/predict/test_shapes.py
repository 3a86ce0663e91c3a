"""What is remembered of an op equals what the op gives."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evenflow.flow import Role
from evenflow.predict import Described, predict
from evenflow.predict.ops import op_of
from evenflow.predict.shapes import Shapes

aten = torch.ops.aten


def layouts(output: Any) -> list[Any]:
    parts = output if isinstance(output, (list, tuple)) else [output]
    return [None if part is None else (part.shape, part.stride(), part.dtype, part.is_meta) for part in parts]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.mm.default, (meta(3, 4), meta(4, 5))),
    (aten.mm.default, (meta(4, 3).t(), meta(4, 5))),
    (aten.add.Tensor, (meta(3, 1), meta(1, 5))),
    (aten.mul.Tensor, (meta(3, dtype=torch.int64), 2)),
    (aten.mul.Tensor, (meta(3, dtype=torch.int64), 2.0)),
    (aten.mul.Tensor, (meta(3, dtype=torch.int64), True)),
    (aten.native_layer_norm.default, (meta(3, 4), [4], None, None, 1e-5)),
    (aten.tanh.default, (meta(3, 4).t(),)),
    (aten.cat.default, ([meta(3, 4), meta(2, 4)],)),
]


def test_remembered_layouts() -> None:
    """All through one memory, so that calls which must be told apart are."""
    shapes = Shapes()
    for _ in range(2):
        for func, args in CALLS:
            assert layouts(shapes.run(op_of(func), args, {})) == layouts(func(*args)), func


X, LONG = meta(3, 4), meta(3, 4, dtype=torch.int64)
PLAIN: list[tuple[Any, tuple[Any, ...]]] = [
    *((aten.mm.default, (a, b)) for a in (X, meta(4, 3).t()) for b in (meta(4, 5), meta(5, 4).t())),
    (aten.bmm.default, (meta(2, 3, 4), meta(2, 5, 4).mT)),
    *((aten.addmm.default, (bias, X, meta(4, 5))) for bias in (meta(5), meta(3, 5), meta(1))),
    *((aten.sum.dim_IntList, (x, [0], keep)) for x in (X, X.t()) for keep in (False, True)),
    (aten.sum.dim_IntList, (meta(2, 3, 4), [-1, 0])),
    *((op, (X,)) for op in (aten.tanh.default, aten.relu.default, aten.gelu.default, aten.silu.default)),
    *((op, (X.t(),)) for op in (aten.tanh.default, aten.gelu.default)),
    *((op, (X, X)) for op in (aten.tanh_backward.default, aten.gelu_backward.default, aten.add.Tensor)),
    *((aten.mul.Tensor, (X, other)) for other in (2, 2.0, meta(4), meta(3, 4, dtype=torch.float64), LONG)),
    *((aten.div.Tensor, (x, 2)) for x in (X, LONG)),
    *((aten.threshold_backward.default, (X, x, 0)) for x in (X, meta(4, 3).t())),
    *((aten._softmax.default, (x, -1, False)) for x in (X, X.t())),
    (aten._log_softmax.default, (X, -1, False)),
    (aten.abs.default, (meta(3, dtype=torch.complex64),)),
]


@pytest.mark.parametrize(("func", "args"), PLAIN)
def test_layouts_that_are_plain_to_see(func: Any, args: tuple[Any, ...]) -> None:
    assert layouts(Shapes().run(op_of(func), args, {})) == layouts(func(*args))


def test_a_plain_net_is_predicted_without_the_compiler() -> None:
    code = """
import sys
from torch import nn
from evenflow.predict import Described, predict
predict(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), Described((4, 4)))
print("torch._dynamo" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_what_runs_a_second_time_does_not_run() -> None:
    shapes, runs = Shapes(), []

    class Counting:
        _schema = aten.maximum.default._schema
        tags = aten.maximum.default.tags

        def __call__(self, *args: Any) -> Any:
            runs.append(args)
            return aten.maximum.default(*args)

    op = Counting()
    for _ in range(3):
        shapes.run(op_of(op), (meta(3, 4), meta(1, 4)), {})
    assert len(runs) == 1


def test_views_share_memory_and_writes_return_what_they_wrote_to() -> None:
    shapes, x = Shapes(), meta(3, 4)
    for _ in range(2):
        view = shapes.run(op_of(aten.t.default), (x,), {})
        assert view.untyped_storage()._cdata == x.untyped_storage()._cdata
        assert shapes.run(op_of(aten.add_.Tensor), (x, 1), {}) is x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        added: Tensor = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return added


def blocks() -> nn.Module:
    return nn.Sequential(*[Block() for _ in range(3)])


def test_a_net_of_remembered_layers_is_predicted_as_one_of_layers_run_afresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remembered = predict(blocks, Described((2, 6, 32)))
    monkeypatch.setattr(Shapes, "run", lambda self, op, args, kwargs: op.func(*args, **kwargs))
    afresh = predict(blocks, Described((2, 6, 32)))
    assert [row.site for row in remembered] == [row.site for row in afresh]
    for ours, theirs in zip(remembered, afresh, strict=True):
        if theirs.stats is not None and ours.stats is not None:
            assert ours.stats.mean_square == pytest.approx(theirs.stats.mean_square, rel=1e-12)
        else:
            assert ours.stats is theirs.stats


def test_the_parts_of_a_split_have_their_interval() -> None:
    flow = predict(blocks, Described((2, 6, 32)))
    parts = [row for row in flow.select(Role.ACTIVATION_GRADIENT) if row.site.op in ("split", "chunk")]
    assert parts
    assert all(row.half_width is not None and row.half_width > 0 for row in parts)
