"""Tables, formulas, points and a graph."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from benchmarks.diagnosis.data.dataset import (
    Array,
    Dataset,
    Request,
    UnbuildableError,
    generator,
    labels,
    to_interval,
    values,
)
from sklearn import datasets as sk

_FORMULAS: dict[str, Callable[[Array], Array]] = {
    "x**2": lambda x: x**2,
    "x**2+3": lambda x: x**2 + 3,
    "x**4": lambda x: x**4,
}


def column_scales(spec: dict[str, Any], columns: int) -> Array:
    """Parse "1..3e9 log-spaced" into one factor per column."""
    text = spec.get("column_scales")
    if not text:
        return np.ones(columns)
    found = re.match(r"([\d.e+-]+?)\.\.([\d.e+-]+)", text)
    if found is None:
        raise UnbuildableError(f"unknown column scales {text!r}")
    low, high = (math.log10(float(v)) for v in found.groups())
    return np.logspace(low, high, columns)


@generator("sklearn.make_classification")
def classification(r: Request) -> Dataset:
    d = r.spec["n_features"]
    inform = r.spec.get("n_informative", max(2, d // 2))
    redundant = r.spec.get("n_redundant", min(2, d - inform))
    x, y = sk.make_classification(
        1500, n_features=d, n_informative=inform, n_redundant=redundant, random_state=3
    )
    return labels(x * column_scales(r.spec, d), y)


@generator("sklearn.make_regression")
def regression(r: Request) -> Dataset:
    s, d = r.spec, r.spec["n_features"]
    x, y = sk.make_regression(
        r.count(), d, n_informative=min(10, d), noise=s.get("noise", 0.1), random_state=s["random_state"]
    )
    if s.get("split"):
        x, y = x[: s["split"][0]], y[: s["split"][0]]
    return values(x, y[:, None])


@generator("sklearn.load_wine", "sklearn.load_breast_cancer")
def table(r: Request) -> Dataset:
    raw = getattr(sk, r.spec["generator"].split(".")[1])()
    return labels(raw.data, raw.target)


@generator("xor")
def xor(r: Request) -> Dataset:
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 2, float)[: r.spec["rows"]]
    return labels(x, (x[:, 0] != x[:, 1]).astype(int))


@generator("uniform_boxes")
def uniform_boxes(r: Request) -> Dataset:
    y = r.rng.randint(len(r.spec["boxes"]), size=r.count())
    box = np.array(r.spec["boxes"])[y]
    return labels(box[:, :1] + (box[:, 1:] - box[:, :1]) * r.rng.rand(len(y), r.shape[0]), y)


@generator("constant_vectors")
def constant_vectors(r: Request) -> Dataset:
    y = r.rng.randint(2, size=r.count())
    return labels(np.repeat(y[:, None], r.spec["dim"], 1), y)


@generator("binary_words")
def binary_words(r: Request) -> Dataset:
    bits = (np.arange(2 ** r.spec["bits"])[:, None] >> np.arange(r.spec["bits"])) & 1
    return values(bits, bits, "bits")


@generator("linear_regression")
def linear_regression(r: Request) -> Dataset:
    w = np.array(r.spec["weights"], float)
    low, high = r.spec["x_range"]
    x = low + (high - low) * r.rng.rand(r.count(), len(w))
    return values(x, (x @ w + r.spec.get("bias", 0.0))[:, None])


@generator("polynomial")
def polynomial(r: Request) -> Dataset:
    s = r.spec
    x = np.array(s["x_values"], float) if "x_values" in s else _grid(s)
    y = _FORMULAS[s["formula"]](x)
    if s.get("scaling") == "x standardised only":
        x = (x - x.mean()) / x.std()
    return values(x[:, None], y[:, None])


@generator("sine")
def sine(r: Request) -> Dataset:
    x = _grid(r.spec)
    return values(x[:, None], np.sin(x)[:, None])


def _grid(spec: dict[str, Any]) -> Array:
    low, high = spec["x_range"]
    return np.linspace(float(low), float(high), spec["n"])


@generator("linear_map_with_noise")
def linear_map(r: Request) -> Dataset:
    d, k = r.spec["in_dim"], r.spec.get("out_dim", r.outputs)
    x = r.rng.rand(r.count(), d)
    y = to_interval(x @ r.rng.randn(d, k) / math.sqrt(d), *r.spec["target_range"])
    return values(x, y + 0.02 * r.rng.randn(*y.shape))


@generator("sbm_graph")
def sbm_graph(r: Request) -> Dataset:
    """A graph of communities; nodes of one are joined ten times as often."""
    n, k, d = r.spec["n"], r.spec["communities"], r.spec["feat"]
    y = np.arange(n) % k
    edge = r.rng.rand(n, n) < np.where(y[:, None] == y[None], 0.1, 0.01)
    a = np.triu(edge, 1)
    a = (a + a.T + np.eye(n)).astype(np.float32)
    scale = 1 / np.sqrt(a.sum(1))
    base = labels(r.rng.randn(k, d)[y] * 0.5 + r.rng.randn(n, d), y)
    return Dataset(base.x, base.y, "labels", torch.as_tensor(a * scale[:, None] * scale[None]))


@generator("ring_of_gaussians")
def ring(r: Request) -> Dataset:
    angle = r.rng.randint(r.spec["modes"], size=4000) * math.tau / r.spec["modes"]
    x = r.spec["radius"] * np.stack([np.cos(angle), np.sin(angle)], 1)
    x = x + r.spec["std"] * r.rng.randn(4000, 2)
    return values(x, x, "samples")


@generator("sklearn.make_swiss_roll")
def swiss_roll(r: Request) -> Dataset:
    x, _ = sk.make_swiss_roll(r.spec["n_samples"], noise=r.spec["noise"], random_state=1)
    x = x[:, r.spec["dims"]] * r.spec["scale"]
    return values(x, x, "samples")
