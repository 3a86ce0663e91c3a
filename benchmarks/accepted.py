"""Fixes that were published for programs of the corpus, as patches, and their healthy twins.

What a source says in words ("standardise inputs, sigmoid output") is written with
the edits of :mod:`evenflow.surgery`, where these can say it. Of several published
fixes all are listed; the best of them is the one to reach.
"""

from __future__ import annotations

from itertools import islice

import torch

from evenflow import Program
from evenflow.surgery import (
    ClipGradient,
    Edit,
    Fixup,
    GanLoss,
    InitRecurrent,
    InsertNorm,
    InsertSkip,
    Patch,
    Reinitialise,
    RemoveOutputActivation,
    ReplaceCell,
    SetLearningRate,
    SetLoss,
    SetOptimizer,
    SetOutputActivation,
    StandardiseInput,
    StandardiseTarget,
    SwapActivation,
    Unfreeze,
    UseLogits,
)

TWINS = {
    "gh-facial-keypoints-adam01": "hc-facial-keypoints-fixed",
    "gh-nielsen-relu-lr3": "hc-nielsen-sigmoid",
    "mlm-regression-explode": "hc-mlm-regression-clip",
    "so-31880720": "hc-so31880720-fixed",
    "so-48221692": "hc-so48221692-fixed",
    "so-50306988": "hc-so50306988-fixed",
    "tb-tanh-50-n005": "hc-tanh-50-glorot",
    "tdc-deepcnn-low-lr": "hc-tdc-deepcnn",
}
"""Faulty program → the healthy one of the corpus that is the same without the fault."""

BATCHES = 64
"""From which mean and size of inputs and targets are taken: one batch can be a single sample."""

_NORM, _HE = InsertNorm("batch"), Reinitialise("he")
_RELU = (SwapActivation(to="relu"), Reinitialise("he", activation="relu"))
_SELU = (SwapActivation(to="selu"), Reinitialise("lecun"))
_INPUT = "inputs are standardised"
_TARGET = "targets are standardised"

_PUBLISHED: dict[str, tuple[tuple[Edit | str, ...], ...]] = {
    "at-motiv-dyingrelu-34x128": (_SELU, (_NORM,), (_HE,), (SwapActivation(to="leaky_relu"),)),
    "at-motiv-osc-20x128": ((SetOptimizer("adam", lr=1e-3),), (SetLearningRate(factor=0.1),)),
    "at-mnist-lenet-sigmoid8-2af630c4": (_SELU, _RELU, (_NORM,)),
    "at-mnist-lenet-relu16-tinyinit": (_SELU, (_NORM,), (_HE,)),
    "at-mnist-lenet-deep13-rmsprop": ((SetLearningRate(factor=0.1),), _SELU, (_NORM,)),
    "so-31556268": ((SetLearningRate(lr=0.1),), (SetLoss("mse"),), (SetLoss("mse"), SetLearningRate(lr=1.0))),
    "so-33969059": ((_INPUT, _TARGET, RemoveOutputActivation()),),
    "so-34311586": ((SetOutputActivation("sigmoid"), SetLearningRate(lr=0.1)), (SetLearningRate(lr=0.1),)),
    "so-34673164": ((_INPUT,),),
    "so-39217567": ((SetLoss("bce_with_logits"),), (SwapActivation(to="relu", where="activation1"),)),
    "so-44066044": ((_INPUT,),),
    "so-46995209": ((_INPUT,), (_INPUT, SwapActivation(to="relu"))),
    "so-47352366": ((SetOutputActivation("softmax"),),),
    "so-48251943": ((RemoveOutputActivation(),),),
    "so-52800582": ((_INPUT, _TARGET),),
    "so-two-layer-zeros-softmax": ((Reinitialise("glorot"),),),
    "se-deep-linear-unscaled-target": ((_TARGET,),),
    "se-sine-sigmoid-out": ((_INPUT, RemoveOutputActivation()), (RemoveOutputActivation(),)),
    "umlaut-b-linear-lr-1e3": ((SetLearningRate(lr=1e-3),),),
    "tdc-ips4-normal1-init": ((_HE,),),
    "tdc-ips7-log-of-logits": ((UseLogits(),), (SetLoss("bce_with_logits"),)),
    "tdc-ips14-sum-ce-gd": ((SetLearningRate(factor=0.01),), (UseLogits(),)),
    "tdc-ips17-quadratic-sumsq": ((SetLearningRate(lr=1e-3),),),
    "dcr-cifar-conv2-zeros": ((Reinitialise("glorot"),),),
    "gh-informer-unscaled-nan": ((_INPUT, _TARGET), (_INPUT,)),
    "nyu-rnn-hard": ((ReplaceCell("lstm"),),),
    "gh-keras2194-lstm-relu": ((ClipGradient("norm", 1.0),),),
    "gh-pytorch2623-linear-rnn-softmax": ((UseLogits(),), (ClipGradient("norm", 1.0),)),
    "tb-rnn-tanh-exploding-clip": (
        (ClipGradient("norm", 1.0), InitRecurrent("orthogonal"), SetLearningRate(factor=0.1)),
        (ClipGradient("norm", 1.0),),
        (InitRecurrent("orthogonal"),),
        (SetLearningRate(factor=0.1),),
    ),
    "tb-rnn-tanh-parity200": ((ReplaceCell("lstm", forget_bias=1.0),), (ReplaceCell("gru"),)),
    "tb-lstm-forget-bias-neg": ((InitRecurrent("forget_bias"),),),
    "tb-wlm-rnnrelu-lr20-noclip": ((ClipGradient("norm", 0.25),), (SetLearningRate(lr=1.0),)),
    "tb-rnn-lr-low": ((SetOptimizer("adam", lr=1e-2),), (SetLearningRate(lr=0.1),)),
    "tb-deep-plain-30-std001": ((_HE,), (_NORM,), (InsertSkip("plain"),)),
    "tb-tanh-50-n005": ((Reinitialise("glorot"),), (Reinitialise("orthogonal"),)),
    "tb-tanh-bigstd": ((Reinitialise("glorot"),),),
    "tb-resnet-no-norm": ((Fixup("residual*.body"),), (_NORM,), (SetLearningRate(factor=0.1),)),
    "tb-relu-negbias": ((_HE,), (SwapActivation(to="leaky_relu"),)),
    "tb-mlp-zero-all": ((_HE,),),
    "tb-bc-unscaled-sgd": ((_INPUT,),),
    "tb-wine-tanh-unscaled": ((_INPUT,),),
    "tb-ae-sigmoid-deep": (_RELU, (SetOptimizer("adam", lr=1e-3),)),
    "tb-cnn-sigmoid-6": (_RELU, (_NORM,)),
    "tb-cnn-unscaled-sgd": ((_INPUT,),),
    "tb-cnn-frozen-backbone": ((Unfreeze(),),),
    "tb-gcn-16-plain": ((InsertSkip("plain"),), (InsertSkip("skipinit"),)),
    "tb-gan-ttur-d20x": ((SetLearningRate(lr=2e-4),),),
    "tb-gan-double-sigmoid": ((UseLogits(),), (GanLoss("non_saturating"), UseLogits())),
    "wgan-clip-vanish": ((_NORM,),),
    "wgan-clip-explode": ((_NORM,),),
}


def accepted(name: str, program: Program, seed: int) -> list[Patch]:
    """The published fixes of a program, the best known first; none if no edit can say them."""
    if name not in _PUBLISHED:
        return []
    parts = [batch for batch in islice(program.batches(seed), BATCHES) if len(batch) == 2]
    inputs, targets = (torch.cat(part) for part in zip(*parts, strict=True))
    found = []
    for wanted in _PUBLISHED[name]:
        edits: list[Edit] = []
        for one in wanted:
            if one is _INPUT:
                edits.append(StandardiseInput.of(inputs, 1 if inputs.dim() > 3 else -1))
            elif one is _TARGET:
                edits.append(StandardiseTarget.of(targets))
            elif not isinstance(one, str):
                edits.append(one)
        found.append(Patch(edits))
    return found


def published(name: str) -> int:
    """How many fixes of a program were published, its healthy twin included."""
    return len(_PUBLISHED.get(name, ())) + (name in TWINS)
