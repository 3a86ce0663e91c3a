"""Which modules and calls are activations, and how each is made.

Names are those of ``torch.nn.functional``. An activation in a model is a module, an
attribute that holds a function (``self.act = F.relu``), or a call in a ``forward``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from torch import nn

from evenflow.surgery.errors import PatchError
from evenflow.surgery.pieces.shaped import Shaped
from evenflow.surgery.scene import Place, Scene, source_line, source_of
from evenflow.theory import Activation, get_activation

MODULES: dict[str, type[nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "hardtanh": nn.Hardtanh,
    "leaky_relu": nn.LeakyReLU,
    "logsigmoid": nn.LogSigmoid,
    "mish": nn.Mish,
    "prelu": nn.PReLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "rrelu": nn.RReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
    "tanhshrink": nn.Tanhshrink,
}
"""Name → module. What is not elementwise (softmax, GLU) is no activation here."""

_SETTINGS = {
    "celu": ("alpha",),
    "elu": ("alpha",),
    "gelu": ("approximate",),
    "hardtanh": ("min_val", "max_val"),
    "leaky_relu": ("negative_slope",),
    "rrelu": ("lower", "upper"),
    "softplus": ("beta", "threshold"),
}
"""Settings that a module holds and that theory knows by the same name."""

_OTHERS = {"GELUActivation": "gelu", "NewGELUActivation": "gelu", "SiLUActivation": "silu", "Swish": "silu"}
"""Classes of other libraries, by name."""

_NAMES = {kind: name for name, kind in MODULES.items()}


def name_of(thing: Any) -> str | None:
    """The name of an activation module or function; None for anything else."""
    if isinstance(thing, Shaped):
        return name_of(thing.inner)
    if isinstance(thing, nn.Module):
        return _NAMES.get(type(thing)) or _OTHERS.get(type(thing).__name__)
    name = getattr(thing, "__name__", "").rstrip("_")
    known = callable(thing) and str(getattr(thing, "__module__", "")).split(".")[0] in ("torch", "None")
    return name if known and name in MODULES else None


def as_theory(module: nn.Module) -> Activation:
    """The theory's activation for an activation module, settings included."""
    name = name_of(module)
    if name is None:
        raise PatchError(f"{type(module).__name__} is no activation that theory knows.")
    settings = {key: getattr(module, key) for key in _SETTINGS.get(name, ())}
    return get_activation(name, **settings)


def make(scene: Scene, name: str, settings: dict[str, Any]) -> Any:
    """A call that makes the activation."""
    kind = MODULES[name]
    return scene.new(kind, **settings)


@final
@dataclass(frozen=True, slots=True)
class Used:
    """One use of an activation.

    Attributes:
        name: Of the activation.
        place: Of the activation module; for functions, of the module that calls them.
        attribute: Name of the attribute that holds the function; "" for none.
        called: Whether it is a call in the forward.
        source: The user's line.
    """

    name: str
    place: Place
    attribute: str = ""
    called: bool = False
    source: str | None = None

    def __str__(self) -> str:
        how = f"self.{self.attribute} in" if self.attribute else "called in" if self.called else "at"
        return f"{self.name} {how} {self.place.path or 'the root'!s}"


def uses(scene: Scene) -> list[Used]:
    """Every use of an activation in a model, as far as modules, attributes and source tell."""
    found = []
    inside: set[int] = set()
    for place in scene.places():
        module = place.module
        if id(module) in inside:
            continue
        name = name_of(module)
        if name is not None:
            found.append(Used(name, place, source=scene.line(place.path)))
            inside.update(id(one) for one in module.modules())
            continue
        for key, value in vars(module).items():
            function = None if key.startswith("_") else name_of(value)
            if function is not None and not isinstance(value, nn.Module):
                found.append(
                    Used(function, place, attribute=key, source=scene.line(f"{place.path}.{key}".lstrip(".")))
                )
        swapped = getattr(module, "swapped_calls", ())  # these are modules now, and were found as such
        for called, line in calls(type(module)).items():
            if called not in swapped:
                found.append(Used(called, place, called=True, source=line))
    return found


def calls(kind: type) -> dict[str, str]:
    """Activations that a class's methods call, name → the first such line."""
    found: dict[str, str] = {}
    for base in kind.__mro__:
        tree = source_of(base)
        if tree is None:
            continue
        for node in ast.walk(tree[2]):
            name = _called(node)
            if name is not None:
                assert isinstance(node, ast.Call)
                found.setdefault(name, source_line(base, node))
        if any(isinstance(node, ast.FunctionDef) and node.name == "forward" for node in tree[2].body):
            break
    return found


def _called(node: ast.AST) -> str | None:
    """The activation that a call expression names; a call of ``self.relu`` is one of a module."""
    if not isinstance(node, ast.Call):
        return None
    target = node.func
    name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
    if (
        isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id in ("self", "nn")
    ):
        return None
    plain = name.rstrip("_")
    return plain if plain in MODULES else None


def output_of(scene: Scene) -> set[tuple[str, str]]:
    """(module path, activation or "") of what a model ends with: an output's activation is no hidden one."""
    roots = {"": scene.model} if isinstance(scene.model, nn.Module) else scene.model
    return {found for path, root in roots.items() for found in _last(path, root)}


def _last(path: str, module: nn.Module) -> Iterator[tuple[str, str]]:
    if name_of(module) is not None or isinstance(module, (nn.Softmax, nn.LogSoftmax)):
        yield path, ""
    elif isinstance(module, nn.Sequential):
        shaping = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout)
        children = [
            (name, child) for name, child in module.named_children() if not isinstance(child, shaping)
        ]
        if children:
            yield from _last(_joined(path, children[-1][0]), children[-1][1])
    else:
        yield from _returned(path, module)


def _returned(path: str, module: nn.Module) -> Iterator[tuple[str, str]]:
    """What the return statement of a forward calls last, if it is called only there."""
    found = next((tree for base in type(module).__mro__ if (tree := source_of(base)) is not None), None)
    forward = next(
        (
            n
            for n in (found[2].body if found else [])
            if isinstance(n, ast.FunctionDef) and n.name == "forward"
        ),
        None,
    )
    if forward is None or not isinstance(forward.body[-1], ast.Return):
        return
    value = forward.body[-1].value
    while (
        isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _SHAPING
    ):
        value = value.func.value
    if not isinstance(value, ast.Call):
        return
    target = value.func
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
        uses_of_it = [n for n in ast.walk(forward) if isinstance(n, ast.Attribute) and n.attr == target.attr]
        child = getattr(module, target.attr, None)
        if isinstance(child, nn.Module) and (len(uses_of_it) == 1 or name_of(child) is None):
            yield from _last(_joined(path, target.attr), child)
        return
    name = _called(value) or (target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", ""))
    if name in MODULES or name in ("softmax", "log_softmax"):
        yield path, name


_SHAPING = ("squeeze", "flatten", "view", "reshape")


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def hidden(scene: Scene) -> list[Used]:
    """The uses that are not the model's output."""
    last = output_of(scene)
    return [
        use
        for use in uses(scene)
        if (use.place.path, use.name if use.called else "") not in last or use.attribute
    ]
