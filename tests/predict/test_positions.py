"""Maps of positions against sums over all pairs, and padded nets against real ones."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.predict.oracle import disagreement, worst
from torch import nn

from evenflow.predict.axes import Array, Axis, plain
from evenflow.predict.rules.positions import Maps, backward, copies, cut, matrices, pair_counts, taps, windows

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
    assert k_g @ pair_counts(maps, source, target) @ k_x == pytest.approx(want)


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
