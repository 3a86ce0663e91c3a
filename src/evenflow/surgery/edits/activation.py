"""Swap activations: modules, functions held as attributes, and calls in a forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from torch import nn

from evenflow.surgery import activations
from evenflow.surgery.activations import Used
from evenflow.surgery.edit import Edit, check_choice
from evenflow.surgery.errors import PatchError
from evenflow.surgery.pieces.calls import swap_calls
from evenflow.surgery.scene import Scene, Where, at, is_exact, listing, matches
from evenflow.surgery.script import Call, Set, Step, call, step


@final
@dataclass(frozen=True)
class SwapActivation(Edit):
    """Put another activation in place.

    The model's output activation is left alone unless ``where`` names its place
    without a wildcard. So are ``softmax`` and gates inside ``nn.LSTM`` and ``nn.GRU``.

    Attributes:
        to: Name of the new activation, as in ``torch.nn.functional``.
        where: Glob over paths: of activation modules, or of modules whose forward calls one.
        from_: Only this activation (``"from"`` in JSON); None: any.
        calls: For calls in a forward: which of them, from 0; empty: all.
        settings: Of the new module, e.g. ``{"negative_slope": 0.2}``.
    """

    name: ClassVar[str] = "swap_activation"
    to: str
    where: Where = "*"
    from_: str | None = None
    calls: tuple[int, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("swap_activation", "to", self.to, tuple(activations.MODULES))
        if self.from_ is not None:
            check_choice("swap_activation", "from", self.from_, tuple(activations.MODULES))
        try:
            activations.MODULES[self.to](**self.settings)
        except TypeError as error:
            raise PatchError(f"swap_activation has settings={self.settings!r}: {error}") from None

    def describe(self) -> str:
        """See :class:`Edit`."""
        told = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.from_ or 'activations'}{at(self.where)} become {self.to}" + (
            f"({told})" if told else ""
        )

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        for use in selected(scene, self.where, self.from_, self.name):
            new = activations.make(scene, self.to, self.settings)
            yield put(scene, use, new, self.calls or None)


def selected(scene: Scene, where: Where, name: str | None, edit: str) -> list[Used]:
    """The uses of activations at a glob.

    Raises:
        PatchError: There is none.
    """
    able = activations.uses(scene) if is_exact(where) else activations.hidden(scene)
    found = [use for use in able if matches(where, use.place.path) and name in (None, use.name)]
    if found:
        return found
    recurrent = [place for place in scene.places() if isinstance(place.module, nn.RNNBase)]
    held = listing([str(use) for use in able], 3) if able else "no activation that can be seen"
    raise PatchError(
        f"{edit} does not fit this model: it has no {name or 'activation'} at {where!r}. "
        f"Found: {held}{', and ' + str(recurrent[0]) if recurrent else ''}. Expected an activation module, "
        "an attribute such as self.act = F.relu, or a call such as torch.tanh(x) in a forward whose source "
        "can be read. "
        "Name its module's path."
    )


def put(scene: Scene, use: Used, new: Call, indices: tuple[int, ...] | None = None) -> Step:
    """The step that puts a new activation where one is used."""
    place = use.place
    if use.called:
        note = f"there, {use.name} becomes {new.function.__name__}"  # type: ignore[union-attr]
        extra = {"indices": indices} if indices else {}
        return step(
            call(swap_calls, scene.ref(place.path), use.name, new, **extra), source=use.source, note=note
        )
    if use.attribute:
        statements = [Set(scene.ref(place.path, use.attribute), new)]
        if isinstance(place.module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            statements += leave_fast_path(scene, place.path)
        return step(*statements, source=use.source)
    return step(*scene.put(place, new), source=use.source)


def leave_fast_path(scene: Scene, path: str) -> list[Set]:
    """PyTorch's fused inference of a transformer layer does not look at what was replaced in it."""
    if hasattr(scene.at(path), "activation_relu_or_gelu"):
        return [Set(scene.ref(path, "activation_relu_or_gelu"), 0)]
    return []
