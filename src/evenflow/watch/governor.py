"""The budget governor: what watching may cost, and when it can afford a look.

A bucket holds credit in seconds. Every step adds ``budget`` times its own
duration and takes out the time that evenflow spent in it. A step is sampled when
nothing is owed, on credit, and paid for afterwards. So with a sample that costs the
share ``c`` of a step one step in ``c / budget`` is sampled, and

    time spent  ≤  budget · time of training  +  one sample.

The first sample costs most (it is the first time that everything runs), and is
paid for like any other; what is loaded before the first step is reported, and not
paid for. Credit is capped at one sample, or a long pause (an
evaluation, a checkpoint) would be followed by a burst of them. The figures of the
whole model are taken at every step, unless they alone cost more than 5/8 of the budget;
then they wait until nothing is owed too.

Time is taken with the monotonic clock around evenflow's own code, plus what
calling into it costs, which no clock inside can see (:data:`CALL_SECONDS`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias, final

CALL_SECONDS = 2e-6
"""What one call of a hook costs outside the hook: an empty forward hook with its slow path through
``nn.Module.__call__`` took 1.2 to 2.1 µs (benchmarks/watch.py --call)."""
_MEMORY = 0.2
"""Weight of the latest step in the running means of what samples and figures cost."""

_FIGURES_SHARE = 0.625
"""Share of the budget that figures at every step may take. With the flight recorder's shares it makes one:
what is done at every step must not cost more than is earned at every step."""
_NEVER = 1e9
"""Steps that stand for never."""
_FORGIVING = 0.99
"""What is left after each step of the memory that figures cost too much. Figures of ``r`` times the budget
come back after 100·ln(1.6r) steps, which is more than ``r`` up to r = 650."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What watching cost so far.

    Attributes:
        steps: Steps that were seen.
        sampled: Steps of which every row was taken.
        figures: Steps of which the whole-model figures were taken.
        seconds: evenflow's own time in the training thread.
        training_seconds: Time from the first step's end to the last one's, its own included.
        budget: What was allowed.
        startup_seconds: Before the first step, to load what was not loaded yet; in none of the others.
    """

    steps: int
    sampled: int
    figures: int
    seconds: float
    training_seconds: float
    budget: Budget
    startup_seconds: float = 0.0

    @property
    def fraction(self) -> float:
        """Own time over the time without it."""
        bare = self.training_seconds - self.seconds
        return self.seconds / bare if bare > 0.0 else 0.0

    def __str__(self) -> str:
        share = isinstance(self.budget, float)
        limit = "no limit" if self.budget is None else f"budget {self.budget:{'.2%' if share else ''}}"
        return (
            f"{self.sampled} of {self.steps} steps were sampled and the figures of the whole model taken at "
            f"{self.figures}; that took {self.fraction:.2%} of the training time ({limit})."
            + (f" Starting took {self.startup_seconds:.1f} s." if self.startup_seconds >= 0.05 else "")
        )


@final
@dataclass(frozen=True, slots=True)
class Allowance:
    """Seconds that watching may add to a training of known length: half at once, half step by step.

    Faults of a short training show in its first steps, and these are the ones to look at.

    Attributes:
        seconds: For the whole training.
        steps: How many steps it has.
    """

    seconds: float
    steps: int

    @property
    def at_once(self) -> float:
        """Seconds to begin with."""
        return 0.5 * self.seconds

    @property
    def per_step(self) -> float:
        """Seconds that each step adds."""
        return 0.5 * self.seconds / max(self.steps, 1)

    def __str__(self) -> str:
        return f"{self.seconds:g} s over {self.steps} steps"


Budget: TypeAlias = float | Allowance | None
"""A share of the training time, a number of seconds, or no limit."""


@final
class Governor:
    """Decides before each step whether it is sampled.

    Args:
        budget: Share of the step time, or seconds, that may be spent; None for everything at every step.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._credit = budget.at_once if isinstance(budget, Allowance) else 0.0
        self._spent = 0.0  # in the step that runs
        self._calls = 0
        self._apart = 0.0
        self._on_figures = 0.0
        self._sample_cost = 0.0
        self._figures_cost = 0.0
        self._steps = self._sampled = self._figures = 0
        self._seconds = self._training = self._allowed = 0.0
        self.startup_seconds = 0.0
        self.sampling = True
        self.figures = True

    def spend(self, seconds: float) -> None:
        """A call into evenflow took so long."""
        self._spent += seconds
        self._calls += 1

    def spend_on_figures(self, seconds: float) -> None:
        """So much of what a call spent went to the figures of the whole model."""
        self._on_figures += seconds

    def spend_apart(self, seconds: float) -> None:
        """The writing thread took so long; paid for, but no part of what a look costs."""
        self._apart += seconds

    def step(self, seconds: float | None) -> None:
        """A step has ended; decide on the next one.

        Args:
            seconds: Its duration, evenflow's own time included; None for the
                first step, of which the beginning was not seen.
        """
        own = self._spent + self._calls * CALL_SECONDS
        apart, on_figures = self._apart, self._on_figures
        self._spent, self._calls, self._apart, self._on_figures = 0.0, 0, 0.0, 0.0
        self._steps += 1
        self._sampled += self.sampling
        self._figures += self.figures
        if seconds is not None:
            self._seconds += own + apart
            self._training += seconds
        if self._budget is None:
            return
        bare = max((seconds or 0.0) - own, 0.0)
        allowed = self._budget.per_step if isinstance(self._budget, Allowance) else self._budget * bare
        self._credit += allowed - own - apart
        self._allowed = allowed
        if self.sampling:
            self._sample_cost += (own - self._sample_cost) * (1.0 if self._sampled <= 2 else _MEMORY)
        if self.figures:
            self._figures_cost += (on_figures - self._figures_cost) * (1.0 if self._figures <= 2 else _MEMORY)
        else:  # one slow moment must not end them for good
            self._figures_cost *= _FORGIVING
        if not isinstance(self._budget, Allowance):  # which knows how many steps are to come
            self._credit = min(self._credit, self._sample_cost)
        self.sampling = self._credit >= 0.0
        self.figures = self.sampling or seconds is None or self._figures_cost <= _FIGURES_SHARE * allowed

    def wait(self) -> int:
        """In how many steps nothing will be owed, at the pace of the latest one."""
        earned = self._allowed - (self._figures_cost if self.figures else 0.0)
        if self._credit >= 0.0 or self._budget is None:
            return 0
        return math.ceil(min(-self._credit / earned, _NEVER)) if earned > 0.0 else int(_NEVER)

    def decide(self, *, sampling: bool) -> None:
        """Have the next step sampled or not, whatever is owed: ranks take samples together."""
        self.sampling = sampling
        self.figures = self.figures or sampling

    @property
    def cost(self) -> Cost:
        """What watching cost so far."""
        return Cost(
            self._steps, self._sampled, self._figures, self._seconds, self._training, self._budget,
            self.startup_seconds,
        )  # fmt: skip
