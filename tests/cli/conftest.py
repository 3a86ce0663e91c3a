"""A file such as a user would name as TARGET."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

NETS = """\
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x)


class Wide(nn.Module):
    def __init__(self, width, depth=2):
        super().__init__()


@dataclass
class Case:
    model: Any
    batch: Any


ready = Tiny()


def alone():
    return Tiny()


def pair():
    return Tiny(), torch.ones(2, 4)


def triple():
    return Tiny(), torch.ones(2, 4), lambda output: output.square().mean()


def targets():
    return Tiny(), (torch.ones(2, 4), torch.tensor([0, 2])), F.cross_entropy


def targets_of_a_module():
    return Tiny(), (torch.ones(2, 4), torch.tensor([0, 2])), nn.CrossEntropyLoss()


def as_dict():
    return {"model": Tiny(), "inputs": torch.ones(2, 4)}


def as_case():
    return Case(Tiny(), torch.ones(2, 4))


def number():
    return 3


def swapped():
    return torch.ones(2, 4), Tiny()


def four():
    return 1, 2, 3, 4


def odd_key():
    return {"modell": Tiny()}


def loss_class():
    return Tiny(), torch.ones(2, 4), nn.MSELoss


def lone_batch():
    return Tiny(), torch.ones(2, 4), F.cross_entropy


def broken():
    raise ValueError("bad width")


def fails_in_torch():
    return nn.Linear("4", 3)


def wrong_shape():
    return Tiny(), torch.ones(2, 5)


def vector_loss():
    return Tiny(), torch.ones(2, 4), lambda output: output


def noisy():
    print("hello from the model")
    return pair()


def sigmoids():
    layers = [layer for _ in range(20) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    return nn.Sequential(*layers), torch.randn(16, 32)
"""


def line_of(text: str) -> int:
    """Number of the first line of ``nets.py`` that holds ``text``."""
    return 1 + next(number for number, line in enumerate(NETS.splitlines()) if text in line)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with ``nets.py`` in it."""
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("nets", "__evenflow_target__"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path
