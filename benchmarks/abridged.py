"""The corpus as the benchmark of fix trains it: long enough for a repair to show.

``cases.json`` has as many steps as the fault needs to show itself, which for large nets can
be three; a repair needs more. Here such a program gets the steps in which a published fix
helps, and smaller batches, images, layers or shorter
sequences where the fault does not lie in their size, so
that one training takes seconds. The numbers are frozen: every host trains the same programs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.diagnosis.case import as_subject, records
from benchmarks.diagnosis.subject import Subject

Record = dict[str, Any]

SECONDS = 1.8
"""Processor time that no training of ``cases.json`` took by much where its steps were chosen."""


@dataclass(frozen=True)
class Length:
    """What is other than in ``cases.json``; 0 is as there.

    Attributes:
        steps: Optimizer steps.
        batch: Samples in a batch.
        side: Pixels of an image, across and down; for nets that take any.
        time: Steps of a sequence.
        width: (units of a hidden layer there, here).
        seconds: Processor time of one training, measured once; for the estimate only.
    """

    steps: int = 0
    batch: int = 0
    side: int = 0
    time: int = 0
    width: tuple[int, int] | None = None
    seconds: float = SECONDS


LENGTHS = {
    "at-mnist-lenet-relu16-tinyinit": Length(steps=300, batch=32, seconds=5.5),
    "dcr-cifar-conv2-zeros": Length(steps=100, batch=16, seconds=3.6),
    "gh-informer-unscaled-nan": Length(steps=60, batch=8, seconds=2.2),
    "so-31556268": Length(steps=2400, seconds=0.9),
    "so-47352366": Length(steps=60, batch=16, seconds=3.2),
    "tb-cnn-frozen-backbone": Length(steps=1200, side=8, seconds=3.7),
    "tb-cnn-sigmoid-6": Length(steps=600, batch=32, side=14, seconds=10.8),
    "tb-cnn-unscaled-sgd": Length(steps=120, batch=16, seconds=2.4),
    "tb-deep-plain-30-std001": Length(steps=180, batch=32, seconds=3.0),
    "tb-gan-ttur-d20x": Length(steps=50, batch=8, seconds=3.6),
    "tb-lstm-forget-bias-neg": Length(steps=400, batch=32, time=40, seconds=4.4),
    "tb-rnn-tanh-parity200": Length(steps=600, batch=32, time=50, seconds=4.0),
    "tb-resnet-no-norm": Length(steps=40, batch=16, side=8, seconds=4.2),
    "tb-rnn-tanh-exploding-clip": Length(steps=200, batch=8, seconds=6.5),
    "umlaut-b-linear-lr-1e3": Length(steps=60, batch=16, seconds=4.2),
    "wgan-clip-explode": Length(steps=32, batch=32, seconds=8.0),
    "wgan-clip-vanish": Length(steps=100, width=(512, 64), seconds=4.5),
}
"""Program → its length here; those that are not named are as in ``cases.json``."""


def subjects() -> list[Subject]:
    """All programs of the corpus, so trained."""
    return [as_subject(abridged(record)) for record in records()]


def lengths() -> dict[str, Length]:
    """Program → its length, for all of the corpus."""
    return {
        record["id"]: replace(LENGTHS.get(record["id"], Length()), steps=abridged(record)["steps"])
        for record in records()
    }


def abridged(record: Record) -> Record:
    """The record of a case as it is trained here."""
    return cut(record, LENGTHS.get(record["id"], Length()))


def cut(record: Record, length: Length) -> Record:
    """A record with another length; the one given stays as it is."""
    record = json.loads(json.dumps(record))
    record["steps"] = length.steps or record["steps"]
    record["batch_size"] = length.batch or record["batch_size"]
    if length.side:
        data = record["data"]
        data["input_shape"][1:] = [length.side, length.side]
        data["substitute"]["size"] = length.side
    if length.time:
        record["data"]["input_shape"][0] = record["data"]["substitute"]["T"] = length.time
    if length.width is not None:
        _resize(record["layers"], *length.width)
    return record


def _resize(layers: list[Record], there: int, here: int) -> None:
    """Hidden layers of so many units get so many."""
    for layer in layers:
        _resize(layer.get("layers", []), there, here)
        for end in ("in", "out"):
            if layer.get(end) == there:
                layer[end] = here
