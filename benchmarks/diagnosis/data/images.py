"""Images: scikit-learn's digits, scaled up, and smooth random prototypes."""

from __future__ import annotations

import numpy as np
import torch
from benchmarks.diagnosis.data.dataset import Dataset, Request, UnbuildableError, generator
from sklearn import datasets as sk
from torch import Tensor
from torch.nn import functional as F


def to_range(x: Tensor, text: str) -> Tensor:
    """Map [0, 1] pixels to the range that the program feeds its network."""
    if text == "[0,1]":
        return x
    if text == "[0,255]":
        return x * 255
    if text == "[-1,1]":
        return x * 2 - 1
    if text == "standardised":
        mean = x.mean((0, 2, 3), keepdim=True)
        return (x - mean) / (x.std() + 1e-6)
    raise UnbuildableError(f"unknown pixel range {text!r}")


def finish(x: Tensor, y: Tensor, r: Request) -> Dataset:
    x = to_range(x, r.spec.get("range", "[0,1]"))
    if len(r.shape) == 1:
        x = x.flatten(1)
    return Dataset(x, y, "samples" if r.target == "images" else "labels")


@generator("synthetic_images")
def synthetic_images(r: Request) -> Dataset:
    """One smooth random prototype a class, shifted by a pixel now and then, with noise."""
    k, size, channels = r.spec["classes"], r.spec["size"], r.spec["channels"]
    coarse = torch.as_tensor(r.rng.rand(k, channels, 5, 5).astype(np.float32))
    proto = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    y = torch.as_tensor(r.rng.randint(k, size=r.count(2000)))
    x = proto[y]
    for shift in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        pick = torch.as_tensor(r.rng.rand(len(x)) < 0.2)
        x[pick] = torch.roll(x[pick], shift, (2, 3))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(r.rng.randint(2**31 - 1))))
    return finish((x + 0.1 * noise).clamp_(0, 1), y, r)


def digits(size: int) -> tuple[Tensor, Tensor]:
    """The 1797 digits [N, 1, size, size] in [0, 1] and their labels, in an order that is always the same."""
    raw = sk.load_digits()
    x = torch.as_tensor(raw.images.astype(np.float32)[:, None] / 16)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    if size != 8:
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return x[order], torch.as_tensor(raw.target.astype(np.int64))[order]


@generator("sklearn.load_digits upsampled to 28x28 (or synthetic_images)", "digits_images")
def digit_images(r: Request) -> Dataset:
    return finish(*digits(r.spec["size"]), r)


@generator("sklearn.load_digits")
def small_digits(r: Request) -> Dataset:
    x, y = digits(8)
    x = x.flatten(1)
    scaling = r.spec.get("scaling", "/16")
    if scaling.startswith("standardise"):
        x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    elif scaling != "/16":
        raise UnbuildableError(f"unknown scaling {scaling!r}")
    if r.target == "reconstruction":
        return Dataset(x, x, "values")
    return Dataset(x, y, "labels")
