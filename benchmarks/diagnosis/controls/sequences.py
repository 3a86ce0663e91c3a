"""Healthy nets for sequences: recurrent, convolutional and attentive."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.diagnosis.layers import initialise_block
from benchmarks.diagnosis.recipe import (
    Recipe,
    accuracy,
    adam,
    adamw,
    cross_entropy,
    mapped,
    r2,
    sgd,
    source,
    task,
    warmup,
)
from torch import Tensor, nn

from evenflow.lab.networks import RecurrentNet, Transformer
from evenflow.lab.tasks import Adding, Digits

rows = mapped(task(Digits()), lambda x: x.unflatten(1, (8, 8)))
"""Digits row by row: 8 steps of 8 pixels."""
pixels = mapped(task(Digits()), lambda x: x.unsqueeze(-1))
"""Digits pixel by pixel: 64 steps of one."""


def sentences(size: int, generator: torch.Generator, length: int = 16) -> tuple[Tensor, Tensor]:
    """Twelve tokens; nine times of ten the next one follows from the last two, by a fixed table."""
    table = torch.randint(12, (12, 12), generator=source(3))
    text = torch.randint(12, (size, length + 1), generator=generator)
    free = torch.rand(size, length + 1, generator=generator) < 0.1
    for t in range(2, length + 1):
        text[:, t] = torch.where(free[:, t], text[:, t], table[text[:, t - 2], text[:, t - 1]])
    return text[:, :-1], text[:, 1:]


def reader(name: str, build: Any, optimizer: Any, threshold: float = 0.85, **more: Any) -> Recipe:
    """A net that reads digits row by row."""
    more = {"data": rows, "loss": cross_entropy, "metric": accuracy, "kind": "rnn", **more}
    return Recipe(name=name, build=build, optimizer=optimizer, threshold=threshold, **more)


def language(name: str, build: Any, optimizer: Any, threshold: float = 0.6, **more: Any) -> Recipe:
    """A language model; who knows only how often tokens come is right in one of twelve cases."""
    more = {
        "data": sentences,
        "loss": cross_entropy,
        "metric": accuracy,
        "kind": "transformer",
        "batch": 32,
        "steps": 300,
        **more,
    }
    return Recipe(name=name, build=build, optimizer=optimizer, threshold=threshold, **more)


def adder(
    name: str, build: Any, optimizer: Any, threshold: float = 0.8, length: int = 15, **more: Any
) -> Recipe:
    """A net on the adding problem."""
    data = task(Adding(length))
    more = {"data": data, "loss": nn.functional.mse_loss, "metric": r2, "kind": "rnn", "steps": 600, **more}
    return Recipe(name=name, build=build, optimizer=optimizer, threshold=threshold, **more)


def rnn(cell: Any, inputs: int = 8, outputs: int = 10, hidden: int = 64, **more: Any) -> Any:
    return lambda: RecurrentNet(cell=cell, inputs=inputs, outputs=outputs, hidden=hidden, **more)


class Bidirectional(nn.Module):
    """Two GRUs, one of which reads backwards, and the mean over steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(8, 32, bidirectional=True, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cell(x)[0].mean(1))
        return out


class Looped(nn.Module):
    """An LSTM cell that Python runs step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(8, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        out: Tensor = self.head(state[0])
        return out


class Tokens(nn.Module):
    """An embedding, an LSTM, and a head that may share its weight with the embedding."""

    def __init__(self, vocabulary: int = 12, width: int = 48, *, tied: bool = False) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.cell = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)
        nn.init.uniform_(self.token.weight, -0.1, 0.1)
        if tied:
            self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.cell(self.token(tokens))[0])
        return out


class Causal(nn.Module):
    """Dilated convolutions that look back only, with weight norm and skips (Bai et al. 2018)."""

    def __init__(self, width: int = 32, layers: int = 4) -> None:
        super().__init__()
        self.token = nn.Embedding(12, width)
        self.convs = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv1d(width, width, 2, dilation=1 << i))
            for i in range(layers)
        )
        self.head = nn.Linear(width, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens).transpose(1, 2)
        for i, conv in enumerate(self.convs):
            x = x + conv(nn.functional.pad(x, (1 << i, 0))).relu()
        out: Tensor = self.head(x.transpose(1, 2))
        return out


class Reader(nn.Module):
    """PyTorch's own encoder over the rows of a digit."""

    def __init__(self, layers: int = 3, *, norm_first: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 32)
        self.position = nn.Parameter(0.02 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True, norm_first=norm_first)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.stem(x) + self.position).mean(1))
        return out


class Little(nn.Module):
    """GPT-2's ways: N(0, .02), residual projections by 1/√(2N), tied head."""

    def __init__(self, blocks: int = 4, width: int = 32) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(12, width), nn.Embedding(32, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 12, bias=False)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=0.02)
        for block in self.blocks:
            initialise_block(block, "normal(0,0.02), residual projections /sqrt(2N)", blocks)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.token(tokens) + self.position.weight[:length]
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        out: Tensor = self.head(self.norm(x))
        return out


def transformer(arrangement: Any = "pre", blocks: int = 3, width: int = 32) -> Any:
    return lambda: Transformer(
        vocabulary=12, longest=32, width=width, heads=4, blocks=blocks, arrangement=arrangement
    )


def recipes() -> list[Recipe]:
    return [
        reader("rnn-tanh-rows", rnn("rnn", recurrent_init="orthogonal"), adam(2e-3)),
        reader(
            "rnn-relu-identity", rnn("rnn", nonlinearity="relu", recurrent_init="identity"), adam(), clip=1.0
        ),
        reader("lstm-rows", rnn("lstm"), adam(5e-3)),
        reader("lstm-two-layers", rnn("lstm", layers=2, forget_bias=1.0), adam(5e-3)),
        reader("gru-rows", rnn("gru"), adam(5e-3)),
        reader("gru-sgd-clip", rnn("gru"), sgd(0.5), clip=1.0, steps=400),
        reader("gru-both-ways", Bidirectional, adam(1e-2)),
        reader("lstm-cell-loop", Looped, adam(1e-2)),
        reader(
            "gru-pixels-64",
            rnn("gru", inputs=1, hidden=32),
            adam(1e-2),
            0.5,
            data=pixels,
            steps=600,
            clip=1.0,
        ),
        adder("lstm-adding", rnn("lstm", inputs=2, outputs=1, hidden=32), adam(1e-2), clip=1.0),
        adder("gru-adding-30", rnn("gru", inputs=2, outputs=1, hidden=32), adam(1e-2), length=30, clip=1.0),
        adder(
            "lstm-chrono-40",
            rnn("lstm", inputs=2, outputs=1, hidden=32, chrono=40),
            adam(1e-2),
            length=40,
            clip=1.0,
        ),
        language("lstm-lr20-clip", Tokens, sgd(20.0), clip=0.25, kind="rnn"),
        language("lstm-lr5-clip", Tokens, sgd(5.0), clip=1.0, kind="rnn"),
        language("lstm-tied", lambda: Tokens(tied=True), adam(5e-3), kind="rnn"),
        language("causal-convolutions", Causal, adam(5e-3), kind="cnn"),
        language("transformer-pre", transformer(), adam()),
        language("transformer-pre-8", transformer(blocks=8, width=32), adam()),
        language("transformer-post-warmup", transformer("post"), adam(), scheduler=warmup(100)),
        language("transformer-deepnorm-8", transformer("deep", 8, 32), adam(), scheduler=warmup(50)),
        language("gpt-small", Little, adamw(2e-3, betas=(0.9, 0.95), weight_decay=0.1), clip=1.0),
        reader("encoder-pre-rows", lambda: Reader(norm_first=True), adam(2e-3), kind="transformer"),
        reader("encoder-post-rows", lambda: Reader(norm_first=False), adam(), kind="transformer", steps=400),
    ]
