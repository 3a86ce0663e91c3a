"""Surgery: changes to models, optimizers and losses as data.

    from evenflow.surgery import Patch, Reinitialise, SwapActivation

    patch = Patch([SwapActivation(to="relu", where="blocks.*"), Reinitialise("he")])
    better = patch.apply(model)        # an edited copy; the model is left as it is
    print(patch.code(model))           # the change as PyTorch code
    patch.save("patch.json")           # and evenflow.apply(model, "patch.json")
    patch.undo(better)                 # as it was, to the bit

A patch that does not fit a model raises a :class:`PatchError`, which says why, and
changes nothing. :data:`EDITS` holds every edit by name.
"""

from evenflow.surgery.edit import EDITS, Applicability, Edit
from evenflow.surgery.edits.activation import SwapActivation
from evenflow.surgery.edits.advice import Advice
from evenflow.surgery.edits.cell import ReplaceCell
from evenflow.surgery.edits.clip import ClipGradient
from evenflow.surgery.edits.gan import GanLoss
from evenflow.surgery.edits.norm import InsertNorm
from evenflow.surgery.edits.optimizer import SetLearningRate, SetOptimizer, SetOption, WarmUp
from evenflow.surgery.edits.output import RemoveOutputActivation, SetLoss, SetOutputActivation, UseLogits
from evenflow.surgery.edits.precision import Autocast, LossScale, SetDtype
from evenflow.surgery.edits.recurrent import InitRecurrent
from evenflow.surgery.edits.reinitialise import Reinitialise
from evenflow.surgery.edits.residual import DepthScaled, Fixup
from evenflow.surgery.edits.scale import ScaleWeights
from evenflow.surgery.edits.shape import ShapeActivation
from evenflow.surgery.edits.skip import InsertSkip
from evenflow.surgery.edits.spectral import SpectralNorm
from evenflow.surgery.edits.standardise import StandardiseInput, StandardiseTarget
from evenflow.surgery.edits.transformer import DeepNormScaling, PreNorm, QKNorm
from evenflow.surgery.edits.unfreeze import Unfreeze
from evenflow.surgery.errors import PatchError
from evenflow.surgery.patch import Patch, apply

__all__ = [
    "EDITS",
    "Advice",
    "Applicability",
    "Autocast",
    "ClipGradient",
    "DeepNormScaling",
    "DepthScaled",
    "Edit",
    "Fixup",
    "GanLoss",
    "InitRecurrent",
    "InsertNorm",
    "InsertSkip",
    "LossScale",
    "Patch",
    "PatchError",
    "PreNorm",
    "QKNorm",
    "Reinitialise",
    "RemoveOutputActivation",
    "ReplaceCell",
    "ScaleWeights",
    "SetDtype",
    "SetLearningRate",
    "SetLoss",
    "SetOptimizer",
    "SetOption",
    "SetOutputActivation",
    "ShapeActivation",
    "SpectralNorm",
    "StandardiseInput",
    "StandardiseTarget",
    "SwapActivation",
    "Unfreeze",
    "UseLogits",
    "WarmUp",
    "apply",
]
