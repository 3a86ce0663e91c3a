"""Insert normalisation before or after activations or layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from evenflow.surgery import activations, layers
from evenflow.surgery.edit import Edit, check_choice
from evenflow.surgery.errors import PatchError
from evenflow.surgery.pieces.norms import ChannelRMSNorm
from evenflow.surgery.scene import Place, Scene, Where
from evenflow.surgery.script import Call, Step, step

_BATCH = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""By the number of dimensions of the picture."""


@final
@dataclass(frozen=True)
class InsertNorm(Edit):
    """Put a normalisation layer at activations, or at linear layers and convolutions.

    Attributes:
        kind: ``batch``, ``layer``, ``group`` or ``rms``. On images layer and RMS norm
            take channels and pixels together.
        where: Glob over paths. The default is every hidden activation module behind a layer (one
            behind a sum, where no layer tells the features, is left out), or, where the model has
            no activation module, every hidden layer; a glob may name either.
        position: ``before`` or ``after`` the module.
        groups: Of a group norm; the largest divisor of the channels up to it is taken.
    """

    name: ClassVar[str] = "insert_norm"
    reference: ClassVar[str] = (
        "Ioffe & Szegedy 2015 (batch); Ba, Kiros & Hinton 2016 (layer); Wu & He 2018 (group); "
        "Zhang & Sennrich 2019 (RMS)"
    )
    kind: str
    where: Where = "*"
    position: str = "before"
    groups: int = 8

    def __post_init__(self) -> None:
        check_choice(self.name, "kind", self.kind, ("batch", "layer", "group", "rms"))
        check_choice(self.name, "position", self.position, ("before", "after"))
        if self.groups < 1:
            raise PatchError(f"insert_norm has groups={self.groups}. Expected a whole number of at least 1.")

    def describe(self) -> str:
        """See :class:`Edit`."""
        place = "hidden layers" if self.where == "*" else repr(self.where)
        inside = "in" if self.where == "*" and self.position == "before" else self.position
        return f"{self.kind} normalisation {inside} {place}"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        hidden = {
            id(use.place.module) for use in activations.hidden(scene) if not (use.called or use.attribute)
        }
        last = [place.path for place in scene.places() if layers.is_layer(place)][-1:]
        told = {
            id(place.module)
            for place in scene.places()
            if id(place.module) in hidden and _layer_before(scene, place.path) is not None
        }

        def fits(place: Place) -> bool:
            if self.where == "*" and hidden:
                return id(place.module) in (told or hidden)
            return id(place.module) in hidden or (
                layers.is_layer(place) and not (self.where == "*" and [place.path] == last)
            )

        for place in scene.select(
            self.where, fits, self.name, "activation modules, linear layers or convolutions"
        ):
            norm = self._norm(scene, place)
            ref = scene.ref(place.path)
            both = (norm, ref) if self.position == "before" else (ref, norm)
            yield step(*scene.put(place, Call(nn.Sequential, both)), source=scene.line(place.path))

    def _norm(self, scene: Scene, place: Place) -> Call:
        """The normalisation for the features that pass there.

        Raises:
            PatchError: Their number cannot be told.
        """
        source: nn.Module | None = place.module
        if layers.is_layer(place):
            size = layers.features(place.module) if self.position == "after" else _inputs(place.module)
        else:
            source = _layer_before(scene, place.path)
            size = None if source is None else layers.features(source)
        if source is None or size is None:
            raise PatchError(
                f"insert_norm does not fit {place}: no layer before it tells the number of features. "
                "Expected a linear layer or a convolution before it in the same module; name such a layer, "
                'with position="after".'
            )
        pixels = layers.dimensions(source)
        if self.kind == "batch":
            return scene.new(_BATCH[pixels], size)
        if self.kind == "group":
            groups = max(n for n in range(1, min(self.groups, size) + 1) if size % n == 0)
            return scene.new(nn.GroupNorm, groups, size)
        if self.kind == "layer":
            return scene.new(nn.GroupNorm, 1, size) if pixels else scene.new(nn.LayerNorm, size)
        return scene.new(ChannelRMSNorm, size, pixels) if pixels else scene.new(nn.RMSNorm, size)


def _inputs(module: nn.Module) -> int | None:
    for name in ("in_features", "in_channels", "nx"):
        value: Any = getattr(module, name, None)
        if isinstance(value, int):
            return value
    return None


def _layer_before(scene: Scene, path: str) -> nn.Module | None:
    """The layer whose output an activation takes; None if that is not clear.

    In a chain it is the last one before it. In a module with a forward of its own, where
    one activation may serve several layers, these must agree in their features; the last of
    several gives the module's output and does not count.
    """
    if not path:
        return None
    above, _, own = path.rpartition(".")
    parent = scene.at(above)
    if isinstance(parent, nn.Sequential):
        names = [name for name, _ in parent.named_children()]
        for name in reversed(names[: names.index(own)]):
            inside = [one for one in parent.get_submodule(name).modules() if layers.is_any_layer(one)]
            if inside:
                return inside[-1]
        return _layer_before(scene, above)
    beside = [one for one in parent.children() if layers.is_any_layer(one)]
    hidden = beside[:-1] or beside
    sizes = {(layers.features(one), layers.dimensions(one)) for one in hidden}
    return hidden[0] if len(sizes) == 1 else None
