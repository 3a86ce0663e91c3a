"""Watched rows in the words of ops, so that rules made for measured steps read them too.

A watcher sees what modules return, not the ops inside. For modules that are one
op it is the same thing, and their rows get that op's name; all others keep
``output``, which belongs to no family, and rules leave it out of account.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from evenflow.flow import Flow

OUTPUT = "output"
"""Op name of what a module returned, whatever made it (:mod:`evenflow.watch.record`)."""

OP_OF = {
    "Linear": "linear",
    "NonDynamicallyQuantizableLinear": "linear",
    "Conv1D": "addmm",
    "Embedding": "embedding",
    "EmbeddingBag": "embedding_bag",
    "ReLU": "relu",
    "ReLU6": "hardtanh",
    "Threshold": "threshold",
    "LeakyReLU": "leaky_relu",
    "PReLU": "_prelu_kernel",
    "RReLU": "rrelu_with_noise",
    "Sigmoid": "sigmoid",
    "Hardsigmoid": "hardsigmoid",
    "Tanh": "tanh",
    "GELU": "gelu",
    "SiLU": "silu",
    "Mish": "mish",
    "ELU": "elu",
    "SELU": "elu",
    "CELU": "celu",
    "Softplus": "softplus",
    "Hardswish": "hardswish",
    "Softmax": "_softmax",
    "LogSoftmax": "_log_softmax",
    "LayerNorm": "layer_norm",
    "GroupNorm": "group_norm",
    "RMSNorm": "rms_norm",
    "SyncBatchNorm": "batch_norm",
    "Dropout": "native_dropout",
    "AdaptiveAvgPool2d": "_adaptive_avg_pool2d",
    **{f"{lazy}Conv{axes}d": f"conv{axes}d" for lazy, axes in product(("", "Lazy"), (1, 2, 3))},
    **{f"BatchNorm{axes}d": "batch_norm" for axes in (1, 2, 3)},
    **{f"AvgPool{axes}d": f"avg_pool{axes}d" for axes in (1, 2, 3)},
    "MaxPool2d": "max_pool2d_with_indices",
    "MaxPool3d": "max_pool3d_with_indices",
}
"""Class of a module → the op that it is."""


def in_ops(flow: Flow) -> Flow:
    """The same Flow, its watched rows named after the ops that their modules are."""
    rows = [
        replace(row, site=replace(row.site, op=OP_OF[row.module_type]))
        if row.site.op == OUTPUT and row.module_type in OP_OF
        else row
        for row in flow
    ]
    return Flow(rows, flow.source, flow.metadata, flow.notes)
