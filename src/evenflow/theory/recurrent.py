"""How fast gradients fade or grow per time step in plain RNNs, LSTMs and GRUs.

*Plain RNN*, h' = φ(W h + U x + b): as in a chain, σ_w² E φ'² per step at the
fixed point of q, to which the input adds its own variance.

*Gated cells* reuse their weights, and the direct path (the forget gate) and the
feedback through the weights add *coherently*. A gradient mode that both pass
decays per step by the mean gate plus the mean feedback,

    rate of E‖gradient‖² = (f̄ + κ̄)²,      κ̄² = σ_w² P̄ Ḡ,

where f̄ is the mean forget gate, P̄ the mean over units of (time average of
∂h/∂c)², and Ḡ the sum over gates of the mean over units of (time average of
∂c/∂gate pre-activation)². Averages over time come first: what fluctuates along
the sequence does not add up. In a GRU the update gate z, which keeps h, stands
for f, and the feedback is (1 − z) n' r alone: what goes through z and r
themselves changes sign along the sequence and adds less than 1 % to κ̄² (measured
at σ_w² up to 4).

With *fresh* weights at every step, as mean-field papers assume, gains add as
squares instead; :func:`lstm_spectral_radius` is that rate, and too low for real
cells.

The gates' statistics have no closed form, since the state's distribution has
none: they are averaged over a random cell run on random inputs, in numpy. At the
default sizes another seed changes a rate by about 0.5 %.

References:
    D. Gilboa et al., "Dynamical isometry and a mean field theory of LSTMs and
    GRUs", 2019 (fresh weights). M. Chen et al., ICML 2018 (plain RNN).
    The coherent sum is this project's; tests compare it with torch cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

from evenflow.theory.activations import ActivationLike
from evenflow.theory.errors import TheoryError, require_variances
from evenflow.theory.fixed_points import q_star
from evenflow.theory.gaussian import Array
from evenflow.theory.maps import chi

WIDTH = 256
"""Hidden size of the random cell that is run."""
BATCH = 8
"""Sequences that go through it at once."""
UNITS = 10_000
"""Independent units of the cell with fresh weights."""


@dataclass(frozen=True, slots=True)
class GatedRate:
    """Per-step rate of a gated cell that reuses its weights.

    Attributes:
        cell: ``"lstm"`` or ``"gru"``.
        carry: Mean of the gate that keeps the state, f̄ (LSTM) or z̄ (GRU).
        feedback: κ̄, mean gain through the recurrent weights.
    """

    cell: str
    carry: float
    feedback: float

    @property
    def rate(self) -> float:
        """Factor on E‖gradient‖² per time step backwards, (carry + feedback)²."""
        return (self.carry + self.feedback) ** 2

    def log10_gain(self, steps: int) -> float:
        """log10 of the factor on the gradient's norm over that many time steps."""
        return steps * math.log10(self.carry + self.feedback)


def rnn_rate(activation: ActivationLike, sigma_w2: float, input_variance: float = 0.0) -> float:
    """Rate of a plain RNN, σ_w² E φ'(√q z)², at the q that its recurrence settles at.

    Args:
        activation: φ, ``"tanh"`` or ``"relu"`` in PyTorch.
        sigma_w2: hidden size · Var(W_hh).
        input_variance: What input and biases add to the pre-activations'
            variance: input size · Var(W_ih) · E x² + Var(b_ih) + Var(b_hh).

    Returns:
        Factor on E‖gradient‖² per time step backwards.

    Raises:
        TheoryError: A variance is negative, or the state grows without bound.
    """
    q = q_star(activation, sigma_w2, input_variance)
    if math.isinf(q):
        raise TheoryError(
            f"the state of this RNN grows without bound at sigma_w2 = {sigma_w2:g}; take a smaller one"
        )
    return chi(activation, q, sigma_w2)


def lstm_rate(
    sigma_w2: float,
    input_variance: float,
    *,
    forget_bias: float = 0.0,
    input_bias: float = 0.0,
    steps: int = 100,
    seed: int = 0,
) -> GatedRate:
    """Rate of an LSTM with one set of weights for all steps.

    Args:
        sigma_w2: hidden size · Var(W_hh), the same for all gates.
        input_variance: What the input adds to the variance of each gate's
            pre-activation, input size · Var(W_ih) · E x². Inputs are taken to
            be independent over time.
        forget_bias: Bias of the forget gate; in PyTorch the *sum* of
            ``bias_ih`` and ``bias_hh`` there.
        input_bias: Bias of the input gate, likewise.
        steps: Length of the sequence, from a zero state. With a large forget
            bias the cell takes long to fill, and its rate depends on it.
        seed: Of the random weights and inputs.

    Raises:
        TheoryError: A variance is negative or not finite, or steps is below 1.
    """
    _check(sigma_w2, input_variance, steps)

    def run() -> Iterator[tuple[Array, ...]]:
        rng = np.random.default_rng(seed)
        weight = rng.normal(scale=math.sqrt(sigma_w2 / WIDTH), size=(WIDTH, 4 * WIDTH))
        bias = np.repeat([input_bias, forget_bias, 0.0, 0.0], WIDTH)
        c = h = np.zeros((BATCH, WIDTH))
        for _ in range(steps):
            drive = rng.normal(scale=math.sqrt(input_variance), size=(BATCH, 4 * WIDTH))
            i, f, g, o = _lstm_gates(*np.split(h @ weight + drive + bias, 4, axis=1))
            before, c = c, f * c + i * g
            squashed = np.tanh(c)
            h = o * squashed
            yield f, o * (1 - squashed**2), before * f * (1 - f), g * i * (1 - i), i * (1 - g**2)

    f, dh_dc, *dc_dgates = _mean_over_time(run())
    feedback = sigma_w2 * np.mean(dh_dc**2) * sum(np.mean(gain**2) for gain in dc_dgates)
    return GatedRate("lstm", float(np.mean(f)), math.sqrt(feedback))


def gru_rate(
    sigma_w2: float,
    input_variance: float,
    *,
    update_bias: float = 0.0,
    steps: int = 100,
    seed: int = 0,
) -> GatedRate:
    """Rate of a GRU in PyTorch's form, h' = (1 − z) n + z h, n = tanh(u_n + r · W_hn h).

    Args:
        sigma_w2: hidden size · Var(W_hh), the same for all gates.
        input_variance: As in :func:`lstm_rate`.
        update_bias: Bias of the update gate z, which keeps h in PyTorch.
        steps: Length of the sequence, from a zero state.
        seed: Of the random weights and inputs.

    Raises:
        TheoryError: A variance is negative or not finite, or steps is below 1.
    """
    _check(sigma_w2, input_variance, steps)

    def run() -> Iterator[tuple[Array, ...]]:
        rng = np.random.default_rng(seed)
        weight = rng.normal(scale=math.sqrt(sigma_w2 / WIDTH), size=(WIDTH, 3 * WIDTH))
        h = np.zeros((BATCH, WIDTH))
        for _ in range(steps):
            drive = rng.normal(scale=math.sqrt(input_variance), size=(BATCH, 3 * WIDTH))
            recurrent_r, recurrent_z, recurrent_n = np.split(h @ weight, 3, axis=1)
            drive_r, drive_z, drive_n = np.split(drive, 3, axis=1)
            r = special.expit(recurrent_r + drive_r)
            z = special.expit(recurrent_z + drive_z + update_bias)
            n = np.tanh(drive_n + r * recurrent_n)
            yield z, (1 - z) * (1 - n**2) * r
            h = (1 - z) * n + z * h

    z, dh_dn = _mean_over_time(run())
    return GatedRate("gru", float(np.mean(z)), math.sqrt(sigma_w2 * np.mean(dh_dn**2)))


def lstm_spectral_radius(
    sigma_w2: float, input_variance: float, *, forget_bias: float = 0.0, steps: int = 100, seed: int = 0
) -> float:
    """Rate of an LSTM that draws fresh weights at every step (not what real cells do).

    The mean squares of ∂L/∂c and ∂L/∂h go back by the matrix

        [[A + P σ_w² G,  P σ_w² O],  [σ_w² G,  σ_w² O]],

    A = E f², P = E (o (1 − tanh² c))², G = E c²f'² + E g²i'² + E i²g'²,
    O = E tanh² c o'², whose spectral radius is the rate.

    Args:
        sigma_w2: hidden size · Var(W_hh).
        input_variance: As in :func:`lstm_rate`.
        forget_bias: As in :func:`lstm_rate`.
        steps: Steps to run from a zero state; the second half is averaged.
        seed: Of the random pre-activations.

    Raises:
        TheoryError: A variance is negative or not finite, or steps is below 1.

    References:
        D. Gilboa et al. 2019.
    """
    _check(sigma_w2, input_variance, steps)
    rng = np.random.default_rng(seed)
    c, h = np.zeros(UNITS), np.zeros(UNITS)
    mean_squares = []
    for step in range(steps):
        u = rng.normal(scale=math.sqrt(sigma_w2 * np.mean(h**2) + input_variance), size=(4, UNITS))
        i, f, g, o = _lstm_gates(u[0], u[1] + forget_bias, u[2], u[3])
        before, c = c, f * c + i * g
        squashed = np.tanh(c)
        h = o * squashed
        if step >= steps // 2:
            gains = (f, o * (1 - squashed**2), squashed * o * (1 - o))
            dc_dgates = (before * f * (1 - f), g * i * (1 - i), i * (1 - g**2))
            mean_squares.append([np.mean(gain**2) for gain in gains + dc_dgates])
    a, p, o2, *by_gate = np.mean(mean_squares, axis=0)
    g2 = sum(by_gate)
    matrix = [[a + p * sigma_w2 * g2, p * sigma_w2 * o2], [sigma_w2 * g2, sigma_w2 * o2]]
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def _lstm_gates(u_i: Array, u_f: Array, u_g: Array, u_o: Array) -> tuple[Array, Array, Array, Array]:
    return special.expit(u_i), special.expit(u_f), np.tanh(u_g), special.expit(u_o)


def _mean_over_time(steps: Iterable[tuple[Array, ...]]) -> list[Array]:
    """The mean over steps of each of the arrays that every step gives."""
    totals: list[Array] = []
    count = 0
    for arrays in steps:
        totals = [total + array for total, array in zip(totals, arrays, strict=False)] or list(arrays)
        count += 1
    return [total / count for total in totals]


def _check(sigma_w2: float, input_variance: float, steps: int) -> None:
    require_variances(sigma_w2=sigma_w2, input_variance=input_variance)
    if steps < 1:
        raise TheoryError(f"a sequence has at least 1 step, got {steps}")
