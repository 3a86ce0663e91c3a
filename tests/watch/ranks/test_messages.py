"""Messages survive the wire, and what ranks say of parts of a tensor is what one would say of the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.flow import Role, Status
from evenflow.watch.layout import Entry
from evenflow.watch.moments import Rows, reference
from evenflow.watch.ranks.exchange import _HEAD, _packed
from evenflow.watch.ranks.merge import Joint, Merger, RanksDisagreeError
from evenflow.watch.ranks.message import (
    COLUMNS,
    NONFINITE,
    Backward,
    Line,
    Message,
    Sampled,
    decode,
    encode,
)
from evenflow.watch.ranks.placement import WHOLE, Piece

ENTRY = Entry(
    "0.weight", 0, "parameter", Role.PARAMETER, 3, "Linear", (4, 5), torch.bfloat16, Status.OK,
    (1,), (("0", 0),),
)  # fmt: skip


def row(values: torch.Tensor) -> Rows:
    """What a rank says of its part."""
    found = np.full((1, len(COLUMNS)), np.nan)
    found[0, : NONFINITE + 1] = reference(values.double())
    return found


def joint(lines: list[Line], peers: list[tuple[int, ...]] | None = None) -> Joint:
    peers = peers or [(rank,) for rank in range(len(lines))]
    return Joint([(line,) for line in lines], peers, [None] * len(lines))


def merged(one: Joint, parts: list[torch.Tensor]) -> Rows:
    found: Rows = one.rows([Sampled(0, 0, row(part)) for part in parts])[0, : NONFINITE + 1]
    return found


def test_a_message_survives_the_wire() -> None:
    message = Message(
        steps=(3, 5), wait=7, peers=(0, 2), divisor=2.0,
        structures={4: (Line(ENTRY, "d", Piece(1, 2)), Line(ENTRY._replace(path="é"), "", WHOLE))},
        figures=((3, "loss", 0.1), (4, "loss", float("inf"))),
        squares=((3, "", 1e-300),),
        events=((5, "skipped_step", "…"),),
        samples=(
            Sampled(
                5, 4, np.random.default_rng(0).normal(size=(2, len(COLUMNS))),
                (Backward("d", 1.5, 0, "0.weight"),), {1: np.arange(6, dtype=np.float32).reshape(2, 3)},
            ),
        ),
    )  # fmt: skip
    found = decode(encode(message))
    assert replace(found, samples=()) == replace(message, samples=())
    (sample,), (wanted,) = found.samples, message.samples
    assert (sample.step, sample.structure, sample.backwards) == (5, 4, wanted.backwards)
    assert np.array_equal(sample.rows, wanted.rows)
    assert np.array_equal(sample.addends[1], wanted.addends[1])


def test_a_message_longer_than_its_room_still_says_how_long_it_is() -> None:
    packed = _packed(b"abcdef", _HEAD + 3).numpy()
    assert len(packed) == _HEAD + 3
    assert packed[:_HEAD].view(np.int64)[0] == 6
    assert packed[_HEAD:].tobytes() == b"abc"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 1000))
def test_pieces_are_counted_once_each_whoever_holds_them(sizes: list[int], seed: int) -> None:
    whole = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed))
    pieces = list(whole.split(sizes))
    lines = [Line(ENTRY, "", Piece(number, len(sizes))) for number in range(len(sizes))]
    copies = joint(lines + lines[::-1])  # every piece is on two ranks
    found = merged(copies, pieces + pieces[::-1])
    assert found == pytest.approx(row(whole)[0, : NONFINITE + 1], rel=1e-12, abs=1e-15)
    assert [bool(names) for names in copies.answers_for] == [True] * len(sizes) + [False] * len(sizes)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 1000))
def test_parts_of_the_batch_are_joined(ranks: int, seed: int) -> None:
    whole = torch.randn(ranks * 3, generator=torch.Generator().manual_seed(seed))
    whole[seed % len(whole)] = torch.nan
    line = Line(ENTRY._replace(op="output", role=Role.ACTIVATION), "", WHOLE)
    found = merged(joint([line] * ranks), list(whole.chunk(ranks)))
    assert found == pytest.approx(row(whole)[0, : NONFINITE + 1], rel=1e-12, abs=1e-15)
    assert found[NONFINITE] == 1


def test_gradients_of_outputs_are_those_of_the_mean_of_the_ranks_losses() -> None:
    line = Line(ENTRY._replace(op="output", role=Role.ACTIVATION_GRADIENT), "", WHOLE)
    weight = Line(ENTRY, "", WHOLE)
    one = Joint([(weight, line)] * 2, [(0,), (1,)], [None, None])
    parts = [torch.tensor([2.0, -4.0]), torch.tensor([6.0, 8.0])]
    samples = [Sampled(0, 0, np.concatenate([row(torch.ones(1)), row(part)])) for part in parts]
    found = one.rows(samples)[1, : NONFINITE + 1]
    assert found == pytest.approx(row(torch.tensor([1.0, -2.0, 3.0, 4.0]))[0, : NONFINITE + 1])


def test_tensor_parallel_peers_hold_copies_or_shards() -> None:
    line = Line(ENTRY._replace(op="output", role=Role.ACTIVATION), "", WHOLE)
    one = joint([line] * 4, [(0, 1), (0, 1), (2, 3), (2, 3)])
    a, b, c, d = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert merged(one, [a, a.clone(), b, b.clone()])[0] == 10, "copies of two parts of the batch"
    assert merged(one, [a, b, c, d])[0] == 20, "shards of two parts of the batch"


def test_ranks_that_speak_of_other_steps_are_refused() -> None:
    messages = [Message((0, 1), 1, (0,)), Message((0, 2), 1, (1,))]
    with pytest.raises(RanksDisagreeError) as caught:
        Merger(2).hear(messages)
    assert str(caught.value) == (
        "the ranks do not take the same steps: rank 0: steps 0 to 1, 0 of them sampled; "
        "rank 1: steps 0 to 2, 0 of them sampled. "
        "evenflow.watch needs the same models, optimizers and budget on every rank"
    )
