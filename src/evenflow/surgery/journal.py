"""What a model was before a patch, kept on the patched copy, so that the patch comes off again.

A snapshot before and a look after: whatever differs (attributes, registered
children, hooks, classes, values of tensors) is noted with what it was. No edit
has to say how it is undone. Tensors that training has changed since, but the patch
had not, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

KEPT_AS = "_evenflow_patches"
"""Attribute of the patched model that holds its journals; no part of its state_dict."""

Model: TypeAlias = Any
"""A module, or a dict of modules by role."""

_ABSENT = "<absent>"


@final
@dataclass
class Journal:
    """How to take one patch off.

    Attributes:
        patch: The patch as JSON, to know it again.
        root: What the model was, a module or a dict of modules.
        modules: (module, its class, attributes that changed with their old values).
        tensors: (tensor, its old value, its old ``requires_grad``).
        added: Names of the parameters that the patch added.
    """

    patch: str
    root: Model
    modules: list[tuple[nn.Module, type, dict[str, Any]]] = field(default_factory=list)
    tensors: list[tuple[Tensor, Tensor, bool]] = field(default_factory=list)
    added: tuple[str, ...] = ()


@final
class Snapshot:
    """A model before it is edited.

    Args:
        model: The copy that will be edited.
        original: The model it was copied from; None if the model itself is edited: then all values are kept.
    """

    def __init__(self, model: Model, original: Model | None = None) -> None:
        self.root = dict(model) if isinstance(model, Mapping) else model
        self.modules = {id(one): (one, type(one), _attributes(one)) for one in _modules(model)}
        self.names = {name for name, _ in parameters(model)}
        now = list(_tensors(model))
        before = [one.detach().clone() for one in now] if original is None else list(_tensors(original))
        self.tensors = [(one, old, one.requires_grad) for one, old in zip(now, before, strict=True)]

    def journal(self, patch: str, model: Model) -> Journal:
        """What differs now."""
        journal = Journal(patch, self.root)
        for module, kind, before in self.modules.values():
            now = vars(module)
            keys = [key for key in {**before, **now} if key != KEPT_AS]
            changed = {key: before.get(key, _ABSENT) for key in keys if _differ(before, now, key)}
            if changed or type(module) is not kind:
                journal.modules.append((module, kind, changed))
        for tensor, old, grad in self.tensors:
            if tensor.requires_grad != grad or not same_bits(tensor, old):
                journal.tensors.append((tensor, old.detach().clone(), grad))
        journal.added = tuple(name for name, _ in parameters(model) if name not in self.names)
        return journal


def take_off(journal: Journal) -> Model:
    """Put back what a patch changed; gives the model that was."""
    for module, kind, before in journal.modules:
        module.__class__ = kind
        for key, value in before.items():
            if value is _ABSENT or (isinstance(value, str) and value == _ABSENT):
                vars(module).pop(key, None)
            else:
                vars(module)[key] = value
    with torch.no_grad():
        for tensor, old, grad in journal.tensors:
            tensor.data = old.to(tensor.device)
            tensor.requires_grad_(grad)
    return journal.root


def journals(model: Model) -> list[Journal]:
    """The patches on a model, oldest first."""
    found: list[Journal] = vars(_holder(model)).get(KEPT_AS, [])
    return found


def keep(model: Model, kept: list[Journal]) -> None:
    """Note the patches on a model."""
    if kept:
        vars(_holder(model))[KEPT_AS] = kept
    else:
        vars(_holder(model)).pop(KEPT_AS, None)


def _holder(model: Model) -> nn.Module:
    holder: nn.Module = next(iter(model.values())) if isinstance(model, Mapping) else model
    return holder


def parameters(model: Model) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by full name; the names of models by role begin with the role."""
    if isinstance(model, Mapping):
        for role, module in model.items():
            for name, parameter in module.named_parameters():
                yield f"{role}.{name}", parameter
    else:
        yield from model.named_parameters()


def modules_of(model: Model) -> list[nn.Module]:
    """All modules, each once."""
    return list(_modules(model))


def _modules(model: Model) -> Iterator[nn.Module]:
    seen: set[int] = set()
    for root in model.values() if isinstance(model, Mapping) else (model,):
        for module in root.modules():
            if id(module) not in seen:
                seen.add(id(module))
                yield module


def _tensors(model: Model) -> Iterator[Tensor]:
    """Parameters and buffers, each once."""
    seen: set[int] = set()
    for module in _modules(model):
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def _attributes(module: nn.Module) -> dict[str, Any]:
    """A module's attributes; containers are copied, one level deep."""
    kept = {}
    for key, value in vars(module).items():
        if key != KEPT_AS:
            kept[key] = value.copy() if isinstance(value, (dict, list, set)) else value
    return kept


def _differ(before: dict[str, Any], now: dict[str, Any], key: str) -> bool:
    if (key in before) != (key in now):
        return True
    old, new = before[key], now[key]
    if isinstance(old, dict) and isinstance(new, dict):
        return list(old) != list(new) or any(old[one] is not new[one] for one in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) != len(new) or any(a is not b for a, b in zip(old, new, strict=True))
    if isinstance(old, set) and isinstance(new, set):
        return old != new
    return old is not new


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same to the bit, NaN and signed zeros included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.is_meta or other.is_meta:
        return True
    a, b = (x.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for x in (one, other))
    return torch.equal(a, b)
