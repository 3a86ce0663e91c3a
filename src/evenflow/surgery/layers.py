"""Layers that have weights, as edits see them: which tensors, in which layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from evenflow.surgery.pieces.inits import part_of
from evenflow.surgery.scene import Place, Scene
from evenflow.surgery.script import Call, Ref, call

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@final
@dataclass(frozen=True, slots=True)
class Weight:
    """One matrix or kernel.

    Attributes:
        place: The layer.
        ref: The tensor as it is stored.
        tensor: Its current value as (out, in, *kernel), a view.
        bias: The bias beside it; None if there is none.
    """

    place: Place
    ref: Ref | Call
    tensor: Tensor
    bias: Ref | None

    @property
    def matrix(self) -> tuple[int, int]:
        """(out, in), without the kernel."""
        return self.tensor.shape[0], self.tensor.shape[1]


def has_weight(place: Place) -> bool:
    """Whether a module is a linear layer, a convolution or an attention of PyTorch's."""
    module = place.module
    plain = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, nn.MultiheadAttention)
    return isinstance(module, plain) or _is_transposed_linear(module)


def is_layer(place: Place) -> bool:
    """Whether a module maps features to features by one weight: linear or convolution."""
    return has_weight(place) and not isinstance(place.module, nn.MultiheadAttention)


def _is_transposed_linear(module: nn.Module) -> bool:
    """``Conv1D`` of transformers, whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and not isinstance(module, nn.Conv1d)


def weights(scene: Scene, place: Place) -> Iterator[Weight]:
    """The weights of one layer; q, k and v of an attention are three."""
    module: Any = place.module
    if isinstance(place.module, nn.MultiheadAttention):
        has_bias = getattr(module, "in_proj_bias", None) is not None
        bias = scene.ref(place.path, "in_proj_bias") if has_bias else None
        if module.in_proj_weight is None:
            for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
                yield Weight(place, scene.ref(place.path, name), getattr(module, name), bias)
            return
        whole = scene.ref(place.path, "in_proj_weight")
        for number in range(3):
            part = module.in_proj_weight.detach().chunk(3)[number]
            yield Weight(place, rows(whole, number, 3), part, bias)
        return
    bias = None if getattr(module, "bias", None) is None else scene.ref(place.path, "bias")
    ref, tensor = scene.ref(place.path, "weight"), module.weight.detach()
    if _is_transposed_linear(module):
        yield Weight(place, ref, tensor.T, bias)
    elif isinstance(module, TRANSPOSED):
        yield Weight(place, ref, tensor.transpose(0, 1), bias)
    else:
        yield Weight(place, ref, tensor, bias)


def rows(ref: Ref, part: int, parts: int) -> Call:
    """One of several equal parts of a weight or bias, cut along its rows."""
    return call(part_of, ref, part, parts)


def features(module: nn.Module) -> int | None:
    """Number of output features or channels; None if the module does not say."""
    for name in ("out_features", "out_channels", "nf", "num_features", "embed_dim"):
        value: Any = getattr(module, name, None)
        if isinstance(value, int):
            return value
    return own_square(module)


def is_any_layer(module: nn.Module) -> bool:
    """Whether it is a layer: linear, convolution, or one of the user's own that tells its features."""
    return is_layer(Place("", module)) or own_square(module) is not None


def own_square(module: nn.Module) -> int | None:
    """Features that a user's own layer takes and gives, told by a single square matrix in it; else None.

    Such is a graph convolution A X Wᵀ with as many outputs as inputs.
    """
    if type(module).__module__.split(".")[0] == "torch" or next(module.children(), None) is not None:
        return None
    shapes = [tuple(p.shape) for p in module.parameters() if p.dim() > 1]
    return shapes[0][0] if len(shapes) == 1 and len(shapes[0]) == 2 and len(set(shapes[0])) == 1 else None


def dimensions(module: nn.Module) -> int:
    """Of a convolution's pictures; 0 for a linear layer."""
    kernel = getattr(module, "kernel_size", ())
    return len(kernel) if isinstance(kernel, tuple) else 0


def preserves_shape(module: nn.Module) -> bool:
    """Whether a layer gives as it takes: same features, same size."""
    if isinstance(module, nn.Linear):
        return module.in_features == module.out_features
    if isinstance(module, CONVOLUTIONS):
        return module.in_channels == module.out_channels and keeps_size(module)
    return own_square(module) is not None


def keeps_size(module: nn.Module) -> bool:
    """Whether a convolution gives pictures of the size that it takes."""
    if not isinstance(module, CONVOLUTIONS):
        return False
    pads: Any = module.padding
    same = pads == "same" or all(
        2 * pad == dilation * (size - 1)
        for pad, dilation, size in zip(pads, module.dilation, module.kernel_size, strict=False)
    )
    return same and set(module.stride) == {1}
