"""Sequences: memory tasks, little languages, waves and arithmetic in digits."""

from __future__ import annotations

import math

import numpy as np
import torch
from benchmarks.diagnosis.data.dataset import (
    FEWEST_SAMPLES,
    MOST_NUMBERS,
    Array,
    Dataset,
    Request,
    generator,
    labels,
    values,
)
from torch import Tensor
from torch.nn import functional as F


def as_inputs(tokens: Array, r: Request) -> Tensor:
    """Token ids, or one-hot vectors when the program wants features at each step."""
    ids = torch.as_tensor(tokens.astype(np.int64))
    return F.one_hot(ids, r.shape[1]).float() if len(r.shape) == 2 else ids


def windows(stream: Array, length: int, r: Request) -> Dataset:
    n = min((len(stream) - 1) // length, max(FEWEST_SAMPLES, MOST_NUMBERS // math.prod(r.shape)))
    x = stream[: n * length].reshape(n, length)
    y = stream[1 : n * length + 1].reshape(n, length)
    return Dataset(as_inputs(x, r), torch.as_tensor(y.astype(np.int64)), "labels")


@generator("char_grammar_lm")
def char_lm(r: Request) -> Dataset:
    """A stream of Zipf-distributed words, 0 as the space between them."""
    n_tokens = min(int(r.spec.get("n_tokens", 120_000)), 120_000)
    lexicon = [r.rng.randint(1, r.spec["vocab"], size=r.rng.randint(2, 8)) for _ in range(200)]
    weight = 1 / np.arange(1, 201)
    stream: list[Array] = []
    for w in r.rng.choice(200, size=n_tokens // 3, p=weight / weight.sum()):
        stream += [lexicon[w], np.zeros(1, int)]
    return windows(np.concatenate(stream)[:n_tokens], r.spec["T"], r)


@generator("word_grammar_lm")
def word_lm(r: Request) -> Dataset:
    """A Markov chain: every word has five likely successors."""
    v = r.spec["vocab"]
    successor = r.rng.randint(v, size=(v, 5))
    stream = np.zeros(60_000, int)
    pick, jump = r.rng.randint(5, size=len(stream)), r.rng.rand(len(stream)) < 0.1
    free = r.rng.randint(v, size=len(stream))
    for t in range(1, len(stream)):
        stream[t] = free[t] if jump[t] else successor[stream[t - 1], pick[t]]
    return windows(stream, r.spec["T"], r)


@generator("adding_problem")
def adding(r: Request) -> Dataset:
    """Two of many numbers are marked; the target is their sum."""
    n, length = r.count(4000), r.shape[0]
    value, mark = r.rng.rand(n, length), np.zeros((n, length))
    first = r.rng.randint(length // 2, size=n)
    second = length // 2 + r.rng.randint(length - length // 2, size=n)
    rows = np.arange(n)
    mark[rows, first] = mark[rows, second] = 1
    return values(np.stack([value, mark], 2), (value[rows, first] + value[rows, second])[:, None])


@generator("temporal_order")
def temporal_order(r: Request) -> Dataset:
    """B … X/Y … X/Y … E among distractors; the class is the pair's order; padded in front."""
    n, longest, k = r.count(3000), r.shape[0], r.spec["alphabet"]
    x, y = np.zeros((n, longest, k)), np.zeros(n, int)
    low, high = r.spec["length"]
    for i in range(n):
        length = min(longest, r.rng.randint(low, high + 1))
        seq = r.rng.randint(4, k, size=length)
        a, b = np.sort(r.rng.choice(np.arange(1, length - 1), 2, replace=False))
        seq[a], seq[b] = r.rng.randint(2, size=2)
        seq[0], seq[-1] = 2, 3
        y[i] = 2 * seq[a] + seq[b]
        x[i, longest - length :] = np.eye(k)[seq]
    return labels(x, y)


@generator("recall_first")
def recall_first(r: Request) -> Dataset:
    n, k = r.count(3000), r.spec["alphabet"]
    ids = r.rng.randint(2, k, size=(n, r.spec["T"]))
    ids[:, 0] = r.rng.randint(2, size=n)
    return Dataset(as_inputs(ids, r), torch.as_tensor(ids[:, 0].astype(np.int64)), "labels")


@generator("noisy_sines")
def noisy_sines(r: Request) -> Dataset:
    """Waves of different phase; the target is the next value at every step."""
    n, t = r.count(800), r.spec["T"]
    period = 20 * (0.8 + 0.4 * r.rng.rand(n, 1, 1))
    clock = np.arange(t + 1)[None, :, None] + r.rng.randint(-80, 80, size=(n, 1, 1))
    wave = np.sin(clock / period * 2)
    return values(wave[:, :-1], wave[:, 1:])


@generator("seasonal_series")
def seasonal(r: Request) -> Dataset:
    n, t = 800, r.spec["T"]
    clock = np.arange(t + 1)[None] + r.rng.randint(1000, size=(n, 1))
    level = 1 + 0.5 * np.sin(clock * math.tau / 24) + 0.2 * np.sin(clock * math.tau / 168)
    series = r.spec["scale"] * (level + 0.02 * r.rng.randn(n, t + 1))[..., None]
    return values(series[:, :-1], series[:, 1:] if r.per_step else series[:, -1])


@generator("padded_sequences")
def padded(r: Request) -> Dataset:
    n, t, d, k = r.count(600), r.spec["T"], r.spec["dim"], r.spec["classes"]
    lengths = r.rng.randint(max(2, t // 4), t + 1, size=n)
    alive = np.arange(t)[None] < lengths[:, None]
    proto = r.rng.randn(k, d)
    if r.per_step:  # class 0 marks padding
        y = r.rng.randint(k, size=(n, t))
        return labels((proto[y] + 0.5 * r.rng.randn(n, t, d)) * alive[..., None], (y + 1) * alive)
    y = r.rng.randint(k, size=n)
    return labels((proto[y][:, None] * 0.3 + r.rng.randn(n, t, d)) * alive[..., None], y)


@generator("class_specific_strings")
def class_strings(r: Request) -> Dataset:
    k, v, t = r.spec["classes"], r.spec["vocab"], r.spec["T"]
    profile = r.rng.dirichlet(np.full(v, 0.2), k)
    y = r.rng.randint(k, size=2000)
    ids = np.stack([r.rng.choice(v, t, p=profile[c]) for c in y])
    return Dataset(as_inputs(ids, r), torch.as_tensor(y.astype(np.int64)), "labels")


@generator("sort_task")
def sort_task(r: Request) -> Dataset:
    """The demo of minGPT: predict the sorted copy; positions before it are ignored."""
    length, k = r.spec["length"], r.spec["num_digits"]
    x = r.rng.randint(k, size=(10_000, length))
    full = np.concatenate([x, np.sort(x, 1)], 1)
    y = full[:, 1:].copy()
    y[:, : length - 1] = -100
    return Dataset(torch.as_tensor(full[:, :-1]), torch.as_tensor(y), "labels")


@generator("addition_task")
def addition_task(r: Request) -> Dataset:
    """The adder of minGPT: the digits of a, b and the reversed sum."""
    nd = r.spec["ndigit"]
    a, b = (g.ravel() for g in np.meshgrid(np.arange(10**nd), np.arange(10**nd)))
    pairs = zip(a, b, strict=True)
    text = [f"{i:0{nd}d}{j:0{nd}d}" + f"{i + j:0{nd + 1}d}"[::-1] for i, j in pairs]
    full = np.array([[int(ch) for ch in t] for t in text])
    y = full[:, 1:].copy()
    y[:, : 2 * nd - 1] = -100
    order = r.rng.permutation(len(full))
    return Dataset(torch.as_tensor(full[order, :-1]), torch.as_tensor(y[order]), "labels")
