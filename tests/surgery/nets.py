"""Small nets of every kind that edits are for, and helpers that compare models to the bit."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.surgery.journal import same_bits


def chain(depth: int = 4, width: int = 16, act: type[nn.Module] = nn.Tanh, out: int = 3) -> nn.Sequential:
    """A plain chain."""
    stack: list[nn.Module] = []
    for _ in range(depth):
        stack += [nn.Linear(width, width), act()]
    return nn.Sequential(*stack, nn.Linear(width, out))


class Called(nn.Module):
    """Activations as calls, in three spellings, and a child whose own call is no business of its parent."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.child = Child()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.one(x))
        x = self.two(x).tanh()
        x = self.three(x).tanh_()
        x = torch.tanh(x)
        return self.child(x)


class Child(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(0.5 * torch.tanh(self.fc(x)), inplace=True))


class Held(nn.Module):
    """An activation held as a function, and one module that serves two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.act = torch.tanh
        self.other = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.fc2(self.other(self.act(self.fc1(x))))))


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 2, stride=2), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Recurrent(nn.Module):
    """Unpacks (out, h), begins with zeros, and goes on from a detached state."""

    def __init__(self, cell: type[nn.RNNBase] = nn.RNN, **settings: Any) -> None:
        super().__init__()
        self.rnn: nn.RNNBase = cell(4, 8, batch_first=True, **settings)  # type: ignore[arg-type]
        ways = 2 if settings.get("bidirectional") else 1
        self.head = nn.Linear(8 * ways, 3)
        self.layers = settings.get("num_layers", 1) * ways

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(self.layers, len(x), 8)
        if not isinstance(self.rnn, nn.LSTM) or "ForRNN" in type(self.rnn).__name__:
            out, h = self.rnn(x[:, :3], h)
            out, h = self.rnn(x[:, 3:], h.detach())
            return self.head(out[:, -1]) + h[-1].mean()
        return self.head(self.rnn(x)[0][:, -1])


class Stepped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.RNNCell(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 8)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


def encoder(layers: int = 2, **settings: Any) -> nn.Module:
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **settings)
    return nn.TransformerEncoder(block, layers, enable_nested_tensor=False)


class PostBlock(nn.Module):
    """norm(x + branch(x)), as users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.branch(x))


class Branches(nn.Module):
    """Residual branches of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x)


class Mix(nn.Module):
    """A layer of the user's own: rows are mixed, then features, as in a graph convolution."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x + x.mean(0)) @ self.weight.t()


def mixes() -> nn.Sequential:
    """Two such layers that give as they take, one that does not, and a head."""
    return nn.Sequential(Mix(8, 8), nn.ReLU(), Mix(8, 8), nn.ReLU(), Mix(8, 4), nn.ReLU(), nn.Linear(4, 4))


class Summed(nn.Module):
    """A residual block with an activation behind its sum, where no layer tells the features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.after = nn.Sequential(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x + self.body(x))


class EndsWithCall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.fc(x))
        return torch.softmax(self.head(x), dim=-1)


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def built(make: Any) -> Any:
    """A model from a fixed seed; the global state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make()


def executed(code: str) -> Any:
    """The functions that a printed patch defines."""
    namespace = types.ModuleType("printed")
    exec(compile(code, "printed.py", "exec"), namespace.__dict__)
    return namespace


def tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    roots = model.items() if isinstance(model, dict) else [("", model)]
    for role, root in roots:
        for name, tensor in root.state_dict(keep_vars=True).items():
            yield f"{role}.{name}", tensor


def differences(one: Any, other: Any) -> list[str]:
    """Where two models differ: names, order, bits, gradients, modes, and how they print."""
    a, b = dict(tensors(one)), dict(tensors(other))
    if list(a) != list(b):
        return [f"names: {sorted(set(a) ^ set(b)) or 'another order'}"]
    found = [name for name in a if not same_bits(a[name], b[name])]
    found += [f"requires_grad of {name}" for name in a if a[name].requires_grad != b[name].requires_grad]
    if repr(one) != repr(other):
        found.append("they print differently")
    return found + [f"hooks or mode of {text}" for text in sorted(_modes(one) ^ _modes(other))]


def _modes(model: Any) -> set[str]:
    roots = model.items() if isinstance(model, dict) else [("", model)]
    return {
        f"{role}.{name} {module.training} {len(module._forward_hooks)} {len(module._forward_pre_hooks)}"
        for role, root in roots
        for name, module in root.named_modules()
    }
