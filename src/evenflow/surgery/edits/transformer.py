"""Transformers: pre-LN from post-LN, DeepNorm, QK-norm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from evenflow.surgery.edit import Edit
from evenflow.surgery.edits.activation import leave_fast_path
from evenflow.surgery.errors import PatchError
from evenflow.surgery.layers import rows
from evenflow.surgery.pieces.transformer import QKNormAttention, Scale
from evenflow.surgery.scene import Place, Scene, Where, at
from evenflow.surgery.script import Call, Set, Step, call, step
from evenflow.theory import deepnorm

_TORCH = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_NORMS = (nn.LayerNorm, nn.RMSNorm)


def _is_torch_post(place: Place) -> bool:
    return isinstance(place.module, _TORCH) and not place.module.norm_first


def _is_own_post(place: Place) -> bool:
    """Whether a block of the user's is norm(x + branch(x)): two children, and a probe that says so."""
    children = dict(place.module.named_children())
    norms = [name for name, child in children.items() if isinstance(child, _NORMS)]
    if len(children) != 2 or len(norms) != 1 or isinstance(place.module, nn.Sequential):
        return False
    norm: Any = children[norms[0]]
    branch = next(child for name, child in children.items() if name != norms[0])
    training = [(one, one.training) for one in place.module.modules()]
    try:
        x = torch.linspace(-2.0, 2.0, 6 * norm.normalized_shape[-1]).sin().reshape(2, 3, -1).to(norm.weight)
        for one, _ in training:
            one.training = False
        got, expected = place.module(x), norm(x + branch(x))
        return isinstance(got, Tensor) and torch.allclose(got, expected, atol=1e-4, rtol=1e-4)
    except Exception:
        return False
    finally:
        for one, was in training:
            one.training = was


def _post_blocks(scene: Scene, where: Where, edit: str) -> list[Place]:
    return scene.select(
        where,
        lambda place: _is_torch_post(place) or _is_own_post(place),
        edit,
        "post-LN blocks: nn.TransformerEncoderLayer or DecoderLayer with norm_first=False, or a module with "
        "two children that gives norm(x + branch(x))",
    )


def _parts(place: Place) -> tuple[str, str]:
    """Names of (branch, norm) in a block of the user's."""
    names = [name for name, _ in place.module.named_children()]
    norm = next(name for name in names if isinstance(getattr(place.module, name), _NORMS))
    return next(name for name in names if name != norm), norm


@final
@dataclass(frozen=True)
class PreNorm(Edit):
    """Turn post-LN blocks, norm(x + f(x)), into pre-LN ones, x + f(norm(x)), with a norm after the last.

    Attributes:
        where: Glob over the blocks' paths.
    """

    name: ClassVar[str] = "pre_norm"
    reference: ClassVar[str] = (
        "Xiong et al., On layer normalization in the transformer architecture, ICML 2020"
    )
    where: Where = "*"

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"post-LN blocks{at(self.where)} become pre-LN"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        blocks = _post_blocks(scene, self.where, self.name)
        own = [block for block in blocks if not isinstance(block.module, _TORCH)]
        for block in blocks:
            if isinstance(block.module, _TORCH):
                yield step(Set(scene.ref(block.path, "norm_first"), True), source=scene.line(block.path))
                continue
            branch, norm = (scene.ref(block.path, name) for name in _parts(block))
            after: Any = call(nn.Identity)
            if block is own[-1]:
                after = _fresh(scene, getattr(block.module, _parts(block)[1]))
            yield step(Set(branch, Call(nn.Sequential, (norm, branch))), Set(norm, after))
        for place in scene.places():
            stack = place.module
            if (
                not isinstance(stack, (nn.TransformerEncoder, nn.TransformerDecoder))
                or stack.norm is not None
            ):
                continue
            inside = [block for block in blocks if block.path.startswith(f"{place.path}.layers.".lstrip("."))]
            if inside:
                norm_like = inside[-1].module.norm1
                yield step(Set(scene.ref(place.path, "norm"), _fresh(scene, norm_like)))


def _fresh(scene: Scene, norm: Any) -> Call:
    """A new norm of the same kind and width."""
    width = list(norm.normalized_shape)
    return scene.new(type(norm), width, **({} if norm.eps is None else {"eps": norm.eps}))


@final
@dataclass(frozen=True)
class DeepNormScaling(Edit):
    """DeepNorm for post-LN blocks: norm(α x + f(x)), with Glorot weights of f scaled by β.

    α x + f(x) is done as x + f(x)/α, which a norm cannot tell apart (its eps is
    divided by α² to be exact).

    Attributes:
        where: Glob over the blocks' paths.
        layers: Number of blocks N, attention and feed-forward together being one; None:
            as many as are found, of which a block of the user's own counts as half.
    """

    name: ClassVar[str] = "deepnorm"
    reference: ClassVar[str] = "Wang et al., DeepNet: scaling transformers to 1,000 layers, 2022, fig. 2"
    where: Where = "*"
    layers: int | None = None

    def __post_init__(self) -> None:
        if self.layers is not None and self.layers < 1:
            raise PatchError(f"deepnorm has layers={self.layers}. Expected a whole number of at least 1.")

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"DeepNorm scaling of post-LN blocks{at(self.where)}"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        blocks = _post_blocks(scene, self.where, self.name)
        crossed = [one for one in blocks if isinstance(one.module, nn.TransformerDecoderLayer)]
        if crossed:
            raise PatchError(
                f"deepnorm does not fit {crossed[0]}: encoder and decoder together have other constants. "
                "Expected an encoder-only or decoder-only transformer; use PreNorm."
            )
        own = sum(not isinstance(one.module, _TORCH) for one in blocks)
        layers = self.layers or max(1, len(blocks) - own + own // 2)
        constants = deepnorm(layers)
        for block in blocks:
            yield (
                self._torch(scene, block, constants.alpha, constants.beta)
                if isinstance(block.module, _TORCH)
                else self._own(scene, block, constants.alpha, constants.beta)
            )

    def _torch(self, scene: Scene, block: Place, alpha: float, beta: float) -> Step:
        def ref(*names: str) -> Any:
            return scene.ref(block.path, *names)

        statements: list[Any] = []
        for dropout, norm in (("dropout1", "norm1"), ("dropout2", "norm2")):
            scaled = Call(nn.Sequential, (ref(dropout), call(Scale, 1.0 / alpha)))
            eps: float = getattr(block.module, norm).eps
            statements += [Set(ref(dropout), scaled), Set(ref(norm, "eps"), eps / alpha**2)]
        attention: Any = block.module.self_attn
        if attention.in_proj_weight is not None:
            for part, gain in enumerate((1.0, 1.0, beta)):
                statements.append(
                    call(nn.init.xavier_normal_, rows(ref("self_attn", "in_proj_weight"), part, 3), gain=gain)
                )
        for names in (("self_attn", "out_proj"), ("linear1",), ("linear2",)):
            statements.append(call(nn.init.xavier_normal_, ref(*names, "weight"), gain=beta))
        return step(*statements, *leave_fast_path(scene, block.path), source=scene.line(block.path))

    def _own(self, scene: Scene, block: Place, alpha: float, beta: float) -> Step:
        branch, norm = _parts(block)
        ref = scene.ref(block.path, branch)
        eps = getattr(block.module, norm).eps
        statements: list[Any] = []
        for path, module in block.module.get_submodule(branch).named_modules():
            if isinstance(module, nn.Linear):
                plain = path.rpartition(".")[2].startswith(("q", "k"))  # query and key keep gain 1
                names = [branch, *filter(None, path.split(".")), "weight"]
                statements.append(
                    call(nn.init.xavier_normal_, scene.ref(block.path, *names), gain=1.0 if plain else beta)
                )
        statements.append(Set(ref, Call(nn.Sequential, (ref, call(Scale, 1.0 / alpha)))))
        if eps is not None:
            statements.append(Set(scene.ref(block.path, norm, "eps"), eps / alpha**2))
        return step(*statements, source=scene.line(block.path))


@final
@dataclass(frozen=True)
class QKNorm(Edit):
    """Normalise queries and keys, head by head, in ``nn.MultiheadAttention``.

    Attributes:
        where: Glob over the attentions' paths.
    """

    name: ClassVar[str] = "qk_norm"
    reference: ClassVar[str] = "Henry et al., EMNLP 2020; Dehghani et al. 2023, section 2"
    where: Where = "*"

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"queries and keys of attention{at(self.where)} are normalised"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""

        def fits(place: Place) -> bool:
            module: Any = place.module
            plain = type(module) is nn.MultiheadAttention
            return plain and module.bias_k is None and not module.add_zero_attn

        for place in scene.select(
            self.where, fits, self.name, "nn.MultiheadAttention without bias_k and add_zero_attn"
        ):
            statements: list[Any] = list(scene.put(place, call(QKNormAttention.of, scene.ref(place.path))))
            if place.parent and isinstance(scene.at(place.parent), _TORCH):
                statements += leave_fast_path(scene, place.parent)
            yield step(*statements, source=scene.line(place.path))
