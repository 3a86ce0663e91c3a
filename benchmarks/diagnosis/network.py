"""From the layer list of a case to a network.

An unknown type, key or name raises :class:`UnbuildableError`: a case is rebuilt as
it is written or reported, never simplified quietly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.diagnosis import layers as own
from benchmarks.diagnosis.data import UnbuildableError
from benchmarks.diagnosis.recurrent import recurrent_layer
from torch import Tensor, nn

Spec = dict[str, Any]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "selu": nn.SELU,
    "elu": nn.ELU,
    "softmax": lambda: nn.Softmax(dim=-1),
    "log_softmax": lambda: nn.LogSoftmax(dim=-1),
}


@dataclass
class Context:
    """What a layer may need besides its own description."""

    causal: bool = False
    adjacency: Tensor | None = None
    n_blocks: int = 1
    embedding_init: str | None = None


def _affine(module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, spec: Spec) -> nn.Module:
    own.initialise(module.weight, spec.get("init"))
    if module.bias is not None:
        own.initialise(module.bias, spec.get("bias_init"))
    return module


def _convolution(spec: Spec, context: Context) -> nn.Module:
    kind = nn.Conv2d if spec["type"] == "Conv2d" else nn.ConvTranspose2d
    module = kind(
        spec["in"],
        spec["out"],
        spec["kernel"],
        spec["stride"],
        spec["padding"],
        bias=spec.get("bias", True),
    )
    return _affine(module, spec)


def _activation(spec: Spec, context: Context) -> nn.Module:
    if spec["fn"] == "leaky_relu":
        return nn.LeakyReLU(spec.get("slope", 0.01))
    return ACTIVATIONS[spec["fn"]]()


def _embedding(spec: Spec, context: Context) -> nn.Module:
    table = nn.Embedding(spec["num"], spec["dim"])
    own.initialise(table.weight, spec.get("init"))
    return table


def _position(spec: Spec, context: Context) -> nn.Module:
    if spec["kind"] == "learned":
        return own.LearnedPosition(spec["max_len"], spec["dim"], context.embedding_init)
    return own.SinusoidalPosition(spec["max_len"], spec["dim"])


def _block(spec: Spec, context: Context) -> nn.Module:
    block = own.EncoderLayer(
        spec["d_model"],
        spec["nhead"],
        spec["ff"],
        spec["dropout"],
        spec["activation"],
        batch_first=True,
        norm_first=bool(spec["norm_first"]),
    )
    block.causal = context.causal
    own.initialise_block(block, spec.get("init"), context.n_blocks)
    return block


def _graph(spec: Spec, context: Context) -> nn.Module:
    assert context.adjacency is not None
    conv = own.GraphConv(spec["in"], spec["out"], context.adjacency)
    own.initialise(conv.weight, spec.get("init"))
    return conv


def _residual(spec: Spec, context: Context) -> nn.Module:
    after = nn.Sequential(*[build_layer(one, context) for one in flat(spec.get("after", []))])
    body = nn.Sequential(*[build_layer(one, context) for one in flat(spec["body"])])
    return own.Residual(body, after, (spec["in"], spec["out"]) if "shortcut" in spec else None)


LAYERS: dict[str, tuple[str, Callable[[Spec, Context], nn.Module]]] = {
    "Linear": (
        "in out bias init bias_init",
        lambda s, c: _affine(nn.Linear(s["in"], s["out"], s.get("bias", True)), s),
    ),
    "Conv2d": ("in out kernel stride padding bias init bias_init", _convolution),
    "ConvTranspose2d": ("in out kernel stride padding bias init bias_init", _convolution),
    "Activation": ("fn slope", _activation),
    "MaxPool2d": ("kernel stride padding", lambda s, c: nn.MaxPool2d(s["kernel"], s["stride"], s["padding"])),
    "BatchNorm1d": ("num", lambda s, c: nn.BatchNorm1d(s["num"])),
    "BatchNorm2d": ("num", lambda s, c: nn.BatchNorm2d(s["num"])),
    "LayerNorm": ("dim", lambda s, c: nn.LayerNorm(s["dim"])),
    "Dropout": ("p", lambda s, c: nn.Dropout(s["p"])),
    "Flatten": ("", lambda s, c: nn.Flatten()),
    "GlobalAvgPool2d": ("", lambda s, c: own.GlobalAvgPool2d()),
    "Reshape": ("shape", lambda s, c: own.Reshape(s["shape"])),
    "Embedding": ("num dim init", _embedding),
    "PositionalEncoding": ("kind dim max_len", _position),
    "PatchEmbed": (
        "in_channels image patch dim cls_token",
        lambda s, c: own.PatchEmbed(s["in_channels"], s["image"], s["patch"], s["dim"]),
    ),
    "TakeClsToken": ("", lambda s, c: own.FirstToken()),
    "TakeLastStep": ("", lambda s, c: own.LastStep()),
    "RNN": ("in hidden num_layers nonlinearity init batch_first", lambda s, c: recurrent_layer(s)),
    "LSTM": (
        "in hidden num_layers init cell_activation gate_activation masking forget_bias detach_every",
        lambda s, c: recurrent_layer(s),
    ),
    "GRU": ("in hidden num_layers init", lambda s, c: recurrent_layer(s)),
    "TransformerEncoderLayer": ("d_model nhead ff dropout norm_first activation init", _block),
    "PolynomialFeatures": ("degree", lambda s, c: own.PolynomialFeatures(s["degree"])),
    "GraphConv": ("in out init", _graph),
    "Residual": ("body after shortcut in out", _residual),
}
"""Layer type → the keys that it understands, and how it is built."""

_EVERYWHERE = {"type", "net", "requires_grad", "detached"}


def build_layer(spec: Spec, context: Context) -> nn.Module:
    if spec["type"] not in LAYERS:
        raise UnbuildableError(f"unknown layer type {spec['type']!r}")
    keys, build = LAYERS[spec["type"]]
    unknown = set(spec) - _EVERYWHERE - set(keys.split())
    if unknown:
        raise UnbuildableError(f"{spec['type']}: no rule for keys {sorted(unknown)}")
    return build(spec, context)


def flat(specs: list[Spec]) -> list[Spec]:
    """The layers one by one, ``{"repeat": n, "layers": [...]}`` written out."""
    found: list[Spec] = []
    for spec in specs:
        found += flat(spec["layers"]) * spec["repeat"] if "repeat" in spec else [spec]
    return found


def build_network(specs: list[Spec], context: Context) -> nn.Sequential:
    """The chain of layers, each named by its type and position."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    context.n_blocks = max(1, sum(spec["type"] == "TransformerEncoderLayer" for spec in specs))
    context.embedding_init = next((spec.get("init") for spec in specs if spec["type"] == "Embedding"), None)
    for i, spec in enumerate(specs):
        if spec["type"] == "PerStep":  # says that the head is applied at every step, which it is anyway
            continue
        module = build_layer(spec, context)
        if spec.get("requires_grad") is False:
            module.requires_grad_(False)
        if spec.get("detached"):
            module = own.Detached(module)
        parts[f"{spec['type'].lower()}{i}"] = module
    return nn.Sequential(parts)
