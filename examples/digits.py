"""Three 20-layer nets on scikit-learn's handwritten digits (1797 images of 8x8 pixels).

    evenflow check examples/digits.py:sigmoid_net
    evenflow check examples/digits.py:glorot_net
    evenflow check examples/digits.py:residual_net

Plain PyTorch, as one would write it; nothing here knows of evenflow.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

DEPTH, WIDTH, BATCH = 20, 128, 256


def digits():
    """A batch of images [BATCH, 64], each pixel with mean 0 and variance 1 over the set, and its labels."""
    images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    images = (images - images.mean(0)) / images.std(0).clamp(min=1)
    return images[:BATCH].float(), labels[:BATCH]


def sigmoid_net():
    """What deep learning looked like before 2010: its first layers never learn."""
    layers = [nn.Linear(64, WIDTH), nn.Sigmoid()]
    for _ in range(DEPTH - 1):
        layers += [nn.Linear(WIDTH, WIDTH), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    images, labels = digits()
    return model, images, lambda output: F.cross_entropy(output, labels)


def glorot_net():
    """The same with the initialisation that was made for it: better by four decades, and still dead."""
    model, images, loss = sigmoid_net()
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model, images, loss


class Block(nn.Module):
    """x + f(x) with f = Linear, ReLU, Linear after a ReLU, both with He's initialisation.

    The second is divided by the root of the number of blocks, so that their sum
    stays as large as one of them.
    """

    def __init__(self, blocks):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.second.weight /= blocks**0.5

    def forward(self, x):
        return x + self.second(F.relu(self.first(F.relu(x))))


def residual_net():
    """As many layers, with ReLU, He's initialisation and a skip over every two of them."""
    blocks = DEPTH // 2
    model = nn.Sequential(
        nn.Linear(64, WIDTH), *(Block(blocks) for _ in range(blocks)), nn.ReLU(), nn.Linear(WIDTH, 10)
    )
    images, labels = digits()
    return model, images, lambda output: F.cross_entropy(output, labels)
