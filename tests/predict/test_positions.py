"""Maps of positions against sums over all pairs, and padded nets against real ones."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.predict.oracle import disagreement, worst
from torch import nn

from evenflow.flow import Role
from evenflow.predict.axes import Array, Axis, plain
from evenflow.predict.combine import retarget
from evenflow.predict.rules.positions import (
    Maps,
    backward,
    copies,
    cut,
    mapped,
    matrices,
    pairs_of,
    taps,
    windows,
)
from evenflow.predict.table import Table

MAPS: dict[str, tuple[Maps, Axis]] = {
    "convolution": (taps(8, 8, 3, 1, 1, 1), plain(8)),
    "again": (taps(8, 8, 3, 1, 1, 1), Axis((1, 6, 1))),
    "strided": (taps(8, 4, 4, 2, 1, 1), Axis((2, 5, 1))),
    "transposed": (backward(taps(8, 4, 4, 2, 1, 1)), Axis((1, 2, 1))),
    "average": (windows(9, 5, 3, 2, 1), Axis((1, 7, 1))),
    "nearest": (copies(4, 8), Axis((1, 3))),
    "to one": (windows(4, 1, 4, 4, 0), Axis((1, 2, 1))),
}


def kernel(axis: Axis, values: Array) -> Array:
    """K [n, n] from its pair classes."""
    segment = np.repeat(np.arange(axis.segments), axis.sizes)
    full: Array = values[segment[:, None] * axis.segments + segment]
    full[np.diag_indices(axis.n)] = values[axis.agree][segment]
    return full


def dense(maps: Maps) -> list[Array]:
    found = []
    for each in maps:
        matrix = np.zeros((each.outputs, each.inputs))
        np.add.at(matrix, (each.rows, each.columns), each.values)
        found.append(matrix)
    return found


def classes_of(axis: Axis, full: Array) -> Array:
    """Σ over the pairs of each class."""
    return np.array([full[kernel(axis, np.eye(axis.classes)[c]) > 0].sum() for c in range(axis.classes)])


@pytest.mark.parametrize("name", MAPS)
def test_pair_classes_go_through_a_map(name: str) -> None:
    maps, source = MAPS[name]
    values = np.random.default_rng(0).standard_normal(source.classes)
    full = kernel(source, values)
    target = cut(maps, source)
    want = classes_of(target, np.sum([a @ full @ a.T for a in dense(maps)], 0))
    pairs, means = matrices(maps, source, target)
    some = target.counts > 0
    np.testing.assert_allclose((pairs @ values * target.counts)[some], want[some], atol=1e-12)
    inputs = np.repeat(np.arange(source.segments), source.sizes).astype(float)
    outputs = np.sum([a @ inputs for a in dense(maps)], 0)
    ends = np.cumsum([0, *target.sizes])
    np.testing.assert_allclose(
        means @ np.arange(source.segments),
        [outputs[a:b].mean() for a, b in pairwise(ends)],
        atol=1e-12,
    )


def test_pairs_of_a_kernel_gradient() -> None:
    maps, source = MAPS["strided"]
    target = Axis((1, 3))
    rng = np.random.default_rng(0)
    k_x, k_g = rng.standard_normal(source.classes), rng.standard_normal(target.classes)
    full_x, full_g = kernel(source, k_x), kernel(target, k_g)
    want = np.mean([(full_g * (a @ full_x @ a.T)).sum() for a in dense(maps)])
    counts = np.mean([pairs_of(each, (source,), (target,)) for each in maps], 0)
    assert k_g @ counts @ k_x == pytest.approx(want)


def of_phases(outer: Axis, inner: Axis, values: Array) -> Array:
    """K [n, n] of a dimension of two axes from its pair classes."""
    each = np.array([kernel(outer, column) for column in values.T])  # [inner classes, q, q']
    full: Array = np.empty((outer.n, inner.n, outer.n, inner.n))
    for r, other in np.ndindex(inner.n, inner.n):
        full[:, r, :, other] = each[int(r == other)]
    return full.reshape(outer.n * inner.n, -1)


def test_phases_of_a_transposed_convolution() -> None:
    """Outputs of unlike phase share no tap; a strided convolution behind reads one phase with each tap."""
    maps, source = backward(taps(8, 4, 4, 2, 1, 1)), Axis((1, 2, 1))
    root = np.random.default_rng(0).standard_normal((4, 4))
    full = kernel(source, classes_of(source, root @ root.T) / np.maximum(source.counts, 1))
    values = classes_of(source, full) / np.maximum(source.counts, 1)
    table = mapped(Table(((source,),), values, np.zeros(3)), 0, maps)
    outer, inner = table.dims[0]
    assert (outer.n, inner) == (4, plain(2))
    want = np.sum([a @ full @ a.T for a in dense(maps)], 0)
    mine = of_phases(outer, inner, table.second)
    unlike = np.add.outer(np.arange(8), np.arange(8)) % 2 == 1
    assert not mine[unlike].any()
    assert not want[unlike].any()
    found, real = (
        classes_of(outer, np.einsum("arbr->ab", each.reshape(4, 2, 4, 2))) for each in (mine, want)
    )
    np.testing.assert_allclose(found, real, atol=1e-9)
    narrow = taps(8, 4, 4, 2, 1, 1)
    back = mapped(table, 0, narrow)
    again = np.sum([a @ mine @ a.T for a in dense(narrow)], 0)
    np.testing.assert_allclose(back.second * back.axes[0].counts, classes_of(back.axes[0], again), atol=1e-9)
    k_g = np.random.default_rng(1).standard_normal(source.classes)
    counts = np.mean([pairs_of(each, (outer, inner), (source,)) for each in narrow], 0)
    gradient = np.mean([(kernel(source, k_g) * (a @ mine @ a.T)).sum() for a in dense(narrow)])
    assert k_g @ counts @ table.second.ravel() == pytest.approx(gradient)


def test_segments_that_do_not_fit_phases_keep_their_border() -> None:
    values = np.random.default_rng(0).standard_normal(12)
    table = Table(((Axis((1, 14, 1)),),), values, np.array([3.0, 0.0, 1.0]))
    found = retarget(table, ((Axis((1, 6, 1)), plain(2)),))
    np.testing.assert_allclose(found.means[:, 0], [1.5, 0.0, 0.5])


def test_a_critic_of_generated_images() -> None:
    """A norm behind a strided convolution takes out what all pixels of one phase have in common."""

    def build() -> nn.Module:
        layers = nn.Sequential(
            nn.ConvTranspose2d(64, 64, 4, 2, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 8, 4, 2, 1, bias=False),
            nn.Conv2d(8, 64, 4, 2, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 64, 4, 2, 1, bias=False),
        )
        for parameter in layers.parameters():
            if parameter.dim() == 4:
                nn.init.normal_(parameter, 0, 0.05)
        return layers

    x = torch.randn(8, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    roles = Role.ACTIVATION, Role.ACTIVATION_GRADIENT
    site, excess = worst(disagreement(build, x, draws=16, roles=roles))
    assert excess < 0.01, site  # .05 with one class for all phases


def test_the_border_is_cut_off() -> None:
    maps = taps(16, 16, 3, 1, 1, 1)
    once = cut(maps, plain(16))
    assert once.sizes == (1, 14, 1)
    assert cut(maps, once).sizes == (1, 1, 12, 1, 1)
    assert cut(maps, cut(maps, once)).sizes == (1, 1, 12, 1, 1)
    assert cut(taps(16, 4, 4, 4, 0, 1), plain(16)).sizes == (4,), "patches have no border"


def test_padding_through_many_layers() -> None:
    """Border and interior drift apart; products of their averages are .08 decades off after six layers."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for i in range(6):
            layers += [nn.Conv2d(64 if i else 8, 64, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight)  # type: ignore[arg-type]
        return nn.Sequential(*layers)

    x = torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    site, excess = worst(disagreement(build, x, draws=16))
    assert excess < 0.02, site
