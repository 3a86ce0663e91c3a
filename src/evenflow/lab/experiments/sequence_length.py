"""A hundred time steps: how RNN, LSTM and GRU keep or lose the gradient of the past.

From the last step back to the first the gradient is multiplied once per step. A
plain RNN passes it through its weights each time, rate σ_w² E φ'². LSTM and GRU
have a gate that carries the state past the weights; the rate is then
(mean gate + feedback)², and a forget-gate bias of 1 opens that gate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.measuring import draw, gaussian, relative
from evenflow.lab.networks import RecurrentNet
from evenflow.lab.picture import Axis, Curve, Lines, Origin, over_seeds
from evenflow.lab.verdict import Comparison, at_least, near
from evenflow.theory import gru_rate, lstm_rate, rnn_rate

DEFAULT = 1 / 3
"""σ² of PyTorch's U(±1/√hidden)."""

CASES: dict[str, dict[str, Any]] = {
    "RNN, default": {"cell": "rnn"},
    "RNN, orthogonal": {"cell": "rnn", "recurrent_init": "orthogonal"},
    "RNN, normal, gain 2": {"cell": "rnn", "recurrent_init": "normal", "gain": 2.0},
    "GRU, default": {"cell": "gru"},
    "LSTM, default": {"cell": "lstm"},
    "LSTM, forget bias 1": {"cell": "lstm", "forget_bias": 1.0},
    "LSTM, chrono": {"cell": "lstm", "chrono": 100},
}
"""Name of the curve, and arguments of its net."""

REFERENCE = {"LSTM, default": -21.6, "LSTM, forget bias 1": -8.9}
"""log10 over 100 steps (THEORY.md, section 4)."""

RATE_ERROR = 0.03
"""How far theory may be off the rate of E‖gradient‖² per step; over 99 steps .64 decades."""

_SOURCES = {
    "rnn": ("½ T log10(σ_w² E φ'²)", "M. Chen et al. 2018; THEORY.md, section 3"),
    "lstm": ("T log10(f̄ + κ̄)", "THEORY.md, section 3"),
    "gru": ("T log10(z̄ + κ̄)", "THEORY.md, section 3"),
}


@final
@dataclass(frozen=True)
class SequenceLength(Experiment):
    """See the module.

    Attributes:
        steps: Time steps.
        hidden: Units of the state, and features of the input, which is N(0, 1) at
            every step.
        batch: Sequences.
        seeds: Random nets for each curve.
    """

    place = 10
    title = "A hundred time steps"
    question = "How much of the last step's gradient reaches the first of a hundred time steps?"
    expectation = (
        "In a plain RNN, and in an LSTM or GRU as PyTorch starts them, next to nothing. A forget-gate bias "
        "of 1 saves a dozen decades; biases spread by the chrono init keep some units open for the whole "
        "sequence."
    )
    explains: ClassVar = {
        "vanishing_through_time": "time",
        "long_recurrence": "time",
        "exploding_through_time": "time",
        "recurrent_gain_too_large": "time",
    }
    quick: ClassVar = {"seeds": 8, "batch": 4}

    steps: int = 100
    hidden: int = 256
    batch: int = 8
    seeds: int = 12

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        times = tuple(range(self.steps))
        comparisons: list[Comparison] = []
        curves: list[Curve] = []
        for name in track(list(CASES)):
            levels = [self._measure(name, seed) for seed in range(self.seeds)]
            totals = tuple(level[0] for level in levels)
            curves.append(over_seeds(name, times, levels))
            quantity = f"{name}: log10 gain over {self.steps - 1} steps"
            if name == "LSTM, chrono":
                bound = self._open_units()
                formula = "½ log10 E[(u/(1 + u))^2T], u ~ U(1, 99), − 0.3 for what moves the gates"
                source = "Tallec & Ollivier 2018, eq. 16"
                comparisons.append(Comparison(quantity, at_least(bound - 0.3, formula, source), totals))
                continue
            gain = self._gain_per_step(name)
            value = gain * (self.steps - 1)
            formula, source = _SOURCES[CASES[name]["cell"]]
            tolerance = 0.5 * (self.steps - 1) * math.log10(1 + RATE_ERROR)
            comparisons.append(Comparison(quantity, near(value, tolerance, formula, source), totals))
            line = tuple(gain * (self.steps - 1 - time) for time in times)
            curves.append(Curve(name, times, line, Origin.EXPECTED))
            if name in REFERENCE and (self.steps, self.hidden) == (100, 256):
                known = near(REFERENCE[name], 0.5, "simulated", "THEORY.md, section 4")
                comparisons.append(Comparison(f"{quantity} (earlier simulation)", known, totals))
        return Outcome(tuple(comparisons), (_picture(curves),))

    def _measure(self, name: str, seed: int) -> list[float]:
        """log10 ‖gradient‖ of the state at every step relative to the last; of an LSTM the cell state."""
        flow = draw(
            lambda: RecurrentNet(inputs=self.hidden, hidden=self.hidden, **CASES[name]),
            gaussian(self.batch, self.steps, self.hidden, seed=seed),
            seed,
        )
        profile = flow.time_profile()
        state = "cell:cell_l0" if CASES[name]["cell"] == "lstm" else "cell:hidden_l0"
        return relative([profile[state][time].log10_norm for time in range(self.steps)])

    def _gain_per_step(self, name: str) -> float:
        """What theory expects of log10 ‖gradient‖, per step back."""
        case = CASES[name]
        if case["cell"] == "gru":
            return gru_rate(DEFAULT, DEFAULT, steps=self.steps).log10_gain(1)
        if case["cell"] == "lstm":
            bias = case.get("forget_bias", 0.0)
            return lstm_rate(DEFAULT, DEFAULT, forget_bias=bias, steps=self.steps).log10_gain(1)
        init = case.get("recurrent_init", "default")
        sigma_w2 = {"default": DEFAULT, "orthogonal": 1.0, "normal": case.get("gain", 1.0) ** 2}[init]
        drive = (1.0 if init == "normal" else DEFAULT) + 2 * DEFAULT / self.hidden  # two bias vectors
        return 0.5 * math.log10(rnn_rate("tanh", sigma_w2, drive))

    def _open_units(self) -> float:
        """What the forget gates of the chrono init alone carry over the sequence, log10 of the norm."""
        longest = CASES["LSTM, chrono"]["chrono"]
        grid = 10_000
        units = (1 + (longest - 2) * (k + 0.5) / grid for k in range(grid))
        carried = math.fsum((u / (1 + u)) ** (2 * (self.steps - 1)) for u in units) / grid
        return 0.5 * math.log10(carried)


def _picture(curves: list[Curve]) -> Lines:
    return Lines(
        "time",
        "Gradient by time step",
        "Length of the gradient of the state at each time step, relative to that at the last step on the "
        "right; a decade is a factor of 10. Drawn through: mean over random nets with its 95 % interval. "
        "Dashed: expected. What has fallen below 10⁻⁶ teaches a net nothing about that step.",
        Axis("time step of the sequence"),
        Axis("‖gradient at t‖/‖gradient at the end‖", decades=True),
        tuple(curves),
    )
