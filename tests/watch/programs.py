"""Small training programs, each made anew from a seed; one call of ``step`` is one training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Program:
    models: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    step: Callable[[], Tensor]

    def state(self) -> list[Tensor]:
        """All weights and buffers, and what the optimizers keep."""
        kept = [t for model in self.models.values() for t in model.state_dict().values()]
        for optimizer in self.optimizers.values():
            for values in optimizer.state.values():
                kept += [value for value in values.values() if isinstance(value, Tensor)]
        return [tensor.clone() for tensor in kept]


def _supervised(
    model: nn.Module, inputs: Tensor, optimizer: torch.optim.Optimizer, clip: float = 0.0
) -> Program:
    target = torch.arange(len(inputs)) % 3

    def step() -> Tensor:
        loss = F.cross_entropy(model(inputs), target)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return Program({"": model}, {"": optimizer}, step)


def mlp() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    return _supervised(model, torch.randn(9, 6), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), 0.1)


def cnn() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _supervised(model, torch.randn(6, 2, 5, 5), torch.optim.Adam(model.parameters(), 1e-2))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 5, num_layers=2, batch_first=True, dropout=0.1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def lstm() -> Program:
    torch.manual_seed(0)
    model = Recurrent()
    return _supervised(model, torch.randn(6, 7, 4), torch.optim.RMSprop(model.parameters(), 1e-2))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def transformer() -> Program:
    torch.manual_seed(0)
    model = Transformer()
    return _supervised(model, torch.randn(6, 5, 8), torch.optim.AdamW(model.parameters(), 1e-2), clip=1.0)


def gan() -> Program:
    torch.manual_seed(0)
    g = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.2), nn.Linear(8, 2))
    d = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    g_optimizer, d_optimizer = torch.optim.Adam(g.parameters(), 1e-3), torch.optim.Adam(d.parameters(), 1e-3)
    ones, zeros = torch.ones(5, 1), torch.zeros(5, 1)

    def step() -> Tensor:
        fake = g(torch.randn(5, 3))
        real_loss = F.binary_cross_entropy_with_logits(d(torch.randn(5, 2)), ones)
        d_loss = real_loss + F.binary_cross_entropy_with_logits(d(fake.detach()), zeros)
        d_optimizer.zero_grad()
        d_loss.backward()
        d_optimizer.step()
        g_loss = F.binary_cross_entropy_with_logits(d(fake), ones)
        g_optimizer.zero_grad()
        g_loss.backward()
        g_optimizer.step()
        return g_loss

    models: dict[str, nn.Module] = {"generator": g, "discriminator": d}
    return Program(models, {"generator": g_optimizer, "discriminator": d_optimizer}, step)


ALL = {"mlp": mlp, "cnn": cnn, "lstm": lstm, "transformer": transformer, "gan": gan}
