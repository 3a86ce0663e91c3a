"""The field's networks in plain PyTorch: depth, width, activation, init, norm and skips are arguments.

Build them inside :func:`evenflow.lab.seeds.seeded` to get the same weights again.
"""

from evenflow.lab.networks.adversarial import (
    Discriminator,
    Generator,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from evenflow.lab.networks.deep import DeepNet, ResidualNet
from evenflow.lab.networks.images import PlainCNN, ResNet
from evenflow.lab.networks.pieces import ACTIVATIONS, Init, activation, norm
from evenflow.lab.networks.recurrent import RecurrentNet
from evenflow.lab.networks.tailored import Tailored, dks, tailored_leaky_relu
from evenflow.lab.networks.transformer import Transformer

__all__ = [
    "ACTIVATIONS",
    "DeepNet",
    "Discriminator",
    "Generator",
    "Init",
    "PlainCNN",
    "RecurrentNet",
    "ResNet",
    "ResidualNet",
    "Tailored",
    "Transformer",
    "activation",
    "discriminator_loss",
    "dks",
    "generator_loss",
    "gradient_penalty",
    "norm",
    "tailored_leaky_relu",
]
