"""From the steps of a way to causes, by how many decades each is answerable for.

A step's excess (see :mod:`evenflow.diagnose.way`) is put on the account of its
kind. Accounts that point the way of the symptom share the blame in proportion.
A plain stack is to blame for the rest: a layer that alone costs a factor of two
or more is at fault by itself, a milder one does harm only because there are so
many, so depth takes the share ``1 − |excess per layer| / log10 2``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from evenflow.diagnose import ops
from evenflow.diagnose.finding import Cause, CauseName, Evidence
from evenflow.diagnose.rule import Threshold
from evenflow.diagnose.text import count, factor, listing, place
from evenflow.diagnose.way import Kind, Step, Way

HALVES = Threshold(
    0.30103,
    "decades per layer from which a layer is at fault by itself, whatever the depth",
    "a decay to half or a growth to double per layer: TheDeepChecker (Ben Braiek & Khomh 2023)",
)
DEPTH_AT_LEAST = Threshold(
    0.1,
    "smallest share that a stack without skips takes",
    "a judgement: a skip helps whatever the layers do, so depth stays a suspect to be tested",
)

DEEP = Threshold(
    5.0,
    "layers from which a stack counts as deep",
    "the window over which TheDeepChecker judges decay and growth",
)
BY_SUM = Threshold(
    0.238561,
    "decades by which a residual block grows with standard weights; what goes beyond is the weights' doing",
    "He et al. 2015: a branch of He layers has twice the variance of its input, and the sum three times: "
    "log10 √3",
)
NEGLIGIBLE = 0.01
"""Share of the excess below which an account is rounding and not a cause."""

_MILD_BY_NATURE = frozenset({CauseName.NORMALIZATION_EXPLOSION})
"""Causes whose factor per layer is small and known; they are not blamed on depth."""


@dataclass(frozen=True, slots=True)
class _Account:
    cause: CauseName
    decades: float
    steps: tuple[Step, ...]


def causes_of(way: Way, blame: Mapping[Kind, CauseName], sign: int) -> tuple[Cause, ...]:
    """Causes of a way's excess, best first; their confidences add up to 1.

    Args:
        way: With its steps.
        blame: From the kind of a step to the cause that it stands for; others are unknown.
        sign: −1 for a loss, +1 for a growth.
    """
    accounts = [a for a in _accounts(way, blame, sign) if a.decades > NEGLIGIBLE * abs(way.excess)]
    total = sum(account.decades for account in accounts)
    if not total:
        return ()
    mild = sum(a.decades for a in accounts if a.cause not in _MILD_BY_NATURE) / total
    depth = share_of_depth(way, way.excess, mild)
    causes = [
        Cause(account.cause, (1.0 - depth) * account.decades / total, _evidence(account, way, sign))
        for account in accounts
    ]
    if depth:
        causes.append(Cause(CauseName.DEPTH_WITHOUT_SKIP, depth, in_a_row(way)))
    return tuple(sorted(causes, key=lambda cause: -cause.confidence))


def share_of_depth(way: Way, decades: float, mild: float = 1.0) -> float:
    """The part of the blame that a plain stack takes; 0 with skips, or for few layers.

    Args:
        way: The stack.
        decades: What it loses or gains in all.
        mild: Share of that for which a mild factor per layer may be to blame.
    """
    if way.layers < DEEP.value or way.has_skips:
        return 0.0
    per_layer = abs(decades) / max(way.layers, 1)
    return max(DEPTH_AT_LEAST.value, mild * (1.0 - per_layer / HALVES.value))


def in_a_row(way: Way) -> str:
    """What a plain stack does, in a sentence."""
    return f"{count(way.layers, 'layer')} in a row without a skip connection: their factors multiply."


def _accounts(way: Way, blame: Mapping[Kind, CauseName], sign: int) -> list[_Account]:
    by_cause: dict[CauseName, list[Step]] = {}
    for step in way.judged:
        by_cause.setdefault(blame.get(step.kind, CauseName.UNKNOWN), []).append(step)
    accounts = [
        _Account(cause, sign * sum(step.excess for step in steps), tuple(steps))
        for cause, steps in by_cause.items()
    ]
    return [part for account in accounts for part in _by_sum_and_by_weights(account)]


def _by_sum_and_by_weights(account: _Account) -> Iterator[_Account]:
    """The growth of residual blocks: what sums of standard branches make, and what large weights add."""
    by_sum = min(account.decades, grown_by_sums(account.steps))
    if account.cause is CauseName.RESIDUAL_GROWTH and account.decades > by_sum:
        yield replace(account, cause=CauseName.INIT_TOO_LARGE, decades=account.decades - by_sum)
        account = replace(account, decades=by_sum)
    yield account


def grown_by_sums(blocks: Sequence[Step]) -> float:
    """Decades that residual blocks with standard weights grow by in all.

    Each bare block multiplies (:data:`BY_SUM`). Behind a normalisation branches keep their size, so that
    n of them add n to a variance of 1 (De & Smith, NeurIPS 2020).
    """
    bare = sum(not any(row.site.op in ops.NORMS for row in step.rows) for step in blocks)
    return BY_SUM.value * bare + 0.5 * math.log10(1 + len(blocks) - bare)


def _evidence(account: _Account, way: Way, sign: int) -> str:
    steps, n = account.steps, len(account.steps)
    own, whole = f"{account.decades:.1f}", f"{abs(way.excess):.1f}"
    share = f"{own} of {whole} decades" if float(own) < float(whole) else f"all {whole} decades"
    mean_gain = sum(step.log10_gain for step in steps) / n
    expected = mean_gain - sum(step.excess for step in steps) / n
    passed, made_for = f"{10.0**mean_gain:.2g}", f"{10.0**expected:.2g}"
    names = Counter(step.function for step in steps if step.function)
    function = names.most_common(1)[0][0] if names else ""
    if function in ops.SQUASHING_SLOPE:
        slope = ops.SQUASHING_SLOPE[function]
        return (
            f"{function} passes a factor of {passed} on average ({count(n, 'step')}); "
            f"its slope is nowhere above {slope:.2g}: {share}."
        )
    if function:
        return f"{function} passes a factor of {passed} on average where {made_for} is usual: {share}."
    factors = [step.log10_gain for step in steps if step.kind is Kind.FACTOR]
    if factors:
        each = f"{10.0 ** (sum(factors) / len(factors)):.2g}"
        return (
            f"{count(len(factors), 'product')} with a constant pass a factor of {each} on average, which the "
            f"weights do not make up for: {share}."
        )
    if steps[0].kind is Kind.LINEAR:
        return (
            f"The weights of {count(n, 'layer')} pass a factor of {passed} on average "
            f"where {made_for} keeps the gradient: {share}."
        )
    if steps[0].kind is Kind.BLOCK and account.cause is CauseName.INIT_TOO_LARGE:
        return (
            f"{count(n, 'block')} pass a factor of {passed} on average where sums of branches with standard "
            f"weights pass {10.0 ** (grown_by_sums(steps) / n):.2g}: {share}."
        )
    if steps[0].kind is Kind.NORM:
        return f"{count(n, 'normalisation')} pass a factor of {passed} each: {share}."
    if steps[0].kind is Kind.POST_NORM:
        return (
            f"{count(n, 'block')} whose sum is normalised pass a factor of {passed} on average: the "
            f"normalisation scales the skip down: {share}."
        )
    worst = sorted(steps, key=lambda step: sign * step.excess, reverse=True)
    where = listing(
        [f"{place(step.output)} ({factor(step.excess)})" for step in worst if sign * step.excess > 0]
    )
    return f"The factor arises at {where}: {share}."


def measured(way: Way, limit: float, usual: tuple[float, float]) -> tuple[Evidence, ...]:
    """What was compared to find that a way loses or gains too much.

    Args:
        way: With its steps.
        limit: Decades from which there is an alarm; negative for a loss.
        usual: What chance alone explains, see :meth:`Way.usual`.
    """
    side, verb = ("below", "lost") if limit < 0.0 else ("above", "gained")
    text = f"log10 of the gradient's norm at {place(way.first)} over that at {place(way.last)}: "
    text += f"{way.log10_ratio:.2f}"
    if abs(way.log10_ratio - way.excess) >= 0.01:
        text += f"; {way.excess:.2f} in units of what normalisations and averages remove"
    return (
        Evidence(f"{text} (alarm {side} {limit:.0f}).", way.excess, limit),
        Evidence(
            f"{abs(way.excess) / max(way.layers, 1):.2f} decades {verb} per layer; by chance alone, "
            "networks of this "
            f"depth and width end between {usual[0]:.1f} and {usual[1]:+.1f} in all.",
            way.excess,
            usual[0] if limit < 0.0 else usual[1],
        ),
    )


def shares(amounts: Mapping[CauseName, float], texts: Mapping[CauseName, str]) -> tuple[Cause, ...]:
    """Causes with confidences in proportion to their positive amounts, best first; none if there are none."""
    positive = {name: amount for name, amount in amounts.items() if amount > 0.0}
    total = sum(positive.values())
    causes = [Cause(name, amount / total, texts[name]) for name, amount in positive.items()]
    return tuple(sorted(causes, key=lambda cause: -cause.confidence))
