"""Cases for every edit: a model that it fits, inputs, and a model that it does not fit with what is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from evenflow.surgery import (
    Advice,
    Autocast,
    ClipGradient,
    DeepNormScaling,
    DepthScaled,
    Edit,
    Fixup,
    GanLoss,
    InitRecurrent,
    InsertNorm,
    InsertSkip,
    LossScale,
    Patch,
    PreNorm,
    QKNorm,
    Reinitialise,
    RemoveOutputActivation,
    ReplaceCell,
    ScaleWeights,
    SetDtype,
    SetLearningRate,
    SetLoss,
    SetOptimizer,
    SetOption,
    SetOutputActivation,
    ShapeActivation,
    SpectralNorm,
    StandardiseInput,
    StandardiseTarget,
    SwapActivation,
    Unfreeze,
    UseLogits,
    WarmUp,
)
from tests.surgery import nets
from tests.surgery.nets import chain, encoder, features


@dataclass
class Case:
    edit: Edit
    model: Callable[[], Any]
    inputs: Any
    misfit: Callable[[], Any] | None = None
    said: str = ""


X = features(5, 16)
SMALL = features(5, 8)
IMAGES = features(2, 3, 8, 8)
SEQUENCE = features(2, 6, 4)
TOKENS = features(2, 5, 8)


def convolutions() -> Any:
    return nets.Images()


def bare() -> nn.Module:
    """A model in which most edits find nothing to do."""
    return nn.Sequential(nn.Embedding(4, 16), nn.Dropout(0.0))


def frozen() -> nn.Module:
    model = chain()
    model[0].requires_grad_(False)
    return model


def gan() -> dict[str, nn.Module]:
    return {"generator": chain(2, 16, nn.ReLU, 16), "discriminator": chain(2, 16, nn.LeakyReLU, 1)}


def softmaxed() -> nn.Module:
    return nn.Sequential(*chain(), nn.Softmax(-1))


def _standardised() -> Any:
    return Patch(StandardiseInput((1.0,), (2.0,))).apply(chain())


def _restored() -> Any:
    return Patch(StandardiseTarget((1.0,), (2.0,))).apply(chain())


NO_ACTIVATION = (
    "it has no activation at '*'. Found: no activation that can be seen. Expected an activation module"
)
NO_LAYER = "at '*' there is Sequential at the root, Embedding at 0, Dropout at 1. Expected linear layers"

MODEL_CASES: dict[str, Case] = {
    "swap modules": Case(SwapActivation(to="relu"), chain, X, bare, NO_ACTIVATION),
    "swap with parameters": Case(SwapActivation(to="prelu"), chain, X),
    "swap one": Case(
        SwapActivation(to="silu", where="3"),
        chain,
        X,
        bare,
        "it has no activation at '3'",
    ),
    "swap calls": Case(
        SwapActivation(to="elu", where="", settings={"alpha": 0.5}),
        nets.Called,
        SMALL,
        bare,
        "Name its module's path.",
    ),
    "swap some calls": Case(
        SwapActivation(to="prelu", where="", from_="tanh", calls=(0, 2)), nets.Called, SMALL
    ),
    "swap held": Case(SwapActivation(to="gelu"), nets.Held, SMALL),
    "swap in a transformer": Case(SwapActivation(to="silu"), encoder, TOKENS),
    "swap eval": Case(SwapActivation(to="prelu"), lambda: chain().eval(), X),
    "glorot": Case(Reinitialise("glorot"), chain, X, bare, NO_LAYER),
    "glorot uniform": Case(Reinitialise("glorot", distribution="uniform", gain=5 / 3), chain, X),
    "he": Case(Reinitialise("he"), convolutions, IMAGES),
    "lecun": Case(Reinitialise("lecun", where="[0-4]"), chain, X, bare, "at '[0-4]' there is"),
    "orthogonal": Case(Reinitialise("orthogonal"), convolutions, IMAGES),
    "orthogonal attention": Case(Reinitialise("orthogonal"), encoder, TOKENS),
    "delta-orthogonal": Case(Reinitialise("delta_orthogonal"), convolutions, IMAGES),
    "critical": Case(
        Reinitialise("critical"), chain, X, nets.Held, "a critical init needs one activation, and it has"
    ),
    "critical conv": Case(Reinitialise("critical"), convolutions, IMAGES),
    "critical normal": Case(Reinitialise("critical", distribution="normal", q=0.5), chain, X),
    "lsuv": Case(Reinitialise("lsuv"), chain, X, bare, NO_LAYER),
    "lsuv conv": Case(Reinitialise("lsuv"), convolutions, IMAGES),
    "scaled": Case(ScaleWeights(2.0), chain, X, bare, NO_LAYER),
    "scaled kernels": Case(ScaleWeights(0.5, where="*"), convolutions, IMAGES),
    "tat smooth": Case(ShapeActivation(), chain, X, bare, NO_ACTIVATION),
    "tat leaky": Case(ShapeActivation(layers=50), convolutions, IMAGES),
    "tat of a kink": Case(
        ShapeActivation(), lambda: chain(act=nn.GELU), X, lambda: chain(act=nn.ELU), "elu has a kink"
    ),
    "dks": Case(ShapeActivation("dks"), lambda: chain(act=nn.SiLU), X),
    "shape calls": Case(ShapeActivation("dks", from_="tanh"), nets.Called, SMALL),
    "batch norm": Case(InsertNorm("batch"), chain, X, bare, "at '*' there is Sequential at the root"),
    "norm of own layers": Case(InsertNorm("layer"), lambda: nets.mixes()[:4], SMALL),
    "norm beside a sum": Case(
        InsertNorm("layer"), lambda: nn.Sequential(nets.Summed(), nn.Linear(8, 3)), SMALL
    ),
    "batch norm 2d": Case(InsertNorm("batch"), convolutions, IMAGES),
    "layer norm": Case(InsertNorm("layer", position="after"), chain, X),
    "layer norm of images": Case(InsertNorm("layer"), convolutions, IMAGES),
    "group norm": Case(InsertNorm("group", groups=3), convolutions, IMAGES),
    "rms norm": Case(InsertNorm("rms"), convolutions, IMAGES),
    "rms norm at layers": Case(
        InsertNorm("rms", where="one", position="after"),
        nets.Called,
        SMALL,
        bare,
        "no module is at 'one'",
    ),
    "skipinit": Case(InsertSkip(), chain, X, bare, "with as many outputs as inputs and stride 1"),
    "layerscale": Case(InsertSkip("layerscale"), convolutions, IMAGES),
    "plain skip": Case(InsertSkip("plain", where="two"), nets.Called, SMALL),
    "skip of own layers": Case(InsertSkip("plain"), nets.mixes, SMALL),
    "layerscale of own layers": Case(InsertSkip("layerscale"), nets.mixes, SMALL),
    "rezero of a chain": Case(InsertSkip("rezero", where="branches.*"), nets.Branches, SMALL),
    "pre-LN": Case(PreNorm(), encoder, TOKENS, chain, "Expected post-LN blocks"),
    "pre-LN of own blocks": Case(
        PreNorm(),
        lambda: nn.Sequential(nets.PostBlock(), nets.PostBlock()),
        TOKENS,
        lambda: encoder(norm_first=True),
        "The model has none",
    ),
    "deepnorm": Case(DeepNormScaling(), encoder, TOKENS, chain, "Expected post-LN blocks"),
    "deepnorm of own blocks": Case(
        DeepNormScaling(layers=8), lambda: nn.Sequential(nets.PostBlock(), nets.PostBlock()), TOKENS
    ),
    "qk-norm": Case(QKNorm(), encoder, TOKENS, chain, "Expected nn.MultiheadAttention"),
    "spectral norm": Case(SpectralNorm(), chain, X, bare, "Expected linear layers or convolutions"),
    "lstm": Case(ReplaceCell(), nets.Recurrent, SEQUENCE, chain, "Expected nn.RNN or nn.RNNCell"),
    "lstm of two layers and ways": Case(
        ReplaceCell(),
        lambda: nets.Recurrent(num_layers=2, bidirectional=True),
        SEQUENCE,
        nets.Stepped,
        'use ReplaceCell("gru")',
    ),
    "gru": Case(ReplaceCell("gru"), nets.Recurrent, SEQUENCE),
    "orthogonal recurrence": Case(
        ReplaceCell("orthogonal"),
        nets.Recurrent,
        SEQUENCE,
        lambda: nets.Recurrent(num_layers=2),
        "one layer and one direction",
    ),
    "gru cell": Case(ReplaceCell("gru"), nets.Stepped, SEQUENCE),
    "forget bias": Case(
        InitRecurrent("forget_bias", value=2.0),
        lambda: nets.Recurrent(nn.LSTM),
        SEQUENCE,
        nets.Recurrent,
        "Expected nn.LSTM",
    ),
    "chrono": Case(InitRecurrent("chrono", longest=50), lambda: nets.Recurrent(nn.LSTM), SEQUENCE),
    "chrono gru": Case(InitRecurrent("chrono", longest=50), lambda: nets.Recurrent(nn.GRU), SEQUENCE),
    "irnn": Case(
        InitRecurrent("identity"),
        nets.Recurrent,
        SEQUENCE,
        lambda: nets.Recurrent(nn.GRU),
        "Expected nn.RNN or nn.RNNCell",
    ),
    "irnn cell": Case(InitRecurrent("identity", value=0.9), nets.Stepped, SEQUENCE),
    "orthogonal recurrent": Case(
        InitRecurrent("orthogonal"),
        lambda: nets.Recurrent(nn.LSTM),
        SEQUENCE,
        chain,
        "Expected recurrent layers",
    ),
    "depth-scaled": Case(DepthScaled(), encoder, TOKENS, chain, "last layers of residual branches"),
    "depth-scaled by name": Case(DepthScaled("branches.*.2"), nets.Branches, SMALL),
    "fixup": Case(
        Fixup("branches.*", head="head"),
        nets.Branches,
        SMALL,
        chain,
        "no module is at 'branches.*'; its paths are '0', '1'",
    ),
    "fixup without head": Case(
        Fixup("branches.*"),
        nets.Branches,
        SMALL,
        lambda: nn.Linear(8, 8),
        "no module is at 'branches.*'",
    ),
    "remove softmax": Case(
        RemoveOutputActivation(), softmaxed, X, chain, "no activation can be seen at its end"
    ),
    "softmax to sigmoid": Case(
        SetOutputActivation("sigmoid"), softmaxed, X, chain, "no activation can be seen at its end"
    ),
    "called softmax to sigmoid": Case(SetOutputActivation("sigmoid"), nets.EndsWithCall, SMALL),
    "remove called softmax": Case(RemoveOutputActivation(), nets.EndsWithCall, SMALL),
    "standardise input": Case(
        StandardiseInput((1.0,), (20.0,)), chain, X, _standardised, "it has an input_mean already"
    ),
    "standardise channels": Case(
        StandardiseInput((1.0, 2.0, 3.0), (2.0, 3.0, 4.0), dimension=1), convolutions, IMAGES
    ),
    "standardise target": Case(
        StandardiseTarget((100.0,), (20.0,)), chain, X, _restored, "it has a target_mean already"
    ),
    "dtype": Case(
        SetDtype("float64"),
        chain,
        X,
        lambda: chain().double(),
        "Expected modules with parameters of another type",
    ),
    "dtype of a part": Case(SetDtype("bfloat16", where="2"), chain, X),
    "unfreeze": Case(Unfreeze(), frozen, X, chain, "Expected modules with frozen parameters"),
}


TRAINING_CASES: dict[str, Edit] = {
    "clip norm": ClipGradient(limit=0.1),
    "clip value": ClipGradient("value", 1e-3),
    "agc": ClipGradient("agc"),
    "percentile": ClipGradient("percentile"),
    "zclip": ClipGradient("zclip"),
    "set optimizer": SetOptimizer("adamw", 0.01, {"betas": [0.8, 0.9]}),
    "rate times": SetLearningRate(0.1),
    "rate": SetLearningRate(lr=0.3),
    "option": SetOption("momentum", 0.5),
    "warm-up": WarmUp(5),
    "loss scale": LossScale(1024.0),
    "autocast": Autocast(),
    "use logits": UseLogits(),
    "set loss": SetLoss("cross_entropy"),
    "set mse": SetLoss("mse"),
    "standardise target": StandardiseTarget((1.0,), (2.0,), "mae"),
}

GAN_CASES = {kind: GanLoss(kind) for kind in ("non_saturating", "lsgan", "hinge", "wgan_gp", "r1")}

ALL: list[Edit] = [
    *(case.edit for case in MODEL_CASES.values()),
    *TRAINING_CASES.values(),
    *GAN_CASES.values(),
    Advice("shorten the sequences"),
]
