"""Ask neural-tangents for the kernels of :mod:`nets`, and freeze them.

Made with Python 3.11, neural-tangents 0.6.5, jax 0.4.30, jaxlib 0.4.30, numpy 1.26.4
(neural-tangents needs a jax of before 0.4.31 and a numpy before 2), double precision:

    python -m venv nt && nt/bin/pip install neural-tangents==0.6.5 jax==0.4.30 jaxlib==0.4.30 'numpy<2'
    cd tests/predict/oracles && nt/bin/python generate.py

Writes ``neural_tangents.json``: for every net, E f(x)f(x') and the tangent kernel in
the NTK parametrisation, f = σ_w/√n ω x + σ_b β, each for x = x' and for x ≠ x'.

References:
    Novak et al., "Neural Tangents: Fast and Easy Infinite Neural Networks in Python", 2020.
"""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import nets
import numpy as np
from neural_tangents import stax

jax.config.update("jax_enable_x64", True)

FUNCTIONS = {
    "erf": stax.Erf,
    "relu": stax.Relu,
    "leaky relu": lambda: stax.LeakyRelu(0.2),
    "gelu": stax.Gelu,
    "sigmoid-like": lambda: stax.Erf(a=0.5, b=0.5, c=0.5),
    "sine": stax.Sin,
}


def layer(kind: str, *options: Any) -> Any:
    if kind in FUNCTIONS:
        return FUNCTIONS[kind]()
    if kind == "dense":
        return stax.Dense(1, *options)
    if kind == "conv":
        weight, bias, side, stride = options
        return stax.Conv(1, (side, side), (stride, stride), "VALID", W_std=weight, b_std=bias)
    if kind == "average":
        return stax.AvgPool((options[0],) * 2, (options[0],) * 2, "VALID")
    if kind == "norm":
        return stax.LayerNorm(-1, nets.EPSILON)
    if kind == "residual":
        return stax.serial(stax.FanOut(2), stax.parallel(stax.Identity(), net(options[0])), stax.FanInSum())
    if kind == "gate":
        return stax.serial(stax.FanOut(2), stax.parallel(*map(net, options)), stax.FanInProd())
    return {"flatten": stax.Flatten, "global average": stax.GlobalAvgPool}[kind]()


def net(layers: list[nets.Layer]) -> Any:
    return stax.serial(*[layer(*each) for each in layers])


if __name__ == "__main__":
    found: dict[str, Any] = {}
    for name, (rho, layers) in nets.NETS.items():
        kernel = net(layers)[2](nets.inputs(rho, layers), None, ("nngp", "ntk"))
        nngp, ntk = np.array(kernel.nngp), np.array(kernel.ntk)
        assert math.isclose(nngp[0, 0], nngp[1, 1], rel_tol=1e-9), name
        found[name] = {
            "nngp": [float(nngp[0, 0]), float(nngp[0, 1])],
            "ntk": [float(ntk[0, 0]), float(ntk[0, 1])],
        }
        print(name, found[name])
    made_with = {package: version(package) for package in ("neural-tangents", "jax", "jaxlib", "numpy")}
    text = json.dumps({"made with": made_with, "nets": found}, indent=1)
    Path(__file__).with_name("neural_tangents.json").write_text(text + "\n")
