"""Insert skip connections: plain, SkipInit, ReZero, LayerScale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, final

from torch import nn

from evenflow.surgery import activations, layers
from evenflow.surgery.edit import Edit, check_choice, check_number
from evenflow.surgery.pieces.residual import Residual
from evenflow.surgery.scene import Place, Scene, Where, at, outermost
from evenflow.surgery.script import Call, Set, Step, step

_STARTS = {"plain": None, "skipinit": 0.0, "rezero": 0.0, "layerscale": 1e-4}
"""Where alpha starts: De & Smith 2020 (0), Bachlechner et al. 2020 (0), Touvron et al. 2021 (0.1 to 1e-6
with depth; 1e-4 between)."""


@final
@dataclass(frozen=True)
class InsertSkip(Edit):
    """Put x + alpha · f(x) in place of f(x).

    f is what ``where`` names. A linear layer or convolution in an ``nn.Sequential`` takes
    the norms and the activation right behind it along.

    Attributes:
        kind: ``plain`` (alpha = 1), ``skipinit`` and ``rezero`` (a learned number from 0), or
            ``layerscale`` (one per channel, from 1e-4).
        where: Glob over paths. The default is every linear layer and convolution that
            gives as it takes, and every layer of the user's own with a single square matrix, such
            as a graph convolution; but for the last layer of a chain.
        alpha: Where alpha starts, if not as above.
    """

    name: ClassVar[str] = "insert_skip"
    reference: ClassVar[str] = (
        "He et al. 2016; De & Smith, NeurIPS 2020 (SkipInit); Bachlechner et al., UAI 2021 (ReZero); "
        "Touvron et al., ICCV 2021 (LayerScale)"
    )
    kind: str = "skipinit"
    where: Where = "*"
    alpha: float | None = None

    def __post_init__(self) -> None:
        check_choice(self.name, "kind", self.kind, tuple(_STARTS))
        if self.alpha is not None:
            check_number(self.name, "alpha", self.alpha, -1e6)

    @property
    def start(self) -> float | None:
        """Where alpha starts; None where it is fixed at 1."""
        return _STARTS[self.kind] if self.alpha is None else self.alpha

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"{self.kind} skip connections{at(self.where, 'around')}"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        last = {path for path, _ in activations.output_of(scene)}
        wanted = (
            "linear layers or convolutions (or a chain of them) with as many outputs as inputs and stride 1"
        )

        head = _head(scene)

        def fits(place: Place) -> bool:
            if not _preserves(place.module) or place.path in last:
                return False
            return self.where != "*" or (layers.is_any_layer(place.module) and place.path != head)

        for place in outermost(scene.select(self.where, fits, self.name, wanted)):
            parts = [place] if place.path == "" else [place, *_behind(scene, place, last)]
            refs = [scene.ref(part.path) for part in parts]
            body = refs[0] if len(refs) == 1 else Call(nn.Sequential, tuple(refs))
            settings = {} if self.start is None else {"alpha": self.start}
            if self.kind == "layerscale":
                size = _width(place.module)
                settings["channels"] = (size, *[1] * _pixels(place.module))  # type: ignore[assignment]
            residual = scene.new(Residual, body, **settings)
            gone = [Set(ref, Call(nn.Identity)) for ref in refs[1:]]
            yield step(*scene.put(place, residual), *gone, source=scene.line(place.path))


def _head(scene: Scene) -> str | None:
    """Path of the last layer of a model that is a chain: its output is nobody's hidden state."""
    if not isinstance(scene.model, nn.Sequential):
        return None
    return next((place.path for place in reversed(scene.places()) if layers.is_any_layer(place.module)), None)


def _preserves(module: nn.Module) -> bool:
    """Whether a module surely gives the shape that it takes."""
    if isinstance(module, nn.Sequential):
        inner = [one for one in module if not _elementwise(one)]
        weighted = [one for one in inner if hasattr(one, "weight")]
        if len(weighted) != len(inner) or not inner:
            return False
        ends = [_ends(one) for one in weighted]
        same_size = all(isinstance(one, nn.Linear) or layers.keeps_size(one) for one in weighted)
        chained = all(a and b and a[1] == b[0] for a, b in pairwise(ends))
        return bool(same_size and chained and ends[0] and ends[-1] and ends[0][0] == ends[-1][1])
    return layers.preserves_shape(module)


def _elementwise(module: nn.Module) -> bool:
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    return activations.name_of(module) is not None or isinstance(module, (nn.Dropout, nn.Identity, *norms))


def _ends(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, layers.CONVOLUTIONS):
        return module.in_channels, module.out_channels
    return None


def _width(module: nn.Module) -> int:
    found = module
    if isinstance(module, nn.Sequential):
        found = [one for one in module if _ends(one)][-1]
    width = layers.features(found)
    assert width is not None
    return width


def _pixels(module: nn.Module) -> int:
    found = (
        next((one for one in module if _ends(one)), module) if isinstance(module, nn.Sequential) else module
    )
    return layers.dimensions(found)


def _behind(scene: Scene, place: Place, last: set[str]) -> list[Place]:
    """Norms, dropout and the activation that follow a layer in a chain."""
    parent = scene.at(place.parent)
    if not isinstance(parent, nn.Sequential) or isinstance(place.module, nn.Sequential):
        return []
    names = [name for name, _ in parent.named_children()]
    found = []
    for name in names[names.index(place.name) + 1 :]:
        child = parent.get_submodule(name)
        path = f"{place.parent}.{name}".lstrip(".")
        if not _elementwise(child) or path in last:
            break
        found.append(Place(path, child))
        if activations.name_of(child) is not None:
            break
    return found
