"""Every symptom and cause in a few sentences, with the remedies that rules hand out.

A symptom or cause that has a rule of its own is explained there at length; here
is what all of them share: what it is, how it is told, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from evenflow.diagnose.finding import Cause, CauseName, Symptom


@dataclass(frozen=True, slots=True)
class Entry:
    """One cause.

    Attributes:
        text: What it is and how it is told.
        remedies: What to do, most promising first.
        words: Everyday names.
    """

    text: str
    remedies: tuple[str, ...]
    words: tuple[str, ...] = ()


SYMPTOMS: dict[Symptom, tuple[str, tuple[str, ...]]] = {
    Symptom.VANISHING_GRADIENT: (
        "The gradient shrinks by orders of magnitude between the loss and the first layers, "
        "which then learn slowly or not at all.",
        ("vanish", "vanishing", "small gradients", "gradient too small"),
    ),
    Symptom.EXPLODING_GRADIENT: (
        "The gradient grows by orders of magnitude between the loss and the first layers; "
        "one learning rate cannot suit all of them, and the loss spikes or turns NaN.",
        ("explode", "exploding", "large gradients", "gradient too large"),
    ),
    Symptom.DEAD_UNITS: (
        "Rectifier units that are zero for every sample: they pass no gradient and cannot learn their "
        "way back.",
        ("dead relu", "dying relu", "dead", "dead neurons", "dead units", "dying", "zero activations"),
    ),
    Symptom.SATURATION: (
        "Sigmoid- or tanh-like units that sit on their flat ends, where the derivative is nearly zero.",
        ("saturated", "saturating", "saturation"),
    ),
    Symptom.NON_FINITE: (
        "NaN or infinite numbers in activations, gradients or weights.",
        ("nan", "nans", "inf", "infinity", "infinite", "not finite", "loss is nan", "overflow to inf"),
    ),
    Symptom.LOSS_NOT_DECREASING: (
        "The loss stays where it started although training runs. It is the mark of wiring faults "
        "(a wrong loss, a detached part) and of learning rates that are far off.",
        ("loss stuck", "plateau", "stuck", "not learning", "does not learn", "no learning"),
    ),
    Symptom.OSCILLATING: (
        "The loss swings up and down without settling, most often because the learning rate is too high.",
        ("oscillation", "unstable", "spikes", "loss spikes"),
    ),
}
"""Symptom → what it is, everyday names."""

CAUSES: dict[CauseName, Entry] = {
    CauseName.SATURATING_ACTIVATION: Entry(
        "A bounded activation function passes on only a small part of the gradient. A sigmoid's slope is at "
        "most 1/4, so each one costs .6 decades or more, and weights large enough to make up for it would "
        "drive it onto its flat ends. tanh has slope 1 at zero and is costly only when its input is large.",
        (
            "Replace the activation by ReLU, GELU or SiLU, with He initialisation.",
            "If it must stay bounded, use tanh with Glorot initialisation.",
            "Put a normalisation layer before each activation.",
        ),
        ("sigmoid", "tanh", "squashing"),
    ),
    CauseName.INIT_TOO_SMALL: Entry(
        "The weights are smaller than the activation function needs, so every layer shrinks the signal "
        "and the "
        "gradient. nn.Linear and nn.Conv draw from U(±1/√fan_in), a gain of √(1/3) whatever the activation: "
        "with ReLU each layer then keeps 1/√6 of the gradient.",
        (
            "Initialise the weights for the activation: He (kaiming_normal_) for rectifiers, "
            "Glorot (xavier_normal_) for tanh and sigmoid.",
            "Put a normalisation layer before each activation.",
        ),
        ("small init", "small weights", "initialisation", "initialization", "init"),
    ),
    CauseName.INIT_TOO_LARGE: Entry(
        "The weights are larger than the activation function needs: linear and rectifier layers "
        "amplify signal and "
        "gradient, bounded activations saturate. A standard deviation of 1 is a gain of √fan_in.",
        (
            "Initialise the weights for the activation: He (kaiming_normal_) for rectifiers, "
            "Glorot (xavier_normal_) for tanh and sigmoid.",
            "Put a normalisation layer before each activation.",
            "Until then, clip the gradient by its norm.",
        ),
        ("large init", "large weights"),
    ),
    CauseName.ZERO_INIT_SYMMETRY: Entry(
        "Weights that start at exactly zero pass no gradient to what lies below. One such layer opens "
        "with the first "
        "step, and many recipes begin so on purpose (Fixup, ReZero, zero-initialised heads). Two in a "
        "row never "
        "open, or leave all units of a layer equal for ever.",
        (
            "Initialise the weights at random; zeros are for biases and for the last layer of a "
            "residual branch.",
        ),
        ("zero init", "symmetry", "all zeros", "zero initialization"),
    ),
    CauseName.DEPTH_WITHOUT_SKIP: Entry(
        "Every layer multiplies the gradient by some factor, and a plain stack has no other way "
        "around: a mild "
        "factor to the power of the depth is not mild. A skip connection makes the factor 1 + f.",
        (
            "Add skip connections: x + f(x) around every one or two layers.",
            "Use fewer layers, or an initialisation at the edge of chaos (orthogonal).",
        ),
        ("depth", "too deep", "skip connection", "residual"),
    ),
    CauseName.MISSING_NORMALIZATION: Entry(
        "Nothing keeps the scale of activations in place, so errors of initialisation and of training "
        "add up.",
        ("Put BatchNorm, LayerNorm or RMSNorm before each activation.",),
        ("normalization", "normalisation", "batchnorm", "layernorm"),
    ),
    CauseName.NORMALIZATION_EXPLOSION: Entry(
        "In a plain stack BatchNorm itself amplifies gradients: with ReLU by √(π/(π−1)) = 1.21 per "
        "layer, whatever the "
        "weights, because it divides by a standard deviation that the rectifier has reduced.",
        (
            "Add skip connections around the normalised layers.",
            "Use LayerNorm or RMSNorm instead, with He initialisation.",
        ),
        ("batchnorm explosion",),
    ),
    CauseName.DEAD_RELU: Entry(
        "Rectifiers whose input is negative for every sample. They pass no gradient, so nothing brings "
        "them back. "
        "Large negative biases, a learning rate that is too high and unscaled inputs drive them there.",
        (
            "Use LeakyReLU, ELU or GELU, which pass some gradient below zero.",
            "Start biases at zero and use He initialisation.",
            "Lower the learning rate.",
        ),
        ("negative bias",),
    ),
    CauseName.LONG_RECURRENCE: Entry(
        "Through time the same weights are applied again and again, so the gradient goes as the step's "
        "gain to the "
        "power of the number of steps. A default LSTM loses about .22 decades per step, a default tanh "
        "RNN .25.",
        (
            "Replace a plain RNN by an LSTM or GRU; start the LSTM's forget-gate biases at 1 or, for known "
            "long-range memory, by chrono initialisation.",
            "Initialise the recurrent weights orthogonally.",
            "Use attention, or read out every step instead of the last.",
        ),
        ("rnn", "lstm", "gru", "bptt", "long sequences", "time steps"),
    ),
    CauseName.RECURRENT_GAIN_TOO_LARGE: Entry(
        "A recurrence whose step amplifies: over many steps the gradient explodes.",
        (
            "Clip the gradient by its norm.",
            "Initialise the recurrent weights orthogonally, or scale them so that their spectral "
            "radius is at most 1.",
        ),
        ("recurrent gain", "spectral radius"),
    ),
    CauseName.DISCRIMINATOR_SATURATION: Entry(
        "A discriminator that is sure of every sample sends its generator almost no gradient.",
        (
            "Use the non-saturating, hinge or Wasserstein loss for the generator.",
            "Train the discriminator less, or regularise it (R1, spectral norm).",
        ),
        ("gan", "discriminator", "generator starvation"),
    ),
    CauseName.POST_LN_DEPTH: Entry(
        "With the normalisation after each addition, every block halves what the skip carries, and the first "
        "blocks of a deep stack starve.",
        ("Move the normalisation inside the branch (pre-LN).", "Use DeepNorm's factors, and warm up."),
        ("post-ln", "post ln", "post-norm"),
    ),
    CauseName.RESIDUAL_GROWTH: Entry(
        "Residual branches add up without being scaled down: the stream and its gradient grow with depth.",
        (
            "Scale the last weights of each branch by 1/√(2·blocks), or start them at zero.",
            "Normalise at the head of each branch (pre-LN).",
        ),
        ("residual growth",),
    ),
    CauseName.ATTENTION_COLLAPSE: Entry(
        "Attention that looks at one key only, or at all alike: its scores pass no gradient.",
        ("Scale the scores by 1/√d_head.", "Normalise queries and keys (QK-norm)."),
        ("attention", "entropy collapse", "rank collapse"),
    ),
    CauseName.WRONG_LOSS_OR_OUTPUT: Entry(
        "The last activation and the loss do not fit together.",
        (
            "Give the loss what it expects: logits to cross_entropy and binary_cross_entropy_with_logits, "
            "log-probabilities to nll_loss.",
        ),
        ("wrong loss", "double softmax", "softmax"),
    ),
    CauseName.UNSCALED_INPUT: Entry(
        "The inputs are far from unit size (pixels from 0 to 255, raw dollars), which no "
        "initialisation expects.",
        ("Standardise the inputs to mean 0 and standard deviation 1.",),
        ("input scale", "unnormalized input", "unnormalised input", "scaling"),
    ),
    CauseName.UNSCALED_TARGET: Entry(
        "The targets are far from unit size, so the loss and its gradient are huge or the output "
        "cannot reach them.",
        ("Standardise the targets, and undo it when predicting.",),
        ("target scale",),
    ),
    CauseName.LEARNING_RATE_TOO_HIGH: Entry(
        "Steps larger than the loss surface allows: the loss swings, spikes or diverges.",
        ("Divide the learning rate by 10.", "Warm it up, and clip the gradient by its norm."),
        ("learning rate too high", "lr too high", "high learning rate", "learning rate"),
    ),
    CauseName.LEARNING_RATE_TOO_LOW: Entry(
        "Steps so small that nothing happens in the time given.",
        ("Multiply the learning rate by 10.",),
        ("learning rate too low", "lr too low", "low learning rate"),
    ),
    CauseName.FROZEN_OR_DETACHED: Entry(
        "No gradient comes to parameters that should learn.",
        (
            "Remove .detach(), .data, .item(), NumPy round trips and torch.no_grad() between the "
            "parameter and the loss.",
        ),
        ("frozen", "detached", "detach", "requires_grad", "no grad", "unused parameters"),
    ),
    CauseName.PRECISION_UNDERFLOW: Entry(
        "Numbers smaller than the format holds became zero.",
        ("Scale the loss (torch.amp.GradScaler), or use bfloat16 instead of float16.",),
        ("underflow", "fp16", "mixed precision", "amp"),
    ),
    CauseName.PRECISION_OVERFLOW: Entry(
        "Numbers larger than the format holds became infinite; float16 ends at 65504.",
        ("Use bfloat16 or float32 for the op that overflows.",),
        ("overflow",),
    ),
    CauseName.UPDATE_LOST_TO_ROUNDING: Entry(
        "Updates smaller than half a unit in the last place of their weight change nothing.",
        ("Keep a float32 copy of the weights.", "Round stochastically."),
        ("rounding", "bf16", "bfloat16"),
    ),
    CauseName.CLIPPING_ALWAYS_ACTIVE: Entry(
        "Every step is clipped, so the clipping threshold sets the step and not the gradient.",
        ("Raise the clipping threshold, or lower the learning rate and remove it.",),
        ("clipping", "gradient clipping"),
    ),
    CauseName.OPTIMIZER_EPSILON_DOMINATES: Entry(
        "Adam divides by √v + ε. Where gradients are smaller than ε they are no longer normalised.",
        ("Lower ε (1e-15 is harmless in float32).", "Scale the loss."),
        ("adam", "epsilon", "adam epsilon"),
    ),
    CauseName.UNKNOWN: Entry(
        "The numbers show where, but none of the known causes explains it.",
        ("Look at the named op, and at what it reads.",),
    ),
}

RELEVANT = 0.15
"""Causes that explain less of a symptom than this share give no remedies (a judgement: one part in seven)."""


def remedies(causes: Iterable[Cause]) -> tuple[str, ...]:
    """Remedies of the causes that matter, best cause first, none twice."""
    found: dict[str, None] = {}
    for cause in causes:
        if cause.confidence >= RELEVANT:
            found |= dict.fromkeys(CAUSES[cause.name].remedies)
    return tuple(found)
