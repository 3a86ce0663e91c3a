"""An activation with scales and shifts around it."""

from __future__ import annotations

from torch import Tensor, nn


class Shaped(nn.Module):
    """gamma · (phi(alpha · x + beta) + delta), with fixed constants.

    References:
        J. Martens et al., "Rapid training of deep neural networks without skip
        connections or normalization layers using Deep Kernel Shaping", 2021.
    """

    def __init__(
        self,
        inner: nn.Module,
        *,
        alpha: float = 1.0,
        beta: float = 0.0,
        gamma: float = 1.0,
        delta: float = 0.0,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.alpha, self.beta, self.gamma, self.delta = alpha, beta, gamma, delta

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        if self.alpha != 1.0 or self.beta != 0.0:
            x = self.alpha * x + self.beta
        y: Tensor = self.inner(x)
        if self.delta != 0.0:
            y = y + self.delta
        return self.gamma * y

    def extra_repr(self) -> str:
        """The constants, for print(model)."""
        return f"alpha={self.alpha:.4g}, beta={self.beta:.4g}, gamma={self.gamma:.4g}, delta={self.delta:.4g}"
