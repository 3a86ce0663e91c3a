"""Title and reading guide of each picture, for somebody who sees it for the first time."""

from __future__ import annotations

from enum import StrEnum


class PictureName(StrEnum):
    """What a picture shows."""

    LOSS = "loss"
    TRAINING = "training"
    GRADIENT = "gradient"
    WATERFALL = "waterfall"
    TIME = "time"
    PARAMETER_GRADIENT = "parameter-gradient"
    ACTIVATION = "activation"
    SPECTRUM = "spectrum"
    EXPONENT_MAP = "exponent-map"


TITLES = {
    PictureName.LOSS: "Loss over training",
    PictureName.TRAINING: "Gradient by layer over training",
    PictureName.GRADIENT: "Gradient by layer",
    PictureName.WATERFALL: "From the loss back to the input",
    PictureName.TIME: "Gradient by time step",
    PictureName.PARAMETER_GRADIENT: "Gradient of each parameter",
    PictureName.ACTIVATION: "Activation by layer",
    PictureName.SPECTRUM: "What each number format would keep",
    PictureName.EXPONENT_MAP: "Where entries of the gradient lie",
}

READINGS = {
    PictureName.LOSS: "The loss at every step at which it was told.",
    PictureName.TRAINING: (
        "Size (RMS) of the gradient of each parameter at each sampled step, from the input at the top to the "
        "loss at the bottom. Columns that grow pale or dark from top to bottom are gradients that vanish or "
        "explode through the layers; rows that change from left to right do so during training."
    ),
    PictureName.GRADIENT: (
        "Size (RMS) of the loss gradient at the output of each layer, from the input on the left to "
        "the loss on the right, in powers of ten. A line that falls to the left is a gradient that "
        "vanishes on its way to the input; one that rises to the left explodes."
    ),
    PictureName.WATERFALL: (
        "The gradient starts at the loss (top) and passes through the net down to the input. Each bar "
        "starts at the size (norm) that arrives and ends at the size that is passed on. The number is "
        "the gain in decades: −1 lets a tenth through. All gains add up to the last bar."
    ),
    PictureName.TIME: (
        "Size (RMS) of the loss gradient at the hidden state of a recurrent layer, for each step of "
        "the sequence. A line that falls to the left means that early inputs hardly teach the net "
        "anything."
    ),
    PictureName.PARAMETER_GRADIENT: (
        "Size (RMS) of the gradient that the optimizer gets, for each parameter in the order of use."
    ),
    PictureName.ACTIVATION: "Size (RMS) of each layer's output, in powers of ten.",
    PictureName.SPECTRUM: (
        "How large single entries are, all layers together, one bin for each power of two (2⁻¹⁰ is "
        "about 10⁻³). The bars below the histogram show what each format holds, its light part with "
        "fewer digits. What lies to the left of a bar becomes zero in that format; what lies to the "
        "right becomes infinite."
    ),
    PictureName.EXPONENT_MAP: (
        "The same for the gradient, layer by layer: the darker a cell, the more of the layer's entries "
        "have that size. Cells below the lowest dashed line become zero in float16 unless the loss is "
        "scaled."
    ),
}

BESIDE_THE_LINE = {
    PictureName.GRADIENT: (
        "The line joins the tensors that all of the gradient passes through; dots beside it lie on "
        "branches, which carry a part of it."
    ),
    PictureName.ACTIVATION: (
        "The line joins the tensors that everything passes through; dots beside it lie on branches."
    ),
    PictureName.PARAMETER_GRADIENT: (
        "The line joins matrices and kernels; dots beside it are biases and other vectors."
    ),
}
"""Added where some places are not on the line."""

PREDICTED = "Dashed: predicted from the model alone."

PREDICTED_BAND = "The band around it is where one random draw of the weights should lie."

INTERVAL = "The band is where one random draw of the weights should lie."
"""Where the main curve itself is predicted."""

NOT_FINITE = "Some gradients hold NaN or infinite entries; the sizes are those of the finite ones."
