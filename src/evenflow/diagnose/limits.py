"""Numbers that several rules over runs compare with, each with its source."""

from __future__ import annotations

from evenflow.diagnose.rule import Threshold

FLAT = Threshold(
    0.02,
    "share of its starting level that the loss must fall by to count as falling at all",
    "a judgement: for ten classes .046 nats, what one more right answer in some fifty is worth",
)
CHANCE = Threshold(
    3.0,
    "standard errors by which a change of the loss must exceed its noise",
    "three standard errors leave .1 % to chance",
)
UNSURE = Threshold(
    0.1,
    "share of its starting level that a fall within noise may come to and still be called none",
    "a judgement: what seems to be more may be real, and is left to longer runs",
)
PATIENCE = Threshold(
    50.0,
    "losses below which a flat curve is not yet a finding",
    "a judgement: shorter than the warm-up of any published recipe that we know of",
)
GUESSING = Threshold(
    0.03,
    "relative distance from ln C within which a loss is that of guessing among C classes",
    "ln C is the cross-entropy of the uniform answer; .03 is a judgement, wide enough for unequal classes",
)
KNOWS_MORE = Threshold(
    0.7,
    "share of ln C below which a loss at its start shows a model that was trained before",
    "a judgement: an untrained model answers at random and has ln C or more",
)
POLYAK = Threshold(
    4.0,
    "learning rate times squared gradient norm over loss from which plain steps overshoot",
    "on ½λx² this ratio is 2·lr·λ, and gradient descent diverges from lr·λ = 2 on "
    "(Polyak 1964; Cohen et al. 2021); a loss that ends above 0 makes it smaller, never larger",
)
LARGE_UPDATE = Threshold(
    0.1,
    "update over weight (RMS) of the typical weight matrix, from which steps are large",
    "the upper bound of TheDeepChecker (log10 between −4 and −1) and of torchmortem",
)
SMALL_UPDATE = Threshold(
    1e-4,
    "update over weight (RMS) of the typical weight matrix, below which steps are small",
    "the lower bound of TheDeepChecker (log10 between −4 and −1)",
)
USUAL_UPDATE = Threshold(
    1e-3,
    "update over weight (RMS) of the typical weight matrix, from which to ten times as much is usual",
    "Karpathy, CS231n notes on learning: 'somewhere around 1e-3'; up to ten times is a judgement",
)
LEAP = Threshold(
    2.0,
    "times its first value that the loss reaches in the first tenth of the steps, to count as a leap",
    "a judgement: initial losses of one task differ by less between seeds and batches",
)
OFF_SCALE = Threshold(
    10.0,
    "RMS of the inputs, or root of the loss over RMS of the output, from which data are called unscaled",
    "a judgement, the same as in EF201: ten times the size that every initialisation assumes",
)
PERSISTENT = Threshold(
    0.5,
    "share of the sampled steps at which it must be so",
    "a judgement: the typical step",
)
AMPLIFIED = Threshold(
    1.0,
    "decades that a gradient gains along time, at which a recurrence is suspected where training suffers",
    "a judgement: a step that suits the last time step is then ten times too large for the first",
)
LOST_IN_TIME = Threshold(
    3.0,
    "decades below the largest at which a time step is lost, where training suffers",
    "as in EF101: AutoTrainer's ratio of 1e-3",
)
UNIT_RADIUS = Threshold(
    1.0,
    "spectral radius of recurrent weights above which they amplify",
    "a linear or rectified step of radius 1 keeps the gradient (Pascanu 2013, section 2.1)",
)
HALVED = Threshold(
    0.5,
    "share by which the loss has come down at most, from its start or, if less, from what guessing costs",
    "a judgement: a training that halves its loss does not suffer",
)
