"""Tasks: the same from the same seed, and baselines that hold on the data itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from evenflow.lab.seeds import generator
from evenflow.lab.tasks import Adding, CopyMemory, Digits, Grammar, Ring, Shapes, Spirals, Task
from evenflow.lab.tasks.grammar import DEEPEST, KINDS, VOCABULARY, WORDS

TASKS: list[Task] = [Adding(20), CopyMemory(10), Grammar(16), Digits(), Spirals(), Shapes()]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_the_same_seed_gives_the_same_batch(task: Task) -> None:
    first, again, other = (task.batch(8, generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_adding_asks_for_the_sum_of_two_marked_numbers() -> None:
    x, y = Adding(30).batch(500, generator(0))
    assert x.shape == (500, 30, 2)
    marks = x[:, :, 1]
    assert torch.equal(marks[:, :15].sum(1), torch.ones(500))
    assert torch.equal(marks[:, 15:].sum(1), torch.ones(500))
    by_hand = [sum(float(v) for v, m in sample if m) for sample in x[:5]]
    assert y[:5, 0].tolist() == pytest.approx(by_hand)


def test_adding_baseline_is_that_of_a_constant() -> None:
    task = Adding(10)
    assert round(task.baseline, 4) == 0.1667  # THEORY.md, section 5
    _, y = task.batch(200_000, generator(0))
    # Standard error of the mean of (y − 1)²: its variance is E(y−1)⁴ − 1/36 = 1/15 − 1/36, so 0.0004.
    assert float(task.loss(torch.ones_like(y), y)) == pytest.approx(task.baseline, abs=0.002)


@pytest.mark.parametrize(("delay", "known"), [(100, 0.1733), (200, 0.0945), (500, 0.0400)])
def test_copy_baseline_is_that_of_a_memoryless_answer(delay: int, known: float) -> None:
    task = CopyMemory(delay)
    assert round(task.baseline, 4) == known  # THEORY.md, section 5
    x, y = task.batch(3, generator(0))
    assert x.shape == (3, delay + 20, 10)
    logits = torch.full((3, task.length, 9), -1e4)
    logits[:, :-10, 8] = 0.0  # sure of the blanks
    logits[:, -10:, :8] = 0.0  # any symbol is as likely
    assert float(task.loss(logits, y)) == pytest.approx(task.baseline, rel=1e-5)


def test_copy_shows_the_word_once_and_asks_for_it_at_the_end() -> None:
    x, y = CopyMemory(5).batch(4, generator(0))
    seen = x.argmax(-1)
    assert torch.equal(seen[:, :10], y[:, -10:])
    assert seen[0, 10:14].tolist() == [8] * 4  # T − 1 blanks
    assert seen[0, 14].item() == 9
    assert seen[0, 15:].tolist() == [8] * 10
    assert y[0, :-10].tolist() == [8] * 15


def test_grammar_closes_what_was_opened_last() -> None:
    x, y = Grammar(200).batch(50, generator(0))
    text = torch.cat([x, y[:, -1:]], dim=1)
    assert int(text.max()) == VOCABULARY - 1
    for sentence in text.tolist():
        stack: list[int] = []
        for token in sentence:
            if WORDS <= token < WORDS + KINDS:
                stack.append(token - WORDS)
                assert len(stack) <= DEEPEST
            elif token >= WORDS + KINDS and stack:
                assert stack.pop() == token - WORDS - KINDS


def test_grammar_frequencies_and_entropy() -> None:
    task = Grammar(100)
    x, y = task.batch(4000, generator(0))
    frequency = torch.bincount(y.flatten(), minlength=VOCABULARY) / y.numel()
    logits = frequency.log().expand(*y.shape, VOCABULARY)
    assert float(task.loss(logits, y)) == pytest.approx(task.baseline, abs=0.002)
    # A model that knows the depth and the stack: the entropy rate, at depths that are all equally often.
    assert task.entropy_rate == pytest.approx(
        (5 * (0.5 * math.log(16) + 0.25 * math.log(8) + 0.25 * math.log(4)) + _ends()) / 7
    )
    assert task.entropy_rate < task.baseline - 0.1
    assert x.shape == (4000, 100)


def _ends() -> float:
    """Entropies at depth 0 (nothing to close) and at the greatest depth (nothing opens)."""
    words = 0.75 * math.log(8 / 0.75)
    return (words + 0.25 * math.log(8)) + (words + 0.25 * math.log(4))


def test_classes_come_equally_often_and_cost_their_log() -> None:
    for task in (Digits(), Spirals(), Shapes()):
        _, y = task.batch(4000, generator(0))
        share = torch.bincount(y) / 4000
        assert len(share) == task.classes
        assert float((share - 1 / task.classes).abs().max()) < 0.03
        assert float(task.loss(torch.zeros(4000, task.classes), y)) == pytest.approx(task.baseline, rel=1e-4)


def test_digits_are_scaled_and_come_as_images_too() -> None:
    x, _ = Digits().batch(2000, generator(0))
    assert float(x.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(x.std()) == pytest.approx(1.0, abs=0.02)
    images, _ = Digits(images=True).batch(2000, generator(0))
    assert torch.equal(images.flatten(1), x)


def test_spirals_can_be_told_apart_by_their_nearest_neighbour() -> None:
    task = Spirals()
    x, y = task.batch(2000, generator(0))
    new, answer = task.batch(500, generator(1))
    guess = y[torch.cdist(new, x).argmin(dim=1)]
    assert float((guess == answer).float().mean()) > 0.97
    centred = torch.linalg.lstsq(torch.cat([x, torch.ones(2000, 1)], 1), (2.0 * y - 1)[:, None]).solution
    straight = (torch.cat([new, torch.ones(500, 1)], 1) @ centred).squeeze(1) > 0
    assert float((straight.long() == answer).float().mean()) < 0.75  # no straight line does it


def test_shapes_can_be_told_apart() -> None:
    task = Shapes()
    x, y = task.batch(4000, generator(0))
    assert x.shape == (4000, 1, 16, 16)
    new, answer = task.batch(300, generator(1))
    guess = y[torch.cdist(new.flatten(1), x.flatten(1)).argmin(dim=1)]
    assert float((guess == answer).float().mean()) > 0.8


def test_ring_has_its_modes() -> None:
    ring = Ring()
    points = ring.sample(4000, generator(0))
    nearest = torch.cdist(points, ring.centres).min(dim=1).values
    # A distance in the plane has mean square 2 std².
    assert float(nearest.square().mean()) == pytest.approx(2 * 0.05**2, rel=0.1)
    assert ring.covered(points) == 1.0
    assert ring.covered(ring.centres[:2]) == 0.25
    assert ring.centres.norm(dim=1).tolist() == pytest.approx([2.0] * 8)


def test_cross_entropy_takes_the_grammar_as_classes() -> None:
    _, y = Grammar(8).batch(2, generator(0))
    logits = 50 * F.one_hot(y, VOCABULARY).float()
    assert float(Grammar(8).loss(logits, y)) < 1e-6
